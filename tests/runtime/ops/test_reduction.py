from __future__ import annotations

import numpy as np
import pytest
from oracle import assert_same, inferred, normal, ours, rng

X = normal(2, 3, 4, 5)
POSITIVE = np.abs(X) + np.float32(0.1)
INTEGERS = rng(1).integers(-9, 10, (2, 3, 4)).astype(np.int32)
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
    x = np.array([[1e4, 1e4], [-1e4, -1e4], [-np.inf, -np.inf], [np.inf, 0]], np.float32)
    expected = [1e4 + np.log(2), -1e4 + np.log(2), -np.inf, np.inf]
    np.testing.assert_allclose(ours("reduce_log_sum_exp", x=x, axes=[1]), expected, rtol=1e-7)
