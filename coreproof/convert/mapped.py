"""Tensors of a safetensors file as views of the mapped file: nothing is read before it is used."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from coreproof.convert.large import pieces
from coreproof.errors import CheckpointError

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
_HEADER_LENGTH = 8  # bytes; the file starts with the length of its JSON header, little-endian


def read_safetensors(path: Path) -> dict[str, NDArray[Any]]:
    """Every tensor of the file ``path`` by its key, as a private view: writing to it never reaches the file.

    Raises CheckpointError when the file cannot be read or is malformed, and for a dtype numpy lacks.
    """
    try:
        # The library checks the header: every offset inside the file, no overlap and no gap. So the
        # data follow one another in the order of their offsets, up to the end of the file.
        with safe_open(path, framework="numpy") as file:
            slices = {key: file.get_slice(key) for key in file.offset_keys()}
            found = {key: (entry.get_dtype(), tuple(entry.get_shape())) for key, entry in slices.items()}
        data = np.memmap(path, np.uint8, mode="c")
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; download it again") from error
    start = _HEADER_LENGTH + int.from_bytes(data[:_HEADER_LENGTH].tobytes(), "little")
    tensors = {}
    for key, (name, shape) in found.items():
        if name not in _DTYPES:
            raise CheckpointError(
                f"{path}: {key} is {name}, which is not read; expected {', '.join(_DTYPES)}"
            )
        dtype = np.dtype(_DTYPES[name])
        end = start + dtype.itemsize * math.prod(shape)
        if end > data.size:
            raise CheckpointError(f"{path} became shorter while it was read; download it again")
        tensors[key] = data[start:end].view(np.ndarray).view(dtype).reshape(shape)
        start = end
    return tensors


def is_finite(tensor: NDArray[Any]) -> bool:
    """Whether every element of the floating point ``tensor``, in C order, is finite. It is read a piece
    at a time, and given back."""
    # A sum is finite only if every term is, and needs no temporary of the tensor's size.
    return all(math.isfinite(piece.sum(dtype=np.float64)) for piece in pieces(tensor))
