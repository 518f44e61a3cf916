"""The contract of a package: its features as ``description`` of the model spec declares them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from coreproof.errors import PackageError
from coreproof.mil.from_proto import MAX_ELEMENTS, MAX_RANK

_ARRAY_DTYPES = {65568: "float32", 65600: "float64", 65552: "float16", 131104: "int32", 131080: "int8"}
_COLORS = {10: "GRAYSCALE", 20: "RGB", 30: "BGR", 40: "GRAYSCALE_FLOAT16"}


@dataclass(frozen=True, slots=True)
class Feature:
    """``kind``: multiArray, image, string, int64, double, dictionary or sequence.

    ``dtype``: numpy name, for multiArray and image. ``shape``: the default shape. ``choices``:
    enumerated shapes, or ``ranges``: (lower, upper or None) for each dimension; both empty when fixed.
    ``default``: what fills an optional input that is not given, None where the spec has no value.

    An image is an array as Pillow lays it out: uint8 of shape (height, width, 3) with red first
    whatever ``colors`` says (RGB or BGR, the order of the program's channels), uint8 (height, width)
    for GRAYSCALE, float16 (height, width) for GRAYSCALE_FLOAT16.
    """

    name: str
    kind: str
    dtype: str | None = None
    shape: tuple[int, ...] = ()
    choices: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[tuple[int, int | None], ...] = ()
    optional: bool = False
    default: float | None = None
    colors: str | None = None

    def admits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of ``shape`` fits the declaration."""
        if self.choices:
            return shape in self.choices
        if self.ranges:
            return len(shape) == len(self.ranges) and all(
                low <= size and (high is None or size <= high)
                for size, (low, high) in zip(shape, self.ranges, strict=True)
            )
        return shape == self.shape

    @property
    def shape_text(self) -> str:
        if self.choices:
            return " or ".join(str(list(c)) for c in self.choices)
        if self.ranges:
            return "[" + ", ".join(f"{lo}..{'' if hi is None else hi}" for lo, hi in self.ranges) + "]"
        return str(list(self.shape))


@dataclass(frozen=True, slots=True)
class Contract:
    """Inputs, outputs and states of one function, in declared order."""

    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]
    states: tuple[Feature, ...]


def read_contract(description: Any, function_name: str) -> Contract:
    """The contract of ``function_name`` in a ``ModelDescription`` message.

    Raises PackageError for a function or feature type the spec does not define.
    """
    if description.functions:
        named = {f.name: f for f in description.functions}
        if function_name not in named:
            raise PackageError(f"no function {function_name!r}; the package has {', '.join(named)}")
        description = named[function_name]
    return Contract(_features(description.input), _features(description.output), _features(description.state))


def default_function(description: Any) -> str:
    """The function ``predict`` runs when none is named: the declared default, else ``main``."""
    return description.defaultFunctionName or "main"


def _features(features: Iterable[Any]) -> tuple[Feature, ...]:
    return tuple(_checked(_feature(f)) for f in features)


def _checked(feature: Feature) -> Feature:
    """``feature``. Raises PackageError for sizes that no array has."""
    for shape in (feature.shape, *feature.choices):
        if (
            len(shape) > MAX_RANK
            or min(shape, default=0) < 0
            or math.prod(size or 1 for size in shape) > MAX_ELEMENTS
        ):
            raise PackageError(
                f"feature {feature.name!r} declares the shape {list(shape)}; expected at most {MAX_RANK} sizes from 0 "
                f"on and {MAX_ELEMENTS} elements"
            )
    return feature


def _feature(feature: Any) -> Feature:
    kind = feature.type.WhichOneof("Type") or ""
    if kind == "multiArrayType":
        return _array(feature, feature.type.multiArrayType)
    if kind == "stateType":
        return _array(feature, feature.type.stateType.arrayType)
    if kind == "imageType":
        return _image(feature, feature.type.imageType)
    return Feature(feature.name, kind.removesuffix("Type"), optional=feature.type.isOptional)


def _array(feature: Any, array: Any) -> Feature:
    if array.dataType not in _ARRAY_DTYPES:
        raise PackageError(f"feature {feature.name!r} declares the unknown array data type {array.dataType}")
    flexible = array.WhichOneof("ShapeFlexibility")
    filler = array.WhichOneof("defaultOptionalValue") if feature.type.isOptional else None
    return Feature(
        feature.name,
        "multiArray",
        _ARRAY_DTYPES[array.dataType],
        tuple(array.shape),
        tuple(tuple(s.shape) for s in array.enumeratedShapes.shapes),
        tuple(map(_range, array.shapeRange.sizeRanges)) if flexible == "shapeRange" else (),
        feature.type.isOptional,
        default=float(getattr(array, filler)) if filler else None,
    )


def _image(feature: Any, image: Any) -> Feature:
    if image.colorSpace not in _COLORS:
        raise PackageError(f"feature {feature.name!r} declares the unknown color space {image.colorSpace}")
    colors = _COLORS[image.colorSpace]
    channels = (3,) if colors in ("RGB", "BGR") else ()
    sides = image.imageSizeRange
    flexible = image.WhichOneof("SizeFlexibility") == "imageSizeRange"
    return Feature(
        feature.name,
        "image",
        "float16" if colors == "GRAYSCALE_FLOAT16" else "uint8",
        (image.height, image.width, *channels),
        tuple((s.height, s.width, *channels) for s in image.enumeratedSizes.sizes),
        (_range(sides.heightRange), _range(sides.widthRange), *((c, c) for c in channels))
        if flexible
        else (),
        feature.type.isOptional,
        colors=colors,
    )


def _range(size: Any) -> tuple[int, int | None]:
    return size.lowerBound, None if size.upperBound < 0 else size.upperBound
