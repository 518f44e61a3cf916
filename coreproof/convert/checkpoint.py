"""What a recipe's ``checkpoint.py`` hands to the rest: named tensors, and where each came from; and what
every one of them needs to read its files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from coreproof.errors import CheckpointError
from coreproof.files import sha256_of

_JSON_LIMIT = 64 << 20  # bytes; flan-t5-large's tokenizer.json has 2.4 MB


@dataclass(frozen=True, slots=True)
class FileDigest:
    """A file by its path inside its folder (posix separators), its size in bytes and sha256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Origin:
    """Which checkpoint keys made a tensor, and how: ``identity``, or a sentence a person can
    repeat with numpy, such as ``rows 0..127, plus row 0 of the second key, in float64``."""

    keys: tuple[str, ...]
    transform: str = "identity"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint after its recipe has read it.

    ``tensors`` holds arrays under the names of the torch modules' state dict, memory-mapped where
    the reader can; ``origins`` has one entry for each of them. ``files`` are the files that
    were read, in path order. ``unused`` names the keys knowingly left out, with the reason.
    ``seed`` is None unless ``coreproof synth`` made the checkpoint.
    """

    files: Sequence[FileDigest]
    config: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]
    origins: Mapping[str, Origin]
    unused: Mapping[str, str] = field(default_factory=dict)
    published: bool = False
    seed: int | None = None

    @property
    def kind(self) -> str:
        """``published`` (every sha256 is a pinned one), ``synthetic`` or ``other``."""
        if self.published:
            return "published"
        return "other" if self.seed is None else "synthetic"


def digest(file: Path) -> FileDigest:
    """Name, size and sha256 of a file of the checkpoint."""
    return FileDigest(file.name, file.stat().st_size, sha256_of(file))


def json_object(path: Path) -> dict[str, Any]:
    """The JSON object in the file ``path``. Raises CheckpointError."""
    if path.stat().st_size > _JSON_LIMIT:
        raise CheckpointError(f"{path}: {path.stat().st_size} bytes; expected at most {_JSON_LIMIT}")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def some(items: Iterable[str], shown: int = 3) -> str:
    """The first few of ``items`` in order, and how many more there are."""
    ordered = sorted(items)
    rest = len(ordered) - shown
    return ", ".join(ordered[:shown]) + (f" and {rest} more" if rest > 0 else "")
