"""Recurrent layers with fp16 accumulation, bit for bit. The activations are linear, so that nothing
but products and sums is computed."""

from __future__ import annotations

import numpy as np
import pytest
from half import half_dot, halves
from oracle import ours

from coreproof.runtime.numerics import FP16ACC

# With linear activations some sums leave the range of fp16; both sides must then agree on Inf and NaN.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

SMALL = np.float32(0.25)
Array = np.ndarray


def half_products(x: Array, matrix: Array) -> Array:
    return np.array([[half_dot(row, column) for column in matrix] for row in x], np.float32)


def half_product(a: Array, b: Array) -> Array:
    return (a * b).astype(np.float16).astype(np.float32)


def test_half_accumulation_of_rnn() -> None:
    x, h = halves(3, 2, 40, seed=1), halves(2, 5, seed=2)
    w, u, b = halves(5, 40, seed=3), halves(5, 5, seed=4), halves(5, seed=5)
    expected = h
    for part in x:
        expected = half_products(part, w) + b + half_products(expected, u)
    got = ours("rnn", num=FP16ACC, x=x, initial_h=h, weight_ih=w, weight_hh=u, bias=b, activation="linear")
    np.testing.assert_array_equal(got[1], expected)


@pytest.mark.parametrize("reset_after", [True, False])
def test_half_accumulation_of_gru(reset_after: bool) -> None:
    x, h = halves(2, 2, 40, seed=1), halves(2, 5, seed=2)
    w, u = SMALL * halves(15, 40, seed=3), halves(15, 5, seed=4)
    (wr, wo, wz), (ur, uo, uz) = np.split(w, 3), np.split(u, 3)
    expected = h
    for part in x:
        r = half_products(part, wr) + half_products(expected, ur)
        z = half_products(part, wz) + half_products(expected, uz)
        if reset_after:
            recurrent = half_product(r, half_products(expected, uo))
        else:
            recurrent = half_products(half_product(r, expected), uo)
        o = half_products(part, wo) + recurrent
        expected = half_product(1 - z, o) + half_product(z, expected)
    linear = {"recurrent_activation": "linear", "activation": "linear", "reset_after": reset_after}
    got = ours("gru", "ios18", num=FP16ACC, x=x, initial_h=h, weight_ih=w, weight_hh=u, **linear)
    np.testing.assert_array_equal(got[1], expected)


@pytest.mark.parametrize("steps", [1, 3])
def test_half_accumulation_of_lstm(steps: int) -> None:
    x, h, c = halves(steps, 2, 40, seed=1), halves(2, 5, seed=2), halves(2, 5, seed=3)
    w, u, p = SMALL * halves(20, 40, seed=4), SMALL * halves(20, 5, seed=5), halves(15, seed=6)
    pi, pf, po = np.split(p, 3)
    expected_h, expected_c = h, c
    for part in x:
        gates = half_products(part, w) + half_products(expected_h, u)
        i, f, o, z = np.split(gates, 4, -1)
        i, f = i + half_product(pi, expected_c), f + half_product(pf, expected_c)
        expected_c = half_product(f, expected_c) + half_product(i, z)
        expected_h = half_product(o + half_product(po, expected_c), expected_c)
    names = dict.fromkeys(("recurrent_activation", "cell_activation", "activation"), "linear")
    weights = {"weight_ih": w, "weight_hh": u, "peephole": p}
    got = ours("lstm", num=FP16ACC, x=x, initial_h=h, initial_c=c, **weights, **names)
    np.testing.assert_array_equal(got[1], expected_h)
    np.testing.assert_array_equal(got[2], expected_c)


def test_half_accumulation_of_a_plain_lstm_is_not_torch_s_kernel() -> None:
    states = {"initial_h": halves(2, 5, seed=2), "initial_c": halves(2, 5, seed=3)}
    weights = {"weight_ih": halves(20, 40, seed=4), "weight_hh": halves(20, 5, seed=5)}
    arguments = {"x": halves(9, 2, 40, seed=1), **states, **weights}
    assert np.any(ours("lstm", num=FP16ACC, **arguments)[1] != ours("lstm", **arguments)[1])
