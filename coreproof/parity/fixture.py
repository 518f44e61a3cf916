"""Expected tensors on disk, tied to the checkpoint they were computed from.

A fixture is a folder named after the first 12 digits of the checkpoint's sha256:

    reference.npz   every array of the reference, inputs included
    fixture.json    {"schema": "coreproof.fixture/1", "model", "checkpoint_sha256", "command",
                     "provenance": {...}, "arrays": {name: {"dtype", "shape", "sha256"}}}

An array's sha256 is that of its little-endian bytes in C order, so it does not depend on how the
archive was compressed. ``provenance`` names the official implementation with versions and config.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coreproof.arrays import read_npz
from coreproof.atomic import atomic_directory
from coreproof.errors import FixtureError, InputError
from coreproof.jsonio import canonical, read_json
from coreproof.parity.suite import Arrays, Reference

SCHEMA = "coreproof.fixture/1"


@dataclass(frozen=True, slots=True)
class Fixture:
    """A loaded fixture. ``sha256`` is that of ``fixture.json``, which covers every array."""

    model: str
    checkpoint_sha256: str
    arrays: Arrays
    provenance: Mapping[str, object]
    sha256: str


def save(reference: Reference, model: str, checkpoint_sha256: str, parent: Path) -> Path:
    """Write ``reference`` into its folder under ``parent`` and return that folder."""
    folder = parent / checkpoint_sha256[:12]
    arrays = {name: _little(array) for name, array in sorted(reference.arrays.items())}
    record = {
        "schema": SCHEMA,
        "model": model,
        "checkpoint_sha256": checkpoint_sha256,
        "command": f"coreproof reference {model} --checkpoint CHECKPOINT -o DIR",
        "provenance": dict(reference.provenance),
        "arrays": {
            n: {"dtype": str(a.dtype), "shape": list(a.shape), "sha256": _sha256(a)}
            for n, a in arrays.items()
        },
    }
    with atomic_directory(folder, replace=lambda old: (old / "fixture.json").is_file()) as temporary:
        np.savez_compressed(temporary / "reference.npz", allow_pickle=False, **arrays)
        (temporary / "fixture.json").write_bytes(canonical(record))
    return folder


def load(folder: Path, model: str, checkpoint_sha256: str) -> Fixture:
    """Read a fixture and check that it is ``model``'s, belongs to the checkpoint, and that every
    array has its recorded dtype, shape and sha256. Raises FixtureError."""
    path = folder / "fixture.json"
    if not path.is_file():
        raise FixtureError(f"{folder} holds no fixture.json")
    record = read_json(path, max_bytes=16 << 20)
    if (
        not isinstance(record, dict)
        or record.get("schema") != SCHEMA
        or not isinstance(record.get("arrays"), dict)
    ):
        raise FixtureError(f"{path}: not a {SCHEMA} file")
    for key, wanted in (("model", model), ("checkpoint_sha256", checkpoint_sha256)):
        if record.get(key) != wanted:
            raise FixtureError(
                f"{path}: made for {key.replace('_', ' ')} {record.get(key)}, the build under test is of {wanted}; "
                f"make its own with coreproof reference {model} --checkpoint CHECKPOINT"
            )
    arrays = _arrays(folder / "reference.npz")
    if sorted(arrays) != sorted(record["arrays"]):
        raise FixtureError(f"{folder}: reference.npz and fixture.json name different arrays")
    for name, array in arrays.items():
        found = {"dtype": str(array.dtype), "shape": list(array.shape), "sha256": _sha256(array)}
        if found != record["arrays"][name]:
            raise FixtureError(f"{folder}: array {name!r} is not the one recorded in fixture.json")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Fixture(model, checkpoint_sha256, arrays, record.get("provenance", {}), digest)


def find(folders: Iterable[Path], model: str, checkpoint_sha256: str) -> Fixture | None:
    """The fixture of this checkpoint in the first of ``folders`` that has one, else None."""
    for parent in folders:
        folder = parent / checkpoint_sha256[:12]
        if folder.is_dir():
            return load(folder, model, checkpoint_sha256)
    return None


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        return read_npz(path)
    except InputError as error:
        raise FixtureError(f"{path}: unreadable ({error}); make the fixture again") from None


def _little(array: np.ndarray) -> np.ndarray:
    contiguous = np.ascontiguousarray(array).reshape(array.shape)
    return contiguous.astype(contiguous.dtype.newbyteorder("<"), copy=False)


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(_little(array).tobytes()).hexdigest()
