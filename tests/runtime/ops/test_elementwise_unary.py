from __future__ import annotations

import numpy as np
import pytest
from oracle import assert_same, inferred, normal, ours, rng

from coreproof.errors import UnsupportedOpError

ANY = 4 * normal(3, 5, 7)
UNIT = np.tanh(normal(3, 5, 7))
POSITIVE = np.abs(ANY) + np.float32(1e-3)
INTEGERS = rng(1).integers(-9, 10, (4, 6)).astype(np.int32)
HALVES = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, -0.0, 7.0], np.float32)

CASES = [
    *[
        (n, ANY)
        for n in ("abs", "atan", "ceil", "cos", "cosh", "erf", "exp", "exp2", "floor", "round", "sign")
    ],
    *[(n, ANY) for n in ("sin", "sinh", "square", "tan", "tanh")],
    *[(n, UNIT) for n in ("acos", "asin", "atanh")],
    *[(n, POSITIVE) for n in ("inverse", "log", "rsqrt", "sqrt")],
    *[(n, INTEGERS) for n in ("abs", "sign", "square")],
    ("exp2", np.abs(INTEGERS)),
    *[(n, HALVES) for n in ("round", "floor", "ceil", "sign")],
    ("logical_not", INTEGERS > 0),
]


@pytest.mark.parametrize("opset", ["ios15", "ios17"])
@pytest.mark.parametrize(("name", "x"), CASES, ids=[f"{n}-{x.dtype}-{x.size}" for n, x in CASES])
def test_as_coremltools(name: str, x: np.ndarray, opset: str) -> None:
    expected = inferred(name, opset, x=x)
    assert_same(ours(name, opset, x=x), expected.astype(x.dtype), rtol=1e-5)


@pytest.mark.parametrize("name", ["inverse", "log", "rsqrt"])
def test_epsilon(name: str) -> None:
    x = np.array([0.0, 0.5, 4.0], np.float32)
    assert_same(
        ours(name, "ios17", x=x, epsilon=0.25), inferred(name, "ios17", x=x, epsilon=np.float32(0.25))
    )


def test_default_epsilons() -> None:
    zero = np.zeros(1, np.float32)
    np.testing.assert_allclose(ours("inverse", x=zero), [1e4], rtol=1e-6)
    np.testing.assert_allclose(ours("rsqrt", x=zero), [1e6], rtol=1e-6)
    np.testing.assert_allclose(ours("log", x=zero), [-103.27893], rtol=1e-6)


@pytest.mark.parametrize(
    "name", ["sign", "relu", "clip", "threshold", "relu6", "softplus", "thresholded_relu"]
)
def test_nan_is_not_lost(name: str) -> None:
    arguments = {"clip": {"alpha": -1.0, "beta": 1.0}, "threshold": {"alpha": np.float32(0)}}
    arguments["thresholded_relu"] = {"alpha": 0.5}
    assert np.isnan(ours(name, x=np.array([np.nan], np.float32), **arguments.get(name, {}))).all()


def test_clip() -> None:
    bounds = {"alpha": np.float32(-1.5), "beta": np.float32(2.0)}
    assert_same(ours("clip", x=ANY, **bounds), inferred("clip", x=ANY, **bounds))


@pytest.mark.parametrize("x", [ANY, INTEGERS], ids=["float", "int"])
def test_threshold(x: np.ndarray) -> None:
    alpha = x.dtype.type(1)
    assert_same(ours("threshold", x=x, alpha=alpha), inferred("threshold", x=x, alpha=alpha))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "fp16", "fp32", "bool"])
@pytest.mark.parametrize(
    "x", [np.array([-2.9, -0.5, 0.0, 0.5, 2.9, 100.7], np.float32), INTEGERS, INTEGERS > 0]
)
def test_cast(x: np.ndarray, dtype: str) -> None:
    unsigned = dtype.startswith("u")
    x = np.abs(x) if unsigned and x.dtype != bool else x
    expected = inferred("cast", "ios17", x=x, dtype=dtype)
    got = ours("cast", "ios17", x=x, dtype=dtype)
    np.testing.assert_array_equal(
        got,
        expected.astype(np.float32)
        if dtype == "fp16" and x.dtype != np.float32
        else x
        if dtype == "fp16"
        else expected,
    )


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("uint8", [44, 255]), ("int8", [44, -1]), ("uint16", [300, 65535]), ("int16", [300, -1])],
)
def test_cast_wraps(dtype: str, expected: list[int]) -> None:
    for x in (np.array([300, -1], np.int32), np.array([300.5, -1.5], np.float32)):
        np.testing.assert_array_equal(ours("cast", "ios17", x=x, dtype=dtype), expected)


def test_cast_to_nothing() -> None:
    with pytest.raises(UnsupportedOpError, match="expected one of"):
        ours("cast", x=ANY, dtype="fp99")


def test_nan_is_true() -> None:
    assert ours("cast", x=np.array([np.nan, np.inf, 0.25, 0, -0.0], np.float32), dtype="bool").tolist() == [
        True, True, True, False, False,
    ]  # fmt: skip


def test_exp2_of_integers_is_cut() -> None:
    assert ours("exp2", x=np.array([-3, -1, 0, 5, 30], np.int32)).tolist() == [0, 0, 1, 32, 2**30]
