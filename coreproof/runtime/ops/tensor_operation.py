"""Ops that build, join, order or fill tensors (coremltools 9.0 ops/defs/iOS15/tensor_operation.py)."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from coreproof.errors import UnsupportedOpError
from coreproof.mil.types import ValueType
from coreproof.runtime.bounds import padded, within
from coreproof.runtime.numerics import Numerics, Tensors, flip_pairs, held
from coreproof.runtime.registry import Ints, op


@op("identity", moves=True)
def identity(x: Tensor) -> Tensor:
    return x


@op("flatten2d", moves=True)
def flatten2d(x: Tensor, axis: int = 1) -> Tensor:
    return torch.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


@op("tile", moves=True)
def tile(x: Tensor, reps: Ints) -> Tensor:
    within((x.numel(), *reps))
    return torch.tile(x, reps)


@op("stack", moves=True)
def stack(values: Tensors, axis: int) -> Tensor:
    within((len(values), values[0].numel()))
    return torch.stack(values, axis)


@op("band_part", moves=True)
def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """Keeps ``lower`` diagonals below the main one and ``upper`` above it, all of them if negative;
    the rest is 0, NaN included."""
    if lower >= 0:
        x = torch.triu(x, -lower)
    return torch.tril(x, upper) if upper >= 0 else x


@op("cumsum")
def cumsum(
    x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False, *, num: Numerics
) -> Tensor:
    """``exclusive`` leaves the element itself out, so the first sum is 0; ``reverse`` sums from the end."""
    if reverse:
        x = torch.flip(x, (axis,))
    if exclusive:
        rest = torch.narrow(x, axis, 0, x.shape[axis] - 1)
        x = torch.cat([torch.zeros_like(torch.narrow(x, axis, 0, 1)), rest], axis)
    sums = num.cumsum(x, axis)
    return torch.flip(sums, (axis,)) if reverse else sums


@op("fill", moves=True)
def fill(shape: Ints, value: float = 0.0, *, out: tuple[ValueType, ...]) -> Tensor:
    return torch.full(within(shape), value, dtype=held(out))


@op("fill_like", since="ios16", moves=True)
def fill_like(ref_tensor: Tensor, value: float = 0.0, *, out: tuple[ValueType, ...]) -> Tensor:
    """The result has the dtype of ``value``, not of ``ref_tensor`` (iOS16/tensor_operation.py)."""
    return torch.full_like(ref_tensor, value, dtype=held(out))


@op("range_1d")
def range_1d(end: float, start: float, step: float, *, out: tuple[ValueType, ...]) -> Tensor:
    """As ``numpy.arange``; MIL's order of the arguments puts ``end`` first."""
    within((int((end - start) / step),))
    return torch.arange(start, end, step, dtype=held(out))


@op("one_hot", moves=True)
def one_hot(
    indices: Tensor,
    one_hot_vector_size: int,
    axis: int = -1,
    on_value: float = 1,
    off_value: float = 0,
    *,
    out: tuple[ValueType, ...],
) -> Tensor:
    """An index outside ``[0, one_hot_vector_size)``, negative ones too, gives ``off_value`` everywhere, where
    torch's raises."""
    within((indices.numel(), one_hot_vector_size))
    spread = indices.unsqueeze(axis)
    axis = axis + indices.dim() + 1 if axis < 0 else axis
    places = torch.arange(one_hot_vector_size, device=indices.device)
    places = places.reshape(-1, *[1] * (indices.dim() - axis))
    on, off = torch.tensor([on_value, off_value], dtype=held(out), device=indices.device)
    return torch.where(spread == places, on, off)


@op("shape", moves=True)
def shape(x: Tensor) -> Tensor:
    return torch.tensor(x.shape, dtype=torch.int32)


@op("non_zero", moves=True)
def non_zero(x: Tensor) -> Tensor:
    """One row of indices for each element that is not 0, in row-major order."""
    return torch.nonzero(x).int()


@lru_cache(maxsize=4096)
def _source(size: int, before: int, after: int, mode: str) -> Tensor:
    """Where each element of a padded dimension comes from."""
    place = torch.arange(-before, size + after)
    if mode == "replicate":
        return place.clamp(0, size - 1)
    return size - 1 - (size - 1 - place.abs()).abs()


@op("pad", moves=True)
def pad(x: Tensor, pad: Ints, mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """``pad`` holds (before, after) for the last ``len(pad) / 2`` dimensions in their order, which is
    the reverse of torch's. ``reflect`` leaves the edge out, as numpy's; ``replicate`` is numpy's edge.

    Raises UnsupportedOpError for another mode.
    """
    padded(x, pad)
    if mode == "constant":
        return F.pad(x, flip_pairs(pad), value=constant_val)
    if mode not in ("reflect", "replicate"):
        raise UnsupportedOpError(f"pad mode {mode!r} is not constant, reflect or replicate")
    first = x.dim() - len(pad) // 2
    for dim, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True), start=first):
        if before or after:
            x = torch.index_select(x, dim, _source(x.shape[dim], before, after, mode).to(x.device))
    return x


@op("concat", moves=True)
def concat(values: Tensors, axis: int, interleave: bool = False) -> Tensor:
    """``interleave`` takes the elements along ``axis`` in turns. Scalars are joined to a vector."""
    within((sum(v.numel() for v in values),))
    if values[0].dim() == 0:
        return torch.stack(values, axis)
    if not interleave:
        return torch.cat(values, axis)
    axis %= values[0].dim()
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


@op("split", moves=True)
def split(
    x: Tensor, axis: int, num_splits: int | None = None, split_sizes: Ints | None = None
) -> tuple[Tensor, ...] | Tensor:
    """``num_splits`` equal parts, or parts of ``split_sizes``; a single part is x itself.

    Raises UnsupportedOpError when neither is given.
    """
    if split_sizes is not None:
        return torch.split(x, list(split_sizes), axis) if len(split_sizes) > 1 else x
    if num_splits is None:
        raise UnsupportedOpError("split has neither num_splits nor split_sizes; one of them is needed")
    return torch.split(x, x.shape[axis] // num_splits, axis) if num_splits > 1 else x


@op("argsort", moves=True)
def argsort(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    """The largest first unless ``ascending``, unlike numpy's and torch's. Equal elements keep their order in
    either direction; NaN counts as the largest."""
    return torch.sort(x, stable=True, dim=axis, descending=not ascending)[1].int()


@op("topk", moves=True)
def topk(x: Tensor, k: int = 1, axis: int = -1, ascending: bool = False) -> tuple[Tensor, Tensor]:
    """Values and int32 indices of the largest, or with ``ascending`` smallest, elements, sorted; of
    equal elements the first; NaN counts as the largest."""
    values, indices = torch.topk(x, k, axis, largest=not ascending)
    last = torch.narrow(values, axis, k - 1, 1)
    if not torch.equal((x == last).sum(axis), (values == last).sum(axis)):  # the last place is tied
        values, indices = torch.sort(x, stable=True, dim=axis, descending=not ascending)
        return torch.narrow(values, axis, 0, k), torch.narrow(indices, axis, 0, k).int()
    indices, order = torch.sort(indices, axis)
    values, order = torch.sort(
        torch.gather(values, axis, order), stable=True, dim=axis, descending=not ascending
    )
    return values, torch.gather(indices, axis, order).int()


@op("topk", since="ios16", moves=True)
def topk_ios16(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
) -> tuple[Tensor, Tensor] | Tensor:
    """Without ``sort`` any order is right; they are sorted all the same (iOS16/tensor_operation.py)."""
    values, indices = topk(x, k, axis, ascending)
    return (values, indices) if return_indices else values


@op("topk", since="ios17", moves=True)
def topk_ios17(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> tuple[Tensor, Tensor] | Tensor:
    """A k of -1 takes all elements (iOS17/tensor_operation.py)."""
    values, indices = topk(x, x.shape[axis] if k == -1 else k, axis, ascending)
    return (values, indices) if return_indices else values


def _suppressed(boxes: Tensor, scores: Tensor, classes: Tensor | None, iou: float, most: int) -> list[int]:
    """Indices of up to ``most`` of boxes [B, 4] (centre x, y, width, height) by falling score, leaving
    out what overlaps a chosen one by more than ``iou`` (of the same class, where there are classes)."""
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    area = boxes[:, 2] * boxes[:, 3]
    alive = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    chosen: list[int] = []
    for i in torch.sort(scores, stable=True, descending=True)[1].tolist():
        if len(chosen) == most:
            break
        if not alive[i]:
            continue
        chosen.append(i)
        common = (torch.minimum(high, high[i]) - torch.maximum(low, low[i])).clamp(min=0).prod(1)
        overlaps = common / (area + area[i] - common) > iou
        alive &= ~(overlaps if classes is None else overlaps & (classes == classes[i]))
    return chosen


@op("non_maximum_suppression", moves=True)
def non_maximum_suppression(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    score_threshold: float,
    max_boxes: int,
    per_class_suppression: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes [n, B, 4], scores [n, B, K], indices and counts of the ``max_boxes`` best boxes. A box
    scores as its best class and belongs to it; if none reaches ``score_threshold`` the best one is
    taken. Missing ones are 0, their indices -1."""
    batch, _, kinds = scores.shape
    within((batch, max_boxes, 4 + kinds))
    result = boxes.new_zeros(batch, max_boxes, 4), scores.new_zeros(batch, max_boxes, kinds)
    indices = torch.full((batch, max_boxes), -1, dtype=torch.int32, device=boxes.device)
    counts = torch.zeros(batch, dtype=torch.int32, device=boxes.device)
    for item in range(batch):
        best, classes = scores[item].max(1)
        eligible = torch.nonzero(best >= score_threshold).reshape(-1)
        if len(eligible) == 0:
            eligible = best.argmax().reshape(1)
        kind = classes[eligible] if per_class_suppression else None
        chosen = eligible[_suppressed(boxes[item][eligible], best[eligible], kind, iou_threshold, max_boxes)]
        count = len(chosen)
        result[0][item, :count], result[1][item, :count] = boxes[item][chosen], scores[item][chosen]
        indices[item, :count], counts[item] = chosen.int(), count
    return *result, indices, counts


@op("non_maximum_suppression", since="ios17", moves=True)
def non_maximum_suppression_ios17(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    max_boxes: int,
    per_class_suppression: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [n, 4, B] and scores [n, K, B]; no threshold and no counts (iOS17/tensor_operation.py)."""
    chosen = non_maximum_suppression(
        boxes.mT, scores.mT, iou_threshold, float("-inf"), max_boxes, per_class_suppression
    )
    return chosen[0].mT, chosen[1].mT, chosen[2]
