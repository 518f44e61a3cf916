"""Checkpoints that ``coreproof synth`` makes: the note that says so, and numbers to fill them with."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from pathlib import Path

import numpy as np

from coreproof.convert.checkpoint import json_object
from coreproof.errors import CheckpointError, UsageError

NOTE = "synth.json"
_SCHEMA = "coreproof.synth/1"


def check_request(size: str, sizes: Collection[str], seed: int) -> None:
    """Raise UsageError for a size that a model does not have, or a negative seed."""
    if size not in sizes:
        raise UsageError(f"size {size!r} does not exist; choose {', '.join(sizes)}")
    if seed < 0:
        raise UsageError(f"seed {seed} is negative; choose 0 or more")


def write_note(folder: Path, model: str, size: str, seed: int) -> None:
    """Say in ``folder`` how the checkpoint in it was made."""
    write_json(folder / NOTE, {"schema": _SCHEMA, "model": model, "size": size, "seed": seed})


def read_seed(folder: Path, model: str) -> int | None:
    """The seed of the note in ``folder``, None where there is none.

    Raises CheckpointError for a note of another kind or model.
    """
    path = folder / NOTE
    if not path.is_file():
        return None
    note = json_object(path)
    seed = note.get("seed")
    if note.get("schema") != _SCHEMA or note.get("model") != model or type(seed) is not int:
        raise CheckpointError(f"{path}: expected schema {_SCHEMA!r}, model {model!r} and an integer seed")
    return seed


def write_json(path: Path, content: object) -> None:
    """Write ``content`` as JSON, the same bytes anywhere."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8", newline="\n")


def bell(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Bell-shaped float64 numbers of deviation 1: sums of four uniform 16-bit integers, centred. They need
    no function that processors round differently."""
    count = math.prod(shape)
    total = generator.integers(0, 1 << 16, size=(4, count), dtype=np.uint16).sum(axis=0, dtype=np.int32)
    values: np.ndarray = (total - 2 * ((1 << 16) - 1)) * (1 / (math.sqrt(4 / 12) * (1 << 16)))
    return values.reshape(shape)
