"""Elementwise ops of one tensor (coremltools 9.0 ops/defs/iOS15/elementwise_unary.py)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from coreproof.errors import UnsupportedOpError
from coreproof.mil.types import DType
from coreproof.runtime.numerics import container
from coreproof.runtime.registry import REQUIRED, Param, add, op

_X = (Param("x", "tensor", REQUIRED),)
_SAME_AS_TORCH: dict[str, Callable[..., Tensor]] = {
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
}
_EXACT: dict[str, Callable[..., Tensor]] = {
    "abs": torch.abs,
    "ceil": torch.ceil,
    "floor": torch.floor,
    "logical_not": torch.logical_not,
    "round": torch.round,
}
"""``round`` takes halves to the even neighbour: the definition says of 0.5 that it becomes 0, no more."""

for _name, _fn in _SAME_AS_TORCH.items():
    add(_name, _fn, _X)
for _name, _fn in _EXACT.items():
    add(_name, _fn, _X, moves=True)
add("threshold", torch.maximum, (*_X, Param("alpha", "tensor", REQUIRED)), moves=True)


@op("clip", moves=True)
def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    """NaN stays NaN."""
    return torch.clamp(x, alpha, beta)


@op("sign", moves=True)
def sign(x: Tensor) -> Tensor:
    """-1, 0 or 1; NaN stays NaN, which torch would turn into 0."""
    return torch.where(torch.isnan(x), x, torch.sign(x))


@op("exp2")
def exp2(x: Tensor) -> Tensor:
    """Integers stay integers, cut towards zero."""
    return torch.exp2(x) if x.is_floating_point() else torch.exp2(x.double()).to(x.dtype)


@op("inverse")
def inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    """``1 / (x + epsilon)``, added in fp32 even where an fp16 sum would lose epsilon."""
    return torch.reciprocal(x + epsilon)


@op("log")
def log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    """``log(x + epsilon)``: with the default, log(0) is -103.28 in fp32."""
    return torch.log(x + epsilon)


@op("rsqrt")
def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    """``1 / sqrt(x + epsilon)``, added in fp32 even where an fp16 sum would lose epsilon."""
    return torch.rsqrt(x + epsilon)


@op("cast")
def cast(x: Tensor, dtype: str) -> Tensor:
    """Floats are cut towards zero; integers out of range wrap around, as numpy's astype does; every
    number but zero is true, NaN too. What integer a NaN or an infinite value becomes is not defined.

    Raises UnsupportedOpError for a dtype that does not exist.
    """
    if dtype in _FLOATS:
        return x.float()
    if dtype not in _INTEGERS:
        raise UnsupportedOpError(f"cast to {dtype!r}: expected one of {', '.join([*_FLOATS, *_INTEGERS])}")
    if x.is_floating_point() and dtype != "bool":
        x = x.long()  # from float directly to a narrow integer is undefined out of its range
    return x.int() & 0xFFFF if dtype == "uint16" else x.to(_INTEGERS[dtype])


_FLOATS = ("fp16", "fp32")
_INTEGERS = {t: container(DType(t)) for t in ("int8", "uint8", "int16", "uint16", "int32", "int64", "bool")}
