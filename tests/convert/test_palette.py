"""Palettes: known clusters, the least error there is, and the same table whatever the machine does."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from coreproof.convert.palette import k_means, nearest

DTYPES = [np.float16, np.float32]


def drawn(kind: str, count: int, seed: int, dtype: type) -> NDArray:
    generator = np.random.Generator(np.random.PCG64(seed))
    draw = {
        "normal": lambda: generator.standard_normal(count),
        "laplace": lambda: generator.laplace(size=count),
        "uniform": lambda: generator.uniform(-1, 1, count),
        "few tails": lambda: generator.standard_t(3, count),
    }[kind]
    return (draw() * 0.03).astype(dtype)


def squared_error(weight: NDArray, table: NDArray) -> float:
    return float(((weight[:, None].astype(np.float64) - table.astype(np.float64)) ** 2).min(1).sum())


def least_error(weight: NDArray, entries: int) -> float:
    """Of all ways to cut the sorted weight into ``entries`` ranges, by dynamic programming."""
    values = np.sort(weight.astype(np.float64))
    sums, squares = (np.concatenate([[0.0], np.cumsum(v)]) for v in (values, values**2))
    ends = np.arange(len(values) + 1)
    counts = np.maximum(ends[None] - ends[:, None], 1)
    cost = squares[None] - squares[:, None] - (sums[None] - sums[:, None]) ** 2 / counts
    cost[ends[None] <= ends[:, None]] = np.inf
    best = cost[0]
    for _ in range(entries - 1):
        best = (best[:, None] + cost).min(0)
    return float(best[-1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_clusters_known_by_hand(dtype: type) -> None:
    weight = np.array([[1, 12, 2], [11, 3, 10]], dtype)
    table = k_means(weight, 2)
    assert (table.dtype, table.tolist()) == (dtype, [2, 11])
    assert nearest(weight, table).tolist() == [[0, 1, 0], [1, 0, 1]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_of_few_values_is_kept_exactly(dtype: type) -> None:
    weight = np.array([3, -1, 3, 0.25, -0.0, 0.0], dtype)
    assert k_means(weight, 8).tolist() == [-1, 0, 0.25, 3, 3, 3, 3, 3]
    assert k_means(weight, 8)[nearest(weight, k_means(weight, 8))].tolist() == weight.tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["normal", "laplace", "uniform", "few tails"])
def test_the_error_is_near_the_least_there_is(kind: str, dtype: type) -> None:
    weights = [drawn(kind, 600, seed, dtype) for seed in range(4)]
    ratios = [squared_error(w, k_means(w, 16)) / least_error(w, 16) for w in weights]
    assert 1 - 1e-3 < np.mean(ratios) < 1.2


@pytest.mark.parametrize("kind", ["normal", "laplace"])
def test_the_error_is_that_of_scikit_learns_k_means(kind: str) -> None:
    weight = drawn(kind, 20000, 1, np.float32)
    other = KMeans(64, n_init=3, random_state=0).fit(weight[:, None]).cluster_centers_.reshape(-1)
    assert squared_error(weight, k_means(weight, 64)) < 1.05 * squared_error(weight, other)


def test_neither_the_order_nor_the_dtype_of_the_elements_matters() -> None:
    weight = drawn("normal", 5000, 2, np.float16)
    table = k_means(weight, 64)
    assert np.array_equal(k_means(np.sort(weight).reshape(50, 100), 64), table)
    assert np.array_equal(k_means(weight.astype(np.float32), 64).astype(np.float16), table)
    assert (np.diff(table.astype(np.float64)) >= 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_nearest_is_nearest_and_of_two_the_first(dtype: type) -> None:
    table = np.array([-1, 0, 0, 2, 4], dtype)
    assert nearest(np.array([-0.5, 1, 3, 9, -9, 0], dtype), table).tolist() == [0, 1, 3, 4, 0, 1]
    weight = drawn("normal", 2000, 3, dtype)
    table = k_means(weight, 16)
    distances = np.abs(weight[:, None].astype(np.float64) - table.astype(np.float64))
    assert np.array_equal(nearest(weight, table), distances.argmin(1))
