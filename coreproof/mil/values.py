"""Constants of two programs, compared by value wherever they are stored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coreproof.mil.identity import same_value
from coreproof.mil.packing import unpack
from coreproof.mil.program import Blob, Immediate, Value
from coreproof.mil.types import DType, TensorType

Read = Callable[[Blob], NDArray[np.generic]]

_CHUNK = 1 << 20  # elements compared at a time; a multiple of 8, so that packed ones start at a byte
_SHOWN = 8  # elements of a small constant that are written out
_LONGEST = 60  # characters


@dataclass(frozen=True, slots=True)
class Change:
    """How one constant differs from another.

    ``what``: in words. ``differing`` of ``elements`` are not equal; ``max_abs`` is the largest absolute
    difference, NaN where one side alone is NaN. All three are None where elements cannot be compared.
    """

    what: str
    elements: int | None = None
    differing: int | None = None
    max_abs: float | None = None


class Values:
    """Reads and compares the constants of two programs. ``first`` and ``second`` give the array of a
    weight; what was read once is remembered by its digest."""

    def __init__(self, first: Read, second: Read) -> None:
        self._read = (first, second)
        self._digests: dict[tuple[int, str, int], bytes] = {}

    def alike(self, first: Value, second: Value) -> bool:
        """Whether two constants have one type and the same stored bits."""
        return first.type == second.type and self._digest(0, first) == self._digest(1, second)

    def compare(self, first: Value, second: Value) -> Change | None:
        """How ``second`` differs from ``first``; None when they are equal.

        NaN equals NaN whatever its bits, because MIL text does not keep them; zeros of different
        sign differ by 0. Raises PackageError for a weight that cannot be read.
        """
        if self.alike(first, second):
            return None
        one, other = self._elements(0, first), self._elements(1, second)
        if one is None or other is None:
            if isinstance(first, Immediate) and isinstance(second, Immediate) and same_value(first, second):
                return None
            return Change(f"{_shown(first)}, {_shown(second)}")
        assert isinstance(first.type, TensorType) and isinstance(second.type, TensorType)
        retyped = f"{first.type}, {second.type}" if first.type != second.type else ""
        if first.type.shape != second.type.shape:
            return Change(retyped)
        differing, largest = _distance(one, other)
        if not differing and not retyped:
            return None
        small = _written(one, other) if one.size <= _SHOWN and not retyped else ""
        return Change(retyped or small, one.size, differing, largest)

    def _digest(self, side: int, value: Value) -> bytes:
        if isinstance(value, Immediate):
            data = value.data.tobytes() if isinstance(value.data, np.ndarray) else repr(value.data).encode()
            return hashlib.blake2b(data).digest()
        key = (side, value.file, value.offset)
        if key not in self._digests:
            stored = np.ascontiguousarray(self._read[side](value)).reshape(-1)
            self._digests[key] = hashlib.blake2b(stored.view(np.uint8).data).digest()
        return self._digests[key]

    def _elements(self, side: int, value: Value) -> _Elements | None:
        """The flat elements of a tensor of numbers; None for any other constant."""
        if not isinstance(value.type, TensorType) or value.type.dtype is DType.STRING:
            return None
        data = self._read[side](value) if isinstance(value, Blob) else value.data
        return _Elements(value.type, np.ascontiguousarray(data).reshape(-1))


@dataclass(frozen=True, slots=True)
class _Elements:
    type: TensorType
    stored: NDArray[Any]

    @property
    def size(self) -> int:
        return self.type.size or 0

    def part(self, start: int, stop: int) -> NDArray[Any]:
        """Elements ``start`` to ``stop``, unpacked; ``start`` is a multiple of 8."""
        dtype = self.type.dtype
        if dtype.numpy_name is not None:
            return self.stored[start:stop]
        last = (stop * dtype.bits + 7) // 8
        return unpack(self.stored[start * dtype.bits // 8 : last], dtype, stop - start)


def _distance(one: _Elements, other: _Elements) -> tuple[int, float]:
    """How many elements differ, and by how much at most."""
    differing, largest = 0, 0.0
    for start in range(0, one.size, _CHUNK):
        stop = min(start + _CHUNK, one.size)
        a, b = one.part(start, stop), other.part(start, stop)
        wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
        with np.errstate(invalid="ignore"):
            both_nan = np.isnan(wide_a) & np.isnan(wide_b)
            unequal = ((a != b) | (np.signbit(wide_a) != np.signbit(wide_b))) & ~both_nan
            distances = np.abs(wide_a - wide_b)[unequal]
        differing += int(unequal.sum())
        largest = float(np.max(distances, initial=largest))
    return differing, largest


def _written(one: _Elements, other: _Elements) -> str:
    def text(elements: _Elements) -> str:
        values = elements.part(0, elements.size).tolist()
        return str(values if elements.type.shape else values[0])

    return f"{text(one)}, {text(other)}"


def _shown(value: Value) -> str:
    text = repr(value.data) if isinstance(value, Immediate) else str(value.type)
    return text if len(text) <= _LONGEST else f"a {value.type}"
