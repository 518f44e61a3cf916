from __future__ import annotations

import numpy as np
import pytest
import scipy.special
from oracle import assert_same, inferred, normal, ours

from coreproof.errors import UnsupportedOpError

X = np.concatenate([3 * normal(2, 3, 4, 5).ravel(), [0, -0.0, 20, -20, 60, -60]]).astype(np.float32)
X4 = 3 * normal(2, 3, 4, 5)
ALPHA = np.array([0.25, -0.5, 2.0], np.float32)
BETA = np.array([1.5, 0.75, -1.0], np.float32)

PLAIN = ["relu", "relu6", "sigmoid", "softplus", "softsign"]
ALPHAS = {"elu": 0.7, "leaky_relu": 0.1, "thresholded_relu": 0.6}
PAIRS = {"clamped_relu": (0.3, 1.2), "linear_activation": (2.0, -0.5), "scaled_tanh": (1.7, 0.6)}
PAIRS["sigmoid_hard"] = (0.2, 0.5)


@pytest.mark.parametrize("name", PLAIN)
def test_plain(name: str) -> None:
    assert_same(ours(name, x=X), inferred(name, x=X), rtol=1e-5)


@pytest.mark.parametrize("opset", ["ios15", "ios17"])
@pytest.mark.parametrize("name", ALPHAS)
def test_alpha(name: str, opset: str) -> None:
    alpha = np.float32(ALPHAS[name])
    expected = inferred(name, opset, x=X.copy(), alpha=alpha)
    assert_same(ours(name, opset, x=X, alpha=float(alpha)), expected, rtol=1e-5)


@pytest.mark.parametrize("opset", ["ios15", "ios17"])
@pytest.mark.parametrize("name", PAIRS)
def test_alpha_and_beta(name: str, opset: str) -> None:
    alpha, beta = map(np.float32, PAIRS[name])
    expected = inferred(name, opset, x=X, alpha=alpha, beta=beta)
    assert_same(ours(name, opset, x=X, alpha=float(alpha), beta=float(beta)), expected, rtol=1e-5)


def test_per_channel() -> None:
    assert_same(ours("prelu", x=X4, alpha=ALPHA), inferred("prelu", x=X4, alpha=ALPHA))
    expected = inferred("softplus_parametric", x=X4, alpha=ALPHA, beta=BETA)
    assert_same(ours("softplus_parametric", x=X4, alpha=ALPHA, beta=BETA), expected, rtol=1e-5)


@pytest.mark.parametrize("mode", ["EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"])
def test_gelu(mode: str) -> None:
    x = X[np.abs(X) < 30]
    assert_same(ours("gelu", x=x, mode=mode), inferred("gelu", x=x, mode=mode).astype(np.float32), rtol=1e-5)


def test_gelu_mode() -> None:
    with pytest.raises(UnsupportedOpError, match="FASTER"):
        ours("gelu", x=X, mode="FASTER")


def test_silu() -> None:
    assert_same(
        ours("silu", x=X), (X * scipy.special.expit(X.astype(np.float64))).astype(np.float32), rtol=1e-5
    )


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax(axis: int) -> None:
    assert_same(ours("softmax", x=X4, axis=axis), inferred("softmax", x=X4, axis=axis))


def test_softmax_of_nothing_is_nan() -> None:
    assert np.isnan(ours("softmax", x=np.full((1, 3), -np.inf, np.float32))).all()


NAN = np.full((1, 3, 4), np.nan, np.float32)
WITH_NAN = {
    **{name: {} for name in [*PLAIN, "gelu", "silu", "softmax"]},
    **{name: {"alpha": alpha} for name, alpha in ALPHAS.items()},
    **{name: {"alpha": alpha, "beta": beta} for name, (alpha, beta) in PAIRS.items()},
    "prelu": {"alpha": ALPHA},
    "softplus_parametric": {"alpha": ALPHA, "beta": BETA},
}


@pytest.mark.parametrize("name", WITH_NAN)
def test_nan_stays(name: str) -> None:
    assert np.isnan(ours(name, x=NAN, **WITH_NAN[name])).all()


def test_the_threshold_itself_stays() -> None:
    x = np.array([0.5, 0.75, 1.0], np.float32)
    assert ours("thresholded_relu", x=x, alpha=0.75).tolist() == [0, 0.75, 1]
