"""Ops that move elements (coremltools 9.0 ops/defs/iOS15/tensor_transformation.py, or as named)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from coreproof.runtime.bounds import padded, within
from coreproof.runtime.numerics import Tensors
from coreproof.runtime.registry import REQUIRED, Bools, Ints, Param, add, op

_X = Param("x", "tensor", REQUIRED)
add("transpose", torch.permute, (_X, Param("perm", "ints", REQUIRED)), moves=True)
add("pixel_shuffle", torch.pixel_shuffle, (_X, Param("upscale_factor", "int", REQUIRED)), moves=True)
add(
    "pixel_unshuffle", torch.pixel_unshuffle, (_X, Param("downscale_factor", "int", REQUIRED)),
    since="ios16", moves=True,
)  # fmt: skip


@op("expand_dims", moves=True)
def expand_dims(x: Tensor, axes: Ints) -> Tensor:
    """``axes`` count in the result, whose rank is ``rank(x) + len(axes)``."""
    if len(axes) == 1:
        return torch.unsqueeze(x, axes[0])
    rank = x.dim() + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = torch.unsqueeze(x, axis)
    return x


@op("squeeze", moves=True)
def squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    """Dimensions of other sizes than 1 are left alone, as torch does and numpy does not."""
    return torch.squeeze(x) if axes is None else torch.squeeze(x, axes)


@op("reshape", moves=True)
def reshape(x: Tensor, shape: Ints) -> Tensor:
    """0 keeps the dimension at the same index, counted from the left; -1 is inferred."""
    if 0 in shape:
        shape = tuple(size or x.shape[i] for i, size in enumerate(shape))
    return torch.reshape(x, shape)


@op("reshape", since="ios17", moves=True)
def reshape_ios17(x: Tensor, shape: Ints) -> Tensor:
    """0 keeps the dimension at the same index counted from the right, or is 1 where x has none
    (iOS17/tensor_transformation.py); -1 is inferred."""
    if 0 in shape:
        shift = x.dim() - len(shape)
        shape = tuple(size or (x.shape[i + shift] if i + shift >= 0 else 1) for i, size in enumerate(shape))
    return torch.reshape(x, shape)


@op("reshape_like", since="ios16", moves=True)
def reshape_like(
    x: Tensor, ref_tensors: Tensors, begins: Tensors, ends: Tensors, end_masks: Tensors
) -> Tensor:
    """The shape is ``ref.shape[begin:end]`` of each reference, joined; an end mask means to the last
    dimension (iOS16/tensor_transformation.py)."""
    shape: list[int] = []
    for ref, begin, end, to_last in zip(ref_tensors, begins, ends, end_masks, strict=True):
        shape += ref.shape[int(begin) : None if to_last else int(end)]
    return torch.reshape(x, shape)


@op("reverse", moves=True)
def reverse(x: Tensor, axes: Ints | None = None) -> Tensor:
    return torch.flip(x, tuple(range(x.dim())) if axes is None else axes)


@op("reverse_sequence", moves=True)
def reverse_sequence(x: Tensor, lengths: Tensor, seq_axis: int = 0, batch_axis: int = 0) -> Tensor:
    """Reverses the first ``lengths[i]`` elements along ``seq_axis`` of item i, and leaves the rest."""
    place = torch.arange(x.shape[seq_axis], device=x.device)
    length = lengths.long().unsqueeze(1)
    source = torch.where(place < length, length - 1 - place, place)  # (batch, sequence)
    if seq_axis % x.dim() < batch_axis % x.dim():
        source = source.t()
    shape = [1] * x.dim()
    shape[seq_axis], shape[batch_axis] = x.shape[seq_axis], x.shape[batch_axis]
    return torch.take_along_dim(x, source.reshape(shape), seq_axis)


@lru_cache(maxsize=4096)
def indexing(
    begin: Ints,
    end: Ints,
    stride: Ints | None,
    begin_mask: Bools | None,
    end_mask: Bools | None,
    squeeze_mask: Bools | None,
) -> tuple[slice | int, ...]:
    """The numpy index of ``slice_by_index``: a masked begin or end is open, a squeezed dimension is
    indexed by its begin alone."""
    rank = len(begin)
    open_begin, open_end, single = (mask or (False,) * rank for mask in (begin_mask, end_mask, squeeze_mask))
    step = stride or (1,) * rank
    return tuple(
        (0 if open_begin[i] else begin[i])
        if single[i]
        else slice(None if open_begin[i] else begin[i], None if open_end[i] else end[i], step[i])
        for i in range(rank)
    )


def _forward(x: Tensor, index: tuple[slice | int, ...]) -> tuple[Tensor, tuple[slice | int, ...]]:
    """The same selection without negative steps, which torch lacks: those dimensions are flipped."""
    flipped: list[int] = []
    forward: list[slice | int] = []
    for dim, part in enumerate(index):
        if isinstance(part, slice) and part.step < 0:
            taken = range(*part.indices(x.shape[dim]))
            flipped.append(dim)
            last = x.shape[dim] - 1
            forward.append(slice(last - taken[0], last - taken[-1] + 1, -part.step) if taken else slice(0, 0))
        else:
            forward.append(part)
    return torch.flip(x, flipped), tuple(forward)


@op("slice_by_index", moves=True)
def slice_by_index(
    x: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Tensor:
    """``x[begin:end:stride]`` in every dimension with numpy's rules for negative and too large values.
    A masked begin or end is ignored; a squeezed dimension is indexed at begin, 0 if masked, and removed."""
    index = indexing(begin, end, stride, begin_mask, end_mask, squeeze_mask)
    if stride is not None and min(stride) < 0:
        x, index = _forward(x, index)
    return x[index]


@op("slice_update", since="ios18", moves=True)
def slice_update(
    x: Tensor,
    update: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Tensor:
    """A copy of x with ``update`` where ``slice_by_index`` would read (iOS18/tensor_transformation.py)."""
    index = indexing(begin, end, stride, begin_mask, end_mask, squeeze_mask)
    if stride is None or min(stride) > 0:
        result = x.clone()
        result[index] = update.reshape(result[index].shape)
        return result
    flipped, forward = _forward(x, index)  # a copy, so it may be written into
    flipped[forward] = update.reshape(flipped[forward].shape)
    return torch.flip(flipped, [d for d, s in enumerate(index) if isinstance(s, slice) and s.step < 0])


@op("slice_by_size", moves=True)
def slice_by_size(x: Tensor, begin: Ints, size: Ints) -> Tensor:
    """``size`` elements from ``begin`` on (negative: from the end); -1 takes all that remain. What does not
    lie inside is an error, where ``slice_by_index`` takes what there is."""
    for dim, (first, count) in enumerate(zip(begin, size, strict=True)):
        first = first + x.shape[dim] if first < 0 else first
        x = torch.narrow(x, dim, first, x.shape[dim] - first if count == -1 else count)
    return x


@op("sliding_windows", moves=True)
def sliding_windows(x: Tensor, axis: int, size: int, stride: int = 1) -> Tensor:
    """The windows' own dimension comes right after ``axis``."""
    axis %= x.dim()
    windows = x.unfold(axis, size, stride).movedim(-1, axis + 1)
    within(windows.shape)
    return windows


@op("depth_to_space", moves=True)
def depth_to_space(x: Tensor, block_size: int) -> Tensor:
    """Channels are ordered (block row, block column, channel), unlike pixel_shuffle's."""
    n, c, h, w = x.shape
    b = block_size
    parts = x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // (b * b), h * b, w * b)


@op("space_to_depth", moves=True)
def space_to_depth(x: Tensor, block_size: int) -> Tensor:
    """The inverse of ``depth_to_space``."""
    n, c, h, w = x.shape
    b = block_size
    parts = x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * b * b, h // b, w // b)


@op("space_to_batch", moves=True)
def space_to_batch(x: Tensor, block_shape: Ints, paddings: Ints) -> Tensor:
    """The batch is ordered (block row, block column, item), as in TensorFlow. ``paddings`` is the
    [2, 2] tensor of (before, after) for height and width, row by row."""
    top, bottom, left, right = paddings
    padded(x, paddings)
    x = torch.nn.functional.pad(x, (left, right, top, bottom))
    n, c, h, w = x.shape
    bh, bw = block_shape
    parts = x.reshape(n, c, h // bh, bh, w // bw, bw).permute(3, 5, 0, 1, 2, 4)
    return parts.reshape(n * bh * bw, c, h // bh, w // bw)


@op("batch_to_space", moves=True)
def batch_to_space(x: Tensor, block_shape: Ints, crops: Ints) -> Tensor:
    """The inverse of ``space_to_batch``; ``crops`` is the [2, 2] tensor of what is cut off."""
    top, bottom, left, right = crops
    bh, bw = block_shape
    n, c, h, w = x.shape
    parts = x.reshape(bh, bw, n // (bh * bw), c, h, w).permute(2, 3, 4, 0, 5, 1)
    whole = parts.reshape(n // (bh * bw), c, h * bh, w * bw)
    return whole[:, :, top : h * bh - bottom, left : w * bw - right]
