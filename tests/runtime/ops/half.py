"""The fp16acc definition as scalar numpy loops: what `FP16ACC` must equal bit for bit."""

from __future__ import annotations

import numpy as np


def half_sum(addends: np.ndarray) -> np.float16:
    """Blocks of 32 summed in ascending order, block sums combined pairwise in order, every sum rounded."""
    values = [np.float16(a) for a in np.ravel(addends)]
    sums = [_running(values[i : i + 32]) for i in range(0, len(values), 32)] or [np.float16(0)]
    while len(sums) > 1:
        pairs = [_add(a, b) for a, b in zip(sums[::2], sums[1::2], strict=False)]
        sums = pairs + sums[len(pairs) * 2 :]
    return sums[0]


def half_dot(a: np.ndarray, b: np.ndarray) -> np.float16:
    """Products rounded to fp16, then summed."""
    return half_sum((np.ravel(a).astype(np.float64) * np.ravel(b).astype(np.float64)).astype(np.float16))


def _running(values: list[np.float16]) -> np.float16:
    total = values[0]
    for value in values[1:]:
        total = _add(total, value)
    return total


def _add(a: np.float16, b: np.float16) -> np.float16:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.float16(np.float64(a) + np.float64(b))


def halves(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal values that fp16 represents, as fp32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16).astype(np.float32)
