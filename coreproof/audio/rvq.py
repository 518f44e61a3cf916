"""Residual vector quantisation."""

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


def quantize(embeddings: np.ndarray, codebooks: np.ndarray) -> np.ndarray:
    """The codes int32 (frames, levels) of ``embeddings`` float32 (frames, width): level after level the
    nearest row of its codebook, by Euclidean distance, to what the levels before left over.

    Distances are computed in float64, residuals in float32. Raises InputError for another width, or
    embeddings that are not finite.
    """
    if embeddings.ndim != 2 or embeddings.shape[1] != codebooks.shape[2]:
        raise InputError(f"embeddings of shape {embeddings.shape}; expected (frames, {codebooks.shape[2]})")
    if not np.isfinite(embeddings).all():
        raise InputError("embeddings hold NaN or infinity")
    codes = []
    residual = embeddings.astype(np.float32)
    for book in codebooks:
        wide = book.astype(np.float64)
        # |r - row|^2 without |r|^2, which is the same for every row.
        distance = np.square(wide).sum(axis=1) - 2 * residual.astype(np.float64) @ wide.T
        codes.append(distance.argmin(axis=1))
        residual = residual - book[codes[-1]]
    return np.stack(codes, axis=1).astype(np.int32)
