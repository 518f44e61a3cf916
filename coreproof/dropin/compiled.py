"""Compiled models (``.mlmodelc``) of the drop-in: folders that hold the specification and its weights.

Only the folder's name and that it stands on its own are Core ML's: what Apple's compiler writes
into it is its own affair, and a Mac cannot read ours.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from coreproof.package.layout import safe_join
from coreproof.package.reader import open_package

SUFFIX = ".mlmodelc"
_SPEC = "model.mlmodel"


def is_compiled(path: str) -> bool:
    """Whether ``path`` names a compiled model."""
    return path.rstrip("/").endswith(SUFFIX)


def spec_of(path: str) -> Path:
    """What to open for ``path``: the specification inside a compiled model made here, else itself."""
    spec = Path(path, _SPEC)
    return spec if is_compiled(path) and spec.is_file() else Path(path)


def compile_package(path: Path) -> Path:
    """A compiled model of the package or specification ``path``, in a temporary folder that is the
    caller's to delete. Raises PackageError for what is not a whole ML program."""
    package = open_package(path)
    package.check()
    folder = new_folder(package.spec.SerializeToString())
    for name in package.weight_files():
        target = safe_join(folder, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(package.weights.folder / name, target)
    return folder


def from_memory(spec: bytes, blobs: Mapping[str, bytes]) -> Path:
    """A compiled model of the specification ``spec`` and weight files by their path beside it
    (``weights/weight.bin``). Raises PackageError for a path that leaves the folder."""
    folder = new_folder(spec)
    for name, data in blobs.items():
        target = safe_join(folder, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return folder


def new_folder(spec: bytes) -> Path:
    """A temporary compiled model that holds ``spec`` and no weights yet."""
    folder = Path(tempfile.mkdtemp(prefix="coreproof_", suffix=SUFFIX))
    (folder / _SPEC).write_bytes(spec)
    return folder
