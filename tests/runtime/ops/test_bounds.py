"""Ops refuse to make too large a value before they take memory for it, and nothing smaller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import normal, ours

from coreproof.errors import ExecutionError
from coreproof.runtime import bounds
from coreproof.runtime.bounds import limited, multiplied, within
from coreproof.runtime.numerics import FP16ACC
from coreproof.runtime.ops.control_flow import list_gather, list_read, list_scatter, list_write, make_list

PIXELS, MAP = normal(1, 1, 2, 2), normal(1, 1, 4, 4)
SQUARE = {"kernel_sizes": [2, 2], "pad_type": "custom", "pad": [1, 1, 1, 1]}
CONV: dict[str, Any] = {
    "x": MAP, "weight": normal(2, 1, 3, 3), "pad_type": "custom", "pad": [1, 1, 1, 1], "strides": [3, 3],
}  # fmt: skip
TRANSPOSED: dict[str, Any] = {"x": normal(1, 2, 3, 3), "weight": normal(2, 1, 2, 2), "strides": [2, 2]}
SAMPLED: dict[str, Any] = {"sampling_mode": "bilinear", "padding_mode": "constant", "padding_value": 0.0}
UNIT = {"coordinates_mode": "normalized_minus_one_to_one", "align_corners": True}
LIST = make_list([3, 4], 2)
# What is asked, and how many elements it takes.
ASKED: dict[str, tuple[Callable[[], Any], int]] = {
    "affine": (
        lambda: ours(
            "affine", x=normal(1, 2, 4, 4), transform_matrix=normal(1, 6), output_height=3, output_width=5,
            **SAMPLED, **UNIT,
        ),
        30,
    ),
    "avg_pool": (lambda: ours("avg_pool", x=MAP, **SQUARE), 36),
    "concat": (lambda: ours("concat", values=[normal(2, 3), normal(2, 4)], axis=1), 14),
    "conv": (lambda: ours("conv", **CONV), 72),
    "conv, fp16acc": (lambda: ours("conv", **CONV, num=FP16ACC), 72),
    "conv of many channels": (
        lambda: ours("conv", **CONV | {"x": normal(1, 3, 4, 4), "weight": normal(2, 3, 3, 3)}),
        108,
    ),
    "conv_transpose": (lambda: ours("conv_transpose", **TRANSPOSED), 36),
    "conv_transpose to a shape": (lambda: ours("conv_transpose", **TRANSPOSED, output_shape=[1, 1, 8, 8]), 64),
    "conv_transpose, fp16acc": (lambda: ours("conv_transpose", **TRANSPOSED, num=FP16ACC), 98),
    "crop_resize": (
        lambda: ours("crop_resize", "ios17", x=MAP, boxes=[[0.0, 0, 1, 1]], target_height=5, target_width=5),
        25,
    ),
    "crop_resize of many": (
        lambda: ours("crop_resize", "ios17", x=MAP, boxes=[[0.0, 0, 1, 1]] * 3, box_indices=[0, 0, 0]), 48,
    ),
    "einsum": (lambda: ours("einsum", values=[normal(2, 3, 4), normal(4, 3, 5)], equation="chw,whr->chr"), 30),
    "fill": (lambda: ours("fill", shape=[2, 5]), 10),
    "gather": (lambda: ours("gather", x=normal(4, 3), indices=[0, 1, 2, 3, 0]), 15),
    "gather along": (lambda: ours("gather", x=normal(2, 4), indices=[[0, 1, 2]], axis=1), 6),
    "gather of a batch": (
        lambda: ours("gather", "ios16", x=normal(2, 4), indices=[[0, 1, 2]] * 2, axis=1, batch_dims=1), 6,
    ),
    "gather_nd": (lambda: ours("gather_nd", x=normal(3, 4), indices=[[0]] * 5), 20),
    "gather_nd of a batch": (
        lambda: ours("gather_nd", "ios16", x=normal(2, 3, 4), indices=[[[0]] * 5] * 2, batch_dims=1), 40,
    ),
    "list_gather": (lambda: list_gather(LIST, (0, 1)), 24),
    "list_read": (lambda: list_read(LIST, 0), 12),
    "local_response_norm": (lambda: ours("local_response_norm", x=normal(1, 4, 2, 2), size=3), 48),
    "matmul": (lambda: ours("matmul", x=normal(3, 2), y=normal(2, 5)), 15),
    "matmul of a batch": (lambda: ours("matmul", "ios17", x=normal(4, 1, 3, 2), y=normal(7, 2, 5)), 420),
    "max_pool": (lambda: ours("max_pool", x=MAP, **SQUARE), 36),
    "non_maximum_suppression": (
        lambda: ours(
            "non_maximum_suppression", boxes=normal(1, 2, 4), scores=normal(1, 2, 3), iou_threshold=0.5,
            score_threshold=0.0, max_boxes=5,
        ),
        35,
    ),
    "one_hot": (lambda: ours("one_hot", indices=[0, 1, 2], one_hot_vector_size=4), 12),
    "pad": (lambda: ours("pad", x=normal(2, 3), pad=[0, 0, 1, 2]), 12),
    "pad of the last": (lambda: ours("pad", x=normal(2, 3), pad=[2, 2], mode="replicate"), 14),
    "pad by reflection": (lambda: ours("pad", x=normal(2, 3), pad=[0, 0, 1, 1], mode="reflect"), 10),
    "random_bernoulli": (lambda: ours("random_bernoulli", shape=[2, 3]), 6),
    "random_categorical": (lambda: ours("random_categorical", x=normal(2, 4), size=5), 10),
    "random_normal": (lambda: ours("random_normal", shape=[2, 3]), 6),
    "random_uniform": (lambda: ours("random_uniform", shape=[2, 3]), 6),
    "range_1d": (lambda: ours("range_1d", end=10.0, start=0.0, step=2.0), 5),
    "resample": (
        lambda: ours("resample", x=normal(1, 2, 4, 4), coordinates=normal(1, 3, 5, 2), **SAMPLED, **UNIT), 30,
    ),
    "resize": (lambda: ours("resize", "ios17", x=PIXELS, shape=[3, 5], resized_dims=2), 15),
    "resize to the nearest": (
        lambda: ours(
            "resize", "ios17", x=PIXELS, shape=[3, 5], resized_dims=2, interpolation_mode="NEAREST_NEIGHBOR",
            sampling_mode="UNALIGN_CORNERS",
        ),
        15,
    ),
    "resize_bilinear": (
        lambda: ours("resize_bilinear", x=PIXELS, target_size_height=3, target_size_width=5), 15,
    ),
    "resize_nearest_neighbor": (
        lambda: ours("resize_nearest_neighbor", x=PIXELS, target_size_height=3, target_size_width=5), 15,
    ),
    "sliding_windows": (lambda: ours("sliding_windows", x=normal(6), axis=0, size=3), 12),
    "space_to_batch": (
        lambda: ours("space_to_batch", x=PIXELS, block_shape=[2, 2], paddings=[[1, 1], [1, 1]]), 16,
    ),
    "stack": (lambda: ours("stack", values=[normal(2, 3)] * 2, axis=0), 12),
    "tile": (lambda: ours("tile", x=normal(2, 3), reps=[2, 2]), 24),
    "upsample_bilinear": (
        lambda: ours("upsample_bilinear", x=PIXELS, scale_factor_height=2.0, scale_factor_width=3.0), 24,
    ),
    "upsample_nearest_neighbor": (
        lambda: ours("upsample_nearest_neighbor", x=PIXELS, scale_factor_height=2.0, scale_factor_width=3.0), 24,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", ASKED)
def test_a_value_may_be_as_large_as_the_limit_and_no_larger(what: str) -> None:
    ask, elements = ASKED[what]
    with limited(elements):
        ask()
    with limited(elements - 1), pytest.raises(ExecutionError, match=f"at most {elements - 1} are allowed"):
        ask()


HUGE: dict[str, Callable[[], Any]] = {
    "fill": lambda: ours("fill", shape=[1 << 20, 1 << 20]),
    "an empty fill": lambda: ours("fill", shape=[0, (1 << 31) - 1, 2]),
    "one_hot": lambda: ours("one_hot", indices=[0, 1, 2, 3], one_hot_vector_size=(1 << 31) - 1),
    "pad": lambda: ours("pad", x=normal(2, 3), pad=[(1 << 31) - 1] * 4, mode="reflect"),
    "random_normal": lambda: ours("random_normal", shape=[1 << 16, 1 << 16]),
    "range_1d": lambda: ours("range_1d", end=1e12, start=0.0, step=1.0),
    "tile": lambda: ours("tile", x=normal(2, 3), reps=[1 << 30, 1 << 30]),
}


@pytest.mark.parametrize("what", HUGE)
def test_without_another_limit_a_value_has_at_most_2_to_the_31_elements(what: str) -> None:
    with pytest.raises(ExecutionError, match=r"elements would be made, at most 2147483648 are allowed"):
        HUGE[what]()


def test_limits_hold_for_their_block_and_never_widen() -> None:
    with limited(10):
        with limited(20), pytest.raises(ExecutionError, match="at most 10 "):
            within((11,))
        within((10,))
    assert within((1 << 31,)) == (1 << 31,)


def test_a_product_is_measured_only_when_it_could_be_too_large() -> None:
    wide = torch.zeros(()).expand(1 << 20, 1 << 16)
    multiplied(wide, torch.zeros(1 << 16, 1))
    with pytest.raises(ExecutionError, match="a value of 1048576 x 65536 elements"):
        multiplied(wide[:, :1], torch.zeros(1, 1 << 16))


def test_lists_are_bounded_in_length() -> None:
    most, value = bounds.MAX_LENGTH, torch.zeros(1)
    empty = make_list([1], 0)
    for ask in (
        lambda: make_list([1], most + 1),
        lambda: list_write(empty, most, value),
        lambda: list_scatter(empty, (most,), value.unsqueeze(0)),
    ):
        with pytest.raises(ExecutionError, match=f"a list of length {most + 1} would be made"):
            ask()


@pytest.mark.parametrize("axis", [-(1 << 31), -4, 3, (1 << 31) - 1])
def test_an_axis_that_is_none_takes_no_memory(axis: int) -> None:
    with pytest.raises(IndexError):
        ours("one_hot", indices=[[0, 1]], one_hot_vector_size=4, axis=axis)


@pytest.mark.parametrize("batch_dims", [-(1 << 31), 3, (1 << 31) - 1])
def test_batch_dimensions_that_are_none_take_no_memory(batch_dims: int) -> None:
    indices = [[[0, 0]]]
    for op in ("gather", "gather_nd"):
        with pytest.raises((IndexError, RuntimeError)):
            ours(op, "ios16", x=normal(1, 2, 2), indices=indices, batch_dims=batch_dims)
