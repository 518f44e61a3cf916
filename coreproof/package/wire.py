"""Decode protobuf's wire format: all that opening a model needs of protobuf.

The protobuf library and the thirty generated modules of coremltools take longer to import than a
model takes to read, and stay in memory. The messages are declared in :mod:`coreproof.package.schema`;
this is their encoding (protobuf.dev/programming-guides/encoding). Unknown fields are passed over; of
a field that occurs twice the last counts, or for messages both are merged. Two things that no writer
makes are refused: groups, and entries of maps that hold more than a key and a value.

Bytes are taken as hostile: lengths are held to the message around them before anything is made of
them, and of repeated strings and messages only the places are kept, which take no more than a few
times the bytes. They are decoded when they are asked for.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from struct import unpack_from
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from coreproof.errors import PackageError

MAX_DEPTH = 100  # messages within messages, as the protobuf library allows
MAX_ENTRIES = 1 << 16  # of one map: an op's arguments, a program's functions
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT = 10  # bytes

# Scalars: how they are encoded and the code of the array that holds many.
SCALARS = {
    "int64": (_VARINT, "q"), "uint64": (_VARINT, "Q"), "int32": (_VARINT, "i"), "bool": (_VARINT, "b"),
    "float": (_FIXED32, "f"), "double": (_FIXED64, "d"),
}  # fmt: skip
_SIZES = {_FIXED64: 8, _FIXED32: 4}
_KEY, _VALUE = 1 << 3 | _BYTES, 2 << 3 | _BYTES  # tags of a map's entry
_SMALL, _SHARED = 64, 1024  # bytes of a message that is shared, and how many are
_PIECE = 1 << 20  # bytes of packed numbers decoded together, each to some tens


@dataclass(frozen=True, slots=True)
class Field:
    """``kind``: a key of SCALARS, ``string``, ``bytes`` or a message class. ``rule``: empty, ``repeated``
    or ``map`` (by string). ``others``: the fields that are absent where this one is present."""

    name: str
    kind: Any
    rule: str
    others: tuple[str, ...]

    @property
    def wire(self) -> int:
        return SCALARS[self.kind][0] if self.kind in SCALARS else _BYTES


class Message:
    """A decoded message: an attribute a field. Those present are the instance's, the defaults of all
    others the class's."""

    fields: ClassVar[Mapping[int, Field]] = {}  # by tag: number and wire type
    packed: ClassVar[Mapping[int, Field]] = {}  # repeated numbers, by number
    groups: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    shared: ClassVar[bool] = False  # whether many are alike

    def WhichOneof(self, group: str) -> str | None:
        """Which field of ``group`` is present (named as protobuf's messages name it)."""
        for name in self.groups[group]:
            if name in self.__dict__:
                return name
        return None


class Repeated(Sequence[Any]):
    """The elements of a repeated string or message, decoded at each access."""

    def __init__(self, field: Field, data: bytes, depth: int) -> None:
        self._field, self._data, self._depth = field, data, depth
        self._spans = array("Q")

    def add(self, start: int, stop: int) -> None:
        self._spans.extend((start, stop))

    def __len__(self) -> int:
        return len(self._spans) // 2

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        place = 2 * range(len(self))[index]
        return _element(self._field, self._data, self._spans[place], self._spans[place + 1], self._depth)

    def __iter__(self) -> Iterator[Any]:
        spans = iter(self._spans)
        for start, stop in zip(spans, spans, strict=True):
            yield _element(self._field, self._data, start, stop, self._depth)


class Entries(Mapping[str, Any]):
    """The values of a map by their keys, decoded at each access."""

    def __init__(self, field: Field, data: bytes, depth: int) -> None:
        self._field, self._data, self._depth = field, data, depth
        self._spans: dict[str, tuple[int, int]] = {}

    def add(self, start: int, stop: int) -> None:
        """Take up the entry that the bytes from ``start`` to ``stop`` encode."""
        key, value = "", (stop, stop)
        while start < stop:
            tag = self._data[start]
            if tag not in (_KEY, _VALUE):
                raise PackageError(
                    f"byte {start}: an entry of {self._field.name} with a field of the tag {tag}"
                )
            begin, start = _bytes(self._data, start + 1, stop)
            if tag == _KEY:
                key = _text(self._data, begin, start)
            else:
                value = begin, start
        self._spans[key] = value
        if len(self._spans) > MAX_ENTRIES:
            raise PackageError(f"more than {MAX_ENTRIES} entries of {self._field.name}")

    def __len__(self) -> int:
        return len(self._spans)

    def __iter__(self) -> Iterator[str]:
        return iter(self._spans)

    def __getitem__(self, key: str) -> Any:
        return _element(self._field, self._data, *self._spans[key], self._depth)


def decode(kind: type[Message], data: bytes) -> Any:
    """The message of ``kind`` that ``data`` encodes.

    Raises PackageError for what protobuf does not allow: at once, or when the element that holds it is
    asked for.
    """
    return _decode(kind(), data, 0, len(data), 0)


def check(value: Any) -> None:
    """Decode all that ``value`` holds. Raises PackageError."""
    if isinstance(value, Message):
        value = value.__dict__
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, Repeated):
        return
    for element in value:
        check(element)


def _decode(message: Message, data: bytes, start: int, stop: int, depth: int) -> Message:
    if depth > MAX_DEPTH:
        raise PackageError(f"messages nested more than {MAX_DEPTH} deep")
    fields, values = message.fields, message.__dict__
    while start < stop:
        tag = data[start]
        start += 1
        if tag >= 0x80:
            tag, start = _varint(data, start - 1, stop)
        field = fields.get(tag)
        if field is None or tag & 7 != _BYTES:
            start = _scalar(message, field, tag, data, start, stop)
            continue
        if start < stop and data[start] < 0x80:  # _bytes, written out: half of all reading is here
            begin = start + 1
            start = begin + data[start]
            if start > stop:
                raise _short(begin, start, stop)
        else:
            begin, start = _bytes(data, start, stop)
        name, kind = field.name, field.kind
        if not field.rule:
            for other in field.others:
                values.pop(other, None)
            if kind == "string":
                values[name] = _text(data, begin, start)
            elif kind == "bytes":
                values[name] = data[begin:start]
            elif name in values:  # a copy, because messages may be shared
                values[name] = _decode(deepcopy(values[name]), data, begin, start, depth + 1)
            elif kind.shared and start - begin <= _SMALL:
                values[name] = _shared(kind, data[begin:start], depth + 1)
            else:
                values[name] = _decode(kind(), data, begin, start, depth + 1)
        elif name in values:
            values[name].add(begin, start)
        else:
            many = values[name] = (Repeated if field.rule == "repeated" else Entries)(field, data, depth + 1)
            many.add(begin, start)
    return message


@lru_cache(_SHARED)
def _shared(kind: type[Message], data: bytes, depth: int) -> Message:
    return _decode(kind(), data, 0, len(data), depth)


def _scalar(message: Message, field: Field | None, tag: int, data: bytes, start: int, stop: int) -> int:
    """Take up a number, packed numbers or a field that is not known, of the tag before ``start``; where
    the next field begins."""
    number, wire = tag >> 3, tag & 7
    if not number or tag >> 32:
        raise PackageError(f"byte {start}: a field with the number {number}")
    if wire == _VARINT:
        value, end = _varint(data, start, stop)
    elif wire == _BYTES:
        start, end = _bytes(data, start, stop)
    elif wire not in _SIZES:
        raise PackageError(f"byte {start}: a field of wire type {wire}")
    elif (end := start + _SIZES[wire]) > stop:
        raise _short(start, end, stop)
    if field:
        values, code = message.__dict__, SCALARS[field.kind][1]
        one = _integer(field.kind, value) if wire == _VARINT else unpack_from(f"<{code}", data, start)[0]
        if field.rule:
            values.setdefault(field.name, array(code)).append(one)
        else:
            for other in field.others:
                values.pop(other, None)
            values[field.name] = one
    elif wire == _BYTES and (many := message.packed.get(number)):
        numbers = _packed(many, data[start:end])
        message.__dict__.setdefault(many.name, array(SCALARS[many.kind][1])).extend(numbers)
    return end


def _element(field: Field, data: bytes, start: int, stop: int, depth: int) -> Any:
    if field.kind == "string":
        return _text(data, start, stop)
    return _decode(field.kind(), data, start, stop, depth)


def _bytes(data: bytes, start: int, stop: int) -> tuple[int, int]:
    """Where the bytes begin and end whose length is at ``start``."""
    if start < stop and data[start] < 0x80:
        length = data[start]
        start += 1
    else:
        length, start = _varint(data, start, stop)
    if length > stop - start:
        raise _short(start, start + length, stop)
    return start, start + length


def _short(start: int, end: int, stop: int) -> PackageError:
    return PackageError(f"byte {start}: {end - start} bytes where {stop - start} are left")


def _varint(data: bytes, start: int, stop: int) -> tuple[int, int]:
    """The number at ``start``, modulo 2**64, and where it ends."""
    number = shift = 0
    for byte in data[start : min(stop, start + _LONGEST_VARINT)]:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number & 0xFFFFFFFFFFFFFFFF, start + shift // 7
    raise PackageError(f"byte {start}: a number without an end")


def _integer(kind: str, number: int) -> int | bool:
    if kind == "bool":
        return number != 0
    bits = 32 if kind == "int32" else 64
    number &= (1 << bits) - 1
    return number - (1 << bits) if kind != "uint64" and number >> bits - 1 else number


def _packed(field: Field, data: bytes) -> array[Any]:
    """The numbers that are written one after another in ``data``."""
    numbers: array[Any] = array(SCALARS[field.kind][1])
    if field.wire != _VARINT:
        if len(data) % numbers.itemsize:
            raise PackageError(f"{len(data)} bytes of {field.kind} values")
        numbers.frombytes(data)
        return numbers
    stored = np.frombuffer(data, np.uint8)
    while len(stored):
        ends = np.flatnonzero(stored[:_PIECE] < 0x80)
        if not len(ends):
            raise PackageError("packed numbers without an end")
        found = _varints(stored[: ends[-1] + 1], ends)
        numbers.frombytes((found != 0 if field.kind == "bool" else found.astype(numbers.typecode)).tobytes())
        stored = stored[ends[-1] + 1 :]
    return numbers


def _varints(stored: NDArray[np.uint8], ends: NDArray[np.intp]) -> NDArray[np.uint64]:
    """The numbers whose last bytes are at ``ends``, modulo 2**64."""
    if len(ends) == len(stored):
        return stored.astype(np.uint64)
    starts = np.concatenate(([0], ends[:-1] + 1))
    places = np.arange(len(stored)) - np.repeat(starts, ends - starts + 1)
    if places.max() >= _LONGEST_VARINT:
        raise PackageError(f"a packed number of more than {_LONGEST_VARINT} bytes")
    return np.bitwise_or.reduceat(
        (stored & np.uint8(0x7F)).astype(np.uint64) << (7 * places).astype(np.uint64), starts
    )


def _text(data: bytes, start: int, stop: int) -> str:
    try:
        return data[start:stop].decode()
    except UnicodeDecodeError:
        raise PackageError(f"byte {start}: a text that is not UTF-8") from None
