"""Compressed weights, unpacked when the model is opened (coremltools 9.0 ops/defs/iOS16/constexpr_ops.py,
iOS18/compression.py). Tensors of sub-byte types arrive with one element a byte."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from coreproof.errors import UnsupportedOpError
from coreproof.runtime.ops.quantization import along
from coreproof.runtime.packing import unpack
from coreproof.runtime.registry import Ints, op


@op("constexpr_cast", since="ios16", moves=True)
def constexpr_cast(source_val: Tensor, output_dtype: str) -> Tensor:
    """fp16 to fp32, the only one there is; UnsupportedOpError for another."""
    if output_dtype != "fp32":
        raise UnsupportedOpError(f"constexpr_cast to {output_dtype!r}: expected fp32")
    return source_val


@op("constexpr_affine_dequantize", since="ios16")
def constexpr_affine_dequantize(
    quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: int
) -> Tensor:
    """``scale * (quantized_data - zero_point)``, each a scalar or a vector along ``axis``."""
    steps = quantized_data.float() - along(zero_point, quantized_data, axis)
    return steps * along(scale, quantized_data, axis)


@op("constexpr_lut_to_dense", since="ios16", moves=True)
def constexpr_lut_to_dense(indices: Tensor, lut: Tensor, shape: Ints) -> Tensor:
    """``lut[i]`` for indices packed in as many bits as the table needs, the lowest first."""
    return lut[unpack(indices, int(math.log2(len(lut))), math.prod(shape)).int()].reshape(shape)


@op("constexpr_lut_to_dense", since="ios18", moves=True)
def constexpr_lut_to_dense_ios18(indices: Tensor, lut: Tensor, vector_axis: int | None = None) -> Tensor:
    """``lut`` [*groups, entries, vector]: each dimension of ``indices`` is cut into as many equal blocks
    as ``lut`` has groups there, each with its own table. An entry of several values lies along
    ``vector_axis``, which grows by that factor."""
    *groups, entries, length = lut.shape
    table = torch.zeros((), dtype=torch.int64, device=lut.device)
    for dim, (size, count) in enumerate(zip(indices.shape, groups, strict=True)):
        block = torch.arange(size, device=lut.device) // (size // count)
        table = table * count + block.reshape(-1, *[1] * (indices.dim() - dim - 1))
    values = lut.reshape(-1, length)[table * entries + indices]  # (*indices, vector)
    if length == 1 or vector_axis is None:
        return values.squeeze(-1)
    axis = vector_axis % indices.dim()
    return values.movedim(-1, axis + 1).flatten(axis, axis + 1)


@op("constexpr_sparse_to_dense", since="ios16", moves=True)
def constexpr_sparse_to_dense(nonzero_data: Tensor, mask: Tensor, shape: Ints) -> Tensor:
    """The data where the bit mask, the lowest bit first, is set; 0 elsewhere."""
    return _spread(nonzero_data, unpack(mask, 1, math.prod(shape)).reshape(shape))


@op("constexpr_sparse_to_dense", since="ios18", moves=True)
def constexpr_sparse_to_dense_ios18(nonzero_data: Tensor, mask: Tensor) -> Tensor:
    """The data where ``mask``, of the result's shape, is set; 0 elsewhere."""
    return _spread(nonzero_data, mask)


def _spread(data: Tensor, mask: Tensor) -> Tensor:
    return torch.zeros_like(mask, dtype=data.dtype).masked_scatter(mask.bool(), data)


@op("constexpr_blockwise_shift_scale", since="ios18")
def constexpr_blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """``scale * (data - offset)`` with one scale and offset for each block, whose size is that of data
    divided by that of scale in every dimension."""
    steps = data.float() if offset is None else data.float() - _blocks(offset, data)
    return steps * _blocks(scale, data)


def _blocks(values: Tensor, data: Tensor) -> Tensor:
    for dim, (size, count) in enumerate(zip(data.shape, values.shape, strict=True)):
        if count > 1:
            values = values.repeat_interleave(size // count, dim)
    return values


@op("constexpr_sparse_blockwise_shift_scale", since="ios18")
def constexpr_sparse_blockwise_shift_scale(
    data_mask: Tensor, nonzero_data: Tensor, scale: Tensor, offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The mask, and the data that it spreads over the blocks shifted and scaled."""
    dense = constexpr_blockwise_shift_scale(_spread(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask.bool()]


@op("constexpr_lut_to_sparse", since="ios18", moves=True)
def constexpr_lut_to_sparse(
    indices_mask: Tensor, indices_nonzero_data: Tensor, lut: Tensor, vector_axis: int | None = None
) -> tuple[Tensor, Tensor]:
    """The mask, repeated along ``vector_axis`` for entries of several values, and the table's values
    where it is set."""
    dense = constexpr_lut_to_dense_ios18(_spread(indices_nonzero_data, indices_mask), lut, vector_axis)
    mask = indices_mask
    if lut.shape[-1] > 1 and vector_axis is not None:
        mask = mask.repeat_interleave(lut.shape[-1], vector_axis)
    return mask, dense[mask.bool()]
