from __future__ import annotations

import numpy as np
import pytest
from oracle import assert_same, inferred, normal, ours, rng

ARITHMETIC = ["add", "sub", "mul", "real_div", "floor_div", "mod", "maximum", "minimum"]
COMPARISONS = ["equal", "not_equal", "greater", "greater_equal", "less", "less_equal"]
FLOATS = (3 * normal(4, 1, 5), 3 * normal(3, 1, seed=1))
WHOLE = (np.round(FLOATS[0]), np.round(FLOATS[1]) + np.float32(0.5))
INTEGERS = (
    rng(2).integers(-20, 21, (4, 1, 5)).astype(np.int32),
    rng(3).choice(np.array([-7, -3, -1, 1, 2, 5], np.int32), (3, 1)),
)
OPERANDS = {"floats": FLOATS, "whole": WHOLE, "integers": INTEGERS}


@pytest.mark.parametrize("name", ARITHMETIC + COMPARISONS)
@pytest.mark.parametrize("operands", OPERANDS)
def test_as_coremltools(name: str, operands: str) -> None:
    x, y = OPERANDS[operands]
    assert_same(ours(name, x=x, y=y), inferred(name, x=x, y=y))


def test_pow() -> None:
    x, y = np.abs(FLOATS[0]), FLOATS[1]
    assert_same(ours("pow", x=x, y=y), inferred("pow", x=x, y=y), rtol=1e-5)
    base, exponent = INTEGERS[0], np.array([0, 1, 2], np.int32).reshape(3, 1)
    assert_same(ours("pow", x=base, y=exponent), inferred("pow", x=base, y=exponent))


@pytest.mark.parametrize("name", ["logical_and", "logical_or", "logical_xor"])
def test_logic(name: str) -> None:
    x, y = np.array([[True], [False]]), np.array([True, False])
    assert_same(ours(name, x=x, y=y), inferred(name, x=x, y=y))


def test_signs_of_quotients() -> None:
    x, y = np.array([7, -7, 7, -7], np.int32), np.array([2, 2, -2, -2], np.int32)
    assert ours("floor_div", x=x, y=y).tolist() == [3, -4, -4, 3]
    assert ours("real_div", x=x, y=y).tolist() == [3, -3, -3, 3]
    assert ours("mod", x=x, y=y).tolist() == [1, 1, -1, -1]
    floats = ours("mod", x=np.array([5.5, -5.5], np.float32), y=np.array([2.0, 2.0], np.float32))
    assert floats.tolist() == [1.5, 0.5]


@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_nan_wins(name: str) -> None:
    x, y = np.array([np.nan, 1], np.float32), np.array([1, np.nan], np.float32)
    assert np.isnan(ours(name, x=x, y=y)).all()


def test_integers_wrap() -> None:
    x = np.array([2**31 - 1], np.int32)
    assert ours("add", x=x, y=np.array([1], np.int32)).tolist() == [-(2**31)]


def test_division_by_zero() -> None:
    x, zero = np.array([1, -1, 0], np.float32), np.zeros(3, np.float32)
    np.testing.assert_array_equal(ours("real_div", x=x, y=zero), [np.inf, -np.inf, np.nan])
    np.testing.assert_array_equal(ours("floor_div", x=x, y=zero), [np.inf, -np.inf, np.nan])


@pytest.mark.parametrize("name", ["floor_div", "mod", "real_div"])
def test_integers_divided_by_zero(name: str) -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        ours(name, x=np.array([1, 2], np.int32), y=np.array([1, 0], np.int32))


def test_negative_powers_of_integers_are_cut() -> None:
    base, exponent = np.array([-2, -1, 1, 2], np.int32), np.array([-1, -3, -2, -5], np.int32)
    assert ours("pow", x=base, y=exponent).tolist() == [0, -1, 1, 0]


def test_nan_equals_nothing() -> None:
    nan = np.array([np.nan], np.float32)
    assert not ours("equal", x=nan, y=nan).any()
    assert ours("not_equal", x=nan, y=nan).all()
