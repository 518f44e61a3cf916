"""Stored forms of the types that numpy lacks, held to torch's and to plain arithmetic on bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from coreproof.mil.packing import pack, unpack
from coreproof.mil.types import DType

TORCH = {
    DType.BF16: (torch.bfloat16, 65536),
    DType.FP8E4M3FN: (torch.float8_e4m3fn, 256),
    DType.FP8E5M2: (torch.float8_e5m2, 256),
}


@pytest.mark.parametrize("dtype", TORCH)
def test_every_float_there_is(dtype: DType) -> None:
    kind, count = TORCH[dtype]
    codes = np.arange(count, dtype="<u2" if count > 256 else "<u1")
    expected = torch.from_numpy(codes.view("<i2") if count > 256 else codes).view(kind).float().numpy()
    found = unpack(codes.view(np.uint8), dtype, count)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(found[numbers]), np.signbit(expected[numbers]))
    stored = pack(expected[numbers].astype(np.float64), dtype)
    np.testing.assert_array_equal(stored.view(codes.dtype), codes[numbers])
    assert np.isnan(unpack(pack(np.array([np.nan]), dtype), dtype, 1)).all()


@pytest.mark.parametrize(
    ("dtype", "number"),
    [
        (DType.BF16, 1 + 2.0**-8),
        (DType.BF16, 1e39),
        (DType.BF16, 2.0**-150),
        (DType.FP8E5M2, 1.125),
        (DType.FP8E5M2, 61440.0),
        (DType.FP8E4M3FN, 1.0625),
        (DType.FP8E4M3FN, 480.0),
        (DType.FP8E4M3FN, np.inf),
        (DType.FP8E4M3FN, 2.0**-10),
    ],
)
def test_a_number_that_is_not_there(dtype: DType, number: float) -> None:
    with pytest.raises(ValueError):
        pack(np.array([1.0, number]), dtype)


@pytest.mark.parametrize("dtype", [d for d in DType if 0 < d.bits < 8])
@pytest.mark.parametrize("count", [0, 1, 3, 8, 21])
def test_integers_of_less_than_a_byte(dtype: DType, count: int) -> None:
    low = -8 if dtype is DType.INT4 else 0
    values = np.random.default_rng(count).integers(low, low + (1 << dtype.bits), count)
    word = sum((int(v) & (1 << dtype.bits) - 1) << dtype.bits * i for i, v in enumerate(values))
    stored = np.frombuffer(word.to_bytes((dtype.bits * count + 7) // 8, "little"), np.uint8)
    np.testing.assert_array_equal(pack(values, dtype), stored, strict=True)
    np.testing.assert_array_equal(unpack(stored, dtype, count), values)
