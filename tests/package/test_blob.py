"""Weight files, against the reader and writer that coremltools ships."""

import mmap
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreproof.errors import CoreproofError, PackageError
from coreproof.mil.types import DType, TensorType
from coreproof.package.blob import BlobWriter, WeightFile

# The method names of coremltools' writer and reader, for every type they know.
_METHODS = {
    DType.FP16: "fp16", DType.FP32: "float", DType.UINT8: "uint8", DType.INT8: "int8",
    DType.INT16: "int16", DType.UINT16: "uint16", DType.INT32: "int32", DType.UINT32: "uint32",
    DType.INT4: "int4", DType.UINT1: "uint1", DType.UINT2: "uint2", DType.UINT3: "uint3",
    DType.UINT4: "uint4", DType.UINT6: "uint6",
}  # fmt: skip
_COUNTS = (1, 11, 13, 64, 1000)


def _values(dtype: DType, count: int) -> np.ndarray:
    """Values over the whole range of ``dtype``, in the array type coremltools takes them in."""
    rng = np.random.default_rng(count)
    if dtype.is_float:
        return rng.standard_normal(count).astype(dtype.numpy_name)
    low = -(1 << dtype.bits - 1) if dtype.value.startswith("int") else 0
    values = rng.integers(low, low + (1 << dtype.bits), count)
    if dtype.numpy_name is not None:
        return values.astype(dtype.numpy_name)
    from coremltools.converters.mil.mil import types

    return values.astype(getattr(types, f"np_{dtype}_dtype"))


def _packed(dtype: DType, values: np.ndarray) -> np.ndarray:
    """Values of ``dtype`` as bytes, packed by numpy from the lowest bit on."""
    if dtype.bits >= 8:
        return values.view(np.uint8)
    bits = np.unpackbits(values.view(np.uint8)[:, None], axis=1, count=dtype.bits, bitorder="little")
    return np.packbits(bits.reshape(-1), bitorder="little")


def _write_theirs(path: Path, sequence: list[tuple[DType, np.ndarray]]) -> list[int]:
    from coremltools.libmilstoragepython import _BlobStorageWriter

    writer = _BlobStorageWriter(str(path))
    offsets = []
    for dtype, values in sequence:
        values = values.view(np.uint16) if dtype is DType.FP16 else values
        offsets.append(getattr(writer, f"write_{_METHODS[dtype]}_data")(values))
    return offsets


@pytest.fixture(scope="module")
def sequence() -> list[tuple[DType, np.ndarray]]:
    return [(dtype, _values(dtype, count)) for count in _COUNTS for dtype in _METHODS]


@pytest.fixture(scope="module")
def theirs(sequence, tmp_path_factory) -> tuple[Path, list[int]]:
    path = tmp_path_factory.mktemp("blob") / "theirs.bin"
    return path, _write_theirs(path, sequence)


def test_writes_the_same_bytes(sequence, theirs, tmp_path: Path):
    path, offsets = theirs
    with BlobWriter(tmp_path / "ours.bin") as writer:
        for (dtype, values), offset in zip(sequence, offsets, strict=True):
            stored = _packed(dtype, values) if dtype.numpy_name is None else values
            assert writer.add(stored, dtype, -len(values) * dtype.bits % 8) == offset
    assert (tmp_path / "ours.bin").read_bytes() == path.read_bytes()


def test_reads_what_they_wrote(sequence, theirs):
    path, offsets = theirs
    file = WeightFile(path)
    assert file.count == len(sequence)
    for (dtype, values), offset in zip(sequence, offsets, strict=True):
        array = file.array(offset, TensorType(dtype, (1, len(values))))
        if dtype.numpy_name is None:
            assert array.dtype == np.uint8
        else:
            assert array.dtype == np.dtype(dtype.numpy_name) and array.shape == (1, len(values))
        np.testing.assert_array_equal(array.reshape(-1).view(np.uint8), _packed(dtype, values))


def test_they_read_what_we_wrote(sequence, tmp_path: Path):
    from coremltools.libmilstoragepython import _BlobStorageReader

    path = tmp_path / "ours.bin"
    with BlobWriter(path) as writer:
        offsets = [writer.add(_packed(d, v).tobytes(), d, -len(v) * d.bits % 8) for d, v in sequence]
    reader = _BlobStorageReader(str(path))
    for (dtype, values), offset in zip(sequence, offsets, strict=True):
        found = np.asarray(getattr(reader, f"read_{_METHODS[dtype]}_data")(offset))
        expected = values.view(np.uint16) if dtype is DType.FP16 else values
        np.testing.assert_array_equal(found.view(expected.dtype), expected)


@pytest.mark.parametrize(
    ("dtype", "code"), [(DType.BF16, 5), (DType.FP8E4M3FN, 16), (DType.FP8E5M2, 17)], ids=str
)
def test_types_numpy_lacks_come_as_bytes(tmp_path: Path, dtype: DType, code: int):
    stored = np.arange(6, dtype=np.uint8)
    with BlobWriter(tmp_path / "w.bin") as writer:
        offset = writer.add(stored, dtype)
    assert (tmp_path / "w.bin").read_bytes()[64:72] == struct.pack("<II", 0xDEADBEEF, code)
    array = WeightFile(tmp_path / "w.bin").array(offset, TensorType(dtype, (48 // dtype.bits,)))
    np.testing.assert_array_equal(array, stored)


def test_empty_and_non_contiguous(tmp_path: Path):
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    with BlobWriter(tmp_path / "w.bin") as writer:
        empty = writer.add(np.zeros((0, 4), np.float16), DType.FP16)
        turned = writer.add(matrix.T, DType.FP32)
        last = writer.add(b"", DType.INT8)
    file = WeightFile(tmp_path / "w.bin")
    assert file.array(empty, TensorType(DType.FP16, (0, 4))).shape == (0, 4)
    assert file.array(last, TensorType(DType.INT8, (3, 0))).shape == (3, 0)
    np.testing.assert_array_equal(file.array(turned, TensorType(DType.FP32, (3, 2))), matrix.T)


def test_arrays_are_private_views(tmp_path: Path):
    path = tmp_path / "w.bin"
    with BlobWriter(path) as writer:
        offset = writer.add(np.zeros(1000, np.float32), DType.FP32)
    before, file = path.read_bytes(), WeightFile(path)
    array = file.array(offset, TensorType(DType.FP32, (1000,)))
    assert np.shares_memory(array, file.array(offset, TensorType(DType.FP32, (10, 100))))
    file.close()
    array[:] = 1
    assert array.sum() == 1000 and path.read_bytes() == before


def test_chunks_cover_an_entry(tmp_path: Path):
    data = np.random.default_rng(0).bytes((8 << 20) * 2 + 5)
    with BlobWriter(tmp_path / "w.bin") as writer:
        writer.add(b"12345678", DType.INT8)
        offset = writer.add(data, DType.UINT8)
    file = WeightFile(tmp_path / "w.bin")
    pieces = list(file.chunks(file.entry(offset)))
    assert [len(p) for p in pieces] == [8 << 20, 8 << 20, 5] and b"".join(pieces) == data


@pytest.mark.parametrize(
    ("array", "dtype", "message"),
    [
        (np.zeros(3), DType.FP32, "float64 cannot be stored as fp32"),
        (np.zeros(3, np.int8), DType.UINT8, "int8 cannot be stored as uint8"),
        (np.zeros(3, ">f4"), DType.FP32, "cannot be stored"),
        (np.zeros(3, bool), DType.BOOL, "cannot hold bool"),
        (np.zeros(3, np.int64), DType.INT64, "cannot hold int64"),
    ],
)
def test_writer_refuses(tmp_path: Path, array: np.ndarray, dtype: DType, message: str):
    with BlobWriter(tmp_path / "w.bin") as writer, pytest.raises(CoreproofError, match=message):
        writer.add(array, dtype)


_FP32 = TensorType(DType.FP32, (16,))
_U4 = TensorType(DType.UINT4, (15,))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A fp32 entry at 64 (data at 128, 64 bytes) and 15 uint4 at 192 (data at 256, 8 bytes)."""
    path = tmp_path / "w.bin"
    with BlobWriter(path) as writer:
        assert writer.add(np.arange(16, dtype=np.float32), DType.FP32) == 64
        assert writer.add(np.arange(8, dtype=np.uint8), DType.UINT4, padding_bits=4) == 192
    assert path.stat().st_size == 264
    return path


@pytest.mark.parametrize(
    ("at", "patch", "message"),
    [
        (4, struct.pack("<I", 1), "format version 1, expected 2"),
        (0, struct.pack("<I", 1000), "cannot hold the 1000 entries"),
        (64, struct.pack("<I", 0xDEADBEEE), "found 0xDEADBEEE, expected 0xDEADBEEF"),
        (68, struct.pack("<I", 0), "unknown data type code 0"),
        (68, struct.pack("<I", 18), "unknown data type code 18"),
        (68, struct.pack("<I", 14), r"holds int32, the program declares fp32\[16\]"),
        (72, struct.pack("<Q", 60), r"holds 60 bytes less 0 bits, fp32\[16\] takes 512 bits"),
        (72, struct.pack("<Q", 63), "no fp32 values"),
        (72, struct.pack("<Q", 140), "data of 140 bytes at 128, the file has 264"),
        (72, struct.pack("<Q", 2**64 - 64), "data of 18446744073709551552 bytes"),
        (80, struct.pack("<Q", 132), "data of 64 bytes at 132"),
        (80, struct.pack("<Q", 0), "data of 64 bytes at 0"),
        (80, struct.pack("<Q", 2**64 - 64), "at 18446744073709551552"),
        (80, struct.pack("<Q", 256), "data of 64 bytes at 256"),
    ],
)
def test_bad_entries(small: Path, at: int, patch: bytes, message: str):
    data = bytearray(small.read_bytes())
    data[at : at + len(patch)] = patch
    small.write_bytes(data)
    with pytest.raises(PackageError, match=message) as caught:
        WeightFile(small).array(64, _FP32)
    assert str(small) in str(caught.value)


@pytest.mark.parametrize("bits", [0, 1, 8, 64, 2**63])
def test_bad_padding(small: Path, bits: int):
    data = bytearray(small.read_bytes())
    data[192 + 24 : 192 + 32] = struct.pack("<Q", bits)
    small.write_bytes(data)
    with pytest.raises(PackageError, match=r"no uint4 values|takes 60 bits"):
        WeightFile(small).array(192, _U4)


def test_padding_of_whole_bytes_is_ignored(small: Path):
    data = bytearray(small.read_bytes())
    data[64 + 24 : 64 + 32] = struct.pack("<Q", 77)
    small.write_bytes(data)
    assert WeightFile(small).array(64, _FP32)[15] == 15


@pytest.mark.parametrize("offset", [0, 1, 32, 65, 256, 264, 320, 2**32, 2**64 - 64, 2**64 - 1])
def test_bad_offsets(small: Path, offset: int):
    with pytest.raises(PackageError, match=f"offset {offset}"):
        WeightFile(small).array(offset, _FP32)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 127, 128, 191, 263])
def test_truncated(small: Path, size: int):
    small.write_bytes(small.read_bytes()[:size])
    with pytest.raises(PackageError):
        file = WeightFile(small)
        file.array(64, _FP32)
        file.array(192, _U4)


@pytest.mark.parametrize("shape", [None, (None,), (4, None)])
def test_open_shapes(small: Path, shape: tuple[int | None, ...] | None):
    with pytest.raises(PackageError, match="open shape"):
        WeightFile(small).array(64, TensorType(DType.FP32, shape))


def test_missing(tmp_path: Path):
    with pytest.raises(PackageError, match="No such file"):
        WeightFile(tmp_path / "absent.bin")


@settings(max_examples=200, deadline=None, database=None)
@given(at=st.integers(0, 263), patch=st.binary(min_size=1, max_size=16), cut=st.integers(0, 300))
def test_hostile_bytes_end_in_arrays_or_package_errors(tmp_path_factory, at: int, patch: bytes, cut: int):
    path = tmp_path_factory.mktemp("fuzz") / "w.bin"
    with BlobWriter(path) as writer:
        writer.add(np.arange(16, dtype=np.float32), DType.FP32)
        writer.add(np.arange(8, dtype=np.uint8), DType.UINT4, padding_bits=4)
    data = bytearray(path.read_bytes())
    data[at : at + len(patch)] = patch
    path.write_bytes(data[:cut])
    try:
        file = WeightFile(path)
        arrays = [file.array(64, _FP32), file.array(192, _U4)]
    except PackageError:
        return
    assert [a.nbytes for a in arrays] == [64, 8]


def _resident(path: Path) -> int:
    """Bytes of the file at ``path`` that are mapped into this process and in its memory."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.split()[0].count("-") == 1 and not line.split()[0].endswith(":"):
            ours = line.endswith(str(path))
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_released_memory_is_given_back_and_read_again_when_touched(tmp_path: Path) -> None:
    path, values = tmp_path / "weight.bin", np.arange(1 << 20, dtype=np.float32)
    with BlobWriter(path) as writer:
        offsets = [writer.add(values + i, DType.FP32) for i in range(2)]
    file, kind = WeightFile(path), TensorType(DType.FP32, values.shape)
    first, second = (file.array(offset, kind) for offset in offsets)
    assert first.sum() < second.sum()
    before = _resident(path)
    assert before >= 2 * values.nbytes
    file.release(offsets[0], kind)
    assert _resident(path) <= before - values.nbytes + mmap.PAGESIZE
    np.testing.assert_array_equal(first, values)
    np.testing.assert_array_equal(second, values + 1)


def test_releasing_what_was_never_read_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "weight.bin"
    with BlobWriter(path) as writer:
        offset = writer.add(np.ones(4, np.float32), DType.FP32)
    kind = TensorType(DType.FP32, (4,))
    file = WeightFile(path)
    file.release(offset, kind)
    np.testing.assert_array_equal(file.array(offset, kind), np.ones(4))
    with pytest.raises(PackageError, match="takes 160 bits"):
        file.release(offset, TensorType(DType.FP32, (5,)))
