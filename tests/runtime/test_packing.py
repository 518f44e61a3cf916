from __future__ import annotations

import numpy as np
import pytest
import torch

from coreproof.mil.types import DType
from coreproof.runtime.packing import unpack, unpack_values


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("count", [1, 7, 8, 24, 101])
def test_unpack(bits: int, count: int) -> None:
    values = np.random.default_rng(bits).integers(0, 2**bits, count).astype(np.uint8)
    single = values[:, None] >> np.arange(bits) & 1
    packed = torch.from_numpy(np.packbits(single.astype(np.uint8).ravel(), bitorder="little"))
    unpacked = unpack(packed, bits, count)
    assert unpacked.dtype is torch.uint8
    np.testing.assert_array_equal(unpacked, values)


def test_signed() -> None:
    packed = torch.tensor([0x80, 0x7F, 0x01], dtype=torch.uint8)
    values = unpack_values(packed, DType.INT4, (1, 5))
    assert values.dtype is torch.int8
    assert values.tolist() == [[0, -8, -1, 7, 1]]
    assert unpack_values(packed, DType.UINT4, (5,)).tolist() == [0, 8, 15, 7, 1]
