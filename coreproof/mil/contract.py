"""The contract of a package: its features as ``description`` of the model spec declares them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from coreproof.errors import PackageError

_ARRAY_DTYPES = {65568: "float32", 65600: "float64", 65552: "float16", 131104: "int32", 131080: "int8"}


@dataclass(frozen=True, slots=True)
class Feature:
    """``kind``: multiArray, image, string, int64, double, dictionary or sequence.

    ``dtype``: numpy name, for multiArray. ``shape``: the default shape. ``choices``: enumerated
    shapes, or ``ranges``: (lower, upper or None) for each dimension; both empty when fixed.
    """

    name: str
    kind: str
    dtype: str | None = None
    shape: tuple[int, ...] = ()
    choices: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[tuple[int, int | None], ...] = ()
    optional: bool = False

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


def read_contract(spec: Any, function_name: str) -> Contract:
    """The contract of ``function_name`` in a ``Model`` protobuf.

    Raises PackageError for a function or feature type the spec does not define.
    """
    description = spec.description
    if description.functions:
        named = {f.name: f for f in description.functions}
        if function_name not in named:
            raise PackageError(f"no function {function_name!r}; the package has {', '.join(named)}")
        description = named[function_name]
    return Contract(_features(description.input), _features(description.output), _features(description.state))


def default_function(spec: Any) -> str:
    """The function ``predict`` runs when none is named: the declared default, else ``main``."""
    return spec.description.defaultFunctionName or "main"


def _features(features: Iterable[Any]) -> tuple[Feature, ...]:
    return tuple(_feature(f) for f in features)


def _feature(feature: Any) -> Feature:
    kind = feature.type.WhichOneof("Type") or ""
    array = None
    if kind == "multiArrayType":
        array = feature.type.multiArrayType
    elif kind == "stateType":
        array = feature.type.stateType.arrayType
    if array is None:
        return Feature(feature.name, kind.removesuffix("Type"), optional=feature.type.isOptional)
    if array.dataType not in _ARRAY_DTYPES:
        raise PackageError(f"feature {feature.name!r} declares the unknown array data type {array.dataType}")
    flexible = array.WhichOneof("ShapeFlexibility")
    choices = (
        tuple(tuple(s.shape) for s in array.enumeratedShapes.shapes) if flexible == "enumeratedShapes" else ()
    )
    ranges = (
        tuple((r.lowerBound, None if r.upperBound < 0 else r.upperBound) for r in array.shapeRange.sizeRanges)
        if flexible == "shapeRange"
        else ()
    )
    return Feature(
        feature.name,
        "multiArray",
        _ARRAY_DTYPES[array.dataType],
        tuple(array.shape),
        choices,
        ranges,
        feature.type.isOptional,
    )
