"""Reductions (coremltools 9.0 ops/defs/iOS15/reduction.py). ``axes`` of None reduces them all.

Integer results are cut towards zero, because the result has the input's type. Over no element a sum is 0, a
product 1, a mean NaN, the logarithm of a sum negative infinity; a maximum or minimum is an error, as numpy's.
A NaN makes every result NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from coreproof.runtime.numerics import Numerics
from coreproof.runtime.registry import Ints, op


@op("reduce_sum")
def reduce_sum(x: Tensor, axes: Ints | None = None, keep_dims: bool = False, *, num: Numerics) -> Tensor:
    return num.sum(x, axes, keep_dims)


@op("reduce_mean")
def reduce_mean(x: Tensor, axes: Ints | None = None, keep_dims: bool = False, *, num: Numerics) -> Tensor:
    if x.is_floating_point():
        return num.mean(x, axes, keep_dims)
    return torch.mean(x, axes, keep_dims, dtype=torch.float64).to(x.dtype)


@op("reduce_sum_square")
def reduce_sum_square(
    x: Tensor, axes: Ints | None = None, keep_dims: bool = False, *, num: Numerics
) -> Tensor:
    return num.sum(num.product(x, x), axes, keep_dims)


@op("reduce_l1_norm")
def reduce_l1_norm(x: Tensor, axes: Ints | None = None, keep_dims: bool = False, *, num: Numerics) -> Tensor:
    return num.sum(torch.abs(x), axes, keep_dims)


@op("reduce_l2_norm")
def reduce_l2_norm(x: Tensor, axes: Ints | None = None, keep_dims: bool = False, *, num: Numerics) -> Tensor:
    return torch.sqrt(num.sum(num.product(x, x), axes, keep_dims)).to(x.dtype)


@op("reduce_log_sum")
def reduce_log_sum(x: Tensor, axes: Ints | None = None, keep_dims: bool = False, *, num: Numerics) -> Tensor:
    return torch.log(num.sum(x, axes, keep_dims)).to(x.dtype)


@op("reduce_log_sum_exp")
def reduce_log_sum_exp(
    x: Tensor, axes: Ints | None = None, keep_dims: bool = False, *, num: Numerics
) -> Tensor:
    """Computed after subtracting the maximum; of infinite elements only, it is that infinity."""
    dims = tuple(range(x.dim())) if axes is None else axes
    if num.wide:
        return torch.logsumexp(x, dims, keep_dims).to(x.dtype)
    top = torch.amax(x, dims, True)
    sums = torch.log(num.sum(torch.exp(x - top), dims, True)) + top
    sums = torch.where(torch.isinf(top), top, sums)
    return sums if keep_dims else torch.squeeze(sums, dims)


@op("reduce_max", moves=True)
def reduce_max(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    return torch.amax(x, axes or (), keep_dims)


@op("reduce_min", moves=True)
def reduce_min(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    return torch.amin(x, axes or (), keep_dims)


@op("reduce_prod")
def reduce_prod(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    dims = range(x.dim()) if axes is None else {a % x.dim() for a in axes}
    for dim in sorted(dims, reverse=True):
        x = torch.prod(x, dim, keep_dims, dtype=x.dtype)
    return x


@op("reduce_argmax", moves=True)
def reduce_argmax(x: Tensor, axis: int = -1, keep_dims: bool = False) -> Tensor:
    """The first of equal maxima, which the definition leaves open; NaN counts as the largest."""
    return torch.argmax(x, axis, keep_dims).int()


@op("reduce_argmin", moves=True)
def reduce_argmin(x: Tensor, axis: int = -1, keep_dims: bool = False) -> Tensor:
    """The first of equal minima, which the definition leaves open; NaN counts as the smallest."""
    return torch.argmin(x, axis, keep_dims).int()


@op("reduce_argmax", since="ios17", moves=True)
def reduce_argmax_ios17(
    x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32"
) -> Tensor:
    """``output_dtype`` (int32 or uint16) has the same container either way (iOS17/reduction.py)."""
    return torch.argmax(x, axis, keep_dims).int()


@op("reduce_argmin", since="ios17", moves=True)
def reduce_argmin_ios17(
    x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32"
) -> Tensor:
    """``output_dtype`` (int32 or uint16) has the same container either way (iOS17/reduction.py)."""
    return torch.argmin(x, axis, keep_dims).int()
