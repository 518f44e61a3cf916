"""From the caller's arrays to the values a compiled program works on, and back.

Strict: an array must have the declared dtype and shape. What an image is, see
:class:`coreproof.mil.contract.Feature`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from coreproof.errors import ExecutionError, InputError
from coreproof.mil.contract import Feature
from coreproof.mil.types import TensorType
from coreproof.runtime.constants import to_tensor

INPUT_KINDS = ("multiArray", "image")
_RESULTS = {"multiArray": Tensor, "image": Tensor, "string": str, "int64": int, "dictionary": dict}
OUTPUT_KINDS = tuple(_RESULTS)


def required(feature: Feature) -> bool:
    """Whether a prediction needs ``feature``; else its declared default fills it."""
    return not feature.optional or feature.default is None


def default(feature: Feature) -> np.ndarray:
    """What an optional input is when it is not given: its default in every element."""
    return np.full(feature.shape, feature.default, feature.dtype)


def given(feature: Feature, value: Any) -> np.ndarray:
    """``value`` as an array. Raises InputError unless it has the declared dtype and shape."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # ragged lists, tensors that need a gradient
        raise InputError(f"input {feature.name!r}: not an array: {error}") from None
    if array.dtype != feature.dtype:
        raise InputError(
            f"input {feature.name!r}: dtype {array.dtype}, expected {feature.dtype}; "
            f"convert it with .astype({feature.dtype!r})"
        )
    if not feature.admits(array.shape):
        raise InputError(f"input {feature.name!r}: shape {list(array.shape)}, expected {feature.shape_text}")
    return array


def argument(feature: Feature, array: np.ndarray, kind: TensorType) -> Tensor:
    """``array`` as the program's argument of type ``kind``, sharing memory where it can.

    A scalar argument is declared as an array of shape (1,), an image as a tensor of shape
    (1, channels, height, width) (coremltools 9.0, ``backend/mil/load.py``).
    """
    if feature.kind == "image":
        array = _channels(feature, array[..., None] if array.ndim == 2 else array).transpose(2, 0, 1)[None]
    elif kind.shape == ():
        array = array.reshape(())
    return to_tensor(np.ascontiguousarray(array).reshape(array.shape), kind)


def returned(feature: Feature, value: Any) -> Any:
    """The program's result ``value`` as the caller gets it: an array in the declared dtype, or for a
    classifier its label as str or int and the probabilities as a dict.

    Image values are clamped to 0..255 and rounded to nearest even; NaN becomes 0. Raises
    ExecutionError for a value of another kind or shape than the contract's.
    """
    kinds: Any = _RESULTS[feature.kind]
    if not isinstance(value, kinds):
        raise ExecutionError(
            f"output {feature.name!r} came out as a {type(value).__name__}, the contract says {feature.kind}"
        )
    if feature.kind == "dictionary":
        return dict(value)
    if feature.kind in ("string", "int64"):
        return value
    array = _pixels(feature, value) if feature.kind == "image" else _array(feature, value)
    if feature.shape and not feature.choices and not feature.ranges and array.shape != feature.shape:
        raise ExecutionError(
            f"output {feature.name!r} came out with shape {list(array.shape)}, the contract says {feature.shape_text}"
        )
    return array


def _array(feature: Feature, value: Tensor) -> np.ndarray:
    return value.cpu().numpy().astype(feature.dtype or "float32")


def _pixels(feature: Feature, value: Tensor) -> np.ndarray:
    if value.dim() != 4 or len(value) != 1:
        raise ExecutionError(
            f"output {feature.name!r} is an image, the program gave it the shape {list(value.shape)}, "
            "expected [1, channels, height, width]"
        )
    planes = value[0].cpu().float()
    if feature.dtype == "uint8":
        planes = torch.nan_to_num(planes, nan=0.0).clamp(0, 255).round()
    pixels = _channels(feature, planes.permute(1, 2, 0).numpy()).astype(feature.dtype or "uint8")
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def _channels(feature: Feature, image: np.ndarray) -> np.ndarray:
    """Red first on one side, the program's order on the other; last dimension."""
    return image[..., ::-1] if feature.colors == "BGR" else image
