"""Distributions, bounds, shapes and what a seed fixes; the generator itself is nobody's contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import ours
from scipy import stats

import coreproof
from coreproof.errors import UnsupportedOpError
from coreproof.mil.types import DType
from coreproof.runtime.registry import lookup

MANY = 100_000
ARGUMENTS: dict[str, dict[str, Any]] = {
    "random_bernoulli": {"shape": (40, 5)},
    "random_normal": {"shape": (40, 5)},
    "random_uniform": {"shape": (40, 5)},
    "random_categorical": {"x": np.zeros((40, 9), np.float32), "size": 5},
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_seed_fixes_the_values(name: str) -> None:
    seeded = [ours(name, **ARGUMENTS[name], seed=seed) for seed in (0, 0, 7)]
    assert seeded[0].shape == (40, 5)
    assert seeded[0].dtype == np.float32
    np.testing.assert_array_equal(seeded[0], seeded[1])
    assert np.any(seeded[0] != seeded[2])


@pytest.mark.parametrize("seed", [{}, {"seed": -1}, {"seed": -5}], ids=str)
@pytest.mark.parametrize("name", ARGUMENTS)
def test_without_a_seed_the_values_go_on(name: str, seed: dict[str, int]) -> None:
    torch.manual_seed(5)
    first, second = (ours(name, **ARGUMENTS[name], **seed) for _ in range(2))
    torch.manual_seed(5)
    again = ours(name, **ARGUMENTS[name], **seed)
    assert np.any(first != second)
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_seed_leaves_the_global_generator_alone(name: str) -> None:
    state = torch.get_rng_state()
    ours(name, **ARGUMENTS[name], seed=3)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", ARGUMENTS)
def test_random_ops_are_never_folded(name: str) -> None:
    assert not lookup(name, "ios18").pure


@pytest.mark.parametrize("shape", [(3,), (2, 1, 4), (1, 2, 3, 2, 1)])
@pytest.mark.parametrize("name", ["random_bernoulli", "random_normal", "random_uniform"])
def test_shape(name: str, shape: tuple[int, ...]) -> None:
    assert ours(name, shape=shape).shape == shape


@pytest.mark.parametrize("prob", [0.0, 0.3, 1.0])
def test_bernoulli(prob: float) -> None:
    sample = ours("random_bernoulli", shape=(MANY,), prob=prob, seed=1)
    ones = int(np.count_nonzero(sample == 1))
    assert ones + np.count_nonzero(sample == 0) == MANY
    assert stats.binomtest(ones, MANY, prob).pvalue > 1e-3


@pytest.mark.parametrize(
    ("arguments", "mean", "stddev"), [({}, 0.0, 1.0), ({"mean": -2.5, "stddev": 0.25}, -2.5, 0.25)]
)
def test_normal(arguments: dict[str, float], mean: float, stddev: float) -> None:
    sample = ours("random_normal", shape=(MANY,), seed=2, **arguments)
    assert stats.kstest(sample, "norm", args=(mean, stddev)).pvalue > 1e-3


def test_normal_without_width() -> None:
    assert ours("random_normal", shape=(2, 3), mean=1.5, stddev=0.0).tolist() == [[1.5] * 3] * 2


@pytest.mark.parametrize(("arguments", "low", "high"), [({}, 0, 1), ({"low": -3.0, "high": 2.5}, -3, 2.5)])
@pytest.mark.parametrize("dtype", [DType.FP16, DType.FP32])
def test_uniform(dtype: DType, arguments: dict[str, float], low: float, high: float) -> None:
    sample = ours("random_uniform", shape=(MANY,), seed=3, out=dtype, **arguments)
    assert stats.kstest(sample, "uniform", args=(low, high - low)).pvalue > 1e-3
    typed = sample.astype(dtype.numpy_name)
    assert typed.min() >= low
    assert high - (high - low) * 3e-4 - np.spacing(typed.dtype.type(high)) < typed.max() < high


@pytest.mark.parametrize(("dtype", "step"), [(DType.FP16, 2.0**-10), (DType.FP32, 2.0**-23)])
def test_uniform_over_one_step(dtype: DType, step: float) -> None:
    sample = ours("random_uniform", shape=(1000,), low=1.0, high=1.0 + step, out=dtype)
    assert set(sample.astype(dtype.numpy_name)) == {1.0}


@pytest.mark.parametrize("value", [0.0, -2.0, 1.5])
def test_uniform_over_nothing(value: float) -> None:
    assert set(ours("random_uniform", shape=(50,), low=value, high=value)) == {value}


PROBABILITIES = np.array([[0.1, 0.0, 0.6, 0.3], [0.25, 0.25, 0.25, 0.25]])
with np.errstate(divide="ignore"):
    LOGITS = np.log(PROBABILITIES) + np.array([[3.0], [-40.0]])
WEIGHTS = {
    "logits by default": {"x": LOGITS.astype(np.float32)},
    "logits": {"x": LOGITS.astype(np.float32), "mode": "logits"},
    "probs": {"x": (7 * PROBABILITIES).astype(np.float32), "mode": "probs"},
}


@pytest.mark.parametrize("weights", WEIGHTS)
def test_categorical(weights: str) -> None:
    sample = ours("random_categorical", **WEIGHTS[weights], size=MANY, seed=4)
    for drawn, probabilities in zip(sample, PROBABILITIES, strict=True):
        counts = np.bincount(drawn.astype(int), minlength=4)
        possible = probabilities > 0
        assert counts[~possible].sum() == 0
        assert stats.chisquare(counts[possible], MANY * probabilities[possible]).pvalue > 1e-3


@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 6)])
def test_categorical_replaces_the_last_dimension(shape: tuple[int, ...]) -> None:
    """Each distribution has one possible outcome."""
    outcome = np.arange(np.prod(shape[:-1], dtype=int)).reshape(shape[:-1]) % 6
    certain = np.where(np.arange(6) == outcome[..., None], 0.0, -np.inf).astype(np.float32)
    assert ours("random_categorical", x=certain).tolist() == outcome[..., None].tolist()
    three = np.repeat(outcome[..., None], 3, -1)
    assert ours("random_categorical", x=certain, size=3).tolist() == three.tolist()


def test_categorical_mode() -> None:
    with pytest.raises(UnsupportedOpError, match="mode 'odds' is neither logits nor probs"):
        ours("random_categorical", x=np.ones((1, 2), np.float32), mode="odds")


def test_in_a_package(tmp_path: Path) -> None:
    """A shape known at run time only, an fp16 result, and seeds as a package holds them."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    @mb.program(input_specs=[mb.TensorSpec((2,), types.int32)], opset_version=ct.target.iOS17)
    def program(shape: Any) -> Any:
        low, high = np.float16(2), np.float16(3)
        fixed = mb.random_uniform(shape=shape, low=low, high=high, seed=11, name="fixed")
        free = mb.random_uniform(shape=shape, low=low, high=high, name="free")
        return fixed, free

    path = tmp_path / "m.mlpackage"
    ct.convert(program, minimum_deployment_target=ct.target.iOS17, skip_model_load=True).save(str(path))
    model = coreproof.load(path)
    first, second = (model.predict({"shape": np.array([5, 7], np.int32)}) for _ in range(2))
    assert first["fixed"].dtype == np.float16
    assert first["fixed"].shape == (5, 7)
    assert np.all((first["free"] >= 2) & (first["free"] < 3))
    np.testing.assert_array_equal(first["fixed"], second["fixed"])
    assert np.any(first["free"] != second["free"])
