"""Open an ML program in any form: an ``.mlpackage``, a compiled ``.mlmodelc``, a bare spec; and check it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coreproof.errors import PackageError
from coreproof.files import is_directory, read_bytes
from coreproof.mil.from_proto import read_program
from coreproof.mil.program import Blob, Program
from coreproof.mil.types import TensorType
from coreproof.mil.weights import references
from coreproof.package.blob import BlobEntry, WeightFile
from coreproof.package.compiled import COMPILED, MIL_TEXT, read_description, require_program
from coreproof.package.layout import list_files, read_layout, safe_join
from coreproof.package.proto import MAX_SPEC_BYTES, read_spec
from coreproof.package.schema import MODEL
from coreproof.package.wire import check, decode

if TYPE_CHECKING:
    from coreproof.package.manifest import WeightRecord

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
        return CompiledPackage(path, safe_join(path, MIL_TEXT), read_description(path))
    if is_folder:
        spec = read_layout(path).spec
    elif path.suffix == ".mlmodel":
        spec = path
    else:
        raise PackageError(f"{path}: neither an .mlpackage or {COMPILED} folder nor an .mlmodel file")
    head = _read_head(spec)
    require_program(spec, head.WhichOneof("Type"))
    return Package(path, spec, head)


def _read_head(path: Path) -> Any:
    data = read_bytes(path, MAX_SPEC_BYTES)
    try:
        head = decode(MODEL, data)
        check(head.description)
    except PackageError as error:
        raise PackageError(
            f"{path}: not a Core ML model, or a truncated one ({len(data)} bytes): {error}"
        ) from None
    return head


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
        from coreproof.package.manifest import WeightRecord  # of use to exporters only

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

    ``description`` has the fields of a ``ModelDescription`` message, ``specification_version`` is the
    number that its writer gave. ``program_path`` is the file that the program is read from, and the
    folder it lies in is what ``@model_path`` stands for. ``head`` has the fields of a ``Model`` message.
    """

    def __init__(self, path: Path, program_path: Path, head: Any) -> None:
        self.path = path
        self.description = head.description
        self.specification_version: int = head.specificationVersion
        self.weights = Weights(program_path.parent)
        self._program_path = program_path
        self._head = head

    @cached_property
    def program(self) -> Program:
        """The program, read at first use. Raises PackageError when it is malformed."""
        try:
            return read_program(self._head.mlProgram)
        except PackageError as error:
            raise PackageError(f"{self._program_path}: {error}") from None

    @cached_property
    def spec(self) -> Any:
        """The whole ``Model`` protobuf message. Raises PackageError when the library cannot read it."""
        return read_spec(self._program_path)

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


class CompiledPackage(Package):
    """An opened ``.mlmodelc``; ``head`` is a ``Model`` protobuf message without the program."""

    @cached_property
    def program(self) -> Program:
        """The program, read from its text at first use. Raises PackageError when it is malformed."""
        from coreproof.mil.from_text import read_text

        return read_text(self._program_path)

    @cached_property
    def spec(self) -> Any:
        """A ``Model`` protobuf message, its program written from the text. Raises PackageError."""
        from coreproof.mil.to_proto import write_program

        self._head.mlProgram.CopyFrom(write_program(self.program))
        return self._head


def relative_name(name: str) -> str:
    """``weights/weight.bin`` for ``@model_path/weights/weight.bin``. Raises PackageError otherwise."""
    if not name.startswith(_MODEL_PATH):
        raise PackageError(f"weight file {name!r}: the name must start with {_MODEL_PATH}")
    return name.removeprefix(_MODEL_PATH)


def _tensor_type(blob: Blob) -> TensorType:
    if not isinstance(blob.type, TensorType):
        raise PackageError(f"a value of type {blob.type} cannot be in a weight file")
    return blob.type
