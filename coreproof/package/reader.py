"""Open an ML program in any form: an ``.mlpackage``, a compiled ``.mlmodelc``, a bare spec; and check it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coreproof.errors import PackageError
from coreproof.files import is_directory
from coreproof.mil.from_proto import read_program
from coreproof.mil.from_text import read_text
from coreproof.mil.program import Blob, Program
from coreproof.mil.to_proto import write_program
from coreproof.mil.types import TensorType
from coreproof.mil.weights import references
from coreproof.package.blob import BlobEntry, WeightFile
from coreproof.package.compiled import COMPILED, MIL_TEXT, read_description, require_program
from coreproof.package.layout import list_files, read_layout, safe_join
from coreproof.package.manifest import WeightRecord
from coreproof.package.proto import read_spec

_MODEL_PATH = "@model_path/"


def open_package(path: Path) -> Package:
    """Open the ML program at ``path``: an ``.mlpackage`` folder, a compiled ``.mlmodelc`` folder or a
    bare spec file (``.mlmodel``).

    Reads what describes the model; program and weights are read when asked for, and
    :meth:`Package.check` checks every weight. Raises PackageError for a path that is none of them, a
    malformed package and a model that is not an ML program.
    """
    is_folder = is_directory(path)
    if is_folder and path.suffix == COMPILED:
        text = safe_join(path, MIL_TEXT)
        return Package(path, text, read_description(path), lambda: read_text(text))
    if is_folder:
        spec_path = read_layout(path).spec
    elif path.suffix == ".mlmodel":
        spec_path = path
    else:
        raise PackageError(f"{path}: neither an .mlpackage or {COMPILED} folder nor an .mlmodel file")
    spec = read_spec(spec_path)
    require_program(spec_path, spec.WhichOneof("Type"))
    return Package(path, spec_path, spec, lambda: _program(spec_path, spec))


def _program(path: Path, spec: Any) -> Program:
    try:
        return read_program(spec.mlProgram)
    except PackageError as error:
        raise PackageError(f"{path}: {error}") from None


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

    def release(self, blob: Blob) -> None:
        """Give back the memory of ``blob``, as :meth:`WeightFile.release` does. Raises PackageError."""
        self.file(blob.file).release(blob.offset, _tensor_type(blob))

    def entry(self, blob: Blob) -> BlobEntry:
        """Where ``blob`` is stored, checked against its type without reading it. Raises PackageError."""
        return self.file(blob.file).typed_entry(blob.offset, _tensor_type(blob))

    def record(self, name: str, blob: Blob, keys: tuple[str, ...], transform: str) -> WeightRecord:
        """``blob`` as ``coreproof.json`` lists it; sha256 is that of its stored bytes."""
        file, entry, type_ = self.file(blob.file), self.entry(blob), _tensor_type(blob)
        return WeightRecord(
            name=name,
            dtype=str(type_.dtype),
            shape=tuple(dim for dim in type_.shape or () if dim is not None),
            file=relative_name(blob.file),
            offset=blob.offset,
            size=entry.nbytes,
            sha256=file.digest(entry).hex(),
            keys=keys,
            transform=transform,
        )


class Package:
    """An opened model.

    ``description`` is its ``ModelDescription`` message, ``specification_version`` the number that
    its writer gave. ``program_path`` is the file that ``read`` makes the program from, and the
    folder it lies in is what ``@model_path`` stands for. ``head`` is its ``Model`` message, which
    for a compiled model lacks the program.
    """

    def __init__(self, path: Path, program_path: Path, head: Any, read: Callable[[], Program]) -> None:
        self.path = path
        self.description = head.description
        self.specification_version: int = head.specificationVersion
        self.weights = Weights(program_path.parent)
        self._program_path = program_path
        self._head = head
        self._read = read

    @cached_property
    def program(self) -> Program:
        """The program, read at first use. Raises PackageError when it is malformed."""
        return self._read()

    @cached_property
    def spec(self) -> Any:
        """The ``Model`` protobuf message; of a compiled model, one written from its text."""
        if not self._head.HasField("mlProgram"):
            self._head.mlProgram.CopyFrom(write_program(self.program))
        return self._head

    def files(self) -> tuple[str, ...]:
        """Paths of all files, sorted, with ``/``: relative to the package folder, or for a bare
        spec to the folder it lies in (the spec and the weight files it refers to)."""
        if self.path.is_dir():
            return list_files(self.path)
        return tuple(sorted({self._program_path.name, *self.weight_files()}))

    def weight_files(self) -> tuple[str, ...]:
        """The weight files the program refers to, sorted, relative to the folder of its spec."""
        return tuple(sorted({relative_name(r.blob.file) for r in references(self.program)}))

    def check(self) -> None:
        """Check that every weight the program refers to is stored with its dtype and length.

        Reads entry headers only, in file order. Raises PackageError naming the op and argument.
        """
        for reference in sorted(references(self.program), key=lambda r: (r.blob.file, r.blob.offset)):
            try:
                self.weights.entry(reference.blob)
            except PackageError as error:
                raise PackageError(f"{reference.where}: {error}") from None


def relative_name(name: str) -> str:
    """``weights/weight.bin`` for ``@model_path/weights/weight.bin``. Raises PackageError otherwise."""
    if not name.startswith(_MODEL_PATH):
        raise PackageError(f"weight file {name!r}: the name must start with {_MODEL_PATH}")
    return name.removeprefix(_MODEL_PATH)


def _tensor_type(blob: Blob) -> TensorType:
    if not isinstance(blob.type, TensorType):
        raise PackageError(f"a value of type {blob.type} cannot be in a weight file")
    return blob.type
