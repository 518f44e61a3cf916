"""Expected values by coremltools' own decompression of the same constants."""

from __future__ import annotations

import numpy as np
import pytest
from coremltools.converters.mil.mil.ops.defs.iOS16 import constexpr_ops as ios16
from coremltools.converters.mil.mil.ops.defs.iOS18 import compression as ios18
from oracle import assert_same, normal, ours, rng

from coreproof.errors import UnsupportedOpError


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("vector", [False, True])
def test_affine_dequantize(dtype: str, axis: int, vector: bool) -> None:
    data = rng(1).integers(0, 127, (4, 3, 4)).astype(dtype)
    scale, point = np.abs(normal(4)), np.array([0, 3, 100, 50], dtype)
    scale, point = (scale, point) if vector else (scale[1], point[1])
    expected = ios16.constexpr_affine_dequantize.decompress(data, np.asarray(point), np.asarray(scale), axis)
    arguments = {"quantized_data": data, "zero_point": point, "scale": scale, "axis": axis}
    assert_same(ours("constexpr_affine_dequantize", "ios16", **arguments), expected.astype(np.float32))


def test_cast() -> None:
    x = normal(3).astype(np.float16)
    got = ours("constexpr_cast", "ios16", source_val=x, output_dtype="fp32")
    assert_same(got, x.astype(np.float32))
    with pytest.raises(UnsupportedOpError, match="'int8'"):
        ours("constexpr_cast", "ios16", source_val=x, output_dtype="int8")


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
@pytest.mark.parametrize("shape", [(5,), (3, 7), (2, 3, 4)])
def test_packed_lut(bits: int, shape: tuple[int, ...]) -> None:
    indices = rng(bits).integers(0, 2**bits, shape)
    lut = normal(2**bits, seed=bits)
    single = (indices.reshape(-1, 1) >> np.arange(bits) & 1).astype(np.uint8)
    packed = np.packbits(single.ravel(), bitorder="little")
    assert_same(ios16.constexpr_lut_to_dense.decompress(lut, packed, np.array(shape)), lut[indices])
    got = ours("constexpr_lut_to_dense", "ios16", indices=packed, lut=lut, shape=shape)
    assert_same(got, lut[indices])


def test_documented_packing() -> None:
    """The example of coremltools 9.0 ops/defs/iOS16/constexpr_ops.py: 2 bits, low fields first."""
    lut = np.array([10, 11, 12, 13], np.float32)
    got = ours(
        "constexpr_lut_to_dense", "ios16", indices=np.array([0b01101100, 0b11], np.uint8), lut=lut, shape=[5]
    )
    assert got.tolist() == [10, 13, 12, 11, 13]


@pytest.mark.parametrize("shape", [(5,), (3, 7), (2, 3, 4)])
def test_packed_mask(shape: tuple[int, ...]) -> None:
    dense = np.where(normal(*shape) > 0, normal(*shape, seed=1), 0)
    mask = np.packbits((dense != 0).ravel(), bitorder="little")
    arguments = {"nonzero_data": dense[dense != 0], "mask": mask}
    got = ours("constexpr_sparse_to_dense", "ios16", **arguments, shape=shape)
    assert_same(got, dense)


def test_unpacked_mask() -> None:
    mask = rng(2).integers(0, 2, (4, 5)).astype(np.uint8)
    data = normal(int(mask.sum()))
    expected = ios18.constexpr_sparse_to_dense.decompress(data, mask)
    assert_same(ours("constexpr_sparse_to_dense", "ios18", nonzero_data=data, mask=mask), expected)


LUTS = [
    ((6, 4), (1, 1), 4, 1, None),
    ((6, 4), (2, 1), 4, 1, None),
    ((6, 4), (3, 2), 16, 1, 0),
    ((6, 4), (1, 1), 4, 3, 0),
    ((6, 4), (2, 2), 2, 2, 1),
    ((2, 4, 6), (1, 2, 3), 4, 2, -2),
    ((2, 4, 6), (2, 1, 1), 8, 3, -1),
]


@pytest.mark.parametrize(("shape", "groups", "entries", "length", "axis"), LUTS)
def test_grouped_lut(
    shape: tuple[int, ...], groups: tuple[int, ...], entries: int, length: int, axis: int | None
) -> None:
    indices = rng(3).integers(0, entries, shape).astype(np.uint8)
    lut = normal(*groups, entries, length)
    arguments = {"lut": lut} | ({} if axis is None else {"vector_axis": axis})
    expected = ios18.constexpr_lut_to_dense.decompress(indices, lut, axis)
    assert_same(ours("constexpr_lut_to_dense", "ios18", indices=indices, **arguments), expected)
    mask = rng(4).integers(0, 2, shape).astype(np.uint8)
    sparse = {"indices_mask": mask, "indices_nonzero_data": indices[mask != 0]}
    got = ours("constexpr_lut_to_sparse", "ios18", **sparse, **arguments)
    expected_mask, data = ios18.constexpr_lut_to_sparse.decompress(mask, indices[mask != 0], lut, axis)
    assert_same(got[0], expected_mask)
    assert_same(got[1], data)


def test_documented_lut() -> None:
    """Case 1 of constexpr_lut_to_dense in coremltools 9.0 ops/defs/iOS18/compression.py."""
    indices = np.array([2, 3, 3, 0, 1, 0, 3, 0, 2, 1, 0, 3], np.uint8).reshape(6, 2)
    lut = np.array([1, 5, 9, 13, 2, 10, 18, 26], np.float32).reshape(2, 1, 4, 1)
    got = ours("constexpr_lut_to_dense", "ios18", indices=indices, lut=lut)
    assert got.ravel().tolist() == [9, 13, 13, 1, 5, 1, 26, 2, 18, 10, 2, 26]


@pytest.mark.parametrize("shape", [(1, 1), (4, 1), (2, 3), (4, 6)])
@pytest.mark.parametrize("shifted", [None, "int8", "float32"])
def test_blockwise(shape: tuple[int, int], shifted: str | None) -> None:
    data = rng(5).integers(-100, 100, (4, 6)).astype(np.int8)
    scale = np.abs(normal(*shape))
    offset = None if shifted is None else (5 * normal(*shape, seed=1)).astype(shifted)
    arguments = {"scale": scale} | ({} if offset is None else {"offset": offset})
    expected = ios18.constexpr_blockwise_shift_scale.decompress(data, scale, offset)
    assert_same(ours("constexpr_blockwise_shift_scale", "ios18", data=data, **arguments), expected)
    mask = rng(6).integers(0, 2, (4, 6)).astype(np.uint8)
    sparse = {"data_mask": mask, "nonzero_data": data[mask != 0]}
    got = ours("constexpr_sparse_blockwise_shift_scale", "ios18", **sparse, **arguments)
    theirs = ios18.constexpr_sparse_blockwise_shift_scale.decompress(mask, data[mask != 0], scale, offset)
    assert_same(got[0], mask)
    assert_same(got[1], theirs[1])


def test_ranks_that_do_not_fit() -> None:
    """Blocks are counted dimension by dimension."""
    data, flat = np.zeros((4, 6), np.int8), np.ones(6, np.float32)
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        ours("constexpr_blockwise_shift_scale", "ios18", data=data, scale=flat)
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        ours(
            "constexpr_lut_to_dense", "ios18", indices=data.view(np.uint8), lut=np.ones((1, 4, 1), np.float32)
        )
