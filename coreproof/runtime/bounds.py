"""How large a value may become, asked before memory is taken for it.

Most ops give no more elements than their inputs hold, and those come from files of bounded size. The
ops that take sizes from numbers, or multiply the sizes of their inputs, ask here first; a few bytes of
program could otherwise take all the memory there is. Elementwise ops do not ask, because that would
cost as much as a small one; torch refuses what the machine cannot have. How many values live at once,
and for how long a loop goes on, is the program's own affair.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch
from torch import Tensor

from coreproof.errors import ExecutionError
from coreproof.mil.from_proto import MAX_ELEMENTS

MAX_FOLDED = 1 << 28
"""Elements that computing with constants may add when a model is opened: 1 GiB as fp32. Weights that are
unpacked do not count, nor what is computed from them: it is made at the first prediction."""
MAX_LENGTH = 1 << 24
"""Elements of a list."""

_limit = ContextVar("limit", default=MAX_ELEMENTS)

Sizes = TypeVar("Sizes", bound=Sequence[int])


@contextmanager
def limited(elements: int) -> Iterator[None]:
    """Inside the block a value may have ``elements`` elements, where that is less than it may have outside."""
    token = _limit.set(min(elements, _limit.get()))
    try:
        yield
    finally:
        _limit.reset(token)


def within(sizes: Sizes) -> Sizes:
    """``sizes``, whose product is the number of elements of a value about to be made, where a size of 0
    counts as 1. Raises ExecutionError when that is more than MAX_ELEMENTS."""
    count = math.prod([size or 1 for size in sizes])
    if abs(count) > _limit.get():
        shape = " x ".join(map(str, sizes))
        raise ExecutionError(f"a value of {shape} elements would be made, at most {_limit.get()} are allowed")
    return sizes


def within_length(length: int) -> int:
    """``length``, that of a list about to be made. Raises ExecutionError when it is more than MAX_LENGTH."""
    if length > MAX_LENGTH:
        raise ExecutionError(f"a list of length {length} would be made, at most {MAX_LENGTH} are allowed")
    return length


def resized(x: Tensor, dim: int, size: int) -> None:
    """Raise ExecutionError when ``x`` with ``size`` in the place of dimension ``dim`` would be too large."""
    within((*x.shape[:dim], size, *x.shape[dim:][1:]))


def padded(x: Tensor, pads: Sequence[int], channels: int = 0) -> None:
    """Raise ExecutionError when ``x`` with ``pads``, (before, after) for its last dimensions in their order,
    would be too large; with ``channels``, also what a convolution to so many may give."""
    pairs = list(zip(pads[::2], pads[1::2], strict=True))
    kept = list(x.shape[: x.dim() - len(pairs)])
    grown = [size + sum(pair) for size, pair in zip(x.shape[len(kept) :], pairs, strict=True)]
    if channels:
        kept[1] = max(kept[1], channels)
    within((*kept, *grown))


def multiplied(x: Tensor, y: Tensor) -> None:
    """Raise ExecutionError when the matrix product of ``x`` and ``y`` would be too large."""
    if x.numel() * y.numel() > _limit.get():  # else it cannot be
        batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
        within((*batch, *x.shape[-2:-1], *y.shape[-1:]))
