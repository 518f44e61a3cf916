from __future__ import annotations

import numpy as np
import pytest
import torch
from half import half_dot, half_sum, halves

from coreproof.errors import UnsupportedOpError
from coreproof.mil.types import DType
from coreproof.runtime.numerics import FP16ACC, WIDE, container, round_half

LENGTHS = [1, 2, 31, 32, 33, 64, 96, 100, 257]


def test_containers() -> None:
    held = {d: container(d) for d in DType if d is not DType.STRING}
    assert held[DType.FP16] is held[DType.FP32] is torch.float32
    assert held[DType.UINT16] is torch.int32
    assert held[DType.UINT32] is held[DType.UINT64] is torch.int64
    for dtype, kept in held.items():
        if dtype.numpy_name and not dtype.is_float and dtype is not DType.BOOL and dtype is not DType.UINT64:
            assert torch.iinfo(kept).max >= np.iinfo(dtype.numpy_name).max
    with pytest.raises(UnsupportedOpError, match="string"):
        container(DType.STRING)


def test_round_half() -> None:
    x = torch.tensor([1 + 2**-11, 1 + 3 * 2**-11, 65519.0, 65520.0, -65520.0, 2**-25, 3 * 2**-26])
    expected = [1.0, 1 + 2**-9, 65504.0, np.inf, -np.inf, 0.0, 2**-24]
    assert round_half(x).tolist() == expected


@pytest.mark.parametrize("length", LENGTHS)
def test_half_matmul(length: int) -> None:
    a, b = halves(3, length), halves(length, 4, seed=1)
    expected = [[half_dot(row, column) for column in b.T] for row in a]
    got = FP16ACC.matmul(torch.from_numpy(a), torch.from_numpy(b))
    np.testing.assert_array_equal(got, np.array(expected, np.float32))
    assert (got - WIDE.matmul(torch.from_numpy(a), torch.from_numpy(b))).abs().max() < 0.1


@pytest.mark.parametrize(
    ("a", "b"), [((40,), (40,)), ((40,), (2, 40, 3)), ((2, 3, 40), (40,)), ((2, 1, 3, 40), (5, 40, 2))]
)
def test_half_matmul_broadcasts(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    x, y = halves(*a), halves(*b, seed=1)
    wide = np.matmul(x, y)
    got = FP16ACC.matmul(torch.from_numpy(x), torch.from_numpy(y)).numpy()
    assert got.shape == wide.shape
    left = x[None] if x.ndim == 1 else x
    right = y[:, None] if y.ndim == 1 else y
    batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    left = np.broadcast_to(left, batch + left.shape[-2:])
    right = np.broadcast_to(right, batch + right.shape[-2:])
    expected = np.zeros((*batch, left.shape[-2], right.shape[-1]), np.float32)
    for at in np.ndindex(expected.shape):
        expected[at] = half_dot(left[(*at[:-1], slice(None))], right[(*at[:-2], slice(None), at[-1])])
    np.testing.assert_array_equal(got, expected.reshape(wide.shape))


def test_half_matmul_in_row_blocks_is_the_same() -> None:
    a, b = torch.from_numpy(halves(10, 33)), torch.from_numpy(halves(33, 60000, seed=1))
    whole = FP16ACC.matmul(a, b)
    np.testing.assert_array_equal(whole[9:], FP16ACC.matmul(a[9:], b))


def test_half_linear() -> None:
    x, weight, bias = halves(2, 70), halves(3, 70, seed=1), halves(3, seed=2)
    expected = [[half_dot(row, w) + np.float32(b) for w, b in zip(weight, bias, strict=True)] for row in x]
    got = FP16ACC.linear(*(torch.from_numpy(t) for t in (x, weight, bias)))
    np.testing.assert_array_equal(round_half(got), np.array(expected, np.float32).astype(np.float16))


@pytest.mark.parametrize("length", LENGTHS)
def test_half_sum(length: int) -> None:
    x = halves(2, length, 3)
    expected = np.array([[half_sum(x[i, :, j]) for j in range(3)] for i in range(2)], np.float32)
    np.testing.assert_array_equal(FP16ACC.sum(torch.from_numpy(x), (1,), False), expected)
    np.testing.assert_array_equal(FP16ACC.sum(torch.from_numpy(x), (-2,), True), expected[:, None])


def test_half_sum_over_dimensions() -> None:
    x = halves(3, 4, 5)
    tensor = torch.from_numpy(x)
    expected = np.array([half_sum(x[:, i]) for i in range(4)], np.float32)
    np.testing.assert_array_equal(FP16ACC.sum(tensor, (2, 0), False), expected)
    assert FP16ACC.sum(tensor, None, False) == half_sum(x)
    assert FP16ACC.sum(tensor, None, True).shape == (1, 1, 1)
    np.testing.assert_array_equal(FP16ACC.sum(tensor[:0], (0,), False), np.zeros((4, 5)))


def test_blocks_reach_further_than_a_running_sum() -> None:
    ones = torch.ones(70000)
    assert FP16ACC.sum(ones[:3000], None, False) == 3000  # a plain fp16 running sum stays at 2048
    assert FP16ACC.sum(ones, None, False) == np.inf
    assert FP16ACC.mean(ones[:3000], None, False) == 1


def test_half_cumsum_is_strictly_sequential() -> None:
    x = halves(2, 50)
    expected = np.zeros_like(x)
    for row, source in zip(expected, x.astype(np.float16), strict=True):
        total = np.float16(0)
        for i, value in enumerate(source):
            total = row[i] = total + value
    np.testing.assert_array_equal(FP16ACC.cumsum(torch.from_numpy(x), 1), expected)


def test_half_softmax() -> None:
    x = halves(2, 45)
    powers = np.exp(x - x.max(1, keepdims=True))
    expected = powers / np.array([half_sum(p) for p in powers], np.float32)[:, None]
    np.testing.assert_allclose(FP16ACC.softmax(torch.from_numpy(x), 1), expected, rtol=1e-6)


def test_means() -> None:
    x = torch.from_numpy(halves(3, 4))
    np.testing.assert_allclose(WIDE.mean(x, (1,), True), x.double().numpy().mean(1, keepdims=True), rtol=1e-6)
    assert torch.isnan(WIDE.mean(x[:0], None, False))
