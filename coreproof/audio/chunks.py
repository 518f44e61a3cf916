"""Decoding in chunks of one length whose joined results are those of the whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from coreproof.errors import InputError


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows ``start`` to ``stop`` go in; of the results those of rows ``first`` to ``last`` are kept."""

    start: int
    stop: int
    first: int
    last: int


def chunks(rows: int, size: int, overlap: int, wanted: int | None = None) -> Iterator[Chunk]:
    """Chunks of ``size`` rows whose kept parts follow one another and cover the first ``wanted`` of ``rows``,
    all by default.

    A row's result depends on ``overlap`` rows on each side, so that many are given up at every edge that
    is not an end of the whole. Ends stay ends: the first chunk starts at row 0 and a last one ends at the
    last row, for padding at an end is not the same as more rows.

    Raises InputError when a chunk is longer than the whole or has nothing to keep.
    """
    wanted = rows if wanted is None else min(wanted, rows)
    if size > rows or (size < rows and size <= 2 * overlap) or overlap < 0:
        raise InputError(f"chunks of {size} rows with {overlap} of overlap do not fit {rows} rows")
    first = 0
    while first < wanted:
        start = min(max(first - overlap, 0), rows - size)
        stop = start + size
        last = stop if stop == rows else stop - overlap
        yield Chunk(start, stop, first, min(last, wanted))
        first = last
