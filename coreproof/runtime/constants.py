"""Constants of a program: as Python values for static arguments, as tensors for the others.

Values written in the program are converted when it is compiled. Weights in a blob file stay
memory-mapped until the first prediction needs them (:class:`Lazy`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from coreproof.errors import PackageError
from coreproof.mil.program import Blob, Immediate
from coreproof.mil.types import DType, TensorType, ValueType
from coreproof.runtime.numerics import container
from coreproof.runtime.packing import unpack_values

_BYTES = {
    DType.BF16: torch.bfloat16,
    DType.FP8E4M3FN: torch.float8_e4m3fn,
    DType.FP8E5M2: torch.float8_e5m2,
}


@dataclass(frozen=True, slots=True)
class Known:
    """A value known when the program is compiled: a tensor, a str or a tuple of values."""

    data: Any


@dataclass(frozen=True, slots=True)
class Lazy:
    """A tensor that costs reading weights: ``make`` is called once, at the first prediction, and
    the result is kept under the global name ``slot`` of the generated code."""

    slot: str
    make: Callable[[], Any]


def from_immediate(value: Immediate) -> Known:
    """The tensor (in its container dtype), str or tuple that ``value`` stands for."""
    return Known(_convert(value.type, value.data))


def _convert(kind: ValueType, data: Any) -> Any:
    if isinstance(kind, TensorType) and kind.dtype is not DType.STRING:
        return to_tensor(data, kind)
    if isinstance(data, Immediate):
        return _convert(data.type, data.data)
    if isinstance(data, list | tuple):
        return tuple(_convert(d.type, d.data) if isinstance(d, Immediate) else d for d in data)
    return data


def to_tensor(array: np.ndarray, kind: TensorType) -> torch.Tensor:
    """``array`` in the container dtype of ``kind``; shares memory where no conversion is needed.

    Types that numpy lacks come as their stored bytes: packed sub-byte integers, bf16 and fp8.
    """
    tensor = as_torch(np.asarray(array))
    if kind.dtype in _BYTES:
        tensor = tensor.view(_BYTES[kind.dtype]).reshape(_shape(kind))
    elif kind.dtype.bits < 8:
        return unpack_values(tensor, kind.dtype, _shape(kind))
    return tensor.to(container(kind.dtype))


def _shape(kind: TensorType) -> tuple[int, ...]:
    return tuple(dim for dim in kind.shape or () if dim is not None)


def as_torch(array: np.ndarray) -> torch.Tensor:
    """``array`` as a tensor of torch's matching dtype, widening the unsigned types torch lacks."""
    if array.dtype in (np.uint32, np.uint64):
        array = array.astype(np.int64)
    elif array.dtype == np.uint16:
        array = array.astype(np.int32)
    if not array.flags.writeable:
        array = array.copy()
    return torch.from_numpy(array)


def weight(blob: Blob, read: Callable[[Blob], np.ndarray], release: Callable[[Blob], None]) -> torch.Tensor:
    """The blob's tensor in its container dtype; ``release`` is called when that is a copy of what was
    read. Raises PackageError for one that is no tensor."""
    if not isinstance(blob.type, TensorType):
        raise PackageError(f"a weight at offset {blob.offset} is a {blob.type}, expected a tensor")
    stored = read(blob)
    tensor = to_tensor(stored, blob.type)
    if tensor.data_ptr() != stored.ctypes.data:
        release(blob)
    return tensor


def static(kind: str, data: Any) -> Any:
    """``data`` as the Python value a parameter of ``kind`` (see OpDef) takes.

    Also called by generated code where a program computes such an argument at run time.
    """
    if kind == "str":
        return str(data)
    if kind == "strs":
        return tuple(str(d) for d in np.ravel(np.asarray(data, dtype=object)))
    plain = data.tolist() if isinstance(data, torch.Tensor | np.ndarray) else data
    cast: Callable[[Any], Any] = {"i": int, "f": float, "b": bool}[kind[0]]
    if kind.endswith("s"):
        flat = np.ravel(np.asarray(plain, dtype=object)) if isinstance(plain, list | tuple) else [plain]
        return tuple(cast(v) for v in flat)
    while isinstance(plain, list | tuple):
        (plain,) = plain
    return cast(plain)
