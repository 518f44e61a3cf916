"""Write a package so that equal models have equal bytes.

What varies from one conversion to the next without meaning anything is removed: the conversion
date, random identifiers, the order of maps, the order and repetition of weights, and the local
suffix of versions (``2.13.0+cpu``), which tells how a tool was built and not which it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from google.protobuf.message import Message  # type: ignore[import-untyped]

from coreproof.atomic import atomic_directory, require_space
from coreproof.errors import PackageError
from coreproof.mil.from_proto import read_type
from coreproof.mil.types import TensorType
from coreproof.package.blob import BlobEntry, BlobWriter, Source
from coreproof.package.layout import (
    DATA,
    MANIFEST,
    SPEC_PATH,
    WEIGHT_FILE,
    WEIGHTS_PATH,
    canonical_manifest,
)
from coreproof.package.proto import new_model

_OWN_METADATA = "com.github.apple.coremltools."
_LOCAL_SUFFIX = re.compile(r"((?:^|==)\d[^+\s]*)\+[0-9A-Za-z.\-_]+")


class Weights(Protocol):
    """What resolves the weight files that a program names."""

    def file(self, name: str) -> Source:
        """The weight file that the program calls ``name``."""


def write_canonical(spec: Any, weights: Weights, destination: Path) -> None:
    """Write the ML program ``spec`` as the package folder ``destination``, in its one canonical form.

    ``spec``: a ``Model`` message, left as it is. ``weights`` resolves the weights it refers to. They
    are stored in one file in the order the program first uses them (functions by name), equal ones
    once; a program without any has no weights folder, because an empty one would not survive
    publishing. Writing a canonical package again gives the same bytes. The folder appears whole or
    not at all and replaces an earlier package there.

    Raises PackageError for weights that do not fit the spec, CoreproofError when the disk is too
    small or ``destination`` is something else than a package.
    """
    model = new_model()
    model.CopyFrom(spec)
    _normalise(model)
    stored, references = _collect(model, weights)
    require_space(destination, sum(s.entry.nbytes + 128 for s in stored) + model.ByteSize() + 4096)
    with atomic_directory(destination, replace=lambda old: (old / MANIFEST).is_file()) as folder:
        (folder / DATA / SPEC_PATH).parent.mkdir(parents=True)
        if stored:
            offsets = _write_weights(stored, folder / DATA / WEIGHTS_PATH)
            for value, index in references:
                value.blobFileValue.fileName = WEIGHT_FILE
                value.blobFileValue.offset = offsets[index]
        (folder / DATA / SPEC_PATH).write_bytes(model.SerializeToString(deterministic=True))
        (folder / MANIFEST).write_bytes(canonical_manifest(weights=bool(stored)))


def _write_weights(stored: list[_Stored], folder: Path) -> list[int]:
    """Write the weight file into the new ``folder``; the offsets of its entries."""
    folder.mkdir()
    with BlobWriter(folder / "weight.bin") as writer:
        return [writer.copy(s.source, s.entry) for s in stored]


class _Stored:
    """An entry to write, known from others by what it holds."""

    def __init__(self, source: Source, entry: BlobEntry) -> None:
        self.source, self.entry = source, entry
        self.kind = (entry.dtype, entry.nbytes, entry.padding_bits, source.head(entry))

    @cached_property
    def digest(self) -> bytes:
        return self.source.digest(self.entry)


def _collect(model: Any, weights: Weights) -> tuple[list[_Stored], list[tuple[Any, int]]]:
    """The weights to store, in order, and for every value that refers to one, which it is."""
    stored: list[_Stored] = []
    by_place: dict[tuple[str, int], int] = {}
    by_kind: dict[tuple[object, ...], list[int]] = {}
    references = []
    for value in _blob_values(model.mlProgram):
        name, offset = value.blobFileValue.fileName, value.blobFileValue.offset
        type_ = read_type(value.type)
        if not isinstance(type_, TensorType):
            raise PackageError(f"a value of type {type_} cannot be in a weight file")
        source = weights.file(name)
        entry = source.typed_entry(offset, type_)
        if (name, offset) not in by_place:
            found = _Stored(source, entry)
            alike = by_kind.setdefault(found.kind, [])
            index = next((i for i in alike if stored[i].digest == found.digest), len(stored))
            if index == len(stored):
                stored.append(found)
                alike.append(index)
            by_place[name, offset] = index
        references.append((value, by_place[name, offset]))
    return stored, references


def _blob_values(message: Any) -> Iterator[Any]:
    """Every ``Value`` below ``message`` that is stored in a weight file, wherever it is: in the order
    of fields, maps by key."""
    if message.DESCRIPTOR.name == "Value" and message.WhichOneof("value") == "blobFileValue":
        yield message
        return
    for field, content in message.ListFields():
        if field.message_type is None:
            continue
        if isinstance(content, Message):
            yield from _blob_values(content)
        elif not field.message_type.GetOptions().map_entry:
            for item in content:
                yield from _blob_values(item)
        elif field.message_type.fields_by_name["value"].message_type is not None:
            for key in sorted(content):
                yield from _blob_values(content[key])


def _normalise(model: Any) -> None:
    """Remove what tells when and on which build of a tool a model was converted."""
    user = model.description.metadata.userDefined
    user.pop(f"{_OWN_METADATA}conversion_date", None)
    for key in sorted(user):
        if key.startswith(_OWN_METADATA):
            user[key] = _without_local_suffix(user[key])
    if "buildInfo" in model.mlProgram.attributes:
        for pair in model.mlProgram.attributes["buildInfo"].immediateValue.dictionary.values:
            if pair.value.immediateValue.tensor.WhichOneof("value") == "strings":
                texts = pair.value.immediateValue.tensor.strings.values
                texts[:] = [_without_local_suffix(text) for text in texts]


def _without_local_suffix(text: str) -> str:
    return _LOCAL_SUFFIX.sub(r"\1", text)
