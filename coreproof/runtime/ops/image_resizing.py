"""Cropping, resizing and resampling (coremltools 9.0 ops/defs/iOS15, iOS16, iOS17/image_resizing.py).

Where in the input an output element lies is computed in float64 with one division, so that exact
halves stay halves; the values are blended in fp32.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from coreproof.errors import UnsupportedOpError
from coreproof.runtime.bounds import resized, within
from coreproof.runtime.registry import Ints, op

_SAMPLING = ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS")
_COORDINATES = ("unnormalized", "normalized_minus_one_to_one", "normalized_zero_to_one")
_PADDING = ("constant", "border", "reflection", "symmetric")
_BOXES = (
    "CORNERS_HEIGHT_FIRST", "CORNERS_WIDTH_FIRST", "CENTER_SIZE_HEIGHT_FIRST", "CENTER_SIZE_WIDTH_FIRST",
)  # fmt: skip


def _grid(size: Tensor, count: int, mode: str) -> Tensor:
    """The ``count`` places in an input of ``size`` elements (float64, one for each row) that sampling
    mode ``mode`` looks at, before clamping: the formulas at ``resize_bilinear`` in iOS15/image_resizing.py,
    of which a single place is ``STRICT_ALIGN_CORNERS``' first and ``ALIGN_CORNERS``' middle.

    Raises UnsupportedOpError for a mode that does not exist.
    """
    if mode not in _SAMPLING:
        raise UnsupportedOpError(f"sampling_mode {mode!r} is not one of {', '.join(_SAMPLING)}")
    i = torch.arange(count, dtype=torch.float64)
    if mode == "DEFAULT":
        return i * size / count
    if mode == "UNALIGN_CORNERS":
        return ((2 * i + 1) * size - count) / (2 * count)
    if mode == "OFFSET_CORNERS":
        return (2 * i + 1) * (size - 1).clamp(min=1) / (2 * count)
    if count == 1:
        return (size - 1) / 2 if mode == "ALIGN_CORNERS" else 0 * size
    return i * (size - 1) / (count - 1)


def _size(size: int) -> Tensor:
    return torch.tensor([size], dtype=torch.float64)


@lru_cache(maxsize=1024)
def _neighbours(size: int, count: int, mode: str) -> tuple[Tensor, Tensor, Tensor]:
    """For each place its neighbours before and after, and the weight of the latter."""
    place = _grid(_size(size), count, mode).clamp(0, size - 1)
    before = place.floor()
    return before.long(), (before + 1).clamp(max=size - 1).long(), (place - before).float()


@lru_cache(maxsize=1024)
def _nearest(size: int, count: int, mode: str) -> Tensor:
    """The nearest element to each place, halves up; by default as of pixels with their centres at
    one half."""
    place = _grid(_size(size), count, "UNALIGN_CORNERS" if mode == "DEFAULT" else mode)
    return (place + 0.5).floor().clamp(0, size - 1).long()


def _linear(x: Tensor, dim: int, count: int, mode: str) -> Tensor:
    resized(x, dim, count)
    before, after, weight = (t.to(x.device) for t in _neighbours(x.shape[dim], count, mode))
    weight = weight.reshape(-1, *[1] * (-dim - 1))
    return torch.index_select(x, dim, before) * (1 - weight) + torch.index_select(x, dim, after) * weight


def _bilinear(x: Tensor, height: int, width: int, mode: str) -> Tensor:
    return _linear(_linear(x, -2, height, mode), -1, width, mode)


@op("resize_bilinear")
def resize_bilinear(
    x: Tensor, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT"
) -> Tensor:
    """``DEFAULT`` looks at ``i * size / count``, as TensorFlow without corner alignment or half pixel
    centres; ``UNALIGN_CORNERS`` is torch's ``align_corners=False``."""
    return _bilinear(x, target_size_height, target_size_width, sampling_mode)


@op("resize_nearest_neighbor", moves=True)
def resize_nearest_neighbor(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    """Pixels have their centres at one half: ``floor((i + 0.5) * size / count)``, torch's ``nearest-exact``."""
    for dim, count in ((-2, target_size_height), (-1, target_size_width)):
        resized(x, dim, count)
        x = torch.index_select(x, dim, _nearest(x.shape[dim], count, "DEFAULT").to(x.device))
    return x


def _scaled(x: Tensor, height: float, width: float) -> tuple[int, int]:
    """The sizes as coremltools infers them, in fp32, where 3 times 7/3 is 7."""
    return math.floor(np.float32(height) * x.shape[-2]), math.floor(np.float32(width) * x.shape[-1])


@op("upsample_nearest_neighbor", moves=True)
def upsample_nearest_neighbor(
    x: Tensor, scale_factor_height: float = 1, scale_factor_width: float = 1
) -> Tensor:
    """``floor(i * size / count)`` for a count of ``floor(size * scale)``, torch's ``nearest``."""
    for dim, count in zip((-2, -1), _scaled(x, scale_factor_height, scale_factor_width), strict=True):
        size = x.shape[dim]
        resized(x, dim, count)
        x = torch.index_select(x, dim, torch.arange(count, device=x.device) * size // count)
    return x


@op("upsample_bilinear")
def upsample_bilinear(
    x: Tensor, scale_factor_height: float = 1, scale_factor_width: float = 1, align_corners: bool = True
) -> Tensor:
    """The scale is recomputed from the sizes, as by torch's ``recompute_scale_factor``."""
    mode = "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS"
    return _bilinear(x, *_scaled(x, scale_factor_height, scale_factor_width), mode)


@op("upsample_bilinear", since="ios16")
def upsample_bilinear_ios16(
    x: Tensor,
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """``half_pixel_centers`` is the opposite of ``align_corners`` unless given; neither of them is
    TensorFlow's old sampling, both at once do not exist (UnsupportedOpError)."""
    if align_corners and half_pixel_centers:
        raise UnsupportedOpError("upsample_bilinear takes align_corners or half_pixel_centers, not both")
    if not align_corners and half_pixel_centers is False:
        return _bilinear(x, *_scaled(x, scale_factor_height, scale_factor_width), "DEFAULT")
    return upsample_bilinear(x, scale_factor_height, scale_factor_width, align_corners)


@op("resize", since="ios17")
def resize(
    x: Tensor,
    shape: Ints,
    resized_dims: int,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """The last ``resized_dims`` dimensions take the last sizes of ``shape``, 0 leaving one as it is
    (iOS17/image_resizing.py).

    Raises UnsupportedOpError for modes that do not exist.
    """
    if interpolation_mode not in ("LINEAR", "NEAREST_NEIGHBOR"):
        modes = "LINEAR or NEAREST_NEIGHBOR"
        raise UnsupportedOpError(f"interpolation_mode {interpolation_mode!r} is not {modes}")
    y = x
    for dim in range(-resized_dims, 0):
        count = shape[dim] or x.shape[dim]
        if interpolation_mode == "LINEAR":
            y = _linear(y, dim, count, sampling_mode)
        else:
            resized(y, dim, count)
            y = torch.index_select(y, dim, _nearest(x.shape[dim], count, sampling_mode).to(x.device))
    return y.to(x.dtype)


@op("crop", moves=True)
def crop(x: Tensor, crop_height: Ints, crop_width: Ints) -> Tensor:
    """Cut (before, after) off the last two dimensions."""
    height, width = x.shape[-2:]
    return x[..., crop_height[0] : height - crop_height[1], crop_width[0] : width - crop_width[1]]


def _sample(x: Tensor, across: Tensor, down: Tensor, nearest: bool, outside: float | None) -> Tensor:
    """x [B, C, H, W] at pixel coordinates [B, h, w], giving [B, C, h, w]: bilinear, or the nearest
    pixel with halves to even. Beyond the image lies ``outside``, or with None the nearest border."""
    batch, channels, height, width = x.shape
    flat = x.flatten(2)

    def pixels(column: Tensor, row: Tensor) -> Tensor:
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        place = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
        picked = torch.gather(flat, 2, place.flatten(1).unsqueeze(1).expand(-1, channels, -1))
        picked = picked.reshape(batch, channels, *place.shape[1:])
        return picked if outside is None else torch.where(inside.unsqueeze(1), picked, outside)

    if nearest:
        return pixels(across.round(), down.round())
    left, top = across.floor(), down.floor()
    right, bottom = (across - left).unsqueeze(1), (down - top).unsqueeze(1)
    upper = pixels(left, top) * (1 - right) + pixels(left + 1, top) * right
    lower = pixels(left, top + 1) * (1 - right) + pixels(left + 1, top + 1) * right
    return upper * (1 - bottom) + lower * bottom


def _fold(place: Tensor, low: float, high: float) -> Tensor:
    """Coordinates mirrored at ``low`` and ``high`` until they lie between."""
    span = high - low
    if span <= 0:
        return torch.full_like(place, low)
    return high - torch.abs(torch.remainder(place - low, 2 * span) - span)


def _pixels(place: Tensor, size: int, mode: str, align_corners: bool) -> Tensor:
    """Coordinates of a dimension of ``size`` in pixels. Raises UnsupportedOpError for another mode."""
    if mode == "unnormalized":
        return place
    if mode not in _COORDINATES:
        raise UnsupportedOpError(f"coordinates_mode {mode!r} is not one of {', '.join(_COORDINATES)}")
    unit = (place + 1) / 2 if mode == "normalized_minus_one_to_one" else place
    return unit * (size - 1) if align_corners else unit * size - 0.5


@op("resample")
def resample(
    x: Tensor,
    coordinates: Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """x [B, C, H, W] at ``coordinates`` [B, h, w, 2] in the order (x, y). ``reflection`` mirrors at
    the centres of the border pixels, ``symmetric`` at their outer edges, whatever ``align_corners`` says, which
    picks between them in torch's ``grid_sample``.

    Raises UnsupportedOpError for modes that do not exist.
    """
    if sampling_mode not in ("bilinear", "nearest"):
        raise UnsupportedOpError(f"sampling_mode {sampling_mode!r} is not bilinear or nearest")
    if padding_mode not in _PADDING:
        raise UnsupportedOpError(f"padding_mode {padding_mode!r} is not one of {', '.join(_PADDING)}")
    sizes = x.shape[3], x.shape[2]
    within((*coordinates.shape[:-1], x.shape[1]))
    places = [
        _pixels(c, s, coordinates_mode, align_corners)
        for c, s in zip(coordinates.float().unbind(-1), sizes, strict=True)
    ]
    if padding_mode == "reflection":
        places = [_fold(p, 0, s - 1) for p, s in zip(places, sizes, strict=True)]
    elif padding_mode == "symmetric":
        places = [_fold(p, -0.5, s - 0.5) for p, s in zip(places, sizes, strict=True)]
    if padding_mode != "constant":
        places = [p.clamp(0, s - 1) for p, s in zip(places, sizes, strict=True)]
    outside = padding_value if padding_mode == "constant" else None
    return _sample(x, places[0], places[1], sampling_mode == "nearest", outside)


@op("affine")
def affine(
    x: Tensor,
    transform_matrix: Tensor,
    output_height: int,
    output_width: int,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """The output's coordinates, from -1 to 1 over the centres of its corner pixels, times
    ``transform_matrix`` [B or 1, 6] are where the input is sampled.

    Raises UnsupportedOpError for the modes MIL reserves without defining them.
    """
    if not align_corners or coordinates_mode.lower() != "normalized_minus_one_to_one":
        raise UnsupportedOpError("affine needs align_corners and normalized_minus_one_to_one coordinates")
    within((*x.shape[:2], output_height, output_width))
    matrix = transform_matrix.expand(x.shape[0], 6).reshape(-1, 2, 3)
    places = F.affine_grid(matrix, [x.shape[0], 1, output_height, output_width], align_corners=True)
    modes = sampling_mode.lower(), padding_mode.lower()
    return resample(x, places, *modes, padding_value, coordinates_mode.lower(), align_corners)


def _edges(boxes: Tensor, mode: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top, left, bottom and right of boxes [N, 4]. Raises UnsupportedOpError for another mode."""
    if mode not in _BOXES:
        raise UnsupportedOpError(f"box_coordinate_mode {mode!r} is not one of {', '.join(_BOXES)}")
    first, second, third, fourth = boxes.unbind(-1)
    if mode.endswith("WIDTH_FIRST"):
        first, second, third, fourth = second, first, fourth, third
    if mode.startswith("CENTER"):
        return first - third / 2, second - fourth / 2, first + third / 2, second + fourth / 2
    return first, second, third, fourth


def _crop_resize(
    x: Tensor, boxes: Tensor, images: Tensor, target: tuple[int, int], normalized: bool, scale: float,
    box_mode: str, sampling: str, pad_value: float,
) -> Tensor:  # fmt: skip
    """Box i of ``boxes`` [N, 4] cut out of image ``images[i]``, giving [N, C, *target]. A box is
    sampled like an input of ``end - start + 1`` elements; a place outside the image is ``pad_value``."""
    within((len(boxes), x.shape[1], *target))
    within((len(images), *x.shape[1:]))
    top, left, bottom, right = _edges(boxes.double() * scale, box_mode)
    height, width = x.shape[-2:]
    down_by, across_by = (height - 1, width - 1) if normalized else (1, 1)

    def places(start: Tensor, end: Tensor, count: int) -> Tensor:
        return start.unsqueeze(1) + _grid((end - start + 1).unsqueeze(1), count, sampling)

    down = places(top * down_by, bottom * down_by, target[0]).unsqueeze(2).expand(-1, *target)
    across = places(left * across_by, right * across_by, target[1]).unsqueeze(1).expand(-1, *target)
    outside = (down < 0) | (down > height - 1) | (across < 0) | (across > width - 1)
    down, across = down.clamp(0, height - 1).float(), across.clamp(0, width - 1).float()
    picked = _sample(torch.index_select(x, 0, images.long()), across, down, False, None)
    return torch.where(outside.unsqueeze(1), pad_value, picked)


@op("crop_resize")
def crop_resize(
    x: Tensor,
    roi: Tensor,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """Bilinear patches of x [B, C, H, W]: with ``roi`` [N, 1, 4, 1, 1] of every image, [N, B, C, h, w];
    with [N, 1, 5, 1, 1], whose first entry names the image, [N, 1, C, h, w]. 0 outside the image.

    Raises UnsupportedOpError for modes that do not exist.
    """
    return crop_resize_ios16(
        x, roi, target_height, target_width, normalized_coordinates, spatial_scale, box_coordinate_mode,
        sampling_mode,
    )  # fmt: skip


@op("crop_resize", since="ios16")
def crop_resize_ios16(
    x: Tensor,
    roi: Tensor,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: float = 0.0,
) -> Tensor:
    """Outside the image lies ``pad_value``."""
    rows = roi.flatten(1)
    each = rows.shape[1] == 4
    shared = x.shape[0] if each else 1
    images = torch.arange(shared, device=x.device).repeat(len(rows)) if each else rows[:, 0]
    boxes = rows[:, -4:].repeat_interleave(shared, 0)
    patches = _crop_resize(
        x, boxes, images, (target_height, target_width), normalized_coordinates, spatial_scale,
        box_coordinate_mode, sampling_mode, pad_value,
    )  # fmt: skip
    return patches.reshape(len(rows), shared, *patches.shape[1:])


@op("crop_resize", since="ios17")
def crop_resize_ios17(
    x: Tensor,
    boxes: Tensor,
    box_indices: Tensor | None = None,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: float = 0.0,
) -> Tensor:
    """``boxes`` [N, 4] of the images ``box_indices`` (by default 0 to N - 1), giving [N, C, h, w]."""
    images = torch.arange(len(boxes), device=x.device) if box_indices is None else box_indices
    return _crop_resize(
        x, boxes, images, (target_height, target_width), normalized_coordinates, spatial_scale,
        box_coordinate_mode, sampling_mode, pad_value,
    )  # fmt: skip
