"""Ops that compute each element by itself or from a few others, with their float64 definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.ndimage
import scipy.special
import torch
import torch.nn.functional as F
from half import halves
from modes import Row, row

EDGES = np.float32([0, -0.0, 2.0**-24, -6e-5, 0.5, -2.5, 255.5, -300, 60000, -65504, np.inf, -np.inf, np.nan])
X = np.concatenate([3 * halves(200), EDGES]).astype(np.float16).astype(np.float32)
Y = np.concatenate([3 * halves(200, seed=1), EDGES[::-1]]).astype(np.float16).astype(np.float32)
UNIT = np.linspace(-1, 1, 301).astype(np.float16).astype(np.float32)
SMALL = X[np.abs(X) < 12]
POSITIVE = np.abs(X)
IMAGE, CHANNELS = halves(2, 3, 5, 7), halves(3, seed=2)
ALPHA, BETA = np.float32([0.25, -0.5, 2.0]), np.float32([1.5, 0.75, -1.0])
INT8 = np.arange(-60, 60, dtype=np.int8).reshape(4, 30)
SCALES = np.float16([0.1, 0.02, 0.3, 0.007]).astype(np.float32)
PLACES = np.array([2, 0, 2], np.int32)


def channels(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1, 1, 1)


def scattered(data: np.ndarray, index: Any, updates: np.ndarray) -> np.ndarray:
    result = data.copy()
    np.add.at(result, index, updates)
    return result


def interpolated(x: np.ndarray, sizes: tuple[int, int], align_corners: bool = False) -> np.ndarray:
    tensor = torch.from_numpy(x)
    return F.interpolate(tensor, sizes, mode="bilinear", align_corners=align_corners).numpy()


def nearest(x: np.ndarray, sizes: tuple[int, int]) -> np.ndarray:
    return F.interpolate(torch.from_numpy(x), sizes, mode="nearest-exact").numpy()


def sampled(x: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """torch's grid_sample at normalized coordinates [B, h, w, 2], zeros outside."""
    return F.grid_sample(torch.from_numpy(x), torch.from_numpy(grid), align_corners=True).numpy()


def corners(x: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Every image's 3 x 4 grid over the box (top, left, bottom, right), its corners included."""
    down, across = np.linspace(box[0], box[2], 3), np.linspace(box[1], box[3], 4)
    grid = np.meshgrid(down, across, indexing="ij")
    planes = [scipy.ndimage.map_coordinates(plane, grid, order=1) for plane in x.reshape(-1, *x.shape[2:])]
    return np.reshape(planes, (*x.shape[:2], 3, 4))


def affine(x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    down, across = np.meshgrid(np.linspace(-1, 1, 4), np.linspace(-1, 1, 6), indexing="ij")
    places = np.stack([across, down, np.ones_like(down)], -1) @ matrix.reshape(2, 3).T
    return sampled(x, np.broadcast_to(places, (len(x), 4, 6, 2)).copy())


ARITHMETIC = [
    row("add", "exact", np.add, x=X, y=Y),
    row("sub", "exact", np.subtract, x=X, y=Y),
    row("mul", "exact", np.multiply, x=X, y=Y),
    row("real_div", "exact", np.divide, x=X, y=Y),
    row("square", "exact", np.square, x=X),
    row("sqrt", "exact", np.sqrt, x=X),
    row("linear_activation", "rounded", lambda x: np.float32(1.7) * x - 0.25, x=X, alpha=1.7, beta=-0.25),
    row("floor_div", "exact", np.floor_divide, x=SMALL, y=np.float32([4, -0.5])[:, None]),
    row("mod", "exact", np.mod, x=SMALL, y=np.float32([4, -0.5])[:, None]),
    row("cast", "exact", lambda x: x, x=np.array([2047, 2049, -4099, 65519, 70000], np.int32), dtype="fp16"),
    row("relu6", "moves", lambda x: np.clip(x, 0, 6), x=X),
]

FUNCTIONS = [
    row("acos", "rounded", np.arccos, x=UNIT),
    row("asin", "rounded", np.arcsin, x=UNIT),
    row("atan", "rounded", np.arctan, x=X),
    row("atanh", "rounded", np.arctanh, x=UNIT),
    row("cos", "rounded", np.cos, x=X),
    row("cosh", "rounded", np.cosh, x=X),
    row("erf", "rounded", scipy.special.erf, x=X),
    row("exp", "rounded", np.exp, x=X),
    row("exp2", "rounded", np.exp2, x=X),
    row("inverse", "rounded", lambda x: 1 / (x + 1e-4), x=POSITIVE),
    row("log", "rounded", lambda x: np.log(x + np.float32(1e-45).astype(float)), x=POSITIVE),
    row("pow", "rounded", np.power, x=POSITIVE, y=Y),
    row("rsqrt", "rounded", lambda x: 1 / np.sqrt(x + 1e-12), x=POSITIVE),
    row("sin", "rounded", np.sin, x=X),
    row("sinh", "rounded", np.sinh, x=X),
    row("tan", "rounded", np.tan, x=X),
    row("tanh", "rounded", np.tanh, x=X),
]

ACTIVATIONS = [
    row("sigmoid", "rounded", scipy.special.expit, x=X),
    row("silu", "rounded", lambda x: x * scipy.special.expit(x), x=X),
    row("softplus", "rounded", lambda x: np.logaddexp(x, 0), x=X),
    row("softsign", "rounded", lambda x: x / (1 + np.abs(x)), x=SMALL),
    row("prelu", "rounded", lambda x, a: np.where(x > 0, x, channels(a) * x), x=IMAGE, alpha=ALPHA),
    row("leaky_relu", "rounded", lambda x: np.where(x > 0, x, np.float32(0.1) * x), x=X, alpha=0.1),
    row("elu", "rounded", lambda x: np.where(x > 0, x, np.float32(0.7) * np.expm1(x)), x=X, alpha=0.7),
    row(
        "clamped_relu", "rounded", lambda x: np.minimum(np.where(x > 0, x, np.float32(0.3) * x), 1.25),
        x=X, alpha=0.3, beta=1.25,
    ),
    row("gelu", "rounded", lambda x: x * scipy.special.ndtr(x), ulps=8, x=SMALL),
    row(
        "gelu", "rounded", lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
        x=SMALL, mode="TANH_APPROXIMATION",
    ),
    row(
        "gelu", "rounded", lambda x: x * scipy.special.expit(1.702 * x), x=SMALL, mode="SIGMOID_APPROXIMATION"
    ),
    row("scaled_tanh", "rounded", lambda x: 1.75 * np.tanh(x * np.float32(0.6)), x=X, alpha=1.75, beta=0.6),
    row("sigmoid_hard", "rounded", lambda x: np.clip(np.float32(0.2) * x + 0.5, 0, 1), x=X, alpha=0.2, beta=0.5),
    row(
        "softplus_parametric", "rounded",
        lambda x, a, b: channels(a) * np.logaddexp(channels(b) * x, 0), x=IMAGE, alpha=ALPHA, beta=BETA,
    ),
    row("thresholded_relu", "moves", lambda x: np.where(x < 0.5, 0, x), x=X, alpha=0.5),
]  # fmt: skip

IMAGES = [
    row(
        "resize_bilinear", "rounded", lambda x: interpolated(x, (8, 9)), x=IMAGE,
        target_size_height=8, target_size_width=9, sampling_mode="UNALIGN_CORNERS",
    ),
    row(
        "resize", "rounded", lambda x: interpolated(x, (8, 9)), since="ios17", x=IMAGE,
        shape=[8, 9], resized_dims=2, sampling_mode="UNALIGN_CORNERS",
    ),
    row(
        "resize", "rounded", lambda x: nearest(x, (8, 9)), since="ios17", x=IMAGE,
        shape=[8, 9], resized_dims=2, interpolation_mode="NEAREST_NEIGHBOR",
    ),
    row(
        "upsample_bilinear", "rounded", lambda x: interpolated(x, (10, 21), True), since="ios15 ios16", x=IMAGE,
        scale_factor_height=2.0, scale_factor_width=3.0,
    ),
    row(
        "resample", "rounded", sampled, x=IMAGE, coordinates=halves(2, 4, 6, 2, seed=3) / 2,
        sampling_mode="bilinear", padding_mode="constant", padding_value=0.0,
        coordinates_mode="normalized_minus_one_to_one", align_corners=True,
    ),
    row(
        "affine", "rounded", affine, x=IMAGE, transform_matrix=np.float32([[0.5, -0.25, 0.25, 0.5, 0.75, 0]]),
        output_height=4, output_width=6, sampling_mode="bilinear", padding_mode="constant", padding_value=0.0,
        coordinates_mode="normalized_minus_one_to_one", align_corners=True,
    ),
    row(
        "crop_resize", "rounded", lambda x, roi: corners(x, roi[0, 0, :, 0, 0])[None], since="ios15 ios16",
        x=IMAGE, roi=np.float32([0.5, 1, 3.5, 4.25]).reshape(1, 1, 4, 1, 1), target_height=3, target_width=4,
        sampling_mode="STRICT_ALIGN_CORNERS",
    ),
    row(
        "crop_resize", "rounded", lambda x, boxes: corners(x, boxes[0])[:1], since="ios17", x=IMAGE,
        boxes=np.float32([[0.5, 1, 3.5, 4.25]]), target_height=3, target_width=4,
        sampling_mode="STRICT_ALIGN_CORNERS",
    ),
]  # fmt: skip

OTHERS = [
    row(
        "batch_norm", "rounded", lambda x, m, v: (x - channels(m)) / np.sqrt(channels(v) + np.float32(1e-5)),
        x=IMAGE, mean=CHANNELS, variance=np.float32([0.5, 2, 1]),
    ),
    row("reduce_prod", "rounded", lambda x: x.prod(1), x=halves(4, 9), axes=[1]),
    row("range_1d", "exact", lambda: np.arange(0, 1, np.float32(0.1)), end=1.0, start=0.0, step=0.1),
    row(
        "dequantize", "rounded", lambda q, s: q * s[:, None], since="ios17", input=INT8, scale=SCALES, axis=0
    ),
    row(
        "constexpr_affine_dequantize", "rounded", lambda q, z, s: (q - z.astype(float)[:, None]) * s[:, None],
        since="ios16", quantized_data=INT8, zero_point=np.array([0, 3, -9, 7], np.int8), scale=SCALES, axis=0,
        folded=True,
    ),
    row(
        "constexpr_blockwise_shift_scale", "rounded", lambda q, s: q * s.repeat(30, 1), since="ios18",
        data=INT8, scale=SCALES[:, None], folded=True,
    ),
    row(
        "constexpr_sparse_blockwise_shift_scale", "rounded",
        lambda m, q, s: (m, q * (m * s).ravel()[m.ravel() == 1]), since="ios18", outputs="uint8 fp16",
        data_mask=np.tile(np.array([1, 0], np.uint8), (4, 15)), nonzero_data=INT8.ravel()[::2],
        scale=SCALES[:, None], folded=True,
    ),
    row(
        "scatter", "rounded", lambda d, i, u: scattered(d, i, u), since="ios15 ios17",
        data=halves(4, 3), indices=PLACES, updates=halves(3, 3, seed=1),
    ),
    row(
        "scatter_along_axis", "rounded", lambda d, i, u: scattered(d, (i, np.arange(3)), u), since="ios15 ios17",
        data=halves(4, 3), indices=np.stack([PLACES, PLACES[::-1]]), updates=halves(2, 3, seed=1),
    ),
    row(
        "scatter_nd", "rounded", lambda d, i, u: scattered(d, tuple(i.T), u), since="ios15 ios17",
        data=halves(4, 3), indices=np.stack([PLACES, PLACES], 1), updates=halves(3, seed=1),
    ),
]  # fmt: skip

ROWS: list[Row] = [*ARITHMETIC, *FUNCTIONS, *ACTIVATIONS, *IMAGES, *OTHERS]
