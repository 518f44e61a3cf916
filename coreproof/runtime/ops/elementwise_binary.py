"""Elementwise ops of two tensors, which broadcast (coremltools 9.0 ops/defs/iOS15/elementwise_binary.py)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from coreproof.runtime.registry import REQUIRED, Param, add, op

_XY = (Param("x", "tensor", REQUIRED), Param("y", "tensor", REQUIRED))
_SAME_AS_TORCH: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "mul": torch.mul,
    "pow": torch.pow,
    "sub": torch.sub,
    "floor_div": torch.floor_divide,
    "mod": torch.remainder,
}
"""``floor_div`` rounds towards negative infinity and ``mod`` takes the sign of the divisor, as numpy's and
unlike C's, for integers and floats alike. Integers wrap around; divided by zero they are an error, where
numpy gives 0; a negative power of one, which numpy refuses, is cut towards zero."""
_SELECTING: dict[str, Callable[..., Tensor]] = {
    "equal": torch.eq,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "not_equal": torch.ne,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
}
"""A NaN in either operand is the maximum and the minimum, as numpy's, though the definition's ``x > y ? x : y``
would give y; it equals nothing."""

for _name, _fn in _SAME_AS_TORCH.items():
    add(_name, _fn, _XY)
for _name, _fn in _SELECTING.items():
    add(_name, _fn, _XY, moves=True)


@op("real_div")
def real_div(x: Tensor, y: Tensor) -> Tensor:
    """The quotient; of integers it is cut towards zero, because the result has their type."""
    return torch.div(x, y) if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")
