from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracle import assert_same, inferred, normal, ours, rng

from coreproof.errors import UnsupportedOpError
from coreproof.mil.types import DType

X = normal(2, 3, 4, 5)
INTEGERS = rng(1).integers(-3, 4, (3, 4)).astype(np.int32)
DTYPES = {DType.FP32: np.float32, DType.INT32: np.int32, DType.BOOL: np.bool_}


@pytest.mark.parametrize(("lower", "upper"), [(-1, -1), (0, -1), (-1, 0), (1, 2), (0, 0), (9, 1)])
@pytest.mark.parametrize("x", [X, INTEGERS], ids=["float", "int"])
def test_band_part(x: np.ndarray, lower: int, upper: int) -> None:
    arguments = {"x": x, "lower": lower, "upper": upper}
    assert_same(ours("band_part", **arguments), inferred("band_part", **arguments))


def test_band_part_drops_nan() -> None:
    assert ours("band_part", x=np.full((2, 2), np.nan, np.float32), lower=0, upper=0)[0, 1] == 0


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("axis", [0, 2, -1])
@pytest.mark.parametrize("x", [X, INTEGERS[..., None]], ids=["float", "int"])
def test_cumsum(x: np.ndarray, axis: int, reverse: bool) -> None:
    arguments = {"x": x, "axis": axis, "reverse": reverse}
    assert_same(ours("cumsum", **arguments), inferred("cumsum", **arguments), rtol=1e-5)


@pytest.mark.parametrize(
    ("exclusive", "reverse", "expected"),
    [(False, False, [1, 3, 6]), (True, False, [0, 1, 3]), (False, True, [6, 5, 3]), (True, True, [5, 3, 0])],
)
def test_exclusive_cumsum(exclusive: bool, reverse: bool, expected: list[int]) -> None:
    x = np.array([1, 2, 3], np.int32)
    assert ours("cumsum", x=x, exclusive=exclusive, reverse=reverse).tolist() == expected


@pytest.mark.parametrize(("dtype", "value"), [(DType.FP32, -1.5), (DType.INT32, 7), (DType.BOOL, True)])
def test_fill(dtype: DType, value: Any) -> None:
    value = DTYPES[dtype](value)
    shape = np.array([2, 3], np.int32)
    assert_same(ours("fill", out=dtype, shape=shape, value=value), inferred("fill", shape=shape, value=value))
    like = inferred("fill_like", "ios16", ref_tensor=X, value=value)
    assert_same(ours("fill_like", "ios16", out=dtype, ref_tensor=X, value=value), like)


@pytest.mark.parametrize(
    ("dtype", "start", "end", "step"),
    [
        (DType.INT32, 2, 11, 3),
        (DType.INT32, 5, 0, -1),
        (DType.FP32, 0, 1, 0.25),
        (DType.FP32, 0.5, 2.1, 0.4),
        (DType.FP32, 3, -1, -1.5),
    ],
)
def test_range(dtype: DType, start: float, end: float, step: float) -> None:
    arguments = {k: DTYPES[dtype](v) for k, v in (("start", start), ("end", end), ("step", step))}
    assert_same(ours("range_1d", out=dtype, **arguments), inferred("range_1d", **arguments))


@pytest.mark.parametrize("axis", [-1, 0, 1, 2, -3])
def test_one_hot(axis: int) -> None:
    indices = np.array([[0, 3], [-1, 9]], np.int32)
    eye = np.eye(4, dtype=np.float32)
    rows = np.stack([eye[0], eye[3], 0 * eye[0], 0 * eye[0]]).reshape(2, 2, 4)
    got = ours("one_hot", indices=indices, one_hot_vector_size=4, axis=axis, on_value=2.0, off_value=-1.0)
    assert_same(got, np.moveaxis(3 * rows - 1, -1, axis))


@pytest.mark.parametrize("dtype", [DType.INT32, DType.BOOL])
def test_one_hot_of_other_types(dtype: DType) -> None:
    got = ours("one_hot", out=dtype, indices=np.array([1, 0], np.int32), one_hot_vector_size=2)
    np.testing.assert_array_equal(got, np.array([[0, 1], [1, 0]], DTYPES[dtype]), strict=True)


def test_shape_and_non_zero() -> None:
    assert_same(ours("shape", x=X), inferred("shape", x=X))
    for x in (INTEGERS, (INTEGERS > 0), INTEGERS.astype(np.float32)):
        assert_same(ours("non_zero", x=x), inferred("non_zero", x=x))


@pytest.mark.parametrize("pad", [[1, 2], [0, 1, 2, 0], [1, 1, 0, 0, 2, 3], [1, 0, 2, 1, 0, 3, 1, 2]], ids=str)
@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate"])
def test_pad(mode: str, pad: list[int]) -> None:
    x = normal(4, 4, 5, 6)
    arguments = {"x": x, "pad": np.array(pad, np.int32), "mode": mode, "constant_val": np.float32(0.5)}
    assert_same(ours("pad", **arguments), inferred("pad", **arguments))


def test_pad_mode() -> None:
    with pytest.raises(UnsupportedOpError, match="circular"):
        ours("pad", x=X, pad=[1, 1], mode="circular")


def test_tile() -> None:
    reps = np.array([1, 2, 1, 3], np.int32)
    assert_same(ours("tile", x=X, reps=reps), inferred("tile", x=X, reps=reps))


TIES = np.array([[1, 3, 3, 2], [0, 0, -1, 5]], np.float32)


@pytest.mark.parametrize("ascending", [False, True])
@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("x", [X, normal(1, 40)], ids=["4d", "2d"])
def test_argsort_and_topk(x: np.ndarray, axis: int, ascending: bool) -> None:
    order = {"x": x, "axis": axis, "ascending": ascending}
    assert_same(ours("argsort", **order), inferred("argsort", **order).astype(np.int32))
    k = 1 if x.shape[axis] == 1 else 2
    for opset in ("ios15", "ios16", "ios17"):
        for got, expected in zip(
            ours("topk", opset, k=k, **order), inferred("topk", opset, k=k, **order), strict=True
        ):
            assert_same(got, expected)


def test_ties_keep_their_order() -> None:
    assert ours("argsort", x=TIES).tolist() == [[1, 2, 3, 0], [3, 0, 1, 2]]
    assert ours("argsort", x=TIES, ascending=True).tolist() == [[0, 3, 1, 2], [2, 0, 1, 3]]
    assert ours("topk", x=TIES, k=1)[1].tolist() == [[1], [3]]


@pytest.mark.parametrize("ascending", [False, True])
@pytest.mark.parametrize("k", [1, 3, 40])
def test_topk_of_many_ties(k: int, ascending: bool) -> None:
    x = rng(4).integers(0, 12, (3, 40)).astype(np.float32)
    order = np.argsort(x if ascending else -x, axis=1, kind="stable")[:, :k]
    values, indices = ours("topk", x=x, k=k, ascending=ascending)
    assert_same(indices, order.astype(np.int32))
    assert_same(values, np.take_along_axis(x, order, 1))


def test_topk_options() -> None:
    values, indices = ours("topk", "ios17", x=TIES, k=-1)
    assert values.tolist() == [[3, 3, 2, 1], [5, 0, 0, -1]]
    assert indices.dtype == np.int32
    assert ours("topk", "ios16", x=TIES, k=2, return_indices=False).tolist() == [[3, 3], [5, 0]]


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_joining(axis: int) -> None:
    values = (X, normal(2, 3, 4, 5, seed=1))
    for name in ("concat", "stack"):
        assert_same(ours(name, values=values, axis=axis), inferred(name, values=values, axis=axis))


def test_concat_interleaves() -> None:
    first, second = (
        np.array([[1, 2], [3, 4], [5, 6]], np.int32),
        np.array([[7, 8], [9, 10], [11, 12]], np.int32),
    )
    got = ours("concat", values=(first, second), axis=0, interleave=True)
    assert got.tolist() == [[1, 2], [7, 8], [3, 4], [9, 10], [5, 6], [11, 12]]
    got = ours("concat", values=(first, second), axis=-1, interleave=True)
    assert got.tolist() == [[1, 7, 2, 8], [3, 9, 4, 10], [5, 11, 6, 12]]


def test_concat_of_scalars() -> None:
    assert ours("concat", values=(np.int32(4), np.int32(5)), axis=0).tolist() == [4, 5]


@pytest.mark.parametrize(
    "arguments", [{"num_splits": 2}, {"split_sizes": [1, 3]}, {"num_splits": 2, "split_sizes": [3, 1]}]
)
def test_split(arguments: dict[str, Any]) -> None:
    got, expected = ours("split", x=X, axis=2, **arguments), inferred("split", x=X, axis=2, **arguments)
    for a, b in zip(got, expected, strict=True):
        assert_same(a, b)


def test_split_into_one() -> None:
    assert_same(ours("split", x=X, axis=0, num_splits=1), X)
    assert_same(ours("split", x=X, axis=0, split_sizes=[2]), X)
    with pytest.raises(UnsupportedOpError, match="num_splits nor split_sizes"):
        ours("split", x=X, axis=0)


def test_select() -> None:
    cond, b = INTEGERS > 0, normal(3, 1, seed=3)
    assert_same(
        ours("select", cond=cond, a=X[0, :, :, :4][:, :1, :].reshape(3, 4), b=b),
        np.where(cond, X[0, :, 0, :4], b),
    )
    arguments = {"cond": cond, "a": INTEGERS, "b": -INTEGERS}
    assert_same(ours("select", **arguments), inferred("select", **arguments))


def test_identity() -> None:
    assert_same(ours("identity", x=X), inferred("identity", x=X))


def _suppressed(
    boxes: np.ndarray, scores: np.ndarray, iou: float, most: int, classes: np.ndarray
) -> list[int]:
    """Greedy suppression by the definition, one pair of boxes at a time."""

    def overlap(a: np.ndarray, b: np.ndarray) -> float:
        width, height = (
            max(
                0.0,
                min(a[d] + a[d + 2] / 2, b[d] + b[d + 2] / 2) - max(a[d] - a[d + 2] / 2, b[d] - b[d + 2] / 2),
            )
            for d in (0, 1)
        )
        return width * height / (a[2] * a[3] + b[2] * b[3] - width * height)

    chosen: list[int] = []
    for i in np.argsort(-scores):
        if all(overlap(boxes[i], boxes[j]) <= iou or classes[i] != classes[j] for j in chosen):
            chosen.append(int(i))
    return chosen[:most]


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("iou", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("threshold", [-100.0, 0.5])
def test_non_maximum_suppression(iou: float, threshold: float, per_class: bool) -> None:
    boxes = rng(1).uniform(1, 10, (2, 30, 4)).astype(np.float32)
    scores = normal(2, 30, 3)
    options = {"iou_threshold": iou, "max_boxes": 8, "per_class_suppression": per_class}
    got = ours("non_maximum_suppression", boxes=boxes, scores=scores, score_threshold=threshold, **options)
    for item in range(2):
        best = scores[item].max(1)
        eligible = np.nonzero(best >= threshold)[0]
        kinds = scores[item].argmax(1) if per_class else np.zeros(30)
        chosen = _suppressed(boxes[item][eligible], best[eligible], iou, 8, kinds[eligible])
        places = eligible[chosen]
        count = len(places)
        assert got[3].dtype == np.int32
        assert got[3][item] == count
        assert got[2][item].tolist() == [*places.tolist(), *[-1] * (8 - count)]
        np.testing.assert_array_equal(got[0][item, :count], boxes[item][places])
        np.testing.assert_array_equal(got[1][item, :count], scores[item][places])
        assert not got[0][item, count:].any()
    if threshold < 0:
        flipped = {"boxes": boxes.swapaxes(1, 2), "scores": scores.swapaxes(1, 2)}
        newer = ours("non_maximum_suppression", "ios17", **flipped, **options)
        np.testing.assert_array_equal(newer[0], got[0].swapaxes(1, 2))
        np.testing.assert_array_equal(newer[1], got[1].swapaxes(1, 2))
        np.testing.assert_array_equal(newer[2], got[2])


def test_suppression_example() -> None:
    """The values of coremltools 9.0 ops/tests/iOS14/test_tensor_operation.py."""
    boxes = np.repeat(np.arange(4, dtype=np.float32), 4).reshape(1, 4, 4)
    scores = np.array([[[-3.5], [9.4], [2.3], [0.7]]], np.float32)
    options = {"iou_threshold": 0.2, "score_threshold": 0.4, "max_boxes": 2, "per_class_suppression": True}
    got = ours("non_maximum_suppression", boxes=boxes, scores=scores, **options)
    assert got[2].tolist() == [[1, 2]]
    assert got[3].tolist() == [2]


def test_suppression_takes_at_least_one() -> None:
    boxes, scores = np.ones((1, 3, 4), np.float32), np.array([[[1], [3], [2]]], np.float32)
    options = {"iou_threshold": 0.5, "score_threshold": 10.0, "max_boxes": 2}
    assert ours("non_maximum_suppression", boxes=boxes, scores=scores, **options)[2].tolist() == [[1, -1]]


@pytest.mark.parametrize(("ascending", "order"), [(False, [1, 3, 2, 0]), (True, [0, 2, 1, 3])])
def test_nan_sorts_as_the_largest(ascending: bool, order: list[int]) -> None:
    x = np.array([1, np.nan, 2, np.nan], np.float32)
    assert ours("argsort", x=x, ascending=ascending).tolist() == order
    values, _ = ours("topk", x=x, k=3, ascending=ascending)
    np.testing.assert_array_equal(values, x[order[:3]])


def test_exclusive_cumsum_of_one() -> None:
    assert ours("cumsum", x=np.array([5.0], np.float32), exclusive=True).tolist() == [0]


def test_padding_that_is_no_pair() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        ours("pad", x=X, pad=[1, 1, 1], mode="reflect")


def test_one_value_joined() -> None:
    assert ours("concat", values=(np.int32(4),), axis=0).tolist() == [4]
    assert_same(ours("concat", values=(X,), axis=-1, interleave=True), X)


def test_topk_tied_at_the_last_place_only() -> None:
    """torch's own topk takes the 3 at index 6."""
    x = np.array([3, 1, 1, 4, 1, 1, 3, 3], np.float32)
    assert ours("topk", x=x, k=2)[1].tolist() == [3, 0]
    turned = ours("topk", x=np.stack([x, -x], 1), k=2, axis=0)
    assert turned[1].tolist() == [[3, 1], [0, 2]]
    assert turned[0].tolist() == [[4, -1], [3, -1]]


def test_suppression_at_the_thresholds() -> None:
    """Boxes that overlap by exactly one half, scores of exactly the threshold."""
    boxes = np.array([[[1, 1, 2, 2], [1, 0.5, 2, 1]]], np.float32)
    scores = np.array([[[0.75], [0.5]]], np.float32)
    options = {"iou_threshold": 0.5, "score_threshold": 0.5, "max_boxes": 2}
    assert ours("non_maximum_suppression", boxes=boxes, scores=scores, **options)[2].tolist() == [[0, 1]]
