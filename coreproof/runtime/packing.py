"""Values of less than a byte, as weight files and iOS 16's compressed constants pack them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from coreproof.mil.types import DType


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """``count`` unsigned fields of ``bits`` (1, 2, 3, 4, 6 or 8) from uint8 bytes, as uint8.

    The first field is in the lowest bits of the first byte; one that crosses into the next byte
    has its low bits in the high bits of the former (coremltools 9.0 ops/defs/iOS16/constexpr_ops.py).
    """
    size = math.lcm(bits, 8) // 8  # bytes after which fields start at a byte again
    spare = -len(packed) % size
    groups = torch.nn.functional.pad(packed, (0, spare)).reshape(-1, size).int()
    words = (groups << torch.arange(0, 8 * size, 8, device=packed.device)).sum(1, dtype=torch.int32)
    fields = words.unsqueeze(1) >> torch.arange(0, 8 * size, bits, device=packed.device)
    return (fields & (1 << bits) - 1).to(torch.uint8).reshape(-1)[:count]


def unpack_values(packed: Tensor, dtype: DType, shape: Sequence[int]) -> Tensor:
    """The tensor of sub-byte type ``dtype`` that ``packed`` holds, in its container: uint8, or int8
    for int4, whose fields are two's complement."""
    fields = unpack(packed, dtype.bits, math.prod(shape)).reshape(tuple(shape))
    return (fields.to(torch.int8) ^ 8) - 8 if dtype is DType.INT4 else fields
