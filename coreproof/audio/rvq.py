"""Residual vector quantisation, the decoding half."""

from __future__ import annotations

import numpy as np

from coreproof.errors import InputError


def embed(codes: np.ndarray, codebooks: np.ndarray) -> np.ndarray:
    """The sum over levels of the rows that ``codes`` name, float32 (frames, width).

    ``codes``: integers (frames, levels), 0 to rows - 1; ``codebooks``: float32 (levels, rows, width).
    Summed in float32, coarsest level first, as the official decoders do. Raises InputError for a code
    out of range or another number of levels.
    """
    levels, rows, _ = codebooks.shape
    if codes.ndim != 2 or codes.shape[1] != levels or codes.dtype.kind not in "iu":
        raise InputError(f"codes {codes.dtype} of shape {codes.shape}; expected integers (frames, {levels})")
    if codes.size and (codes.min() < 0 or codes.max() >= rows):
        raise InputError(f"codes from {codes.min()} to {codes.max()}; expected 0 to {rows - 1}")
    total = codebooks[0][codes[:, 0]]
    for level in range(1, levels):
        total = total + codebooks[level][codes[:, level]]
    return total
