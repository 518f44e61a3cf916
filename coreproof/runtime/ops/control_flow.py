"""Lists and ``select`` (coremltools 9.0 ops/defs/iOS15/control_flow.py); ``cond`` and ``while_loop``,
which hold blocks, are the engine's.

A list is immutable, as every value of a program: writing gives another list. Places are counted
from 0 and must exist, except that writing beyond the end of a list of dynamic length extends it.
Elements that were never written are zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from coreproof.errors import InputError
from coreproof.mil.types import DType
from coreproof.runtime.bounds import within, within_length
from coreproof.runtime.numerics import container
from coreproof.runtime.registry import REQUIRED, Ints, Param, add, op


@op("select", moves=True)
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``a`` where ``cond``, else ``b``."""
    return torch.where(cond, a, b)


@dataclass(frozen=True, slots=True, eq=False)
class List:
    """``items``: None where nothing was written. ``shape``: that of an element, None while only
    a written element can tell."""

    items: tuple[Tensor | None, ...]
    dynamic: bool
    shape: Ints | None
    dtype: torch.dtype

    def at(self, index: int) -> Tensor:
        """Element ``index``. Raises InputError where there is none, or nothing tells its shape."""
        if not 0 <= index < len(self.items):
            raise InputError(f"index {index} is out of bounds for a list of length {len(self.items)}")
        item = self.items[index]
        return self.blank() if item is None else item

    def blank(self) -> Tensor:
        """An element that was never written. Raises InputError where nothing tells its shape."""
        written = next((item for item in self.items if item is not None), None)
        if written is not None:
            return torch.zeros_like(written)
        if self.shape is None:
            raise InputError("an element is read of a list of unknown element shape before any was written")
        return torch.zeros(within(self.shape), dtype=self.dtype)

    def written(self, indices: Ints, values: Sequence[Tensor]) -> List:
        """This list with ``values`` at ``indices``, of equal ones the last. Raises InputError."""
        if len(values) != len(indices):
            raise InputError(f"{len(values)} values for {len(indices)} places")
        items = list(self.items)
        for index, value in zip(indices, values, strict=True):
            if index < 0 or (index >= len(self.items) and not self.dynamic):
                raise InputError(f"index {index} is out of bounds for a list of length {len(self.items)}")
            items.extend([None] * (within_length(index + 1) - len(items)))
            items[index] = value
        return replace(self, items=tuple(items))


def make_list(
    elem_shape: Sequence[Any], init_length: int = 1, dynamic_length: bool = True, dtype: str = "fp32"
) -> List:
    """``elem_shape``: a number or, where only run time tells, a name for each dimension."""
    unknown = any(isinstance(size, str) for size in elem_shape)
    shape = None if unknown else tuple(int(size) for size in elem_shape)
    return List((None,) * within_length(init_length), dynamic_length, shape, container(DType(dtype)))


def list_length(ls: List) -> Tensor:
    return torch.tensor(len(ls.items), dtype=torch.int32)


def list_read(ls: List, index: int) -> Tensor:
    return ls.at(index)


def list_write(ls: List, index: int, value: Tensor) -> List:
    return ls.written((index,), (value,))


def list_gather(ls: List, indices: Ints) -> Tensor:
    """The elements at ``indices``, stacked along a new first dimension."""
    items = [ls.at(index) for index in indices]
    within((len(items), items[0].numel() if items else 0))
    return torch.stack(items) if items else ls.blank().unsqueeze(0)[:0]


def list_scatter(ls: List, indices: Ints, value: Tensor) -> List:
    """Slice i of ``value`` goes to place ``indices[i]``."""
    return ls.written(indices, value.unbind(0))


_LIST, _VALUE = Param("ls", "tensor", REQUIRED), Param("value", "tensor", REQUIRED)
_INDEX, _INDICES = Param("index", "int", REQUIRED), Param("indices", "ints", REQUIRED)
add(
    "make_list",
    make_list,
    (
        Param("elem_shape", "tensors", REQUIRED),
        Param("init_length", "int", 1),
        Param("dynamic_length", "bool", True),
        Param("dtype", "str", "fp32"),
    ),
)
add("list_length", list_length, (_LIST,))
add("list_read", list_read, (_LIST, _INDEX), moves=True)
add("list_write", list_write, (_LIST, _INDEX, _VALUE))
add("list_gather", list_gather, (_LIST, _INDICES), moves=True)
add("list_scatter", list_scatter, (_LIST, _INDICES, _VALUE))
