from __future__ import annotations

import numpy as np
import pytest
from half import half_dot, half_sum, halves
from oracle import assert_same, inferred, normal, ours

from coreproof.runtime.numerics import FP16ACC

X = normal(2, 3, 4, 5) * np.float32(2) + np.float32(0.5)


def _normalized(x: np.ndarray, axes: tuple[int, ...], epsilon: float) -> np.ndarray:
    wide = x.astype(np.float64)
    return (wide - wide.mean(axes, keepdims=True)) / np.sqrt(wide.var(axes, keepdims=True) + epsilon)


@pytest.mark.parametrize("opset", ["ios15", "ios17"])
@pytest.mark.parametrize("axes", [None, [-1], [2, 3], [-1, -2], [1], [0, 2], [3, 1]], ids=str)
@pytest.mark.parametrize("scaled", [False, True])
def test_layer_norm(axes: list[int] | None, scaled: bool, opset: str) -> None:
    arguments = {"x": X, "epsilon": np.float32(1e-3)} | ({} if axes is None else {"axes": axes})
    if scaled:
        shape = [n for d, n in enumerate(X.shape) if axes is None or d in [a % 4 for a in axes]]
        arguments |= {"gamma": normal(*shape, seed=1), "beta": normal(*shape, seed=2)}
    expected = inferred("layer_norm", opset, **{"axes": [0, 1, 2, 3]} | arguments).astype(np.float32)
    assert_same(ours("layer_norm", opset, **arguments), expected, rtol=1e-5)


def test_layer_norm_epsilon() -> None:
    """A variance of 1e-5 is halved by the default epsilon."""
    x = np.array([[-1, 1]], np.float32) * np.float32(np.sqrt(1e-5))
    np.testing.assert_allclose(ours("layer_norm", x=x, axes=[1]), [[-np.sqrt(0.5), np.sqrt(0.5)]], rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5), (1, 3, 2, 3, 4)])
def test_instance_norm(shape: tuple[int, ...]) -> None:
    x, gamma, beta = normal(*shape), normal(3, seed=1), normal(3, seed=2)
    along = (1, 3, *[1] * (len(shape) - 2))
    plain = _normalized(x, tuple(range(2, len(shape))), 1e-5)
    assert_same(ours("instance_norm", x=x), plain.astype(np.float32), rtol=1e-5)
    scaled = plain * gamma.reshape(along) + beta.reshape(along)
    assert_same(ours("instance_norm", x=x, gamma=gamma, beta=beta), scaled.astype(np.float32), rtol=1e-5)


def test_batch_norm() -> None:
    mean, variance, gamma, beta = normal(3), np.abs(normal(3, seed=1)), normal(3, seed=2), normal(3, seed=3)
    m, v, g, b = (t.astype(np.float64).reshape(3, 1, 1) for t in (mean, variance, gamma, beta))
    expected = g * (X - m) / np.sqrt(v + 1e-2) + b
    got = ours("batch_norm", x=X, mean=mean, variance=variance, gamma=gamma, beta=beta, epsilon=1e-2)
    assert_same(got, expected.astype(np.float32), rtol=1e-5)
    plain = (X - m) / np.sqrt(v + 1e-5)
    assert_same(ours("batch_norm", x=X, mean=mean, variance=variance), plain.astype(np.float32), rtol=1e-5)


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, 4, 5), (2, 2, 3, 4, 5)])
def test_l2_norm(shape: tuple[int, ...]) -> None:
    x = normal(*shape)
    assert_same(ours("l2_norm", x=x), inferred("l2_norm", x=x))
    assert_same(ours("l2_norm", x=x, epsilon=2.5), inferred("l2_norm", x=x, epsilon=np.float32(2.5)))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("shape", [(2, 7, 4), (2, 7, 3, 4)])
def test_local_response_norm(shape: tuple[int, ...], size: int) -> None:
    x = normal(*shape)
    expected = np.zeros_like(x, np.float64)
    for channel in range(7):
        near = x[:, max(0, channel - size // 2) : channel + (size - 1) // 2 + 1].astype(np.float64)
        expected[:, channel] = x[:, channel] / (2 + 0.5 / size * (near**2).sum(1)) ** 0.75
    got = ours("local_response_norm", x=x, size=size, alpha=0.5, k=2.0)
    assert_same(got, expected.astype(np.float32), rtol=1e-5)


@pytest.mark.parametrize("name", ["layer_norm", "instance_norm"])
def test_half_accumulation(name: str) -> None:
    x = halves(1, 2, 70)
    rows = x[0]
    centred = rows - np.array([half_sum(r) for r in rows], np.float32)[:, None] / np.float32(70)
    squares = (centred * centred).astype(np.float16)
    variance = np.array([half_sum(s) for s in squares], np.float32)[:, None] / np.float32(70)
    expected = (centred / np.sqrt(variance + np.float32(1e-5)))[None]
    axes = {"axes": [-1]} if name == "layer_norm" else {}
    got = ours(name, num=FP16ACC, x=x, **axes)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert np.abs(got - ours(name, x=x, **axes)).max() > 1e-6


def test_half_l2_norm() -> None:
    x = halves(2, 3, 4, 9)
    sums = np.array([half_dot(item, item) for item in x], np.float32).reshape(2, 1, 1, 1)
    np.testing.assert_allclose(ours("l2_norm", num=FP16ACC, x=x), x / np.sqrt(sums + 1e-6), rtol=1e-6)


def test_half_squares_overflow() -> None:
    """300 squared is beyond fp16, so the sum is infinite and the result 0."""
    x = np.full((1, 1, 4), 300, np.float32)
    assert ours("l2_norm", num=FP16ACC, x=x).ravel().tolist() == [0, 0, 0, 0]
