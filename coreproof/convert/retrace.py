"""What a checkpoint gives by a transform of ``coreproof.json``, made again and compared with a stored weight.

The transforms are those that :mod:`coreproof.convert.origins` writes: the words of a tensor's own
origin, then any of ``transposed [...]``, a rounding, and what compression made of the result. Computed
by numpy in pieces of a mebielement; a compressed weight is held whole, one at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.compression import Palette, Steps, compressed, read
from coreproof.convert.large import pieces, release
from coreproof.convert.origins import NEAREST, NEAREST_NONZERO, nearest_nonzero
from coreproof.errors import ConversionError
from coreproof.mil.program import Blob, Operation
from coreproof.mil.types import DType, TensorType
from coreproof.package.reader import Package

_PIECE = 1 << 20  # elements
_TRANSPOSED = re.compile(r"transposed \[(\d+(?:, \d+)*)\]")
_ZEROS = ("zero_point", "offset")  # parts of a compressed constant that symmetric ones hold zeros in

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A stored weight and what the checkpoint gives for it. ``keys``: those whose tensors give it.
    ``differing`` elements, ``max_abs`` apart at most, where none does; both None for a compressed one."""

    keys: frozenset[str]
    differing: int | None = 0
    max_abs: float | None = None


class Retrace:
    """Compares stored weights with the tensors of ``checkpoint``."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._last: tuple[object, bool] = ((), False)

    def compare(
        self, package: Package, blob: Blob, keys: Collection[str], transform: str
    ) -> Comparison | None:
        """``blob`` of ``package`` against the tensors under ``keys`` after ``transform``; None when the
        checkpoint has no such tensors, or the transform is none that is known. Raises PackageError."""
        reference = compressed(package.program).get((blob.file, blob.offset))
        if reference is not None and reference.operation is not None:
            return self._compressed(package, reference.operation, reference.argument, keys, transform)
        candidates = list(self._candidates(keys, transform))
        if not candidates:
            return None
        distances = {name: self._distance(package, blob, name, steps) for name, steps in candidates}
        equal = [name for name, (differing, _) in distances.items() if not differing]
        if equal:
            return Comparison(self._keys(equal))
        return Comparison(frozenset(), *next(iter(distances.values())))

    def _keys(self, names: Collection[str]) -> frozenset[str]:
        return frozenset(key for name in names for key in self._checkpoint.origins[name].keys)

    def _compressed(
        self, package: Package, operation: Operation, argument: str, keys: Collection[str], transform: str
    ) -> Comparison | None:
        """One part of a compressed constant: the whole constant must be what compressing gives."""
        try:
            stored = read(operation, package)
        except ConversionError:
            return None
        step = stored.step(argument)
        if transform != step and not transform.endswith(f"; {step}"):
            return None
        base = transform.removesuffix(step).removesuffix("; ") or "identity"
        equal = [
            name
            for name, steps in self._candidates(keys, base)
            if self._is_of(operation.name, stored, name, steps)
        ]
        values = {**operation.attributes, **{name: bound[0] for name, bound in operation.inputs.items()}}
        zeros = (package.weights.array(v) for n, v in values.items() if n in _ZEROS and isinstance(v, Blob))
        if not equal or any(array.any() for array in zeros):
            return Comparison(frozenset(), None)
        return Comparison(self._keys(equal))

    def _is_of(self, operation: str, stored: Palette | Steps, name: str, steps: tuple[str, ...]) -> bool:
        # Its parts follow one another, and a palette takes long to make.
        question = (operation, name, steps)
        if self._last[0] != question:
            turned, roundings = _turned(self._checkpoint.tensors[name], steps)
            same = False
            if (
                turned is not None
                and turned.size == np.prod(stored.shape)
                and bool(roundings) == (stored.dtype == np.float16)
            ):
                weight = np.ascontiguousarray(turned).reshape(stored.shape)
                for rounding in roundings:
                    weight = rounding(weight)
                same = stored.is_of(weight.astype(stored.dtype, copy=False))
            self._last = (question, same)
        return self._last[1]

    def _candidates(self, keys: Collection[str], transform: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Tensors that may have made a weight, each with the steps that are left to do."""
        origins = {n: o for n, o in self._checkpoint.origins.items() if o.keys and set(o.keys) <= set(keys)}
        found = [
            (name, steps)
            for name, origin in origins.items()
            if (steps := _rest(transform, origin.transform)) is not None
        ]
        yield from found
        # Tensors that are equal share one weight, under the transform of the first of them.
        covered = self._keys([name for name, _ in found])
        for name, origin in origins.items():
            if found and not set(origin.keys) <= covered:
                yield name, found[0][1]

    def _distance(self, package: Package, blob: Blob, name: str, steps: tuple[str, ...]) -> tuple[int, float]:
        """How many elements of the stored weight are not what the tensor gives, and by how much."""
        assert isinstance(blob.type, TensorType)
        size = blob.type.size or 0
        tensor = self._checkpoint.tensors[name]
        turned, roundings = _turned(tensor, steps)
        unrounded = blob.type.dtype is DType.FP16 and not roundings
        if turned is None or turned.size != size or unrounded or blob.type.dtype.numpy_name is None:
            return size, float("nan")
        stored = package.weights.array(blob).reshape(-1)
        start, differing, largest = 0, 0, 0.0
        for piece in _blocks(turned):
            for rounding in roundings:
                piece = rounding(piece)
            mine = stored[start : start + piece.size]
            expected = piece.astype(mine.dtype, copy=False)
            if not np.array_equal(mine.view(np.uint8), np.ascontiguousarray(expected).view(np.uint8)):
                unequal = (mine != expected) | (np.signbit(mine) != np.signbit(expected))
                far = np.abs(mine.astype(np.float64) - expected.astype(np.float64))[unequal]
                differing += max(int(unequal.sum()), 1)
                largest = float(np.max(far, initial=largest))
            start += piece.size
        package.weights.release(blob)
        if tensor.flags.c_contiguous:
            release(tensor)
        return differing, largest


def _rest(transform: str, origin: str) -> tuple[str, ...] | None:
    """The steps of ``transform`` behind those of a tensor's origin; None when it has other ones."""
    if transform == origin:
        return ()
    if origin != "identity" and not transform.startswith(f"{origin}; "):
        return None
    rest = transform if origin == "identity" else transform.removeprefix(f"{origin}; ")
    steps = tuple(rest.split("; "))
    known = all(step in _ROUNDINGS or _TRANSPOSED.fullmatch(step) for step in steps)
    return steps if known else None


_ROUNDINGS: Mapping[str, Callable[[Array], Array]] = {
    NEAREST: lambda piece: _half(piece),
    NEAREST_NONZERO: lambda piece: nearest_nonzero(piece, _half),
}


def _half(piece: Array) -> Array:
    with np.errstate(over="ignore"):
        return piece.astype(np.float16)


def _turned(tensor: Array, steps: tuple[str, ...]) -> tuple[Array | None, list[Callable[[Array], Array]]]:
    """A view of ``tensor`` with its axes in the order that ``steps`` ask for, None when it has no such
    axes, and the roundings among them."""
    roundings = []
    for step in steps:
        if found := _TRANSPOSED.fullmatch(step):
            order = [int(axis) for axis in found[1].split(", ")]
            if sorted(order) != list(range(tensor.ndim)):
                return None, []
            tensor = tensor.transpose(order)
        else:
            roundings.append(_ROUNDINGS[step])
    return tensor, roundings


def _blocks(array: Array) -> Iterator[Array]:
    """``array`` in C order as flat pieces of at most _PIECE elements, whatever its strides."""
    if array.flags.c_contiguous:
        yield from pieces(array)
    elif array.size <= _PIECE:
        yield np.ascontiguousarray(array).reshape(-1)
    else:
        rows = max(1, _PIECE // max(1, array[0].size))
        for start in range(0, len(array), rows):
            yield from _blocks(array[start] if rows == 1 else array[start : start + rows])
