"""Values of the types that numpy lacks, to and from the bytes they are stored as.

Types smaller than a byte are packed from the lowest bit on. bf16 is the upper half of fp32, fp8
E5M2 the upper half of fp16; fp8 E4M3FN has the exponent bias 7, no infinities and one NaN
(Micikevicius et al., "FP8 Formats for Deep Learning", arXiv 2209.05433).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from coreproof.mil.types import DType

_HALVES = {DType.BF16: ("<u2", "<u4", "<f4", 16), DType.FP8E5M2: ("<u1", "<u2", "<f2", 8)}


def pack(values: NDArray[np.generic], dtype: DType) -> NDArray[np.uint8]:
    """The stored bytes of flat ``values``, uint8 of shape (nbytes,).

    ``values``: integers of a type of less than 8 bits, which the caller has found to be in range,
    or float64. Raises ValueError for a number that bf16 or fp8 does not have.
    """
    if dtype.bits < 8:
        fields = (values.astype(np.int64) & (1 << dtype.bits) - 1).astype(np.uint8)
        bits = np.unpackbits(fields[:, None], axis=1, count=dtype.bits, bitorder="little")
        return np.packbits(bits.reshape(-1), bitorder="little")
    if dtype is DType.FP8E4M3FN:
        codes = np.array([_e4m3fn_codes().get(_key(v)) for v in values.tolist()])
        if None in codes:
            raise ValueError
        return codes.astype(np.uint8)
    stored, whole, number, shift = _HALVES[dtype]
    with np.errstate(over="ignore"):
        codes = values.astype(number).view(whole) >> shift
    packed = codes.astype(stored)
    if not np.array_equal(_widen(packed, dtype), values, equal_nan=True):
        raise ValueError
    return packed.view(np.uint8)


def unpack(stored: NDArray[np.uint8], dtype: DType, count: int) -> NDArray[np.generic]:
    """``count`` values from their stored bytes: int64 for integers, float32 for bf16 and fp8."""
    if dtype.bits < 8:
        bits = np.unpackbits(stored, count=count * dtype.bits, bitorder="little")
        fields = np.packbits(bits.reshape(count, dtype.bits), axis=1, bitorder="little")[:, 0].astype(
            np.int64
        )
        return (fields ^ 8) - 8 if dtype is DType.INT4 else fields
    if dtype is DType.FP8E4M3FN:
        return np.array([_e4m3fn(code) for code in range(256)], np.float32)[stored]
    return _widen(stored.view(_HALVES[dtype][0]), dtype).astype(np.float32)


def _widen(codes: NDArray[np.generic], dtype: DType) -> NDArray[np.generic]:
    _, whole, number, shift = _HALVES[dtype]
    return (codes.astype(whole) << shift).view(number)


def _e4m3fn(code: int) -> float:
    exponent, fraction = code >> 3 & 15, code & 7
    if exponent == 15 and fraction == 7:
        return float("nan")
    size = fraction / 8 * 2.0**-6 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7)
    return -size if code & 128 else size


@cache
def _e4m3fn_codes() -> dict[str, int]:
    return {_key(_e4m3fn(code)): code for code in reversed(range(256))}


def _key(value: float) -> str:
    return value.hex()  # tells the zeros apart and all NaN alike
