"""One op as a program, run in each numeric mode, and how far apart two results are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from coreproof.mil.program import Binding, Blob, Block, Function, Immediate, NamedType, Operation, Ref
from coreproof.mil.types import DType, TensorType
from coreproof.runtime.codegen import compile_function
from coreproof.runtime.constants import to_tensor
from coreproof.runtime.registry import SPECIALIZATIONS, lookup

MODES = ("fp32", "typed", "fp16acc")
UNIT = 2.0**-11
"""Half the distance of fp16's neighbours at 1: the largest relative error of one rounding."""
Kind = Literal["moves", "exact", "rounded", "sums"]


@dataclass(frozen=True)
class Row:
    """An op on a sample. ``expected`` gives its results in float64 from its tensors, in their order.

    ``kind`` says what the modes make of it: ``moves`` the same bits in all; ``exact`` one rounding of
    the exact result; ``rounded`` one rounding of an fp32 function, in both fp16 modes; ``sums`` the
    same in ``typed``, and in ``fp16acc`` up to ``apart`` units of the largest result away. ``ulps``: how
    many fp16 numbers the function in fp32 may be from the exact one.
    """

    op: str
    since: tuple[str, ...]
    kind: Kind
    arguments: Mapping[str, Any]
    expected: Callable[..., Any]
    outputs: tuple[str, ...] = ("fp16",)
    apart: float = 0
    ulps: int = 0
    folded: bool = False

    @property
    def sample(self) -> str:
        """The shapes of the tensors, as a reader writes them."""
        shapes = []
        for name, value in self.arguments.items():
            arrays = [
                v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, np.ndarray)
            ]
            if arrays:
                shapes.append(f"{name} {' and '.join(str(list(a.shape)) for a in arrays)}")
        return ", ".join(shapes)


def row(
    op: str,
    kind: Kind,
    expected: Callable[..., Any],
    *,
    since: str = "ios15",
    outputs: str = "fp16",
    apart: float = 0,
    ulps: int = 1,
    folded: bool = False,
    **arguments: Any,
) -> Row:
    """``since`` and ``outputs``: one or several, in words. ``folded``: the tensors are constants."""
    allowed = 0 if kind in ("moves", "exact") else ulps
    names = tuple(since.split()), kind, arguments, expected, tuple(outputs.split())
    return Row(op, *names, apart, allowed, folded)


def run(row: Row, since: str, mode: str) -> list[np.ndarray]:
    """The outputs of the op alone in a program of opset ``since``, its floats typed fp16."""
    params = lookup(row.op, since).params
    inputs: dict[str, tuple[TensorType, np.ndarray]] = {}

    def bind(value: Any, tensor: bool) -> Binding:
        if isinstance(value, str):
            return Immediate(TensorType(DType.STRING), value)
        array, kind = _typed(np.asarray(value))
        if row.folded or not tensor:
            return Immediate(kind, array)
        inputs[f"in{len(inputs)}"] = kind, array
        return Ref(f"in{len(inputs) - 1}")

    bound = {
        name: tuple(bind(v, True) for v in value)
        if params[name].kind == "tensors"
        else (bind(value, params[name].kind == "tensor"),)
        for name, value in row.arguments.items()
    }
    outputs = tuple(NamedType(f"y{i}", TensorType(DType(d), None)) for i, d in enumerate(row.outputs))
    opset = {short: name for name, short in SPECIALIZATIONS.items()}[since]
    names = tuple(o.name for o in outputs)
    given = tuple(NamedType(name, kind) for name, (kind, _) in inputs.items())
    made = Function("main", given, opset, Block((), names, (Operation(row.op, bound, outputs),)))
    compiled = compile_function(made, _no_weights, mode)
    compiled.read_weights(lambda value: value)
    return [r.numpy() for r in compiled.run(*(to_tensor(array, kind) for kind, array in inputs.values()))]


def _typed(array: np.ndarray) -> tuple[np.ndarray, TensorType]:
    """Floats become fp16 where they are tensors that fp16 holds, scalars fp32; the rest as it is."""
    if array.dtype.kind == "f":
        array = array.astype(np.float16 if array.ndim else np.float32)
    elif array.dtype == np.int64:
        array = array.astype(np.int32)
    return array, TensorType(_DTYPES[array.dtype.name], array.shape)


_DTYPES = {d.numpy_name: d for d in DType if d.numpy_name}


def _no_weights(blob: Blob) -> np.ndarray:
    raise AssertionError(f"read {blob}")


def exact(row: Row) -> list[np.ndarray]:
    """The outputs by definition, in float64."""
    params = lookup(row.op, row.since[0]).params
    tensors = [
        [_wide(v) for v in value] if params[name].kind == "tensors" else _wide(value)
        for name, value in row.arguments.items()
        if params[name].kind in ("tensor", "tensors")
    ]
    with np.errstate(all="ignore"):
        found = row.expected(*tensors)
    return [np.asarray(f) for f in (found if isinstance(found, tuple) else (found,))]


def _wide(value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind != "f":
        return array
    assert np.array_equal(array.astype(np.float16).astype(array.dtype), array, equal_nan=True)
    return array.astype(np.float64)


def halved(array: np.ndarray) -> np.ndarray:
    """Rounded once to fp16."""
    with np.errstate(over="ignore"):
        return array.astype(np.float16)


def ulps(a: np.ndarray, b: np.ndarray) -> int:
    """The most fp16 numbers that lie between two results; a NaN is at home only beside a NaN."""
    assert a.shape == b.shape
    if not a.size:
        return 0
    places = [np.where(v < 0, -0x8000 - v, v) for v in (x.view(np.int16).astype(int) for x in (a, b))]
    apart = np.where(np.isnan(a) | np.isnan(b), 0x10000, np.abs(places[0] - places[1]))
    return int(np.where(np.isnan(a) & np.isnan(b), 0, apart).max())


def units_apart(found: Iterable[np.ndarray], reference: Iterable[np.ndarray]) -> float:
    """The largest difference of two results, relative to the largest value, in roundings."""
    return max(
        float(np.abs(f - r).max() / np.abs(r).max() / UNIT)
        for f, r in (
            (f.astype(np.float64), r.astype(np.float64)) for f, r in zip(found, reference, strict=True)
        )
    )
