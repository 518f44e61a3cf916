"""What Core ML's Python bridge does to values on the way in and out.

Facts from coremltools 9.0, ``coremlpython/CoreMLPythonUtils.mm`` (conversion of values) and
``CoreMLPythonArray.mm`` (array dtypes), and from the messages Core ML gives for features that do not
fit the model's description; those texts stand in the errors here, so that tests which look for them
pass on both sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from coreproof.mil.contract import Feature
from coreproof.runtime.features import required

# The dtypes the bridge has a Core ML type for; float16 arrays are widened before they reach it.
_BRIDGED = ("int8", "int32", "float32", "float64")
_MODES = {"RGB": ("RGB", "RGBA"), "BGR": ("RGB", "RGBA"), "GRAYSCALE": ("L",), "GRAYSCALE_FLOAT16": ("F",)}


def to_features(values: Mapping[str, Any], features: Iterable[Feature]) -> dict[str, np.ndarray]:
    """``values`` as arrays of the declared dtypes, by feature name.

    Arrays of int8, int32, float32 and float64 are converted to the feature's dtype (integers are
    truncated towards zero), Pillow images become pixels. What is no feature of the model is
    converted and dropped; a list or a tuple is dropped unseen, as the bridge does it. Raises
    RuntimeError for a value the bridge cannot convert, a missing feature, one of another kind and a
    shape that the description does not allow.
    """
    bridged = {name: _bridge(name, value) for name, value in values.items() if not _is_sequence(value)}
    given = {}
    for feature in features:
        if feature.name in bridged:
            given[feature.name] = _fit(feature, bridged[feature.name])
        elif required(feature):
            raise RuntimeError(f"Feature {feature.name} is required but not specified.")
    return given


def to_caller(value: Any, feature: Feature) -> Any:
    """``value``, an output of :meth:`coreproof.runtime.model.Model.predict`, as the bridge returns it:
    float16 arrays as float32, a scalar in shape (1,), an image as Pillow image of mode RGBA (alpha
    255), L or F, probabilities as a dict of Python floats, a label as str or int."""
    if feature.kind == "image":
        return _picture(value, feature)
    if feature.kind == "dictionary":
        return {key: float(probability) for key, probability in value.items()}
    return widened(np.atleast_1d(value)) if isinstance(value, np.ndarray) else value


def widened(array: np.ndarray) -> np.ndarray:
    """``array``, or its values in float32 where it is float16."""
    return array.astype(np.float32) if array.dtype == np.float16 else array


def to_state(name: str, value: Any) -> np.ndarray:
    """``value`` as the bridge takes it for state ``name``. Raises RuntimeError for what is no array."""
    if _is_sequence(value) or not isinstance(_bridge(name, value), np.ndarray):
        raise RuntimeError(f"Failed to write state {name!r}, only multi-array value is supported")
    return np.asarray(value)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _bridge(name: str, value: Any) -> Any:
    """``value`` unless the bridge would refuse it."""
    if isinstance(value, np.ndarray):
        if value.ndim and value.dtype.name in _BRIDGED:
            return value
        fix = "pass np.array([value])" if value.ndim == 0 else f"expected one of {', '.join(_BRIDGED)}"
        raise RuntimeError(
            f"value type not convertible: {name!r} is an array of rank {value.ndim} and dtype {value.dtype}; {fix}"
        )
    if isinstance(value, bool | int | float | str | bytes | dict | np.integer) or _is_image(value):
        return value
    raise RuntimeError(f"value type not convertible: {name!r} is of type {type(value).__name__}")


def _is_image(value: Any) -> bool:
    try:
        from PIL import Image
    except ImportError:
        return False
    return isinstance(value, Image.Image)


def _fit(feature: Feature, value: Any) -> np.ndarray:
    array = _pixels(feature, value) if feature.kind == "image" else _numbers(feature, value)
    if not feature.admits(array.shape):
        raise RuntimeError(
            f"For input feature '{feature.name}', the provided shape is not compatible with the model's "
            f"feature description: {_misfit(feature, array.shape)}"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(feature.dtype or array.dtype, copy=False)


def _numbers(feature: Feature, value: Any) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        raise RuntimeError(
            f"MultiArrayConstraint only allows MultiArrays, input feature '{feature.name}' was given a "
            f"{type(value).__name__}"
        )
    return value


def _pixels(feature: Feature, value: Any) -> np.ndarray:
    if not _is_image(value):
        raise RuntimeError(
            f"The model expects input feature {feature.name} to be an image, but the input is a "
            f"{type(value).__name__}"
        )
    modes = _MODES[feature.colors or ""]
    if value.mode not in modes:
        raise RuntimeError(
            f"input feature '{feature.name}': a Pillow image of mode {value.mode}, expected {' or '.join(modes)}"
        )
    pixels = np.asarray(value)
    return pixels[..., :3] if value.mode == "RGBA" else pixels


def _misfit(feature: Feature, shape: tuple[int, ...]) -> str:
    if feature.kind == "image":
        return f"Image size {shape[1]} x {shape[0]} not in allowed set of image sizes"
    if feature.choices:
        return f"MultiArray Shape ({_times(shape)}) was not in enumerated set of allowed shapes"
    if len(shape) == len(feature.ranges):
        for dimension, (size, (low, high)) in enumerate(zip(shape, feature.ranges, strict=True)):
            if size < low or (high is not None and size > high):
                span = f"{low}..{'' if high is None else high}"
                return f"Size ({size}) of dimension ({dimension}) is not in allowed range ({span})"
    return (
        f"MultiArray shape ({_times(shape)}) does not match the shape ({_times(feature.shape)}) specified in "
        "the model description"
    )


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _picture(pixels: np.ndarray, feature: Feature) -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise RuntimeError(
            f"output {feature.name!r} is an image, which needs Pillow; install it (pip install pillow)"
        ) from None
    if pixels.ndim == 3:
        return Image.fromarray(np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)]), "RGBA")
    return Image.fromarray(widened(pixels))
