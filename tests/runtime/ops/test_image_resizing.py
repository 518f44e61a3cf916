from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import assert_same, inferred_shape, normal, ours

from coreproof.errors import UnsupportedOpError

RAMP = np.array([0, 1], np.float32).reshape(1, 1, 1, 2)
IMAGE = np.arange(1, 17, dtype=np.float32).reshape(1, 1, 4, 4)
X = normal(2, 3, 5, 7)

# The grid points that coremltools 9.0 ops/defs/iOS15/image_resizing.py writes out for resize_bilinear.
DOCUMENTED = [
    ("UNALIGN_CORNERS", [0, 0.1, 0.5, 0.9, 1]),
    ("STRICT_ALIGN_CORNERS", [0, 0.25, 0.5, 0.75, 1]),
    ("ALIGN_CORNERS", [0, 0.25, 0.5, 0.75, 1]),
    ("DEFAULT", [0, 0.4, 0.8, 1, 1]),
    ("OFFSET_CORNERS", [0.1, 0.3, 0.5, 0.7, 0.9]),
    ("UNALIGN_CORNERS", [0, 0, 1 / 3, 2 / 3, 1, 1]),
    ("STRICT_ALIGN_CORNERS", [0, 0.2, 0.4, 0.6, 0.8, 1]),
    ("DEFAULT", [0, 1 / 3, 2 / 3, 1, 1, 1]),
    ("OFFSET_CORNERS", [1 / 12, 3 / 12, 5 / 12, 7 / 12, 9 / 12, 11 / 12]),
]


@pytest.mark.parametrize(("mode", "grid"), DOCUMENTED, ids=lambda v: v if isinstance(v, str) else len(v))
def test_documented_grids(mode: str, grid: list[float]) -> None:
    got = ours(
        "resize_bilinear", x=RAMP, target_size_height=1, target_size_width=len(grid), sampling_mode=mode
    )
    np.testing.assert_allclose(got.ravel(), grid, atol=1e-6)
    got = ours("resize", "ios17", x=RAMP, shape=[1, len(grid)], resized_dims=2, sampling_mode=mode)
    np.testing.assert_allclose(got.ravel(), grid, atol=1e-6)


def test_grids_of_one() -> None:
    def one(mode: str) -> float:
        return ours("resize_bilinear", x=IMAGE[:, :, :1], target_size_width=1, sampling_mode=mode).item()

    assert [one("STRICT_ALIGN_CORNERS"), one("ALIGN_CORNERS"), one("DEFAULT")] == [1, 2.5, 1]


@pytest.mark.parametrize(("height", "width"), [(10, 14), (3, 4), (5, 7), (8, 3)])
@pytest.mark.parametrize("align_corners", [False, True])
def test_bilinear_as_torch(height: int, width: int, align_corners: bool) -> None:
    mode = "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS"
    target = {"target_size_height": height, "target_size_width": width}
    got = ours("resize_bilinear", x=X, **target, sampling_mode=mode)
    wide = torch.from_numpy(X).double()
    expected = F.interpolate(wide, (height, width), mode="bilinear", align_corners=align_corners)
    assert_same(got, expected.float().numpy(), rtol=1e-5)
    assert got.shape == inferred_shape("resize_bilinear", "ios15", X.shape, **target, sampling_mode=mode)


@pytest.mark.parametrize("opset", ["ios15", "ios16"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("height", "width"), [(2, 3), (1.5, 2.3)])
def test_upsample_bilinear_as_torch(height: float, width: float, align_corners: bool, opset: str) -> None:
    scale = {"scale_factor_height": height, "scale_factor_width": width, "align_corners": align_corners}
    options = {"mode": "bilinear", "align_corners": align_corners, "recompute_scale_factor": True}
    expected = F.interpolate(torch.from_numpy(X).double(), scale_factor=(height, width), **options)
    assert_same(ours("upsample_bilinear", opset, x=X, **scale), expected.float().numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("align_corners", "half_pixel_centers", "expected"),
    [
        (True, False, [1, 1.2, 1.4, 1.6, 1.8, 2]),
        (False, True, [1, 1, 4 / 3, 5 / 3, 2, 2]),
        (False, False, [1, 4 / 3, 5 / 3, 2, 2, 2]),
    ],
)
def test_half_pixel_centers(align_corners: bool, half_pixel_centers: bool, expected: list[float]) -> None:
    """The values of coremltools 9.0 ops/tests/iOS16/test_image_resizing.py."""
    options = {
        "align_corners": align_corners,
        "half_pixel_centers": half_pixel_centers,
        "scale_factor_width": 3,
    }
    np.testing.assert_allclose(
        ours("upsample_bilinear", "ios16", x=RAMP + 1, **options).ravel(), expected, rtol=1e-6
    )


@pytest.mark.parametrize(("height", "width"), [(2, 3), (1.0, 1.0), (3.17, 0.67), (2.0, 1.12)])
def test_upsample_nearest(height: float, width: float) -> None:
    expected = F.interpolate(
        torch.from_numpy(X), scale_factor=(height, width), mode="nearest", recompute_scale_factor=True
    )
    got = ours("upsample_nearest_neighbor", x=X, scale_factor_height=height, scale_factor_width=width)
    assert_same(got, expected.numpy())


@pytest.mark.parametrize(("height", "width"), [(10, 14), (3, 4), (5, 7), (8, 3), (15, 2)])
def test_nearest_by_pixel_centres(height: int, width: int) -> None:
    expected = F.interpolate(torch.from_numpy(X), (height, width), mode="nearest-exact").numpy()
    got = ours("resize_nearest_neighbor", x=X, target_size_height=height, target_size_width=width)
    assert_same(got, expected)
    options = {"shape": [height, width], "resized_dims": 2, "interpolation_mode": "NEAREST_NEIGHBOR"}
    assert_same(ours("resize", "ios17", x=X, **options), expected)


@pytest.mark.parametrize("name", ["upsample_nearest_neighbor", "upsample_bilinear"])
@pytest.mark.parametrize("scale", [7 / 3, 5 / 7, 1.1, 0.999999, 1 / 3, 2.0000001])
def test_upsampled_sizes(name: str, scale: float) -> None:
    factors = {"scale_factor_height": np.float32(scale), "scale_factor_width": np.float32(scale)}
    for size in (3, 7, 30):
        x = normal(1, size, size)
        assert ours(name, x=x, **factors).shape == inferred_shape(name, "ios15", x.shape, **factors)


def test_nearest_example() -> None:
    """The values of coremltools 9.0 ops/tests/iOS17/test_image_resizing.py."""
    x = np.array([-6.174, 9.371], np.float32).reshape(1, 1, 1, 2, 1)
    options = {"shape": [1, 1, 3, 2], "resized_dims": 2, "interpolation_mode": "NEAREST_NEIGHBOR"}
    got = ours("resize", "ios17", x=x, **options)
    np.testing.assert_array_equal(got.ravel(), np.float32([-6.174, -6.174, 9.371, 9.371, 9.371, 9.371]))


def test_resize_inherits_sizes() -> None:
    assert ours("resize", "ios17", x=X, shape=[9, 0, 14], resized_dims=2).shape == (2, 3, 5, 14)
    one_axis = ours("resize", "ios17", x=X, shape=[9], resized_dims=1)
    assert_same(one_axis, ours("resize_bilinear", x=X, target_size_height=5, target_size_width=9))


def test_crop() -> None:
    assert_same(ours("crop", x=X, crop_height=[1, 2], crop_width=[0, 3]), X[..., 1:3, :4])


CROPS = [  # coremltools 9.0 ops/tests/iOS14 and iOS17/test_image_resizing.py
    ([1, 1, 2, 2], 2, False, [6, 7, 10, 11]),
    ([1, 1, 2, 2], 1, False, [8.5]),
    ([0, 0, 1 / 3, 1 / 3], 2, True, [1, 2, 5, 6]),
    ([2, 2, 1, 1], 2, False, [11, 10, 7, 6]),
    ([0.1, 0.3, 1.3, 1.0], 2, True, [3.1, 5.2, 10, 10]),
    ([0.5, 1.8, 1.0, 0.3], 2, True, [10, 7.9, 10, 13.9]),
    ([0.0, 0.4, 0.6, 0.7], 2, True, [2.2, 3.1, 9.4, 10.3]),
]


@pytest.mark.parametrize(("box", "size", "normalized", "expected"), CROPS)
def test_crop_resize(box: list[float], size: int, normalized: bool, expected: list[float]) -> None:
    options: dict[str, Any] = {
        "target_height": size,
        "target_width": size,
        "normalized_coordinates": normalized,
    }
    options |= {"sampling_mode": "ALIGN_CORNERS", "pad_value": 10.0}
    boxes = np.array([box], np.float32)
    got = ours("crop_resize", "ios17", x=IMAGE, boxes=boxes, **options)
    assert got.shape == (1, 1, size, size)
    np.testing.assert_allclose(got.ravel(), expected, rtol=1e-5)
    roi = boxes.reshape(1, 1, 4, 1, 1)
    np.testing.assert_array_equal(ours("crop_resize", "ios16", x=IMAGE, roi=roi, **options)[0], got)


@pytest.mark.parametrize(
    ("mode", "box"),
    [
        ("CORNERS_WIDTH_FIRST", [0, 1, 3, 2]),
        ("CENTER_SIZE_HEIGHT_FIRST", [1.5, 1.5, 1, 3]),
        ("CENTER_SIZE_WIDTH_FIRST", [1.5, 1.5, 3, 1]),
        ("CORNERS_HEIGHT_FIRST", [1, 0, 2, 3]),
    ],
)
def test_boxes(mode: str, box: list[float]) -> None:
    """Rows 1 and 2, all columns, given twice as large with a scale of one half."""
    boxes = 2 * np.array([box], np.float32)
    options = {"target_height": 2, "target_width": 4, "sampling_mode": "ALIGN_CORNERS", "spatial_scale": 0.5}
    got = ours("crop_resize", "ios17", x=IMAGE, boxes=boxes, box_coordinate_mode=mode, **options)
    np.testing.assert_allclose(got, IMAGE[:, :, 1:3], rtol=1e-6)


@pytest.mark.parametrize("mode", ["DEFAULT", "UNALIGN_CORNERS", "OFFSET_CORNERS", "STRICT_ALIGN_CORNERS"])
def test_the_whole_image_as_a_box(mode: str) -> None:
    inner = {"target_height": 3, "target_width": 3, "sampling_mode": mode}
    got = ours("crop_resize", "ios17", x=IMAGE, boxes=np.array([[0, 0, 3, 3]], np.float32), **inner)
    whole = ours("resize_bilinear", x=IMAGE, target_size_height=3, target_size_width=3, sampling_mode=mode)
    np.testing.assert_allclose(got, whole, rtol=1e-6)


def test_images_of_boxes() -> None:
    x = np.concatenate([IMAGE, IMAGE + 100, IMAGE + 200])
    box = [1, 1, 1, 1]
    picked = ours(
        "crop_resize", "ios17", x=x, boxes=np.array([box] * 2, np.float32), box_indices=np.int32([2, 0])
    )
    assert picked.ravel().tolist() == [206, 6]
    assert ours("crop_resize", "ios17", x=x, boxes=np.array([box] * 2, np.float32)).ravel().tolist() == [
        6,
        106,
    ]
    every = ours("crop_resize", x=x, roi=np.array(box * 2, np.float32).reshape(2, 1, 4, 1, 1))
    assert every.shape == (2, 3, 1, 1, 1)
    assert every.ravel().tolist() == [6, 106, 206, 6, 106, 206]
    named = ours("crop_resize", x=x, roi=np.array([2, *box], np.float32).reshape(1, 1, 5, 1, 1))
    assert named.shape == (1, 1, 1, 1, 1)
    assert named.item() == 206


RESAMPLED = [  # coremltools 9.0 ops/tests/iOS15/test_image_resizing.py
    ("bilinear", "constant", 6.17, "normalized_minus_one_to_one", True, [8.585, 6.17, 27.5, 6.17]),
    ("nearest", "border", -1, "unnormalized", False, [11, 11, 11, 44]),
    ("bilinear", "reflection", -1, "normalized_zero_to_one", True, [22, 36.3, 11, 34.1]),
    ("nearest", "symmetric", -1, "normalized_zero_to_one", False, [22, 33, 11, 33]),
]
NAMES = ("sampling_mode", "padding_mode", "padding_value", "coordinates_mode", "align_corners")


@pytest.mark.parametrize("case", RESAMPLED, ids=lambda c: f"{c[0]}-{c[1]}")
def test_resample_examples(case: tuple[Any, ...]) -> None:
    x = np.array([11, 22, 33, 44], np.float32).reshape(1, 1, 2, 2)
    coordinates = np.array([-1, -2, -3.7, -1, 0, 0, 3.5, 1.2], np.float32).reshape(1, 2, 2, 2)
    got = ours("resample", x=x, coordinates=coordinates, **dict(zip(NAMES, case[:5], strict=True)))
    np.testing.assert_allclose(got.ravel(), case[5], rtol=1e-5)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding", ["constant", "border", "mirrored"])
@pytest.mark.parametrize("sampling", ["bilinear", "nearest"])
def test_resample_as_torch(sampling: str, padding: str, align_corners: bool) -> None:
    """torch mirrors at the centres of the border pixels where it aligns corners, else at their edges."""
    grid = np.random.default_rng(0).uniform(-2.2, 2.2, (2, 6, 5, 2)).astype(np.float32)
    theirs = {"constant": "zeros", "border": "border", "mirrored": "reflection"}[padding]
    mirrored = "reflection" if align_corners else "symmetric"
    options = (sampling, mirrored if padding == "mirrored" else padding, 0.0, "normalized_minus_one_to_one")
    wide = torch.from_numpy(X).double(), torch.from_numpy(grid).double()
    expected = F.grid_sample(*wide, mode=sampling, padding_mode=theirs, align_corners=align_corners)
    named = dict(zip(NAMES, (*options, align_corners), strict=True))
    got = ours("resample", "ios16", x=X, coordinates=grid, **named)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_resample_at_whole_pixels() -> None:
    places = np.array([[[[0, 0], [6, 4], [3, 2], [7, 0]]]] * 2, np.int32)
    options = ("bilinear", "constant", 9.0, "unnormalized", False)
    got = ours("resample", x=X, coordinates=places, **dict(zip(NAMES, options, strict=True)))
    np.testing.assert_array_equal(got[:, :, 0, :3], np.stack([X[..., 0, 0], X[..., 4, 6], X[..., 2, 3]], -1))
    assert (got[:, :, 0, 3] == 9).all()


def test_affine() -> None:
    """The values of coremltools 9.0 ops/tests/iOS15/test_image_resizing.py."""
    x = np.array([11, 22, 33, 44], np.float32).reshape(1, 1, 2, 2)
    matrix = np.array([[-1, -2, -3.7, -1, 3.5, 1.2]], np.float32)
    options = dict(
        zip(NAMES, ("bilinear", "constant", 0.0, "normalized_minus_one_to_one", True), strict=True)
    )
    square = ours("affine", x=x, transform_matrix=matrix, output_height=3, output_width=3, **options)
    np.testing.assert_allclose(square.ravel(), [10.7525, 2.5025, 0, 1.98, 0, 0, 0, 0, 0], atol=1e-4)
    wide = ours("affine", x=x, transform_matrix=matrix, output_height=2, output_width=5, **options)
    np.testing.assert_allclose(wide.ravel(), [10.7525, 5.94, 2.5025, 0.44, 0, 0, 0, 0, 0, 0], atol=1e-4)


AFFINE = dict(
    zip(NAMES, ("bilinear", "constant", 0.0, "normalized_minus_one_to_one", True), strict=True),
    transform_matrix=np.array([[1, 0, 0, 0, 1, 0]], np.float32),
    output_height=5,
    output_width=7,
)
BOX = np.zeros((1, 4), np.float32)


def test_affine_identity() -> None:
    np.testing.assert_allclose(ours("affine", x=X, **AFFINE), X, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "opset", "arguments", "message"),
    [
        (
            "resize_bilinear",
            "ios15",
            {"sampling_mode": "ROUGH"},
            "'ROUGH' is not one of STRICT_ALIGN_CORNERS, ",
        ),
        (
            "resize",
            "ios17",
            {"shape": [2], "resized_dims": 1, "interpolation_mode": "CUBIC"},
            "'CUBIC' is not LINEAR or NEAREST_NEIGHBOR$",
        ),
        ("upsample_bilinear", "ios16", {"align_corners": True, "half_pixel_centers": True}, "not both"),
        (
            "crop_resize",
            "ios17",
            {"boxes": BOX, "box_coordinate_mode": "EDGES"},
            "one of CORNERS_HEIGHT_FIRST, ",
        ),
        ("affine", "ios15", AFFINE | {"align_corners": False}, "affine needs align_corners"),
        ("affine", "ios15", AFFINE | {"coordinates_mode": "unnormalized"}, "affine needs align_corners"),
    ],
)
def test_modes_that_do_not_exist(name: str, opset: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedOpError, match=message):
        ours(name, opset, x=IMAGE, **arguments)


@pytest.mark.parametrize("argument", ["sampling_mode", "padding_mode", "coordinates_mode"])
def test_resample_modes_that_do_not_exist(argument: str) -> None:
    options = dict(zip(NAMES, ("bilinear", "constant", 0.0, "unnormalized", True), strict=True))
    known = {
        "sampling_mode": "bilinear or nearest",
        "padding_mode": "one of constant, border, reflection, symmetric$",
        "coordinates_mode": "one of unnormalized, normalized_minus_one_to_one, normalized_zero_to_one$",
    }[argument]
    with pytest.raises(UnsupportedOpError, match=f"{argument} 'other' is not {known}"):
        ours("resample", x=X, coordinates=np.zeros((2, 1, 1, 2), np.float32), **options | {argument: "other"})


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("padding", "expected"), [("reflection", [2, 2, 3]), ("symmetric", [1, 3, 4])])
def test_mirrors_do_not_depend_on_align_corners(
    padding: str, expected: list[float], align_corners: bool
) -> None:
    """Places -1, 5 and 4 of four pixels; the mirrors lie at 0 and 3, or half a pixel further out."""
    x = np.array([1, 2, 3, 4], np.float32).reshape(1, 1, 1, 4)
    coordinates = np.array([[-1, 0], [5, 0], [4, 0]], np.float32).reshape(1, 1, 3, 2)
    options = dict(zip(NAMES, ("bilinear", padding, 0.0, "unnormalized", align_corners), strict=True))
    assert ours("resample", x=x, coordinates=coordinates, **options).ravel().tolist() == expected


@pytest.mark.parametrize(("size", "count"), [(5, 3), (4, 7), (1, 3)])
def test_offset_corners(size: int, count: int) -> None:
    """The formula of coremltools 9.0 ops/defs/iOS15/image_resizing.py, on a ramp that holds its own places."""
    x = np.arange(size, dtype=np.float32).reshape(1, 1, 1, size)
    delta = max(1, size - 1) / count
    expected = np.clip(0.5 * delta + np.arange(count) * delta, 0, size - 1)
    got = ours("resize_bilinear", x=x, target_size_width=count, sampling_mode="OFFSET_CORNERS")
    np.testing.assert_allclose(got.ravel(), expected, rtol=1e-6)


@pytest.mark.parametrize("lead", [(), (2,), (2, 1, 3)])
def test_any_rank_from_2(lead: tuple[int, ...]) -> None:
    x = normal(*lead, 4, 6)
    to = {"target_size_height": 8, "target_size_width": 12}
    by = {"scale_factor_height": 2.0, "scale_factor_width": 2.0}
    doubled = x.repeat(2, -2).repeat(2, -1)
    assert_same(ours("resize_nearest_neighbor", x=x, **to), doubled)
    assert_same(ours("upsample_nearest_neighbor", x=x, **by), doubled)
    assert_same(ours("crop", x=x, crop_height=[1, 0], crop_width=[2, 1]), x[..., 1:, 2:5])
    one_image = {"mode": "bilinear", "align_corners": True}
    expected = F.interpolate(torch.from_numpy(x.reshape(1, -1, 4, 6)).double(), (8, 12), **one_image)
    expected = expected.float().numpy().reshape(*lead, 8, 12)
    assert_same(ours("upsample_bilinear", x=x, **by), expected, rtol=1e-5)


def test_a_mirror_of_a_single_pixel() -> None:
    x = np.array([7, 8], np.float32).reshape(1, 1, 2, 1)
    coordinates = np.array([[[[0.75, 0], [-2, 1]]]], np.float32)
    options = dict(zip(NAMES, ("bilinear", "reflection", 0.0, "unnormalized", True), strict=True))
    assert ours("resample", x=x, coordinates=coordinates, **options).ravel().tolist() == [7, 8]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([0, 2, 1, 5], [[3, 4, -1, -1], [7, 8, -1, -1]]),
        ([2, 0, 5, 0], [[9], [13], [-1], [-1]]),
        ([-2, -1, 0, 0], [[-1, -1], [-1, -1], [-1, 1]]),
    ],
)
def test_a_box_that_reaches_out_on_one_side(box: list[float], expected: list[list[float]]) -> None:
    height, width = np.shape(expected)
    options = {
        "target_height": height,
        "target_width": width,
        "sampling_mode": "ALIGN_CORNERS",
        "pad_value": -1.0,
    }
    got = ours("crop_resize", "ios17", x=IMAGE, boxes=np.array([box], np.float32), **options)
    assert got[0, 0].tolist() == expected
