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

from coreproof.errors import UnsupportedOpError
from coreproof.mil.program import Blob, Immediate
from coreproof.mil.types import DType, TensorType, ValueType
from coreproof.runtime.numerics import container


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
    """``array`` in the container dtype of ``kind``; shares memory where no conversion is needed."""
    return as_torch(np.asarray(array)).to(container(kind.dtype))


def as_torch(array: np.ndarray) -> torch.Tensor:
    """``array`` as a tensor of torch's matching dtype, widening the unsigned types torch lacks."""
    if array.dtype in (np.uint32, np.uint64):
        array = array.astype(np.int64)
    elif array.dtype == np.uint16:
        array = array.astype(np.int32)
    if not array.flags.writeable:
        array = array.copy()
    return torch.from_numpy(array)


def weight(blob: Blob, read: Callable[[Blob], np.ndarray]) -> torch.Tensor:
    """The blob's tensor in its container dtype.

    Raises UnsupportedOpError for packed sub-byte data outside the ops that unpack it.
    """
    if not isinstance(blob.type, TensorType) or blob.type.dtype.numpy_name is None:
        raise UnsupportedOpError(
            f"a weight of type {blob.type} at offset {blob.offset} cannot be used as a tensor"
        )
    return to_tensor(read(blob), blob.type)


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
