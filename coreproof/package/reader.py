"""Open an ``.mlpackage`` folder, or a bare ML-program spec, and check it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coreproof.errors import PackageError
from coreproof.files import is_directory
from coreproof.mil.from_proto import read_program
from coreproof.mil.program import Blob, Program
from coreproof.mil.types import TensorType
from coreproof.package.blob import BlobEntry, WeightFile
from coreproof.package.layout import list_files, read_layout, safe_join
from coreproof.package.manifest import WeightRecord
from coreproof.package.proto import read_spec

_MODEL_PATH = "@model_path/"


def open_package(path: Path) -> Package:
    """Open the ``.mlpackage`` folder ``path``, or the bare spec file ``path`` (``.mlmodel``) of an
    ML program.

    Reads the manifest and the spec; program and weights are read when asked for, and
    :meth:`Package.check` checks every weight. Raises PackageError for a path that is neither, a
    malformed package and a model that is not an ML program.
    """
    is_folder = is_directory(path)
    if path.suffix == ".mlmodelc":
        raise PackageError(
            f"{path}: compiled models cannot be read yet; open the .mlpackage it was made from"
        )
    if is_folder:
        spec_path = read_layout(path).spec
    elif path.suffix == ".mlmodel":
        spec_path = path
    else:
        raise PackageError(f"{path}: neither an .mlpackage folder nor an .mlmodel file")
    spec = read_spec(spec_path)
    kind = spec.WhichOneof("Type")
    if kind != "mlProgram":
        what = f"a {kind} model" if kind else "a file without a model"
        raise PackageError(f"{spec_path}: {what}, not an ML program")
    return Package(path, spec_path, spec)


class Weights:
    """The weight files of a program, opened when first needed. ``folder`` is what ``@model_path``
    stands for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, WeightFile] = {}

    def file(self, name: str) -> WeightFile:
        """The weight file that a program calls ``name`` (``@model_path/weights/weight.bin``).

        Raises PackageError for a name outside the model's folder and as :class:`WeightFile`.
        """
        if name not in self._files:
            self._files[name] = WeightFile(safe_join(self.folder, relative_name(name)))
        return self._files[name]

    def array(self, blob: Blob) -> NDArray[np.generic]:
        """The value of ``blob``, as :meth:`WeightFile.array` gives it. Raises PackageError."""
        return self.file(blob.file).array(blob.offset, _tensor_type(blob))

    def entry(self, blob: Blob) -> BlobEntry:
        """Where ``blob`` is stored, checked against its type without reading it. Raises PackageError."""
        return self.file(blob.file).typed_entry(blob.offset, _tensor_type(blob))

    def record(self, name: str, blob: Blob, keys: tuple[str, ...], transform: str) -> WeightRecord:
        """``blob`` as ``coreproof.json`` lists it; sha256 is that of its stored bytes."""
        file, entry, type_ = self.file(blob.file), self.entry(blob), _tensor_type(blob)
        digest = hashlib.sha256()
        for piece in file.chunks(entry):
            digest.update(piece)
        return WeightRecord(
            name=name,
            dtype=str(type_.dtype),
            shape=tuple(dim for dim in type_.shape or () if dim is not None),
            file=relative_name(blob.file),
            offset=blob.offset,
            size=entry.nbytes,
            sha256=digest.hexdigest(),
            keys=keys,
            transform=transform,
        )


class Package:
    """An opened package. ``spec`` is its ``Model`` protobuf message."""

    def __init__(self, path: Path, spec_path: Path, spec: Any) -> None:
        self.path = path
        self.spec = spec
        self.weights = Weights(spec_path.parent)
        self._spec_path = spec_path

    @cached_property
    def program(self) -> Program:
        """The program, read at first use. Raises PackageError when it is malformed."""
        try:
            return read_program(self.spec.mlProgram)
        except PackageError as error:
            raise PackageError(f"{self._spec_path}: {error}") from None

    def files(self) -> tuple[str, ...]:
        """Paths of all files, sorted, with ``/``: relative to the package folder, or for a bare
        spec to the folder it lies in (the spec and the weight files it refers to)."""
        if self.path.is_dir():
            return list_files(self.path)
        weights = {relative_name(blob.file) for _, blob in program_blobs(self.program)}
        return tuple(sorted({self._spec_path.name, *weights}))

    def check(self) -> None:
        """Check that every weight the program refers to is stored with its dtype and length.

        Reads entry headers only, in file order. Raises PackageError naming the op and argument.
        """
        for where, blob in sorted(program_blobs(self.program), key=lambda b: (b[1].file, b[1].offset)):
            try:
                self.weights.entry(blob)
            except PackageError as error:
                raise PackageError(f"{where}: {error}") from None


def program_blobs(program: Program) -> Iterator[tuple[str, Blob]]:
    """Every reference to a weight file, with a text saying where it is made."""
    for name, value in program.attributes.items():
        if isinstance(value, Blob):
            yield f"program attribute {name!r}", value
    for function in program.functions.values():
        for operation in function.block.walk():
            where = f"function {function.name!r}, op {operation.name!r} ({operation.type})"
            for name, blob in operation.blobs():
                yield f"{where}, argument {name!r}", blob


def relative_name(name: str) -> str:
    """``weights/weight.bin`` for ``@model_path/weights/weight.bin``. Raises PackageError otherwise."""
    if not name.startswith(_MODEL_PATH):
        raise PackageError(f"weight file {name!r}: the name must start with {_MODEL_PATH}")
    return name.removeprefix(_MODEL_PATH)


def _tensor_type(blob: Blob) -> TensorType:
    if not isinstance(blob.type, TensorType):
        raise PackageError(f"a value of type {blob.type} cannot be in a weight file")
    return blob.type
