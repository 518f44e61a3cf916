"""The sum of codebook rows, and the rows nearest to a vector."""

from __future__ import annotations

import numpy as np
import pytest

from coreproof.audio.rvq import embed, quantize
from coreproof.errors import InputError

BOOKS = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)


def test_rows_of_all_levels_are_summed() -> None:
    made = embed(np.array([[0, 2], [1, 1]]), BOOKS)
    np.testing.assert_array_equal(made, [BOOKS[0, 0] + BOOKS[1, 2], BOOKS[0, 1] + BOOKS[1, 1]])


def test_no_frames_give_no_rows() -> None:
    assert embed(np.zeros((0, 2), np.int32), BOOKS).shape == (0, 4)


@pytest.mark.parametrize(
    "codes", [np.array([[0, 3]]), np.array([[-1, 0]]), np.array([[0]]), np.array([[0.0, 1.0]])]
)
def test_other_codes_are_refused(codes: np.ndarray) -> None:
    with pytest.raises(InputError, match="expected"):
        embed(codes, BOOKS)


def test_quantizing_what_was_embedded_gives_the_nearest_rows() -> None:
    books = np.array([[[0.0, 0.0], [4.0, 0.0]], [[0.0, 1.0], [0.0, -1.0]]], np.float32)
    points = np.array([[4.1, -0.7], [-1.0, 0.9]], np.float32)
    np.testing.assert_array_equal(quantize(points, books), [[1, 1], [0, 0]])
    with pytest.raises(InputError, match=r"expected \(frames, 2\)"):
        quantize(points[:, :1], books)
    with pytest.raises(InputError, match="NaN"):
        quantize(points * np.nan, books)
