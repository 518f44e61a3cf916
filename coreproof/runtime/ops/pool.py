"""Pooling (coremltools 9.0 ops/defs/iOS15/pool.py), over 1 to 3 spatial dimensions of x [N, C, *spatial].

``ceil_mode`` also keeps a last window that reaches beyond the padded end, unless the input is
padded and the window would start in the padding after it. (torch drops a window that starts beyond
an input without padding, too, which here is of nothing: -inf or NaN.)
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from coreproof.runtime.bounds import padded
from coreproof.runtime.numerics import Numerics, flip_pairs, windows
from coreproof.runtime.ops.conv import paddings
from coreproof.runtime.registry import Ints, op

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@lru_cache(maxsize=4096)
def _reach(sizes: Ints, kernel: Ints, strides: Ints, pads: Ints, ceil_mode: bool) -> Ints:
    """``pads`` with what the last windows of ``ceil_mode`` need added after each dimension."""
    reach: list[int] = []
    for i, (size, k, stride) in enumerate(zip(sizes, kernel, strides, strict=True)):
        before, after = pads[2 * i : 2 * i + 2]
        padded = size + before + after
        count = (padded - k + (stride - 1 if ceil_mode else 0)) // stride + 1
        if ceil_mode and before + after > 0 and (count - 1) * stride >= size + before:
            count -= 1
        reach += (before, after + max(0, (count - 1) * stride + k - padded))
    return tuple(reach)


def _geometry(
    x: Tensor, kernel: Ints, strides: Ints | None, pad_type: str, pad: Ints | None, ceil_mode: bool
) -> tuple[Ints, Ints, Ints]:
    """Strides, the padding asked for, and the padding that every window needs."""
    ones = (1,) * len(kernel)
    strides = strides or ones
    sizes = tuple(x.shape[2:])
    pads = paddings(pad_type, pad or (0, 0) * len(kernel), sizes, kernel, strides, ones)
    return strides, pads, _reach(sizes, kernel, strides, pads, ceil_mode)


@op("max_pool", moves=True)
def max_pool(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """Padding never wins; a stride is 1 unless given, not the kernel's size as in torch."""
    strides, _, reach = _geometry(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    if any(reach):
        padded(x, reach)
        x = F.pad(x, flip_pairs(reach), value=-math.inf)
    return _MAX[len(kernel_sizes)](x, kernel_sizes, strides)


@op("avg_pool")
def avg_pool(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
    *,
    num: Numerics,
) -> Tensor:
    """The divisor counts the padding asked for unless it is excluded, and never what lies beyond it."""
    strides, pads, reach = _geometry(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    if num.wide and not any(reach):
        return _AVERAGE[len(kernel_sizes)](x, kernel_sizes, strides)
    sums = _window_sums(x, kernel_sizes, strides, reach, num)
    counted = (0,) * len(pads) if exclude_padding_from_average else pads
    return sums / _counts(tuple(x.shape[2:]), kernel_sizes, strides, counted, reach).to(x.device)


def _window_sums(x: Tensor, kernel: Ints, strides: Ints, reach: Ints, num: Numerics) -> Tensor:
    padded(x, reach)
    x = F.pad(x, flip_pairs(reach))
    if num.wide:
        return _AVERAGE[len(kernel)](x, kernel, strides) * math.prod(kernel)
    return num.sum(windows(x, kernel, strides, (1,) * len(kernel)), tuple(range(-len(kernel), 0)), False)


@lru_cache(maxsize=256)
def _counts(sizes: Ints, kernel: Ints, strides: Ints, counted: Ints, reach: Ints) -> Tensor:
    """How many elements of each window lie in the input or the ``counted`` padding."""
    total = torch.ones(())
    for i, (size, k, stride) in enumerate(zip(sizes, kernel, strides, strict=True)):
        (before, after), (left, right) = counted[2 * i : 2 * i + 2], reach[2 * i : 2 * i + 2]
        real = F.pad(torch.ones(before + size + after), (left - before, right - after))
        total = total.unsqueeze(-1) * real.unfold(0, k, stride).sum(-1)
    return total


@op("l2_pool")
def l2_pool(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    ceil_mode: bool = False,
    *,
    num: Numerics,
) -> Tensor:
    """The root of the sum, not of the mean, of the squares in each window."""
    strides, _, reach = _geometry(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    return torch.sqrt(_window_sums(num.product(x, x), kernel_sizes, strides, reach, num))
