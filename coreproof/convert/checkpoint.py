"""What a recipe's ``checkpoint.py`` hands to the rest: named tensors, and where each came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


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

    files: tuple[FileDigest, ...]
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
