from __future__ import annotations

import numpy as np
import pytest
from half import half_dot, halves
from oracle import assert_same, inferred, normal, ours, rng

from coreproof.errors import UnsupportedOpError
from coreproof.mil.types import DType
from coreproof.runtime import numerics
from coreproof.runtime.numerics import FP16ACC

WEIGHT, BIAS = normal(6, 5, seed=1), normal(6, seed=2)


@pytest.mark.parametrize("opset", ["ios15", "ios17"])
@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5)])
@pytest.mark.parametrize("biased", [False, True])
def test_linear(shape: tuple[int, ...], biased: bool, opset: str) -> None:
    arguments = {"x": normal(*shape), "weight": WEIGHT} | ({"bias": BIAS} if biased else {})
    assert_same(ours("linear", opset, **arguments), inferred("linear", opset, **arguments))


@pytest.mark.parametrize("shape", [(512,), (1, 512), (1, 1, 512), (1, 0, 512), (3, 512)])
@pytest.mark.parametrize("biased", [False, True])
def test_a_row_by_a_large_weight(shape: tuple[int, ...], biased: bool) -> None:
    """Another library multiplies one row: the same sums, whether the weight lies in order or not."""
    weight, bias = normal(1024, 512, seed=1), normal(1024, seed=2)
    assert weight.size >= numerics._LARGE
    x = normal(*shape)
    arguments = {"bias": bias} if biased else {}
    exact = x.astype(np.float64) @ weight.T + (bias if biased else 0)
    bound = (
        5e-7
        * float(np.linalg.norm(x, axis=-1).max(initial=0.0))
        * float(np.linalg.norm(weight, axis=1).max())
    )
    for laid in (weight, np.asfortranarray(weight)):
        got = ours("linear", x=x, weight=laid, **arguments)
        assert (got.shape, got.dtype) == (exact.shape, np.float32)
        np.testing.assert_allclose(got, exact, rtol=0, atol=bound + 1e-6)


def test_nan_and_infinity_come_through_a_row_by_a_large_weight() -> None:
    weight = normal(1024, 512)
    weight[3, 4], weight[5, 6] = np.nan, np.inf
    got = ours("linear", x=normal(1, 512), weight=weight)
    assert np.flatnonzero(~np.isfinite(got)).tolist() == [3, 5]
    assert np.isnan(got[0, 3])


@pytest.mark.parametrize(
    ("x", "y", "transpose_x", "transpose_y"),
    [
        ((4, 5), (5, 3), False, False),
        ((5, 4), (5, 3), True, False),
        ((4, 5), (3, 5), False, True),
        ((2, 1, 5, 4), (3, 6, 5), True, True),
        ((5,), (2, 5, 3), False, False),
    ],
)
def test_matmul(x: tuple[int, ...], y: tuple[int, ...], transpose_x: bool, transpose_y: bool) -> None:
    arguments = {
        "x": normal(*x),
        "y": normal(*y, seed=1),
        "transpose_x": transpose_x,
        "transpose_y": transpose_y,
    }
    assert_same(ours("matmul", **arguments), inferred("matmul", **arguments))


def test_transposition_leaves_vectors_alone() -> None:
    x, y = normal(5), normal(5, seed=1)
    got = ours("matmul", x=x, y=y, transpose_x=True, transpose_y=True)
    np.testing.assert_allclose(got, np.dot(x.astype(np.float64), y), rtol=1e-6)


def test_integers() -> None:
    x, y = (rng(s).integers(-9, 10, (4, 4)).astype(np.int32) for s in (0, 1))
    assert_same(ours("matmul", x=x, y=y), inferred("matmul", x=x, y=y))
    assert_same(ours("linear", x=x, weight=y), (x @ y.T).astype(np.int32))


def test_mixed_dtypes() -> None:
    x, weight = normal(3, 4), rng(1).integers(-9, 10, (2, 4)).astype(np.int32)
    bias = np.array([1, -1], np.int32)
    wide = x.astype(np.float64) @ weight.T
    assert_same(ours("linear", "ios17", x=x, weight=weight), wide.astype(np.float32))
    assert_same(ours("linear", "ios17", x=x, weight=weight, bias=bias), (wide + bias).astype(np.float32))
    assert_same(ours("matmul", "ios17", x=x, y=weight, transpose_y=True), wide.astype(np.float32))
    whole = ours("matmul", "ios17", out=DType.INT32, x=x, y=weight, transpose_y=True)
    assert_same(whole, np.trunc(wide).astype(np.int32))


@pytest.mark.parametrize(
    ("equation", "x", "y"),
    [
        ("nchw,nwhu->nchu", (2, 3, 4, 5), (2, 5, 4, 6)),
        ("abcd,adce->abce", (1, 3, 4, 5), (2, 5, 1, 6)),
        ("chw,whr->chr", (3, 4, 5), (5, 4, 6)),
    ],
)
def test_einsum(equation: str, x: tuple[int, ...], y: tuple[int, ...]) -> None:
    values = (normal(*x), normal(*y, seed=1))
    assert_same(
        ours("einsum", values=values, equation=equation), inferred("einsum", values=values, equation=equation)
    )


@pytest.mark.parametrize("equation", ["ij,jk->ik", "nchw,nwhu->ncuh", "nchw,nhwu->nchu", "nchw"])
def test_other_equations(equation: str) -> None:
    with pytest.raises(UnsupportedOpError, match="is not of the form"):
        ours("einsum", values=(normal(1, 1, 1, 1), normal(1, 1, 1, 1)), equation=equation)


def test_spaces_in_an_equation() -> None:
    values = (normal(3, 4, 5), normal(5, 4, 6, seed=1))
    spaced = ours("einsum", values=values, equation=" chw , whr -> chr ")
    np.testing.assert_array_equal(spaced, ours("einsum", values=values, equation="chw,whr->chr"))


@pytest.mark.parametrize(("x", "y"), [((2, 3, 4, 40), (2, 40, 4, 6)), ((3, 4, 40), (40, 4, 6))])
def test_half_einsum(x: tuple[int, ...], y: tuple[int, ...]) -> None:
    left, right = halves(*x), halves(*y, seed=1)
    equation = "nchw,nwhu->nchu" if len(x) == 4 else "chw,whr->chr"
    expected = np.zeros((*x[:-1], y[-1]), np.float32)
    for *n, c, h, u in np.ndindex(expected.shape):
        expected[(*n, c, h, u)] = half_dot(left[(*n, c, h)], right[(*n, slice(None), h, u)])
    got = ours("einsum", num=FP16ACC, values=(left, right), equation=equation)
    np.testing.assert_array_equal(got, expected)
