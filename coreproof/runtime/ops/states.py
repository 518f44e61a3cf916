"""State ops (coremltools 9.0 ops/defs/iOS18/states.py, coreml_dialect/ops.py, backend/mil/load.py).

A state arrives as its :class:`coreproof.runtime.state.Slot`. Values are never written into, so
reading and writing pass tensors on without a copy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from coreproof.runtime.registry import REQUIRED, Param, add

if TYPE_CHECKING:
    from coreproof.runtime.state import Slot


def read_state(input: Slot) -> Tensor:
    return input.value


def write_state(input: Slot, data: Tensor) -> None:
    input.value = data


def coreml_update_state(state: Slot, value: Tensor) -> Tensor:
    """Write, and return what was written."""
    state.value = value
    return value


_INPUT, _DATA = Param("input", "tensor", REQUIRED), Param("data", "tensor", REQUIRED)
_STATE, _VALUE = Param("state", "tensor", REQUIRED), Param("value", "tensor", REQUIRED)
add("read_state", read_state, (_INPUT,), since="ios18", moves=True, pure=False)
add("write_state", write_state, (_INPUT, _DATA), since="ios18", moves=True, pure=False)
add("coreml_update_state", coreml_update_state, (_STATE, _VALUE), since="ios18", moves=True, pure=False)
