from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from half import half_dot, half_sum, halves
from oracle import inferred_shape, ours

from coreproof.runtime.numerics import FP16ACC, WIDE

CASES = {
    "1d": ((2, 3, 10), [3], [2]),
    "2d": ((1, 2, 7, 9), [3, 2], [2, 3]),
    "3d": ((1, 2, 5, 6, 4), [2, 3, 2], [1, 2, 2]),
}
PADS = {
    "valid": {"pad_type": "valid"},
    "custom": {"pad_type": "custom", "sides": (1, 1)},
    "lopsided": {"pad_type": "custom", "sides": (0, 1)},
    "same": {"pad_type": "same"},
    "same_lower": {"pad_type": "same_lower"},
}


def _sides(
    padding: str, shape: tuple[int, ...], kernel: list[int], strides: list[int]
) -> list[tuple[int, int]]:
    totals = [max(0, -(-n // s) * s - s + k - n) for n, k, s in zip(shape[2:], kernel, strides, strict=True)]
    if padding == "same":
        return [(t // 2, t - t // 2) for t in totals]
    if padding == "same_lower":
        return [(t - t // 2, t // 2) for t in totals]
    return [PADS[padding].get("sides", (0, 0))] * len(kernel)


def _windows(x: np.ndarray, kernel: list[int], strides: list[int]) -> np.ndarray:
    """[N, C, *positions, elements] of an already padded input."""
    rank = len(kernel)
    seen = np.lib.stride_tricks.sliding_window_view(x, kernel, tuple(range(2, 2 + rank)))
    seen = seen[(slice(None), slice(None), *[slice(None, None, s) for s in strides])]
    return seen.reshape(*seen.shape[: 2 + rank], -1)


@pytest.mark.parametrize("padding", PADS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["max_pool", "avg_pool", "excluding", "l2_pool"])
def test_pool(name: str, case: str, padding: str) -> None:
    shape, kernel, strides = CASES[case]
    sides = _sides(padding, shape, kernel, strides)
    x = halves(*shape)
    options: dict[str, Any] = {
        "kernel_sizes": kernel,
        "strides": strides,
        "pad_type": PADS[padding]["pad_type"],
    }
    if options["pad_type"] == "custom":
        options["pad"] = np.ravel(sides)
    around = [(0, 0), (0, 0), *sides]
    zeros = _windows(np.pad(x.astype(np.float64), around), kernel, strides)
    if name == "max_pool":
        expected = _windows(np.pad(x, around, constant_values=-np.inf), kernel, strides).max(-1)
    elif name == "l2_pool":
        expected = np.sqrt((zeros**2).sum(-1))
    else:
        inside = _windows(np.pad(np.ones_like(x), around), kernel, strides).sum(-1)
        expected = zeros.sum(-1) / (inside if name == "excluding" else zeros.shape[-1])
    if name == "excluding":
        name, options["exclude_padding_from_average"] = "avg_pool", True
    got = ours(name, x=x, **options)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    if not (name == "l2_pool" and len(kernel) == 3):
        assert got.shape == inferred_shape(name, "ios17", shape, **options)


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize(
    ("size", "kernel", "stride"),
    [(9, 3, 2), (10, 3, 2), (8, 3, 3), (7, 2, 3), (11, 4, 3), (5, 3, 4), (12, 3, 3), (13, 5, 4)],
)
def test_ceil_mode(size: int, kernel: int, stride: int, pad: int, exclude: bool) -> None:
    x = halves(2, 3, size, size)
    options = {"kernel_sizes": [kernel] * 2, "strides": [stride] * 2, "ceil_mode": True, "pad_type": "custom"}
    options["pad"] = [pad] * 4
    average = ours("avg_pool", x=x, exclude_padding_from_average=exclude, **options)
    largest = ours("max_pool", x=x, **options)
    t = torch.from_numpy(x).double()
    expected = F.avg_pool2d(t, kernel, stride, pad, ceil_mode=True, count_include_pad=not exclude)
    np.testing.assert_allclose(average, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(largest, F.max_pool2d(t, kernel, stride, pad, ceil_mode=True))
    assert average.shape == inferred_shape("avg_pool", "ios15", x.shape, **options)


def test_stride_is_one_by_default() -> None:
    assert ours("max_pool", x=halves(1, 1, 5), kernel_sizes=[2], pad_type="valid").shape == (1, 1, 4)


def test_half_accumulation() -> None:
    x = halves(1, 2, 12, 11)
    options = {"kernel_sizes": [7, 6], "strides": [5, 5], "pad_type": "valid"}
    seen = _windows(x, options["kernel_sizes"], options["strides"])
    sums = np.apply_along_axis(half_sum, -1, seen).astype(np.float32)
    np.testing.assert_array_equal(ours("avg_pool", num=FP16ACC, x=x, **options), sums / np.float32(42))
    squares = np.apply_along_axis(lambda w: half_dot(w, w), -1, seen).astype(np.float32)
    # torch's fp32 square root is an ulp off on some processors.
    np.testing.assert_array_max_ulp(ours("l2_pool", num=FP16ACC, x=x, **options), np.sqrt(squares), 1)
    wide = ours("avg_pool", num=WIDE, x=x, **options)
    assert np.abs(sums / 42 - wide).max() < 0.01


def test_a_window_beyond_an_unpadded_input() -> None:
    """The definition drops it only where there is padding, and torch always: nothing is in it."""
    options = {"kernel_sizes": [1], "strides": [3], "pad_type": "valid", "ceil_mode": True}
    x = np.array([[[4, 1, 1, 5, 1]]], np.float32)
    assert inferred_shape("max_pool", "ios15", x.shape, **options) == (1, 1, 3)
    assert ours("max_pool", x=x, **options).tolist() == [[[4, 5, -np.inf]]]
    assert np.isnan(ours("avg_pool", x=x, **options)[0, 0]).tolist() == [False, False, True]


def test_custom_padding_is_none_unless_given() -> None:
    x = halves(1, 2, 9)
    options = {"kernel_sizes": [3]}
    for name in ("max_pool", "avg_pool", "l2_pool"):
        plain = ours(name, x=x, pad_type="valid", **options)
        np.testing.assert_array_equal(ours(name, x=x, pad_type="custom", **options), plain)


def test_lopsided_padding_in_ceil_mode() -> None:
    """By the definition's formula, though its own inference refuses such padding: a third window would
    start at the padding."""
    options = {"kernel_sizes": [2], "strides": [3], "pad_type": "custom", "pad": [0, 1], "ceil_mode": True}
    x = np.array([[[1, 2, 3, 4, 5, 6]]], np.float32)
    assert ours("max_pool", x=x, **options).tolist() == [[[2, 5]]]


def test_strides_that_are_too_few() -> None:
    with pytest.raises(ValueError, match="argument 3 is shorter"):
        ours("max_pool", x=halves(1, 1, 5, 5), kernel_sizes=[2, 2], strides=[1], pad_type="valid")
