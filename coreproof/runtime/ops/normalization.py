"""Normalizations (coremltools 9.0 ops/defs/iOS15/normalization.py).

From iOS 17 on the parameters may have another dtype than x (iOS17/normalization.py). Epsilon is
added to the variance, inside the root, in fp32. Means and variances accumulate as ``num`` says.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from coreproof.runtime.bounds import within
from coreproof.runtime.numerics import Numerics
from coreproof.runtime.registry import Ints, op


@op("layer_norm")
def layer_norm(
    x: Tensor,
    axes: Ints | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
    *,
    num: Numerics,
) -> Tensor:
    """Over ``axes``, all of them by default; gamma and beta have the shape of those dimensions, in
    the order of x. The variance is the mean square deviation, without Bessel's correction."""
    rank = x.dim()
    dims = tuple(range(rank)) if axes is None else tuple(sorted(a % rank for a in axes))
    if num.wide and dims[0] == rank - len(dims):
        return torch.layer_norm(x, x.shape[dims[0] :], gamma, beta, epsilon)
    shape = [size if d in dims else 1 for d, size in enumerate(x.shape)]
    gamma = None if gamma is None else gamma.reshape(shape)
    beta = None if beta is None else beta.reshape(shape)
    return _normalize(x, dims, gamma, beta, epsilon, num)


def _normalize(
    x: Tensor, dims: Ints, gamma: Tensor | None, beta: Tensor | None, epsilon: float, num: Numerics
) -> Tensor:
    centred = x - num.mean(x, dims, True)
    y = centred * torch.rsqrt(num.mean(num.product(centred, centred), dims, True) + epsilon)
    y = y if gamma is None else y * gamma
    return y if beta is None else y + beta


@op("instance_norm")
def instance_norm(
    x: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
    *,
    num: Numerics,
) -> Tensor:
    """Over the spatial dimensions of each channel of each item of x [N, C, *spatial]."""
    per_channel = (-1, *[1] * (x.dim() - 2))
    gamma = None if gamma is None else gamma.reshape(per_channel)
    beta = None if beta is None else beta.reshape(per_channel)
    return _normalize(x, tuple(range(2, x.dim())), gamma, beta, epsilon, num)


@op("batch_norm")
def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """``(x - mean) / sqrt(variance + epsilon) * gamma + beta``, one of each a channel (dimension 1)."""
    return F.batch_norm(x, mean, variance, gamma, beta, eps=epsilon)


@op("l2_norm")
def l2_norm(x: Tensor, epsilon: float = 1e-6, *, num: Numerics) -> Tensor:
    """x divided by the root of (its sum of squares + epsilon) over the last three dimensions; torch's
    ``normalize`` has epsilon as a lower bound of the root instead."""
    return x / torch.sqrt(num.sum(num.product(x, x), (-3, -2, -1), True) + epsilon)


@op("local_response_norm")
def local_response_norm(
    x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0, *, num: Numerics
) -> Tensor:
    """``x / (k + alpha / size * sum of squares) ** beta`` over ``size`` channels centred on each, fewer
    at the borders; of an even size the larger half comes before."""
    before = size // 2
    within((x.numel(), size))
    squares = F.pad(num.product(x, x), (0, 0) * (x.dim() - 2) + (before, size - 1 - before))
    sums = num.sum(squares.unfold(1, size, 1), (-1,), False)
    return x / torch.pow(k + alpha / size * sums, beta)
