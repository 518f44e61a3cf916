"""The values that MIL text writes: a type and, in brackets, what it holds.

See :mod:`coreproof.mil.from_text` for the grammar.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coreproof.mil.lexer import NAME, NUMBER, STRING, Lexer
from coreproof.mil.packing import pack
from coreproof.mil.program import Blob, Immediate, Value
from coreproof.mil.types import DictType, DType, ListType, TensorType, TupleType, ValueType

_WRITTEN = (DType.STRING, DType.UINT64)
_TRUTH = {b"true": 1, b"false": 0}
_NOT_FINITE = {b"inf", b"+inf", b"-inf", b"nan", b"+nan", b"-nan"}


def read_literal(lexer: Lexer, type_: ValueType, read_value: Callable[[], Value]) -> Value:
    """The value of ``type_`` whose bracketed text comes next: ``(...)``, or a place in a weight file.

    ``read_value`` reads a whole typed value, as the file's name and offset are. Raises PackageError
    with line and column.
    """
    lexer.expect(b"(")
    if lexer.kind == NAME and lexer.text == b"BLOBFILE":
        value: Value = _blob(lexer, type_, read_value)
    else:
        if isinstance(type_, TensorType) and type_.size is None:
            lexer.fail(f"an immediate value of the open shape {type_}")
        value = Immediate(type_, _data(lexer, type_))
    lexer.expect(b")")
    return value


def _blob(lexer: Lexer, type_: ValueType, read_value: Callable[[], Value]) -> Blob:
    # Path and offset are values too: were they to be had from a weight file, this would have no end.
    if not isinstance(type_, TensorType) or type_.size is None or type_.dtype in _WRITTEN:
        lexer.fail(f"a value of type {type_} cannot be in a weight file")
    lexer.advance()
    lexer.expect(b"(")
    lexer.word(b"path")
    lexer.expect(b"=")
    path = _scalar(lexer, read_value(), DType.STRING)
    lexer.expect(b",")
    lexer.word(b"offset")
    lexer.expect(b"=")
    offset = _scalar(lexer, read_value(), DType.UINT64)
    lexer.expect(b")")
    return Blob(type_, str(path), int(offset))


def _scalar(lexer: Lexer, value: Value, dtype: DType) -> Any:
    if not isinstance(value, Immediate) or value.type != TensorType(dtype):
        lexer.fail(f"the path and offset of a BLOBFILE are a string and a uint64, found a {value.type}")
    return value.data


def _data(lexer: Lexer, type_: ValueType) -> Any:
    """An :class:`Immediate`'s data of ``type_``."""
    if isinstance(type_, TensorType):
        return _tensor(lexer, type_)
    if isinstance(type_, ListType):
        items = lexer.listed(b"[", b"]", lambda: _data(lexer, type_.element))
        if type_.length not in (None, len(items)):
            lexer.fail(f"{len(items)} values for a {type_}")
        return tuple(items)
    if isinstance(type_, TupleType):
        return _entries(lexer, b"(", type_.elements, b")")
    if isinstance(type_, DictType):
        return tuple(lexer.listed(b"{", b"}", lambda: _entries(lexer, b"{", (type_.key, type_.value), b"}")))
    return lexer.fail(f"a value of type {type_} cannot be written in a program")


def _entries(lexer: Lexer, opening: bytes, types: Sequence[ValueType], closing: bytes) -> tuple[Any, ...]:
    """Values of ``types``, in that order, between two signs."""
    lexer.expect(opening)
    items = []
    for index, type_ in enumerate(types):
        if index:
            lexer.expect(b",")
        items.append(_data(lexer, type_))
    lexer.expect(closing)
    return tuple(items)


def _tensor(lexer: Lexer, type_: TensorType) -> Any:
    if type_.shape is None or (type_.size is None and type_.dtype.numpy_name is None):
        lexer.fail(f"an immediate value of the open shape {type_}")
    shape: list[int | None] = list(type_.shape)
    if type_.dtype is DType.STRING:
        texts: list[str] = []
        _rows(lexer, type_, shape, 0, lambda: texts.append(lexer.string()))
        return texts if type_.shape else texts[0]
    numbers = array("d" if type_.dtype.is_float else "Q" if type_.dtype is DType.UINT64 else "q")
    one: Callable[[Lexer, DType], Any] = _float if type_.dtype.is_float else _integer
    _rows(lexer, type_, shape, 0, lambda: numbers.append(one(lexer, type_.dtype)))
    return _stored(lexer, numbers, type_.dtype, [dim or 0 for dim in shape])


def _rows(
    lexer: Lexer, type_: TensorType, shape: list[int | None], depth: int, element: Callable[[], None]
) -> None:
    """Nested brackets of the type's shape around elements in C order; what was open in ``shape``
    becomes what is found."""
    if depth == len(shape):
        element()
        return
    lexer.expect(b"[")
    count = 0
    while not lexer.at(b"]"):
        if count == shape[depth] or (count and not lexer.skip(b",")):
            lexer.expected("']'")
        _rows(lexer, type_, shape, depth + 1, element)
        count += 1
    if shape[depth] is None:
        shape[depth] = count
    if count != shape[depth]:
        lexer.fail(f"{count} elements in dimension {depth} of a {type_}, expected {shape[depth]}")
    lexer.advance()


def _integer(lexer: Lexer, dtype: DType) -> int:
    if dtype is DType.BOOL:
        if lexer.kind != NAME or lexer.text not in _TRUTH:
            lexer.expected("'true' or 'false'")
        value = _TRUTH[lexer.text]
    else:
        if lexer.kind != NUMBER or not lexer.text.lstrip(b"+-").isdigit():
            lexer.expected(f"a whole number for a {dtype}")
        value = int(lexer.text)
        low, high = _limits(dtype)
        if not low <= value <= high:
            lexer.fail(f"{value} for a {dtype}, which holds {low} to {high}")
    lexer.advance()
    return value


def _limits(dtype: DType) -> tuple[int, int]:
    if dtype.value.startswith("u"):
        return 0, (1 << dtype.bits) - 1
    return -(1 << dtype.bits - 1), (1 << dtype.bits - 1) - 1


def _float(lexer: Lexer, dtype: DType) -> float:
    if lexer.kind == STRING or (lexer.kind != NUMBER and lexer.text not in _NOT_FINITE):
        lexer.expected(f"a number for a {dtype}")
    text = lexer.text.decode()
    try:
        value = float.fromhex(text) if "x" in text.lower() else float(text)
    except (ValueError, OverflowError):
        lexer.fail(f"{text} is no number that a {dtype} holds")
    if np.isinf(value) and lexer.text not in _NOT_FINITE:
        lexer.fail(f"{text} is too large for a {dtype}")
    lexer.advance()
    return value


def _stored(lexer: Lexer, numbers: array[Any], dtype: DType, shape: list[int]) -> NDArray[np.generic]:
    """``numbers`` as an immediate's array; those of types that numpy lacks as their stored bytes."""
    values: NDArray[np.generic] = np.frombuffer(numbers, numbers.typecode) if numbers else np.zeros(0)
    try:
        with np.errstate(over="raise", under="ignore", invalid="ignore"):
            if dtype.numpy_name is None:
                made: NDArray[np.generic] = pack(values, dtype)
            else:
                made = values.astype(dtype.numpy_name).reshape(shape)
    except (ValueError, FloatingPointError):
        lexer.fail(f"a number that a {dtype} cannot hold")
    made.setflags(write=False)
    return made
