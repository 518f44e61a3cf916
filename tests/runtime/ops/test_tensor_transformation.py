from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracle import assert_same, inferred, normal, ours

X = normal(2, 3, 4, 5)
SIX = np.arange(6, dtype=np.float32)


def _same_as_coremltools(name: str, opset: str = "ios15", **arguments: Any) -> None:
    assert_same(ours(name, opset, **arguments), inferred(name, opset, **arguments))


@pytest.mark.parametrize("perm", [[1, 0, 2, 3], [3, 2, 1, 0], [0, -1, -2, -3]], ids=str)
def test_transpose(perm: list[int]) -> None:
    _same_as_coremltools("transpose", x=X, perm=perm)


@pytest.mark.parametrize("axes", [[0], [-1], [1, 3], [0, -1], [-2, 0, 3]], ids=str)
def test_expand_dims(axes: list[int]) -> None:
    _same_as_coremltools("expand_dims", x=X[0, 0], axes=axes)


def test_squeeze() -> None:
    x = X[:1, :, :1]
    _same_as_coremltools("squeeze", x=x)
    _same_as_coremltools("squeeze", x=x, axes=[0])
    _same_as_coremltools("squeeze", x=x, axes=[-2, 0])
    assert ours("squeeze", x=X, axes=[0, 1]).shape == X.shape


@pytest.mark.parametrize("shape", [[6, 20], [-1], [2, -1, 5], [0, -1, 5, 2], [0, 0, 0, 0], [1, 120]], ids=str)
def test_reshape(shape: list[int]) -> None:
    _same_as_coremltools("reshape", x=X, shape=np.array(shape, np.int32))


@pytest.mark.parametrize("shape", [[1, 0, -1, 0], [0, 0], [-1, 0], [0, 2, 50], [2, -1, 0], [100]], ids=str)
def test_reshape_counts_zeros_from_the_right(shape: list[int]) -> None:
    _same_as_coremltools("reshape", "ios17", x=normal(2, 50), shape=np.array(shape, np.int32))


def test_reshape_like() -> None:
    refs = (np.zeros((2, 3, 4), np.float32), np.zeros((1, 5, 6), np.float32))
    arguments = {"begins": (np.int32(0), np.int32(1)), "ends": (np.int32(2), np.int32(0))}
    masks = (np.bool_(False), np.bool_(True))
    got = ours("reshape_like", "ios16", x=normal(180), ref_tensors=refs, **arguments, end_masks=masks)
    assert_same(got, normal(180).reshape(2, 3, 5, 6))


def test_reverse() -> None:
    _same_as_coremltools("reverse", x=X)
    _same_as_coremltools("reverse", x=X, axes=[1, -1])


@pytest.mark.parametrize(("batch_axis", "seq_axis"), [(0, 1), (1, 0), (2, 1), (0, -1)])
def test_reverse_sequence(batch_axis: int, seq_axis: int) -> None:
    x = normal(3, 4, 5)
    lengths = np.minimum([2, 0, 4, 1, 3][: x.shape[batch_axis]], x.shape[seq_axis]).astype(np.int32)
    expected = x.copy()
    for item, length in enumerate(lengths):
        row, source = (np.moveaxis(a, (batch_axis, seq_axis), (0, 1))[item] for a in (expected, x))
        row[:length] = source[:length][::-1]
    assert_same(
        ours("reverse_sequence", x=x, lengths=lengths, seq_axis=seq_axis, batch_axis=batch_axis), expected
    )


SLICES = {
    "plain": {"begin": [0, 1, 0, 2], "end": [2, 3, 4, 5]},
    "negative": {"begin": [-2, 0, -3, -1], "end": [2, -1, -1, 5]},
    "too large": {"begin": [0, 0, 0, 0], "end": [99, 2, 99, 4]},
    "steps": {"begin": [0, 0, 1, 0], "end": [2, 3, 4, 5], "stride": [1, 2, 2, 3]},
    "masks": {"begin": [1, 1, 1, 1], "end": [1, 2, 1, 1], "begin_mask": [True, False, True, True],
              "end_mask": [True, False, True, True]},
    "squeezed": {"begin": [1, 0, -1, 0], "end": [0, 3, 0, 5], "squeeze_mask": [True, False, True, False]},
    "backwards": {"begin": [1, 2, -1, 4], "end": [2, 0, -4, 0], "stride": [1, -1, -2, -3]},
    "all backwards": {"begin": [0, 0, 0, 0], "end": [0, 0, 0, 0], "stride": [-1, 1, -1, -2],
                      "begin_mask": [True] * 4, "end_mask": [True] * 4},
    "backwards and squeezed": {"begin": [0, 2, 3, 0], "end": [1, 0, 0, 5], "stride": [1, -1, -1, 2],
                               "squeeze_mask": [True, False, False, False]},
}  # fmt: skip


@pytest.mark.parametrize("opset", ["ios15", "ios17"])
@pytest.mark.parametrize("case", SLICES)
def test_slice_by_index(case: str, opset: str) -> None:
    _same_as_coremltools("slice_by_index", opset, x=X, **SLICES[case])


@pytest.mark.parametrize("case", SLICES)
def test_slice_update(case: str) -> None:
    shape = inferred("slice_by_index", x=X, **SLICES[case]).shape
    before = X.copy()
    _same_as_coremltools("slice_update", "ios18", x=X, update=normal(*shape, seed=9), **SLICES[case])
    np.testing.assert_array_equal(X, before)


def test_empty_slices() -> None:
    assert ours("slice_by_index", x=SIX, begin=[4], end=[4]).shape == (0,)
    assert ours("slice_by_index", x=SIX, begin=[1], end=[4], stride=[-1]).shape == (0,)


def test_scalar_slice() -> None:
    got = ours("slice_by_index", x=SIX, begin=[-2], end=[0], squeeze_mask=[True])
    assert got.shape == ()
    assert got == 4


@pytest.mark.parametrize("size", [[2, 1, 4, 5], [-1, 2, -1, 3], [1, -1, 2, -1]], ids=str)
def test_slice_by_size(size: list[int]) -> None:
    begin = [0, 1, 0, 0]
    size = [1 if s > 1 and i == 1 else s for i, s in enumerate(size)]
    arguments = {"x": X, "begin": np.array(begin, np.int32), "size": np.array(size, np.int32)}
    _same_as_coremltools("slice_by_size", **arguments)


def test_slice_by_size_from_the_end() -> None:
    assert ours("slice_by_size", x=SIX, begin=[-3], size=[2]).tolist() == [3, 4]


@pytest.mark.parametrize(("axis", "size", "stride"), [(1, 2, 1), (-1, 3, 2), (2, 4, 1)])
def test_sliding_windows(axis: int, size: int, stride: int) -> None:
    expected = np.lib.stride_tricks.sliding_window_view(X, size, axis)
    every = [slice(None)] * 5
    every[axis % 4] = slice(None, None, stride)
    expected = np.moveaxis(expected[tuple(every)], -1, axis % 4 + 1)
    assert_same(ours("sliding_windows", x=X, axis=axis, size=size, stride=stride), expected)


def _depth_to_space(x: np.ndarray, block: int) -> np.ndarray:
    n, c, h, w = x.shape
    depth = c // block**2
    y = np.zeros((n, depth, h * block, w * block), x.dtype)
    for i in range(block):
        for j in range(block):
            first = (i * block + j) * depth
            y[:, :, i::block, j::block] = x[:, first : first + depth]
    return y


def test_depth_and_space() -> None:
    x = normal(2, 18, 2, 4)
    assert_same(ours("depth_to_space", x=x, block_size=3), _depth_to_space(x, 3))
    assert_same(ours("space_to_depth", x=_depth_to_space(x, 3), block_size=3), x)


def test_batch_and_space() -> None:
    # The literal example of tf.space_to_batch_nd, NHWC [4, 1, 1, 1] for a 2 x 2 image.
    x = np.array([[[[1, 2], [3, 4]]]], np.float32)
    got = ours("space_to_batch", x=x, block_shape=[2, 2], paddings=np.zeros((2, 2), np.int32))
    assert got.ravel().tolist() == [1, 2, 3, 4]
    image = normal(3, 2, 5, 4)
    padded = np.pad(image, ((0, 0), (0, 0), (1, 0), (2, 3)))
    parts = [padded[:, :, i::2, j::3] for i in range(2) for j in range(3)]
    paddings = np.array([[1, 0], [2, 3]], np.int32)
    split = ours("space_to_batch", x=image, block_shape=[2, 3], paddings=paddings)
    assert_same(split, np.concatenate(parts))
    assert_same(ours("batch_to_space", x=split, block_shape=[2, 3], crops=paddings), image)


def test_pixel_shuffle() -> None:
    x = normal(2, 8, 3, 5)
    y = ours("pixel_shuffle", x=x, upscale_factor=2)
    for channel in range(2):
        for i in range(2):
            for j in range(2):
                np.testing.assert_array_equal(y[:, channel, i::2, j::2], x[:, channel * 4 + i * 2 + j])
    assert_same(ours("pixel_unshuffle", "ios16", x=y, downscale_factor=2), x)


@pytest.mark.parametrize("axis", [1, 2, -1, -3])
def test_flatten(axis: int) -> None:
    _same_as_coremltools("flatten2d", x=X, axis=axis)
    assert ours("flatten2d", x=SIX, axis=-1).shape == (1, 6)


def test_slice_by_size_takes_no_less() -> None:
    with pytest.raises(RuntimeError, match="exceeds dimension size"):
        ours("slice_by_size", x=SIX, begin=[4], size=[3])


def test_a_masked_begin_of_a_squeezed_dimension_is_0() -> None:
    masks = {"begin_mask": [True], "squeeze_mask": [True]}
    assert ours("slice_by_index", x=SIX + 1, begin=[4], end=[5], **masks) == 1


def test_a_slice_backwards_that_takes_nothing() -> None:
    got = ours("slice_by_index", x=X[0, 0], begin=[0, 1], end=[3, 4], stride=[1, -1])
    assert_same(got, X[0, 0, 0:3, 1:4:-1])


def test_batch_to_space_crops_every_side() -> None:
    x = normal(4, 1, 3, 5)
    whole = ours("batch_to_space", x=x, block_shape=[2, 2], crops=[[0, 0], [0, 0]])
    got = ours("batch_to_space", x=x, block_shape=[2, 2], crops=[[1, 2], [3, 1]])
    assert_same(got, whole[:, :, 1:4, 3:9])


@pytest.mark.parametrize(
    ("name", "opset", "arguments"),
    [
        ("slice_by_size", "ios15", {"begin": [1, 0], "size": [1]}),
        ("reshape_like", "ios16", {"ref_tensors": (SIX,), "begins": (), "ends": (), "end_masks": ()}),
    ],
)
def test_lists_that_are_too_short(name: str, opset: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is shorter than argument"):
        ours(name, opset, x=SIX, **arguments)
