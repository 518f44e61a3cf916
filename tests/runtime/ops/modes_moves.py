"""Ops that only move, select or fill elements, with what numpy makes of the same sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from half import halves
from modes import Row, row
from modes_elementwise import X, Y

NEWEST_GATHER = "ios15 ios16 ios17"
CUBE, IMAGE = halves(2, 3, 4), halves(2, 4, 4, 6)
PLACES = np.array([[1, 0], [2, 2]], np.int32)
SLICE: dict[str, Any] = {"begin": [0, 2, 3], "end": [2, 0, 0], "stride": [1, -1, -2]}
SCORES = np.float32([[3, 1, 2, -1], [0.5, 4, 0, 1.5]])
BITS = np.array([1, 0, 1, 1, 0, 0, 1, 0], np.uint8)
TABLE, INDICES = halves(4), np.array([0, 3, 2, 1, 3, 0, 0, 2], np.uint8)


def updated(x: np.ndarray, update: np.ndarray) -> np.ndarray:
    result = x.copy()
    result[0:2, 2:0:-1, 3:0:-2] = update
    return result


def blocks(x: np.ndarray, pattern: tuple[int, ...], order: tuple[int, ...], *shape: int) -> np.ndarray:
    return x.reshape(pattern).transpose(order).reshape(shape)


def largest(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-x, axis=1, kind="stable")[:, :2]
    return np.take_along_axis(x, order, 1), order


def pooled(x: np.ndarray) -> np.ndarray:
    return F.max_pool2d(torch.from_numpy(x), (2, 3), (1, 2), (1, 1)).numpy()


def dense(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    result = np.zeros(mask.shape)
    result[mask == 1] = values
    return result


SELECTED = [
    row("abs", "moves", np.abs, x=X),
    row("ceil", "moves", np.ceil, x=X),
    row("floor", "moves", np.floor, x=X),
    row("round", "moves", np.round, x=X),
    row("sign", "moves", np.sign, x=X),
    row("relu", "moves", lambda x: np.maximum(x, 0), x=X),
    row("clip", "moves", lambda x: np.clip(x, -1.5, 2), x=X, alpha=-1.5, beta=2.0),
    row("threshold", "moves", np.maximum, x=X, alpha=np.float32(0.5)),
    row("maximum", "moves", np.maximum, x=X, y=Y),
    row("minimum", "moves", np.minimum, x=X, y=Y),
    row("select", "moves", np.where, cond=X > 0, a=X, b=Y),
    row("reduce_max", "moves", lambda x: x.max(1), x=CUBE, axes=[1]),
    row("reduce_min", "moves", lambda x: x.min(1), x=CUBE, axes=[1]),
    row("max_pool", "moves", pooled, x=IMAGE, kernel_sizes=[2, 3], strides=[1, 2], pad_type="custom", pad=[1] * 4),
    row("band_part", "moves", lambda x: np.triu(np.tril(x, 1)), x=CUBE, lower=0, upper=1),
    row("topk", "moves", largest, since="ios15 ios16 ios17", outputs="fp16 int32", x=CUBE[0], k=2, axis=1),
    row(
        "non_maximum_suppression", "moves", lambda b, s: (b, s, np.arange(2)[None], np.array([2])),
        outputs="fp16 fp16 int32 int32", boxes=np.float32([[[1, 1, 2, 2], [5, 5, 2, 3]]]),
        scores=np.float32([[[0.9], [0.8]]]).astype(np.float16).astype(np.float32),
        iou_threshold=0.5, score_threshold=0.0, max_boxes=2,
    ),
    row(
        "non_maximum_suppression", "moves", lambda b, s: (b, s, np.arange(2)[None]), since="ios17",
        outputs="fp16 fp16 int32", boxes=np.float32([[[1, 5], [1, 5], [2, 2], [2, 3]]]),
        scores=np.float32([[[0.75, 0.5]]]), iou_threshold=0.5, max_boxes=2,
    ),
]  # fmt: skip

MOVED = [
    row("identity", "moves", lambda x: x, x=X),
    row("transpose", "moves", lambda x: x.transpose(2, 0, 1), x=CUBE, perm=[2, 0, 1]),
    row("expand_dims", "moves", lambda x: x[:, None], x=CUBE, axes=[1]),
    row("squeeze", "moves", lambda x: x[0], x=CUBE[:1], axes=[0]),
    row("reshape", "moves", lambda x: x.reshape(4, 6), since="ios15 ios17", x=CUBE, shape=[4, -1]),
    row(
        "reshape_like", "moves", lambda x, refs, *_: x.reshape(refs[0].shape), since="ios16", x=CUBE,
        ref_tensors=(np.zeros((6, 4), np.float32),), begins=(np.int32(0),), ends=(np.int32(0),),
        end_masks=(np.bool_(True),),
    ),
    row("flatten2d", "moves", lambda x: x.reshape(2, 12), x=CUBE),
    row("reverse", "moves", lambda x: x[:, ::-1], x=CUBE, axes=[1]),
    row(
        "reverse_sequence", "moves", lambda x, _: np.stack([x[0, [1, 0, 2]], x[1, ::-1]]), x=CUBE,
        lengths=np.array([2, 3], np.int32), seq_axis=1, batch_axis=0,
    ),
    row("slice_by_index", "moves", lambda x: x[0:2, 2:0:-1, 3:0:-2], x=CUBE, **SLICE),
    row("slice_by_size", "moves", lambda x: x[:, 1:, 1:3], x=CUBE, begin=[0, 1, 1], size=[2, -1, 2]),
    row("slice_update", "moves", updated, since="ios18", x=CUBE, update=halves(2, 2, 2, seed=1), **SLICE),
    row(
        "sliding_windows", "moves", lambda x: np.stack([x[:, 0:2], x[:, 1:3]], 1), x=CUBE, axis=1, size=2
    ),
    row("tile", "moves", lambda x: np.tile(x, (1, 2, 3)), x=CUBE, reps=[1, 2, 3]),
    row("stack", "moves", lambda v: np.stack(v, 1), values=(CUBE, -CUBE), axis=1),
    row("concat", "moves", lambda v: np.concatenate(v, 1), values=(CUBE, -CUBE), axis=1),
    row("split", "moves", lambda x: tuple(np.split(x, 2, 2)), outputs="fp16 fp16", x=CUBE, axis=2, num_splits=2),
    row("pad", "moves", lambda x: np.pad(x, [(0, 0), (1, 0), (0, 2)], constant_values=0.5), x=CUBE,
        pad=[1, 0, 0, 2], constant_val=0.5),
    row("pad", "moves", lambda x: np.pad(x, [(0, 0), (1, 0), (0, 2)], "reflect"), x=CUBE, pad=[1, 0, 0, 2],
        mode="reflect"),
    row("crop", "moves", lambda x: x[..., 1:3, 2:6], x=IMAGE, crop_height=[1, 1], crop_width=[2, 0]),
    row("pixel_shuffle", "moves", lambda x: F.pixel_shuffle(torch.from_numpy(x), 2).numpy(), x=IMAGE,
        upscale_factor=2),
    row("pixel_unshuffle", "moves", lambda x: F.pixel_unshuffle(torch.from_numpy(x), 2).numpy(), since="ios16",
        x=IMAGE, downscale_factor=2),
    row("depth_to_space", "moves", lambda x: blocks(x, (2, 2, 2, 1, 4, 6), (0, 3, 4, 1, 5, 2), 2, 1, 8, 12),
        x=IMAGE, block_size=2),
    row("space_to_depth", "moves", lambda x: blocks(x, (2, 4, 2, 2, 3, 2), (0, 3, 5, 1, 2, 4), 2, 16, 2, 3),
        x=IMAGE, block_size=2),
    row("space_to_batch", "moves", lambda x: blocks(x, (2, 4, 2, 2, 3, 2), (3, 5, 0, 1, 2, 4), 8, 4, 2, 3),
        x=IMAGE, block_shape=[2, 2], paddings=[0] * 4),
    row("batch_to_space", "moves", lambda x: blocks(x, (2, 1, 1, 4, 4, 6), (2, 3, 4, 0, 5, 1), 1, 4, 8, 6),
        x=IMAGE, block_shape=[2, 1], crops=[0] * 4),
    row("resize_nearest_neighbor", "moves", lambda x: x.repeat(2, 2).repeat(3, 3), x=IMAGE, target_size_height=8,
        target_size_width=18),
    row("upsample_nearest_neighbor", "moves", lambda x: x.repeat(2, 2).repeat(3, 3), x=IMAGE,
        scale_factor_height=2.0, scale_factor_width=3.0),
]  # fmt: skip

PICKED = [
    row("gather", "moves", lambda x, i: x[:, i], since=NEWEST_GATHER, x=CUBE, indices=PLACES, axis=1),
    row(
        "gather_along_axis", "moves", lambda x, i: np.take_along_axis(x, i, 1), since="ios15 ios17", x=CUBE[0],
        indices=np.array([[1, 0], [2, 2], [3, 0]], np.int32), axis=1,
    ),
    row("gather_nd", "moves", lambda x, i: x[i[:, 0], i[:, 1]], since=NEWEST_GATHER, x=CUBE,
        indices=np.array([[1, 0], [0, 2]], np.int32)),
]  # fmt: skip

FILLED = [
    row("fill", "moves", lambda: np.full((2, 3), -1.5), shape=[2, 3], value=-1.5),
    row("fill_like", "moves", lambda x: np.full(x.shape, 0.25), since="ios16", ref_tensor=CUBE, value=0.25),
    row("one_hot", "moves", lambda i: np.eye(4)[i] * 3 - 1, indices=PLACES, one_hot_vector_size=4, on_value=2.0,
        off_value=-1.0),
]  # fmt: skip

UNPACKED = [
    row("constexpr_cast", "moves", lambda x: x, since="ios16", outputs="fp32", folded=True,
        source_val=X, output_dtype="fp32"),
    row("constexpr_lut_to_dense", "moves", lambda p, t: t[INDICES].reshape(2, 4), since="ios16", folded=True,
        indices=np.packbits((INDICES[:, None] >> np.arange(2) & 1).astype(np.uint8), bitorder="little"), lut=TABLE,
        shape=[2, 4]),
    row("constexpr_lut_to_dense", "moves", lambda i, t: t[0, i, 0], since="ios18", folded=True, indices=INDICES,
        lut=TABLE.reshape(1, 4, 1)),
    row("constexpr_sparse_to_dense", "moves", lambda d, m: dense(d, BITS), since="ios16", folded=True,
        nonzero_data=TABLE, mask=np.packbits(BITS, bitorder="little"), shape=[8]),
    row("constexpr_sparse_to_dense", "moves", dense, since="ios18", folded=True, nonzero_data=TABLE, mask=BITS),
    row("constexpr_lut_to_sparse", "moves", lambda m, i, t: (m, t[0, i, 0]), since="ios18", outputs="uint8 fp16",
        folded=True, indices_mask=BITS, indices_nonzero_data=INDICES[:4], lut=TABLE.reshape(1, 4, 1)),
]  # fmt: skip

ROWS: list[Row] = [*SELECTED, *MOVED, *PICKED, *FILLED, *UNPACKED]
