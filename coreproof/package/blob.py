"""Weight files: the storage format "MIL blob v2" that an ML program's constants point into.

As coremltools' MILBlob/Blob/StorageFormat.hpp and BlobDataType.hpp define it, little-endian:

    file   = header (64 bytes: u32 count, u32 version = 2, zeros), then count entries
    entry  = metadata (64 bytes: u32 0xDEADBEEF, u32 dtype code, u64 size in bytes, u64 offset of the
             data in the file, u64 unused bits at the end of the data, zeros), then the data

Headers, metadata and data start at multiples of 64. A program refers to an entry by the offset of
its metadata. Types smaller than a byte are packed from the lowest bit on.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import weakref
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from coreproof.errors import CoreproofError, PackageError
from coreproof.files import open_regular
from coreproof.mil.types import DType, TensorType

ALIGNMENT = 64
CODES = {
    DType.FP16: 1, DType.FP32: 2, DType.UINT8: 3, DType.INT8: 4, DType.BF16: 5, DType.INT16: 6,
    DType.UINT16: 7, DType.INT4: 8, DType.UINT1: 9, DType.UINT2: 10, DType.UINT4: 11, DType.UINT3: 12,
    DType.UINT6: 13, DType.INT32: 14, DType.UINT32: 15, DType.FP8E4M3FN: 16, DType.FP8E5M2: 17,
}  # fmt: skip
_DTYPES = {code: dtype for dtype, code in CODES.items()}
_VERSION = 2
_SENTINEL = 0xDEADBEEF
_HEADER = struct.Struct("<II56x")
_METADATA = struct.Struct("<IIQQQ32x")
_CHUNK = 8 << 20
HEAD = 256  # bytes


@dataclass(frozen=True, slots=True)
class BlobEntry:
    """Where an entry's data lies. ``padding_bits``: unused bits of the last byte, 0 to 7; always 0
    for types of whole bytes."""

    dtype: DType
    nbytes: int
    data_offset: int
    padding_bits: int


class Source(Protocol):
    """Where weights come from that a writer stores."""

    def typed_entry(self, offset: int, type: TensorType) -> BlobEntry:
        """The entry at ``offset``, which must hold exactly a tensor of ``type``."""

    def head(self, entry: BlobEntry) -> bytes:
        """The first HEAD stored bytes of ``entry``, or all of them when it has fewer."""

    def digest(self, entry: BlobEntry) -> bytes:
        """sha256 of the stored bytes of ``entry``."""

    def chunks(self, entry: BlobEntry) -> Iterator[bytes | memoryview]:
        """The stored bytes of ``entry`` in pieces; asked for once, and last."""


class WeightFile:
    """A weight file, open for reading; nothing is read but what is asked for.

    Raises PackageError when the file is missing, shorter than its header says or of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = open_regular(path)
        self._close = weakref.finalize(self, os.close, self._descriptor)
        self._map: mmap.mmap | None = None
        self.size = os.fstat(self._descriptor).st_size
        if self.size < _HEADER.size:
            raise self._bad(f"{self.size} bytes, a weight file has a header of {_HEADER.size}")
        self.count, version = _HEADER.unpack(os.pread(self._descriptor, _HEADER.size, 0))
        if version != _VERSION:
            raise self._bad(f"format version {version}, expected {_VERSION}")
        if _HEADER.size + self.count * _METADATA.size > self.size:
            raise self._bad(
                f"{self.size} bytes cannot hold the {self.count} entries its header counts; truncated?"
            )

    def entry(self, offset: int) -> BlobEntry:
        """The entry whose metadata starts at ``offset``.

        Raises PackageError when there is no well-formed entry, or its data leaves the file.
        """
        if offset % ALIGNMENT or not _HEADER.size <= offset <= self.size - _METADATA.size:
            raise self._bad(f"no entry can start at offset {offset} of {self.size} bytes")
        # Read, not mapped: a page fault in the mapping pulls its neighbours into memory.
        raw = os.pread(self._descriptor, _METADATA.size, offset)
        sentinel, code, nbytes, data_offset, padding_bits = _METADATA.unpack(raw)
        if sentinel != _SENTINEL:
            raise self._bad(
                f"no entry at offset {offset}: found 0x{sentinel:08X}, expected 0x{_SENTINEL:08X}"
            )
        if code not in _DTYPES:
            raise self._bad(f"entry at offset {offset}: unknown data type code {code}")
        dtype = _DTYPES[code]
        if data_offset % ALIGNMENT or data_offset < _HEADER.size or data_offset + nbytes > self.size:
            raise self._bad(
                f"entry at offset {offset}: data of {nbytes} bytes at {data_offset}, the file has {self.size}"
            )
        if dtype.bits >= 8:
            padding_bits = 0  # writers before iOS 18 left this field uninitialised
        if padding_bits >= 8 or (nbytes * 8 - padding_bits) % dtype.bits or padding_bits > nbytes * 8:
            raise self._bad(
                f"entry at offset {offset}: {nbytes} bytes, {padding_bits} bits of padding: no {dtype} values"
            )
        return BlobEntry(dtype, nbytes, data_offset, padding_bits)

    def typed_entry(self, offset: int, type: TensorType) -> BlobEntry:
        """The entry at ``offset``, which must hold exactly a tensor of ``type``; its data stays unread.

        Raises PackageError as :meth:`entry`, and for another dtype, another length or a ``type``
        of unknown size.
        """
        entry = self.entry(offset)
        if entry.dtype is not type.dtype:
            raise self._bad(f"entry at offset {offset} holds {entry.dtype}, the program declares {type}")
        if type.size is None:
            raise self._bad(f"entry at offset {offset}: a stored value cannot have the open shape {type}")
        bits = type.size * type.dtype.bits
        if entry.nbytes * 8 - entry.padding_bits != bits:
            raise self._bad(
                f"entry at offset {offset} holds {entry.nbytes} bytes less {entry.padding_bits} bits, "
                f"{type} takes {bits} bits"
            )
        return entry

    def walk(self) -> Iterator[tuple[int, BlobEntry]]:
        """Every entry with its offset, in file order, accounting for every byte of the file.

        Raises PackageError where the entries that the header counts do not follow one another up to
        the end of the file, or where a byte between them, of the padding or reserved, is not zero.
        """
        self._require_zeros(8, _HEADER.size)
        end = _HEADER.size
        for _ in range(self.count):
            offset = end + -end % ALIGNMENT
            self._require_zeros(end, offset)
            entry = self.entry(offset)
            if entry.data_offset != offset + _METADATA.size:
                raise self._bad(
                    f"entry at offset {offset}: its data is at {entry.data_offset}, not behind its header"
                )
            self._require_zeros(offset + _METADATA.size - 32, entry.data_offset)
            end = entry.data_offset + entry.nbytes
            if entry.padding_bits:
                (last,) = os.pread(self._descriptor, 1, end - 1)
                if last >> (8 - entry.padding_bits):
                    raise self._bad(f"entry at offset {offset}: its unused bits are not zero")
            yield offset, entry
        if self.size - end >= ALIGNMENT:
            raise self._bad(f"{self.size - end} bytes behind the {self.count} entries that its header counts")
        self._require_zeros(end, self.size)

    def _require_zeros(self, start: int, end: int) -> None:
        if any(os.pread(self._descriptor, end - start, start)):
            raise self._bad(f"bytes {start} to {end} belong to no entry and are not zero")

    def array(self, offset: int, type: TensorType) -> NDArray[np.generic]:
        """The entry at ``offset`` as an array of ``type``'s shape and numpy dtype.

        The array is a view of a private mapping of the file: pages are read when touched, and
        writing to them never reaches the file. Types that numpy lacks (packed sub-byte types, bf16,
        fp8) come as their stored bytes instead, uint8 of shape (nbytes,).

        Raises PackageError as :meth:`typed_entry`.
        """
        entry = self.typed_entry(offset, type)
        name = type.dtype.numpy_name
        dtype = np.dtype(name or "uint8").newbyteorder("<")
        flat = np.frombuffer(self._mapped(), dtype, entry.nbytes // dtype.itemsize, entry.data_offset)
        if name is None or type.shape is None:
            return flat
        return flat.reshape([dim for dim in type.shape if dim is not None])

    def head(self, entry: BlobEntry) -> bytes:
        """The first HEAD stored bytes of ``entry``, or all of them when it has fewer."""
        return os.pread(self._descriptor, min(HEAD, entry.nbytes), entry.data_offset)

    def digest(self, entry: BlobEntry) -> bytes:
        """sha256 of the stored bytes of ``entry``."""
        digest = hashlib.sha256()
        for piece in self.chunks(entry):
            digest.update(piece)
        return digest.digest()

    def chunks(self, entry: BlobEntry) -> Iterator[bytes]:
        """The entry's stored bytes in pieces of at most 8 MiB, read without mapping them."""
        done = 0
        while done < entry.nbytes:
            piece = os.pread(self._descriptor, min(_CHUNK, entry.nbytes - done), entry.data_offset + done)
            if not piece:
                raise self._bad("became shorter while it was read")
            yield piece
            done += len(piece)

    def release(self, offset: int, type: TensorType) -> None:
        """Give back the memory into which the entry at ``offset`` was read. Arrays that were handed out
        stay valid: what is touched again is read again.

        Raises PackageError as :meth:`typed_entry`.
        """
        entry = self.typed_entry(offset, type)
        if self._map is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        start = entry.data_offset - entry.data_offset % mmap.PAGESIZE
        if entry.nbytes:
            self._map.madvise(mmap.MADV_DONTNEED, start, entry.data_offset + entry.nbytes - start)

    def close(self) -> None:
        """Release the file. Arrays that were handed out stay valid."""
        self._map = None
        self._close()

    def _mapped(self) -> mmap.mmap:
        if self._map is None:
            try:
                # A private writable mapping: torch takes its arrays without a warning or a copy.
                self._map = mmap.mmap(self._descriptor, self.size, access=mmap.ACCESS_COPY)
            except (OSError, ValueError) as error:
                raise self._bad(f"cannot be mapped: {error}") from None
        return self._map

    def _bad(self, what: str) -> PackageError:
        return PackageError(f"{self.path}: {what}")


class BlobWriter:
    """Writes a weight file entry by entry, byte for byte as coremltools' own writer does.

    The file is complete only after :meth:`close`, which leaving a ``with`` block does.
    """

    def __init__(self, path: Path) -> None:
        self._stream: BinaryIO = path.open("wb")
        self._count = 0
        self._stream.write(_HEADER.pack(0, _VERSION))

    def add(self, data: NDArray[np.generic] | bytes, dtype: DType, padding_bits: int = 0) -> int:
        """Append one entry and return its offset.

        ``data``: an array of the numpy dtype of ``dtype``, written in C order, or the stored bytes
        (as uint8 array for types numpy lacks). ``padding_bits``: unused bits of the last byte, for
        sub-byte types. Raises CoreproofError for an array of another dtype, or a dtype weight files
        cannot hold.
        """
        if isinstance(data, bytes):
            view = memoryview(data)
        elif data.dtype == np.dtype(dtype.numpy_name or "uint8").newbyteorder("<"):
            view = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
        else:
            raise CoreproofError(f"an array of {data.dtype} cannot be stored as {dtype}")
        pieces = (view[start : start + _CHUNK] for start in range(0, len(view), _CHUNK))
        return self._append(BlobEntry(dtype, len(view), 0, padding_bits), pieces)

    def copy(self, source: Source, entry: BlobEntry) -> int:
        """Append ``entry`` of ``source``, a piece at a time, and return its new offset."""
        return self._append(entry, source.chunks(entry))

    def close(self) -> None:
        """Write the header's count and close the file."""
        if not self._stream.closed:
            self._stream.seek(0)
            self._stream.write(_HEADER.pack(self._count, _VERSION))
            self._stream.close()

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            with suppress(OSError):
                self._stream.close()

    def _append(self, entry: BlobEntry, pieces: Iterable[bytes | memoryview]) -> int:
        if entry.dtype not in CODES:
            raise CoreproofError(f"weight files cannot hold {entry.dtype} values; keep them in the program")
        end = self._stream.tell()
        offset = end + -end % ALIGNMENT
        self._stream.write(bytes(offset - end))
        self._stream.write(
            _METADATA.pack(
                _SENTINEL, CODES[entry.dtype], entry.nbytes, offset + _METADATA.size, entry.padding_bits
            )
        )
        for piece in pieces:
            self._stream.write(piece)
        self._count += 1
        return offset
