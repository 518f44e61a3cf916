"""Matrix products (coremltools 9.0 ops/defs/iOS15/linear.py and iOS17/linear.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from coreproof.errors import UnsupportedOpError
from coreproof.mil.types import ValueType
from coreproof.runtime.bounds import multiplied
from coreproof.runtime.numerics import Numerics, Tensors, held
from coreproof.runtime.registry import op


@op("linear")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, num: Numerics) -> Tensor:
    """``x @ weight.T + bias`` with weight [D_out, D_in]."""
    return num.linear(x, weight, bias)


@op("matmul")
def matmul(
    x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False, *, num: Numerics
) -> Tensor:
    """As ``numpy.matmul``; a transposition swaps the last two dimensions and leaves vectors alone."""
    if transpose_x and x.dim() > 1:
        x = x.transpose(-1, -2)
    if transpose_y and y.dim() > 1:
        y = y.transpose(-1, -2)
    multiplied(x, y)
    return num.matmul(x, y)


@op("linear", since="ios17")
def linear_ios17(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, num: Numerics) -> Tensor:
    """Weight and bias may be integers beside a float x, or the reverse; the result has x's dtype."""
    if weight.dtype is x.dtype:
        return num.linear(x, weight, bias)
    return num.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)


@op("matmul", since="ios17")
def matmul_ios17(
    x: Tensor,
    y: Tensor,
    transpose_x: bool = False,
    transpose_y: bool = False,
    *,
    num: Numerics,
    out: tuple[ValueType, ...],
) -> Tensor:
    """A constant operand may have another dtype; the result has that of the other one."""
    if x.dtype is y.dtype:
        return matmul(x, y, transpose_x, transpose_y, num=num)
    return matmul(x.float(), y.float(), transpose_x, transpose_y, num=num).to(held(out))


@op("einsum")
def einsum(values: Tensors, equation: str, *, num: Numerics) -> Tensor:
    """MIL knows ``nchw,nwhu->nchu`` and ``chw,whr->chr``, whatever the letters; a size of 1 broadcasts.

    Raises UnsupportedOpError for another equation.
    """
    x, y = values
    left, _, rest = equation.replace(" ", "").partition(",")
    right, _, result = rest.partition("->")
    batch, c, h, w = left[:-3], left[-3:-2], left[-2:-1], left[-1:]
    if right[:-1] != batch + w + h or result != batch + c + h + right[-1:]:
        raise UnsupportedOpError(
            f"einsum {equation!r} is not of the form 'nchw,nwhu->nchu' or 'chw,whr->chr'"
        )
    multiplied(x.transpose(-3, -2), y.transpose(-3, -2))
    if num.wide:
        return torch.einsum(equation, x, y)
    return num.matmul(x.transpose(-3, -2), y.transpose(-3, -2)).transpose(-3, -2)
