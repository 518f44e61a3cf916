"""Ops that add products or elements, most of them 300, with their float64 definitions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.special
import torch
import torch.nn.functional as F
from half import halves
from modes import Row, row

STATES = {"initial_h": halves(2, 6, seed=2) / 4}


def lifted(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal values about 1, so that their sums do not cancel."""
    return (halves(*shape, seed=seed) + 1).astype(np.float16).astype(np.float32)


def small(*shape: int, seed: int = 0) -> np.ndarray:
    """Weights of a size that leaves 300 products of order 1."""
    return (halves(*shape, seed=seed) / 16).astype(np.float16).astype(np.float32)


def by_torch(function: Callable[..., torch.Tensor], *options: object) -> Callable[..., np.ndarray]:
    """torch's function of float64 tensors."""
    return lambda *arrays: function(*map(torch.from_numpy, arrays), *options).numpy()


def normalized(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + np.float32(1e-5))


def near(x: np.ndarray) -> np.ndarray:
    """The local response norm over 9 channels centred on each."""
    sums = [(x[:, max(0, c - 4) : c + 5] ** 2).sum(1) for c in range(x.shape[1])]
    return x / (1 + 0.5 / 9 * np.stack(sums, 1)) ** 0.75


def attended(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    return scipy.special.softmax(q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]), -1) @ v


def rnn(x: np.ndarray, h: np.ndarray, w: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, ...]:
    for part in x:
        h = np.tanh(part @ w.T + h @ u.T)
    return h[None], h


def gru(x: np.ndarray, h: np.ndarray, w: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, ...]:
    (wr, wo, wz), (ur, uo, uz) = np.split(w, 3), np.split(u, 3)
    for part in x:
        r, z = (scipy.special.expit(part @ a.T + h @ b.T) for a, b in ((wr, ur), (wz, uz)))
        h = (1 - z) * np.tanh(part @ wo.T + (r * h) @ uo.T) + z * h
    return h[None], h


def lstm(x: np.ndarray, h: np.ndarray, c: np.ndarray, w: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, ...]:
    for part in x:
        i, f, o, z = np.split(part @ w.T + h @ u.T, 4, -1)
        c = scipy.special.expit(f) * c + scipy.special.expit(i) * np.tanh(z)
        h = scipy.special.expit(o) * np.tanh(c)
    return h[None], h, c


PRODUCTS = [
    row("linear", "sums", lambda x, w, b: x @ w.T + b, apart=4, since="ios15 ios17", x=halves(20, 300),
        weight=small(5, 300, seed=1), bias=halves(5, seed=2)),
    row("matmul", "sums", np.matmul, apart=4, since="ios15 ios17", x=halves(20, 300), y=small(300, 5, seed=1)),
    row("einsum", "sums", lambda v: np.einsum("chw,whr->chr", *v), apart=4,
        values=(halves(2, 3, 300), small(300, 3, 4)), equation="chw,whr->chr"),
    row("conv", "sums", by_torch(F.conv2d), apart=4, x=halves(1, 20, 7, 8), weight=small(6, 20, 3, 5, seed=1)),
    row("conv_transpose", "sums", by_torch(F.conv_transpose2d), apart=3, x=halves(1, 20, 5, 6),
        weight=small(20, 6, 3, 5, seed=1)),
    row("conv_quantized", "sums", lambda x, w, s, b: by_torch(F.conv1d)(x, w * s + b), apart=3, x=halves(1, 100, 9),
        weight=np.random.default_rng(0).integers(0, 256, (6, 100, 3)).astype(np.uint8), quantization_type="linear",
        quant_scale=np.float32(2.0**-10), quant_bias=np.float32(-0.125)),
    row("scaled_dot_product_attention", "sums", attended, apart=4, since="ios18", query=halves(2, 4, 64),
        key=halves(2, 300, 64, seed=1), value=halves(2, 300, 5, seed=2)),
    row("rnn", "sums", rnn, apart=8, outputs="fp16 fp16", x=halves(3, 2, 300), **STATES, weight_ih=small(6, 300),
        weight_hh=halves(6, 6, seed=1)),
    row("gru", "sums", gru, apart=6, since="ios15 ios18", outputs="fp16 fp16", x=halves(3, 2, 300), **STATES,
        weight_ih=small(18, 300), weight_hh=halves(18, 6, seed=1)),
    row("lstm", "sums", lstm, apart=4, outputs="fp16 fp16 fp16", x=halves(3, 2, 300), **STATES,
        initial_c=halves(2, 6, seed=3), weight_ih=small(24, 300), weight_hh=halves(24, 6, seed=1)),
]  # fmt: skip

REDUCTIONS = [
    row("reduce_sum", "sums", lambda x: x.sum(1), apart=3, x=lifted(20, 300), axes=[1]),
    row("reduce_mean", "sums", lambda x: x.mean(1), apart=3, x=lifted(20, 300), axes=[1]),
    row("reduce_sum_square", "sums", lambda x: (x**2).sum(1), apart=3, x=lifted(20, 300), axes=[1]),
    row("reduce_l1_norm", "sums", lambda x: np.abs(x).sum(1), apart=3, x=lifted(20, 300), axes=[1]),
    row("reduce_l2_norm", "sums", lambda x: np.linalg.norm(x, axis=1), apart=3, x=lifted(20, 300), axes=[1]),
    row("reduce_log_sum", "sums", lambda x: np.log(x.sum(1)), apart=3, x=lifted(20, 300), axes=[1]),
    row("reduce_log_sum_exp", "sums", lambda x: scipy.special.logsumexp(x, 1), apart=3, x=halves(20, 300), axes=[1]),
    row("cumsum", "sums", lambda x: np.cumsum(x, 1), apart=10, x=lifted(20, 300), axis=1),
    row("softmax", "sums", lambda x: scipy.special.softmax(x, 1), apart=3, x=halves(20, 300), axis=1),
]  # fmt: skip

NORMS = [
    row("layer_norm", "sums", lambda x: normalized(x, (1,)), apart=2, x=halves(20, 300), axes=[1]),
    row("instance_norm", "sums", lambda x: normalized(x, (2,)), apart=2, x=halves(4, 5, 300)),
    row("l2_norm", "sums", lambda x: x / np.sqrt((x**2).sum((1, 2, 3), keepdims=True) + 1e-6), apart=2,
        x=halves(20, 3, 10, 10)),
    row("local_response_norm", "sums", near, apart=2, x=lifted(1, 12, 80), size=9, alpha=0.5),
    row("avg_pool", "sums", by_torch(F.avg_pool2d, (15, 20), 1), apart=3, x=lifted(1, 2, 16, 21), kernel_sizes=[15, 20],
        pad_type="valid"),
    row("l2_pool", "sums", lambda x: np.sqrt(300 * by_torch(F.avg_pool2d, (15, 20), 1)(x**2)), apart=3,
        x=lifted(1, 2, 16, 21), kernel_sizes=[15, 20], pad_type="valid"),
]  # fmt: skip

ROWS: list[Row] = [*PRODUCTS, *REDUCTIONS, *NORMS]
