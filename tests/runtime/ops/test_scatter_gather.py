from __future__ import annotations

import itertools

import numpy as np
import pytest
from oracle import assert_same, inferred, normal, ours, rng

from coreproof.errors import InputError, UnsupportedOpError

X = normal(3, 4, 5)
INDICES = {
    "scalar": np.int32(2),
    "vector": np.array([2, 0, 2, 1], np.int32),
    "matrix": np.array([[0, 1], [2, 2]], np.int32),
    "negative": np.array([-1, -3], np.int32),
}
COMBINE = {
    "update": lambda old, new: new,
    "add": lambda old, new: old + new,
    "sub": lambda old, new: old - new,
    "mul": lambda old, new: old * new,
    "div": lambda old, new: old / new,
    "max": max,
    "min": min,
}


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("indices", INDICES)
def test_gather(indices: str, axis: int) -> None:
    arguments = {"x": X, "indices": INDICES[indices], "axis": axis}
    assert_same(ours("gather", **arguments), inferred("gather", **arguments))


@pytest.mark.parametrize("indices", [np.array([1, 0], d) for d in ("int8", "uint8", "int16", "uint16")])
def test_gather_by_narrow_indices(indices: np.ndarray) -> None:
    assert_same(ours("gather", "ios17", x=X, indices=indices, axis=1), X[:, [1, 0]])


@pytest.mark.parametrize(
    ("x", "indices", "axis", "batch_dims"),
    [
        ((2, 3, 4), (2, 5), 1, 1),
        ((2, 3, 4), (2, 5), 2, 1),
        ((2, 3, 4, 6), (2, 3, 2, 2), 3, 2),
        ((2, 3, 4, 6), (2, 3), 3, 2),
        ((2, 3, 4, 6), (2, 7), 3, 1),
    ],
)
@pytest.mark.parametrize("opset", ["ios16", "ios17"])
def test_gather_in_batches(x: tuple, indices: tuple, axis: int, batch_dims: int, opset: str) -> None:
    places = rng(5).integers(0, x[axis], indices).astype(np.int32)
    arguments = {"x": normal(*x), "indices": places, "axis": axis, "batch_dims": batch_dims}
    assert_same(ours("gather", opset, **arguments), inferred("gather", opset, **arguments))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather_along_axis(axis: int) -> None:
    shape = list(X.shape)
    shape[axis] = 6
    indices = rng(1).integers(-X.shape[axis], X.shape[axis], shape).astype(np.int32)
    arguments = {"x": X, "indices": indices, "axis": axis}
    assert_same(ours("gather_along_axis", **arguments), inferred("gather_along_axis", **arguments))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_gather_nd(depth: int) -> None:
    indices = np.stack([rng(d).integers(-n, n, (2, 6)) for d, n in enumerate(X.shape[:depth])], -1).astype(
        np.int32
    )
    expected = np.stack([np.stack([X[tuple(place)] for place in row]) for row in indices])
    assert_same(ours("gather_nd", x=X, indices=indices), expected)


def test_gather_nd_in_batches() -> None:
    x = normal(2, 3, 4, 5)
    indices = np.stack([rng(1).integers(0, 3, (2, 7)), rng(2).integers(0, 4, (2, 7))], -1).astype(np.int32)
    expected = np.stack([np.stack([x[b, i, j] for i, j in indices[b]]) for b in range(2)])
    assert_same(ours("gather_nd", "ios16", x=x, indices=indices, batch_dims=1), expected)


@pytest.mark.parametrize("name", ["gather", "gather_along_axis", "gather_nd"])
def test_outside(name: str) -> None:
    inside = np.zeros((3, 4, 1), np.int32)
    with pytest.raises(InputError, match="index 9 is out of bounds for a dimension of size 3"):
        ours(name, x=X, indices=inside + 9)
    with pytest.raises(InputError, match="index -9"):
        ours(name, x=X, indices=inside - 9)
    with pytest.raises(InputError, match="index -1"):
        ours(name, "ios17", x=X, indices=inside - 1)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
@pytest.mark.parametrize("mode", COMBINE)
@pytest.mark.parametrize("axis", [0, -1])
def test_scatter(axis: int, mode: str, dtype: type) -> None:
    data = (10 * X).astype(dtype)
    indices = np.array([2, 0] if mode == "update" else [2, 0, 2], np.int32)
    shape = list(X.shape)
    shape[axis] = len(indices)
    updates = rng(4).integers(1, 4, shape).astype(dtype)
    expected = data.copy()
    for i, place in enumerate(indices):
        slices = np.moveaxis(expected, axis, 0), np.moveaxis(updates, axis, 0)
        for at in itertools.product(*map(range, slices[1].shape[1:])):
            slices[0][(place, *at)] = COMBINE[mode](slices[0][(place, *at)], slices[1][(i, *at)])
    got = ours("scatter", data=data, indices=indices, updates=updates, axis=axis, mode=mode)
    assert_same(got, expected, rtol=1e-5)


def test_scatter_example() -> None:
    """The example of coremltools 9.0 ops/defs/iOS15/scatter_gather.py."""
    data, updates = np.array([[1, 2, 3], [4, 5, 6]], np.int32), np.array([[5, 6, 7], [8, 9, 10]], np.int32)
    got = ours("scatter", data=data, indices=np.array([1, 0], np.int32), updates=updates)
    assert got.tolist() == [[9, 11, 13], [9, 11, 13]]


@pytest.mark.parametrize("axis", [0, 1])
def test_scatter_along_axis(axis: int) -> None:
    order = np.argsort(normal(4, 4), axis=axis).astype(np.int32)
    arguments = {
        "data": normal(4, 4, seed=6),
        "indices": order,
        "updates": normal(4, 4, seed=7),
        "axis": axis,
    }
    expected = inferred("scatter_along_axis", mode="update", **arguments)
    assert_same(ours("scatter_along_axis", mode="update", **arguments), expected)
    added = arguments["data"].copy()
    line = np.arange(4)
    np.add.at(added, (order, line) if axis == 0 else (line[:, None], order), arguments["updates"])
    assert_same(ours("scatter_along_axis", "ios17", **arguments), added)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_scatter_nd(depth: int) -> None:
    indices = np.stack([rng(d).integers(0, n, (2, 6)) for d, n in enumerate(X.shape[:depth])], -1).astype(
        np.int32
    )
    updates = normal(2, 6, *X.shape[depth:], seed=8)
    expected = X.copy()
    np.add.at(expected, tuple(np.moveaxis(indices, -1, 0)), updates)
    for opset in ("ios15", "ios17"):
        assert_same(ours("scatter_nd", opset, data=X, indices=indices, updates=updates), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["scatter", "scatter_along_axis", "scatter_nd"])
def test_scatter_outside(name: str) -> None:
    indices = {"scatter": [0, 3], "scatter_along_axis": [[0, 3]], "scatter_nd": [[0, 3]]}[name]
    updates = {
        "scatter": np.zeros((2, 3)),
        "scatter_along_axis": np.zeros((1, 2)),
        "scatter_nd": np.zeros(1),
    }[name]
    arguments = {"data": np.zeros((3, 3), np.float32), "updates": updates.astype(np.float32)}
    with pytest.raises(InputError, match="index 3 is out of bounds"):
        ours(name, indices=np.array(indices, np.int32), **arguments)
    with pytest.raises(InputError, match="index -1 is out of bounds"):
        negative = -np.minimum(indices, 1).astype(np.int32)
        ours(name, "ios17", indices=negative, **arguments)


def test_scatter_mode() -> None:
    with pytest.raises(UnsupportedOpError, match="'xor'"):
        ours("scatter", data=X, indices=np.array([0], np.int32), updates=X[:1], mode="xor")


@pytest.mark.parametrize("opset", ["ios15", "ios16"])
def test_negative_indices_up_to_ios_16(opset: str) -> None:
    assert_same(ours("gather", opset, x=X, indices=np.array([-1, 0, -3], np.int32)), X[[2, 0, 0]])
    places = np.array([[-1, 0], [0, -4], [-3, 3]], np.int32)
    assert_same(ours("gather_nd", opset, x=X, indices=places), X[places[:, 0], places[:, 1]])
    data, ones = np.zeros((3, 3), np.float32), np.ones((2, 3), np.float32)
    last = np.array([[0, 0, 0], [0, 0, 0], [2, 2, 2]], np.float32)
    rows = np.array([-1, 2], np.int32)
    assert_same(ours("scatter", opset, data=data, indices=rows, updates=ones), last)
    along = np.repeat(rows[:, None], 3, 1)
    assert_same(ours("scatter_along_axis", opset, data=data, indices=along, updates=ones), last)
    assert_same(ours("scatter_nd", opset, data=data, indices=rows[:, None], updates=ones), last)


@pytest.mark.parametrize("size", [1, 3])
def test_no_index(size: int) -> None:
    none = np.zeros((0,), np.int32)
    assert ours("gather", x=X[:size], indices=none).shape == (0, 4, 5)
    assert ours("gather_along_axis", x=X[:size, 0, 0], indices=none).shape == (0,)
    assert ours("gather_nd", x=X[:size], indices=none.reshape(0, 1)).shape == (0, 4, 5)
    got = ours("scatter", data=X[:size], indices=none, updates=np.zeros((0, 4, 5), np.float32))
    assert_same(got, X[:size])


@pytest.mark.parametrize("name", ["gather", "gather_along_axis", "gather_nd"])
def test_a_single_index_outside(name: str) -> None:
    with pytest.raises(InputError, match="index 3 is out of bounds for a dimension of size 3"):
        ours(name, x=X[:, 0, 0], indices=np.array([3], np.int32))
