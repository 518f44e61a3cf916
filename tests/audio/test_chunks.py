"""Chunks of a decoder: what is kept covers the whole, and no kept row lacks its neighbours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreproof.audio.chunks import Chunk, chunks
from coreproof.errors import InputError


@given(st.integers(1, 400), st.integers(0, 20), st.integers(1, 60), st.integers(1, 400))
def test_kept_rows_follow_one_another_with_their_neighbours(
    rows: int, overlap: int, spare: int, wanted: int
) -> None:
    size = min(2 * overlap + spare, rows)
    plan = list(chunks(rows, size, overlap, wanted))
    assert [c.first for c in plan] == [0, *(c.last for c in plan[:-1])]
    assert plan[-1].last == min(rows, wanted)
    for chunk in plan:
        assert 0 <= chunk.start <= chunk.first < chunk.last <= chunk.stop <= rows
        assert chunk.stop - chunk.start == size
        assert chunk.start == 0 or chunk.first - chunk.start >= overlap
        assert chunk.stop == rows or chunk.stop - chunk.last >= overlap


def test_a_whole_that_fits_is_one_chunk() -> None:
    assert list(chunks(8, 8, 10)) == [Chunk(0, 8, 0, 8)]


def test_only_what_is_wanted_is_decoded() -> None:
    assert list(chunks(217, 96, 10, 5)) == [Chunk(0, 96, 0, 5)]


@pytest.mark.parametrize(("rows", "size", "overlap"), [(10, 11, 0), (100, 20, 10), (100, 50, -1)])
def test_chunks_with_nothing_to_keep_are_refused(rows: int, size: int, overlap: int) -> None:
    with pytest.raises(InputError, match="do not fit"):
        list(chunks(rows, size, overlap))
