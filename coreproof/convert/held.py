"""Weights of a program that no weight file holds yet."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from coreproof.convert.large import Array, Halves, pieces
from coreproof.errors import ConversionError
from coreproof.mil.packing import pack
from coreproof.mil.types import DType, TensorType
from coreproof.package.blob import ALIGNMENT, HEAD, BlobEntry


class HeldWeights:
    """Arrays that stand in for weight files, whatever names the program gives these.

    ``halves`` made some of the arrays. Their disk space is given back behind the one who writes them.
    """

    def __init__(self, halves: Halves) -> None:
        self._halves = halves
        self._arrays: list[Array] = []

    def add(self, array: Array) -> int:
        """Keep ``array``; the offset by which the program is to refer to it."""
        self._arrays.append(array)
        self._halves.count(array)
        return ALIGNMENT * (len(self._arrays) - 1)

    def file(self, name: str) -> HeldWeights:
        """The weight file that the program calls ``name``: this one."""
        return self

    def typed_entry(self, offset: int, type: TensorType) -> BlobEntry:
        """The entry that :meth:`add` put at ``offset``. Raises ConversionError when it is no ``type``."""
        array = self._arrays[offset // ALIGNMENT]
        # Types smaller than a byte come as integers of one byte.
        fits = type.dtype.bits < 8 or array.dtype == type.dtype.numpy_name
        if not fits or array.shape != type.shape:
            raise ConversionError(f"a weight of {array.dtype}{list(array.shape)} was declared as {type}")
        bits = array.size * type.dtype.bits
        return BlobEntry(type.dtype, -(-bits // 8), offset, -bits % 8)

    def head(self, entry: BlobEntry) -> bytes:
        """The first bytes of ``entry``."""
        return _stored(self._array(entry).flat[:HEAD], entry.dtype).tobytes()[:HEAD]

    def digest(self, entry: BlobEntry) -> bytes:
        """sha256 of the bytes of ``entry``."""
        digest = hashlib.sha256()
        for piece in pieces(np.ascontiguousarray(self._array(entry))):
            digest.update(_stored(piece, entry.dtype).data)
        return digest.digest()

    def chunks(self, entry: BlobEntry) -> Iterator[memoryview]:
        """The bytes of ``entry`` in pieces. To be asked for once: behind the last piece it is gone."""
        array = self._array(entry)
        for piece in pieces(np.ascontiguousarray(array)):
            yield _stored(piece, entry.dtype).data
        self._halves.discard(array)

    def _array(self, entry: BlobEntry) -> Array:
        return self._arrays[entry.data_offset // ALIGNMENT]


def _stored(flat: Array, dtype: DType) -> Array:
    return pack(flat, dtype) if dtype.bits < 8 else flat.view(np.uint8)
