from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from half import half_dot, halves
from oracle import inferred_shape, ours

from coreproof.errors import UnsupportedOpError
from coreproof.runtime.numerics import FP16ACC, WIDE

Dot = Callable[[np.ndarray, np.ndarray], float]


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.vdot(a.astype(np.float64), b.astype(np.float64)))


def correlate(
    x: np.ndarray, weight: np.ndarray, strides: list[int], dilations: list[int], groups: int, dot: Dot
) -> np.ndarray:
    """Convolution of an already padded input, one output element at a time."""
    kernel = weight.shape[2:]
    sizes = [
        (n - (k - 1) * d - 1) // s + 1
        for n, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True)
    ]
    out, share = weight.shape[:2]
    y = np.zeros((x.shape[0], out, *sizes))
    for n, c, *at in np.ndindex(y.shape):
        first = c // (out // groups) * share
        window = [
            slice(p * s, p * s + (k - 1) * d + 1, d)
            for p, s, k, d in zip(at, strides, kernel, dilations, strict=True)
        ]
        y[(n, c, *at)] = dot(x[(n, slice(first, first + share), *window)], weight[c])
    return y


def stuff(x: np.ndarray, strides: list[int]) -> np.ndarray:
    """Zeros between the elements, as a transposed convolution sees its input."""
    y = np.zeros(
        (*x.shape[:2], *[(n - 1) * s + 1 for n, s in zip(x.shape[2:], strides, strict=True)]), x.dtype
    )
    y[(..., *[slice(None, None, s) for s in strides])] = x
    return y


CASES = {
    "1d": ((2, 3, 11), (4, 3, 3), {}),
    "pointwise": ((1, 5, 7), (2, 5, 1), {}),
    "1d strided dilated": ((1, 4, 20), (6, 4, 3), {"strides": [2], "dilations": [3]}),
    "grouped": ((2, 4, 9), (6, 2, 3), {"groups": 2}),
    "depthwise": ((1, 6, 9), (6, 1, 4), {"groups": 6}),
    "2d": ((2, 3, 6, 7), (2, 3, 3, 2), {"strides": [1, 2], "dilations": [2, 1]}),
    "3d": ((1, 2, 4, 5, 3), (2, 2, 2, 3, 2), {"strides": [1, 2, 1]}),
}  # fmt: skip


@pytest.mark.parametrize("mode", ["wide", "half"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("padding", ["valid", "custom", "lopsided", "same", "same_lower"])
def test_conv(case: str, padding: str, mode: str) -> None:
    shape, kernel, options = CASES[case]
    rank = len(shape) - 2
    x, weight, bias = halves(*shape), halves(*kernel, seed=1), halves(kernel[0], seed=2)
    strides, dilations = options.get("strides", [1] * rank), options.get("dilations", [1] * rank)
    reach = [(k - 1) * d for k, d in zip(kernel[2:], dilations, strict=True)]
    same = [max(0, -(-n // s) * s - s + r + 1 - n) for n, s, r in zip(shape[2:], strides, reach, strict=True)]
    pads = {
        "valid": [(0, 0)] * rank,
        "custom": [(1, 1)] * rank,
        "lopsided": [(2, 0)] * rank,
        "same": [(t // 2, t - t // 2) for t in same],
        "same_lower": [(t - t // 2, t // 2) for t in same],
    }[padding]
    custom = padding in ("custom", "lopsided")
    arguments = {"pad_type": "custom", "pad": np.ravel(pads)} if custom else {"pad_type": padding}
    got = ours(
        "conv", num=WIDE if mode == "wide" else FP16ACC, x=x, weight=weight, bias=bias, **options, **arguments
    )
    padded = np.pad(x, [(0, 0), (0, 0), *pads])
    dot = _dot if mode == "wide" else half_dot
    expected = correlate(padded, weight, strides, dilations, options.get("groups", 1), dot)
    expected = expected + bias.reshape(-1, *[1] * rank)
    assert got.shape == inferred_shape(
        "conv", "ios17", shape, weight=weight, bias=bias, **options, **arguments
    )
    np.testing.assert_allclose(
        got, expected, rtol=1e-5 if mode == "wide" else 1e-7, atol=1e-5 if mode == "wide" else 0
    )


TRANSPOSED = {
    "1d": ((2, 3, 6), (3, 4, 3), {}),
    "strided": ((1, 3, 6), (3, 2, 5), {"strides": [3]}),
    "sparse": ((1, 3, 6), (3, 2, 2), {"strides": [4]}),
    "dilated": ((1, 2, 6), (2, 3, 3), {"strides": [2], "dilations": [2]}),
    "grouped": ((1, 4, 5), (4, 3, 4), {"strides": [2], "groups": 2}),
    "depthwise": ((1, 4, 5), (4, 1, 4), {"strides": [2], "groups": 4}),
    "2d": ((1, 2, 3, 4), (2, 3, 3, 2), {"strides": [2, 1]}),
    "3d": ((1, 2, 2, 3, 2), (2, 2, 2, 3, 2), {"strides": [1, 2, 1]}),
}  # fmt: skip


def transposed(
    x: np.ndarray, weight: np.ndarray, strides: list[int], dilations: list[int], groups: int, dot: Dot
) -> np.ndarray:
    """The full result, by correlating the stuffed input with the mirrored kernel."""
    rank = len(strides)
    reach = [(k - 1) * d for k, d in zip(weight.shape[2:], dilations, strict=True)]
    padded = np.pad(stuff(x, strides), [(0, 0), (0, 0), *[(r, r) for r in reach]])
    per_group = [np.swapaxes(w, 0, 1) for w in np.split(weight, groups)]
    return correlate(
        padded, np.flip(np.concatenate(per_group), range(2, 2 + rank)), [1] * rank, dilations, groups, dot
    )


def scattered(
    x: np.ndarray, weight: np.ndarray, strides: list[int], dilations: list[int], groups: int
) -> np.ndarray:
    """The full result, by adding each input element's kernel where it lands."""
    kernel, share = weight.shape[2:], weight.shape[1]
    sizes = [
        (n - 1) * s + (k - 1) * d + 1
        for n, s, k, d in zip(x.shape[2:], strides, kernel, dilations, strict=True)
    ]
    y = np.zeros((x.shape[0], share * groups, *sizes))
    for n, c, *at in np.ndindex(x.shape):
        first = c // (x.shape[1] // groups) * share
        window = [
            slice(p * s, p * s + (k - 1) * d + 1, d)
            for p, s, k, d in zip(at, strides, kernel, dilations, strict=True)
        ]
        y[(n, slice(first, first + share), *window)] += x[(n, c, *at)].astype(np.float64) * weight[c]
    return y


def cut(full: np.ndarray, cuts: list[tuple[int, int]]) -> np.ndarray:
    """``full`` without (before, after) of each spatial dimension, continued with zeros where negative."""
    full = np.pad(full, [(0, 0), (0, 0), *[(0, max(0, -after)) for _, after in cuts]])
    inner = [
        slice(before, n - max(0, after)) for (before, after), n in zip(cuts, full.shape[2:], strict=True)
    ]
    return full[(..., *inner)]


@pytest.mark.parametrize("mode", ["wide", "half"])
@pytest.mark.parametrize("case", TRANSPOSED)
@pytest.mark.parametrize("padding", ["valid", "custom", "output_padding", "lopsided", "same"])
def test_conv_transpose(case: str, padding: str, mode: str) -> None:
    shape, kernel, options = TRANSPOSED[case]
    rank, groups = len(shape) - 2, options.get("groups", 1)
    strides, dilations = options.get("strides", [1] * rank), options.get("dilations", [1] * rank)
    x, weight, bias = halves(*shape), halves(*kernel, seed=1), halves(kernel[1] * groups, seed=2)
    totals = [(k - 1) * d + 1 - s for k, d, s in zip(kernel[2:], dilations, strides, strict=True)]
    cuts = {
        "valid": [(0, 0)] * rank,
        "custom": [(1, 1)] * rank,
        "output_padding": [(1, 0)] * rank,
        "lopsided": [(0, 1)] * rank,
        "same": [(max(t, 0) // 2, t - max(t, 0) // 2) for t in totals],
    }[padding]
    custom = padding in ("custom", "output_padding", "lopsided")
    arguments = {"pad_type": "custom", "pad": np.ravel(cuts)} if custom else {"pad_type": padding}
    num, dot = (WIDE, _dot) if mode == "wide" else (FP16ACC, half_dot)
    got = ours("conv_transpose", num=num, x=x, weight=weight, bias=bias, **options, **arguments)
    full = transposed(x, weight, strides, dilations, groups, dot)
    if mode == "wide":
        np.testing.assert_allclose(
            full, scattered(x, weight, strides, dilations, groups), rtol=1e-9, atol=1e-9
        )
    expected = cut(full, cuts) + bias.reshape(-1, *[1] * rank)
    assert got.shape == inferred_shape(
        "conv_transpose", "ios17", shape, weight=weight, **options, **arguments
    )
    np.testing.assert_allclose(
        got, expected, rtol=1e-5 if mode == "wide" else 1e-7, atol=1e-5 if mode == "wide" else 0
    )


@pytest.mark.parametrize("pad_type", ["valid", "custom", "same"])
@pytest.mark.parametrize("length", [9, 10, 11, 12])
def test_output_shape(pad_type: str, length: int) -> None:
    x, weight = halves(1, 2, 5), halves(2, 3, 3, seed=1)
    full = scattered(x, weight, [2], [1], 1)  # 11 positions
    before = {"valid": 0, "custom": 1, "same": max(0, 11 - length) // 2}[pad_type]
    expected = cut(full, [(before, 11 - length - before)])
    pad = {"pad": [1, 1]} if pad_type == "custom" else {}
    got = ours(
        "conv_transpose",
        x=x,
        weight=weight,
        output_shape=[1, 3, length],
        pad_type=pad_type,
        strides=[2],
        **pad,
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_pad_is_ignored_unless_custom() -> None:
    x, weight = halves(1, 2, 5), halves(2, 2, 3)
    np.testing.assert_array_equal(
        ours("conv", x=x, weight=weight, pad=[5, 5]), ours("conv", x=x, weight=weight)
    )


@pytest.mark.parametrize("arguments", [{"pad_type": "mirror"}, {"pad_type": "custom"}])
def test_bad_padding(arguments: dict[str, str]) -> None:
    with pytest.raises(UnsupportedOpError, match="pad_type"):
        ours("conv", x=halves(1, 2, 5), weight=halves(2, 2, 3), **arguments)


@pytest.mark.parametrize("vector", [False, True])
def test_conv_quantized(vector: bool) -> None:
    x, weight = halves(1, 3, 8), np.random.default_rng(0).integers(0, 256, (2, 3, 3)).astype(np.uint8)
    scale, bias = np.float32([0.02, 0.01]), np.float32([-2, -1])
    scale, bias = (scale, bias) if vector else (scale[0], bias[0])
    values = weight * np.reshape(scale, (-1, 1, 1)) + np.reshape(bias, (-1, 1, 1))
    arguments = {"x": x, "weight": weight, "quant_scale": scale, "quant_bias": bias}
    got = ours("conv_quantized", quantization_type="linear", **arguments)
    np.testing.assert_allclose(got, correlate(x, values, [1], [1], 1, _dot), rtol=1e-5, atol=1e-5)
    with pytest.raises(UnsupportedOpError, match="'lut'"):
        ours("conv_quantized", quantization_type="lut", **arguments)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("conv", {"pad_type": "same", "strides": [1]}),
        ("conv_transpose", {"strides": [1]}),
        ("conv_transpose", {"output_shape": [1, 2, 6]}),
        ("conv_transpose", {"output_shape": [1, 2, 6, 6], "pad_type": "custom", "pad": [0, 0]}),
    ],
)
def test_lists_that_are_too_short(name: str, arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"is (shorter|longer) than argument"):
        ours(name, x=halves(1, 2, 5, 5), weight=halves(2, 2, 2, 2), **arguments)
