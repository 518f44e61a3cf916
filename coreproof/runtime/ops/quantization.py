"""Quantization of activations (coremltools 9.0 ops/defs/iOS17/quantization_ops.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from coreproof.errors import UnsupportedOpError
from coreproof.runtime.registry import op

_TARGETS = {"int8": torch.int8, "uint8": torch.uint8}


def along(values: Tensor, data: Tensor, axis: int | None) -> Tensor:
    """A scalar as it is, a vector shaped to broadcast along ``axis`` of ``data``."""
    if values.dim() == 0 or axis is None:
        return values
    shape = [1] * data.dim()
    shape[axis] = -1
    return values.reshape(shape)


@op("quantize", since="ios17")
def quantize(
    input: Tensor, scale: Tensor, output_dtype: str, zero_point: Tensor | None = None, axis: int | None = None
) -> Tensor:
    """``round(input / scale) + zero_point``, halves to even, clamped to the range of ``output_dtype``.

    Raises UnsupportedOpError for another dtype than int8 and uint8.
    """
    if output_dtype not in _TARGETS:
        raise UnsupportedOpError(f"quantize to {output_dtype!r}: expected int8 or uint8")
    limits = torch.iinfo(_TARGETS[output_dtype])
    steps = torch.round(input / along(scale, input, axis))
    if zero_point is not None:
        steps = steps + along(zero_point, input, axis)
    return steps.clamp(limits.min, limits.max).to(_TARGETS[output_dtype])


@op("dequantize", since="ios17")
def dequantize(
    input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int | None = None
) -> Tensor:
    """``scale * (input - zero_point)``."""
    steps = input.float() if zero_point is None else input.float() - along(zero_point, input, axis)
    return steps * along(scale, input, axis)
