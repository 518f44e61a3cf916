from __future__ import annotations

import numpy as np
import pytest
from half import half_sum, halves
from oracle import assert_same, inferred, normal, ours, rng

from coreproof.runtime.numerics import FP16ACC

X = normal(2, 3, 4, 5)
POSITIVE = np.abs(X) + np.float32(0.1)
INTEGERS = rng(1).integers(-9, 10, (2, 3, 4)).astype(np.int32)
LARGE = np.array([[1e4, 1e4], [-1e4, -1e4], [-np.inf, -np.inf], [np.inf, 0]], np.float32)
SIGNED = ["reduce_sum", "reduce_mean", "reduce_sum_square", "reduce_l1_norm", "reduce_l2_norm", "reduce_prod"]
SIGNED += ["reduce_log_sum_exp", "reduce_max", "reduce_min"]
AXES = [None, [0], [-1], [1, 3], [-1, 0]]


@pytest.mark.parametrize("axes", AXES, ids=str)
@pytest.mark.parametrize("keep_dims", [False, True])
@pytest.mark.parametrize("name", [*SIGNED, "reduce_log_sum"])
def test_floats(name: str, axes: list[int] | None, keep_dims: bool) -> None:
    x = POSITIVE if name == "reduce_log_sum" else X
    arguments = {"keep_dims": keep_dims} if axes is None else {"axes": axes, "keep_dims": keep_dims}
    if name == "reduce_log_sum_exp" and axes is not None and len(axes) > 1 and not keep_dims:
        arguments["axes"] = tuple(axes)
    assert_same(ours(name, x=x, **arguments), inferred(name, x=x, **arguments), rtol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "reduce_sum",
        "reduce_mean",
        "reduce_sum_square",
        "reduce_l1_norm",
        "reduce_l2_norm",
        "reduce_prod",
        "reduce_max",
        "reduce_min",
    ],
)
def test_integers(name: str) -> None:
    assert_same(ours(name, x=INTEGERS, axes=[1]), inferred(name, x=INTEGERS, axes=[1]))


@pytest.mark.parametrize("opset", ["ios15", "ios17"])
@pytest.mark.parametrize("axis", [0, 2, -1])
@pytest.mark.parametrize("keep_dims", [False, True])
@pytest.mark.parametrize("name", ["reduce_argmax", "reduce_argmin"])
def test_arguments(name: str, axis: int, keep_dims: bool, opset: str) -> None:
    for x in (X, INTEGERS):
        got = ours(name, opset, x=x, axis=axis, keep_dims=keep_dims)
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, inferred(name, opset, x=x, axis=axis, keep_dims=keep_dims))


def test_argmax_takes_the_first_of_ties_over_long_rows() -> None:
    x = np.zeros((2, 5000), np.float32)
    x[:, [700, 4100]] = 1
    assert ours("reduce_argmax", x=x).tolist() == [700, 700]
    assert ours("reduce_argmin", x=-x).tolist() == [700, 700]


def test_uint16_arguments() -> None:
    got = ours("reduce_argmax", "ios17", x=X, output_dtype="uint16")
    np.testing.assert_array_equal(got, inferred("reduce_argmax", "ios17", x=X, output_dtype="uint16"))


def test_nothing_to_reduce() -> None:
    empty = np.zeros((2, 0), np.float32)
    assert ours("reduce_sum", x=empty, axes=[1]).tolist() == [0, 0]
    assert np.isnan(ours("reduce_mean", x=empty, axes=[1])).all()


def test_log_sum_exp_is_stable() -> None:
    expected = [1e4 + np.log(2), -1e4 + np.log(2), -np.inf, np.inf]
    np.testing.assert_allclose(ours("reduce_log_sum_exp", x=LARGE, axes=[1]), expected, rtol=1e-7)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *[(n, 0) for n in ("reduce_sum", "reduce_sum_square", "reduce_l1_norm", "reduce_l2_norm")],
        ("reduce_prod", 1),
        *[(n, -np.inf) for n in ("reduce_log_sum", "reduce_log_sum_exp")],
        ("reduce_mean", np.nan),
    ],
)
def test_over_no_element(name: str, expected: float) -> None:
    got = ours(name, x=np.zeros((2, 0), np.float32), axes=[1])
    np.testing.assert_array_equal(got, np.full(2, expected, np.float32))


@pytest.mark.parametrize("name", ["reduce_max", "reduce_min"])
def test_no_element_is_the_largest_of_none(name: str) -> None:
    with pytest.raises(IndexError, match="non-zero size"):
        ours(name, x=np.zeros((2, 0), np.float32), axes=[1])


@pytest.mark.parametrize("name", [*SIGNED, "reduce_log_sum"])
def test_nan_spoils_the_result(name: str) -> None:
    x = np.array([[1, np.nan, 3], [1, 2, 3]], np.float32)
    assert np.isnan(ours(name, x=x, axes=[1])).tolist() == [True, False]


def test_nan_is_the_largest_and_the_smallest() -> None:
    x = np.array([[5, np.nan, 9, np.nan, -7]], np.float32)
    assert ours("reduce_argmax", x=x).tolist() == [1]
    assert ours("reduce_argmin", x=x).tolist() == [1]


@pytest.mark.parametrize("keep_dims", [False, True])
def test_half_log_sum_exp(keep_dims: bool) -> None:
    x = halves(3, 40)
    top = x.max(1, keepdims=True)
    sums = np.array([half_sum(row) for row in np.exp(x - top)], np.float32)
    expected = np.log(sums)[:, None] + top
    got = ours("reduce_log_sum_exp", num=FP16ACC, x=x, axes=[1], keep_dims=keep_dims)
    # exp differs in its last bit between torch and numpy, which may move a rounding by one unit.
    np.testing.assert_allclose(got, expected if keep_dims else expected[:, 0], atol=2.0**-10)
    apart = np.array([[20, 0]], np.float32)
    assert ours("reduce_log_sum_exp", num=FP16ACC, x=apart, axes=[1], keep_dims=keep_dims).item() == 20
    stable = ours("reduce_log_sum_exp", num=FP16ACC, x=LARGE, axes=[1], keep_dims=keep_dims)
    wanted = np.float32([1e4 + np.log(2), -1e4 + np.log(2), -np.inf, np.inf])
    np.testing.assert_allclose(stable, wanted[:, None] if keep_dims else wanted, rtol=1e-6)
