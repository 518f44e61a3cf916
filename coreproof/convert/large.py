"""Arrays too large to hold: read a piece at a time, and given back.

A checkpoint's tensors are views of a mapped file. Whoever reads one whole leaves it in memory; here each
piece is given back once it is read, and what is made of a large array goes to a file of its own. Every
array keeps its true values: whoever computes with one gets what it would have got in memory.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import tempfile
from bisect import bisect_right, insort
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds
from numpy.typing import NDArray

from coreproof.atomic import require_space

LARGE = 1 << 16  # elements; a smaller array costs no memory worth the work
_PIECE = 1 << 20  # elements
# bytes; Linux keeps together what is written at once, and brings all of it back when a part is read.
# Passes read how a constant begins.
_BEGINNING = 1 << 16

# Of Linux, the only system whose pages are looked at: Documentation/admin-guide/mm/pagemap.rst.
_MADV_DONTNEED = 4
_PUNCH_HOLE = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_PAGEMAP_ENTRY = 8  # bytes
_PRESENT, _SWAPPED, _OF_FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))

Array = NDArray[Any]


def is_large(array: object) -> bool:
    """Whether ``array`` is one to read in pieces: many elements, without gaps in memory."""
    return isinstance(array, np.ndarray) and array.size >= LARGE and _as_it_lies(array) is not None


def _as_it_lies(array: Array) -> tuple[Array, list[int]] | None:
    """A view of ``array`` in C order, its axes as they lie in memory (a transposed view is turned back), and
    which of its axes each of ``array``'s is. None for an array with gaps or overlaps."""
    order = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
    turned = array.transpose(order)
    return (turned, [order.index(axis) for axis in range(array.ndim)]) if turned.flags.c_contiguous else None


def pieces(array: Array) -> Iterator[Array]:
    """``array`` as flat pieces in the order in which it lies in memory, which has no gaps; each is given back
    when the next is taken."""
    lies = _as_it_lies(array)
    assert lies is not None
    flat = lies[0].reshape(-1)
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE]
        yield piece
        release(piece)


def release(array: Array) -> None:
    """Give back the memory into which a mapped file was read for ``array``, if that has no gaps.

    Pages that hold anything but the file's own bytes stay: a private mapping that somebody wrote to
    keeps what was written. Does nothing for other memory, nor off Linux.
    """
    start, size = _pages_of(array) if _as_it_lies(array) else (0, 0)
    if size and _holds_only_file(start, size):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), _MADV_DONTNEED)


def extremes(array: Array) -> tuple[float, float]:
    """The least and the greatest element of ``array``, which is not empty; both NaN when one is."""
    found = [(piece.min(), piece.max()) for piece in pieces(array)]
    return float(np.min([low for low, _ in found])), float(np.max([high for _, high in found]))


def to_half(array: NDArray[np.float32]) -> NDArray[np.float16]:
    """``array.astype(numpy.float16)``: rounded to nearest even, to infinity from 65520 on."""
    if array.size < _PIECE >> 4 or not array.flags.writeable or np.isnan(array.max()):
        with np.errstate(over="ignore"):
            return array.astype(np.float16)
    import torch

    # A tenth of the time. What becomes of a NaN's payload is each library's own, so those are left out.
    return torch.from_numpy(array).to(torch.float16).numpy()


class Halves:
    """Large arrays rounded to float16, kept in an unnamed file in ``folder`` instead of in memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115
        self._end = 0
        self._made: list[_Made] = []  # by address

    def rounded(self, array: NDArray[np.float32]) -> NDArray[np.float16]:
        """``array``, without gaps in memory, as ``array.astype(numpy.float16)``, which lies there in the same
        order: a private, writable mapping.

        Raises CoreproofError when the disk is too small.
        """
        require_space(self._folder, 2 * array.size)
        end = self._end
        for piece in pieces(array):
            half = to_half(piece).view(np.uint8).data
            end = _write(self._file.fileno(), half[:_BEGINNING], end)
            end = _write(self._file.fileno(), half[_BEGINNING:], end)
        mapped = mmap.mmap(self._file.fileno(), 2 * array.size, access=mmap.ACCESS_COPY, offset=self._end)
        lies = _as_it_lies(array)
        assert lies is not None
        half_array = np.frombuffer(mapped, np.float16).reshape(lies[0].shape).transpose(lies[1])
        made = _Made(half_array, self._end)
        insort(self._made, made, key=lambda m: m.start)
        self._end += made.size
        return made.array

    def count(self, array: Array) -> None:
        """Take note that ``array``, or what it is a part of, will be discarded once more."""
        if made := self._behind(array):
            made.uses += 1

    def discard(self, array: Array) -> None:
        """Give back the disk space of what ``array`` is a part of, when it was counted no more often than
        discarded: then nothing may read it any more. Does nothing off Linux."""
        made = self._behind(array)
        if made is None:
            return
        made.uses -= 1
        if made.uses == 0 and sys.platform == "linux":
            place = ctypes.c_longlong(made.offset), ctypes.c_longlong(made.size)
            ctypes.CDLL(None).fallocate(self._file.fileno(), _PUNCH_HOLE, *place)

    def close(self) -> None:
        """Release the file. Arrays that were made stay valid."""
        self._file.close()

    def _behind(self, array: Array) -> _Made | None:
        start, _ = byte_bounds(array)
        index = bisect_right(self._made, start, key=lambda m: m.start) - 1
        made = self._made[index] if index >= 0 else None
        return made if made and start < made.start + made.array.nbytes else None


class _Made:
    """An array in the file of :class:`Halves`. It is kept, so that its address stays its own."""

    def __init__(self, array: NDArray[np.float16], offset: int) -> None:
        self.array = array
        self.start: int = array.ctypes.data
        self.offset = offset
        self.size = array.nbytes + -array.nbytes % _BEGINNING
        self.uses = 0


def _write(descriptor: int, data: memoryview, offset: int) -> int:
    """Write all of ``data`` at ``offset``; where it ends."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
    return offset


def _pages_of(array: Array) -> tuple[int, int]:
    """Where the pages that ``array`` touches begin, and how many bytes they are."""
    address = array.ctypes.data
    start = address - address % mmap.PAGESIZE
    used = address + array.nbytes - start
    return start, used + -used % mmap.PAGESIZE


def _holds_only_file(start: int, size: int) -> bool:
    """Whether every page there that is in memory holds an unchanged part of a file."""
    if sys.platform != "linux":
        return False
    count = size // mmap.PAGESIZE
    try:
        descriptor = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        raw = os.pread(descriptor, _PAGEMAP_ENTRY * count, start // mmap.PAGESIZE * _PAGEMAP_ENTRY)
    finally:
        os.close(descriptor)
    pages = np.frombuffer(raw, np.uint64)
    changed = (pages & _SWAPPED != 0) | ((pages & _PRESENT != 0) & (pages & _OF_FILE == 0))
    return len(pages) == count and not changed.any()
