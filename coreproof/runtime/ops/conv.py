"""Convolutions (coremltools 9.0 ops/defs/iOS15/conv.py).

From iOS 17 on weight and bias may have another dtype than x (iOS17/conv.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from torch import Tensor

from coreproof.errors import UnsupportedOpError
from coreproof.runtime.bounds import within
from coreproof.runtime.numerics import Numerics
from coreproof.runtime.ops.quantization import along
from coreproof.runtime.registry import Ints, op


def paddings(
    pad_type: str, pad: Ints | None, sizes: Ints, kernel: Ints, strides: Ints, dilations: Ints
) -> Ints:
    """(before, after) for each spatial dimension, flattened.

    ``same`` pads so that ``ceil(size / stride)`` positions result, the odd one after; ``same_lower``
    puts the odd one before; ``pad`` counts only for ``custom``. (The definition also gives a formula that
    disregards the stride and puts the odd one before; coremltools' own inference does not follow it.)

    Raises UnsupportedOpError for another type, or ``custom`` without ``pad``.
    """
    if pad_type == "custom" and pad is not None:
        return pad
    if pad_type == "valid":
        return (0, 0) * len(sizes)
    if pad_type not in ("same", "same_lower"):
        raise UnsupportedOpError(f"pad_type {pad_type!r} is not valid, same, same_lower or custom with a pad")
    return _same(sizes, kernel, strides, dilations, pad_type == "same_lower")


@lru_cache(maxsize=4096)
def _same(sizes: Ints, kernel: Ints, strides: Ints, dilations: Ints, lower: bool) -> Ints:
    pads: list[int] = []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size)
        less, more = total // 2, total - total // 2
        pads += (more, less) if lower else (less, more)
    return tuple(pads)


@op("conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
    *,
    num: Numerics,
) -> Tensor:
    """x [N, C_in, *spatial] with weight [C_out, C_in / groups, *kernel], 1 to 3 spatial dimensions;
    padding as in :func:`paddings`."""
    ones = (1,) * (x.dim() - 2)
    strides, dilations = strides or ones, dilations or ones
    pads = paddings(pad_type, pad, x.shape[2:], weight.shape[2:], strides, dilations)
    return num.convolve(x, weight, bias, strides, pads, dilations, groups)


@op("conv_transpose")
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Ints | None = None,
    output_shape: Ints | None = None,
    pad_type: str = "valid",
    strides: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
    *,
    num: Numerics,
) -> Tensor:
    """x [N, C_in, *spatial] with weight [C_in, C_out / groups, *kernel].

    The full result has ``(size - 1) * stride + (kernel - 1) * dilation + 1`` positions. ``custom`` cuts
    ``pad`` off it; ``same`` leaves ``size * stride``, the odd position cut at the end. With
    ``output_shape`` that many positions result: cut, or continued with the bias, at the end, or on
    both sides for ``same``.
    """
    ones = (1,) * (x.dim() - 2)
    strides, dilations = strides or ones, dilations or ones
    full = [
        (size - 1) * stride + (kernel - 1) * dilation + 1
        for size, kernel, stride, dilation in zip(
            x.shape[2:], weight.shape[2:], strides, dilations, strict=True
        )
    ]
    within((x.shape[0], weight.shape[1] * groups, *full))
    if output_shape is not None:
        wanted: Sequence[int] | None = output_shape[2:]
    elif pad_type == "same":
        wanted = [size * stride for size, stride in zip(x.shape[2:], strides, strict=True)]
    else:
        wanted = None
    return num.convolve_transpose(
        x, weight, bias, strides, _cuts(full, wanted, pad_type, pad), dilations, groups
    )


def _cuts(full: Sequence[int], wanted: Sequence[int] | None, pad_type: str, pad: Ints | None) -> Ints:
    """(before, after) to cut off each dimension of the full result; negative to continue it."""
    given = paddings("valid" if pad_type == "same" else pad_type, pad, tuple(full), (), (), ())
    if wanted is None:
        return given
    cuts: list[int] = []
    for size, target, before in zip(full, wanted, given[::2], strict=True):
        before = max(0, size - target) // 2 if pad_type == "same" else before
        cuts += (before, size - target - before)
    return tuple(cuts)


@op("conv_quantized")
def conv_quantized(
    x: Tensor,
    weight: Tensor,
    quantization_type: str,
    quant_scale: Tensor,
    quant_bias: Tensor,
    bias: Tensor | None = None,
    nbits: int = 8,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
    *,
    num: Numerics,
) -> Tensor:
    """``conv`` with the weight ``weight * quant_scale + quant_bias``, scalars or one an output channel.

    Raises UnsupportedOpError for the type ``lut``, whose table MIL does not say where to find.
    """
    if quantization_type != "linear":
        raise UnsupportedOpError(f"conv_quantized of type {quantization_type!r}: expected linear")
    values = weight.float() * along(quant_scale, weight, 0) + along(quant_bias, weight, 0)
    return conv(x, values, bias, strides, pad_type, pad, dilations, groups, num=num)
