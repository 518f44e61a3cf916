"""Which ops may write their result over an operand: less memory to fault in, to fill and to free.

An operand is written over when it is a float tensor of the result's own type and shape, nothing else
refers to it, and the op that made it gives memory of its own, never a view of its inputs or a weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from coreproof.mil.program import Block, Operation, Ref
from coreproof.mil.types import TensorType
from coreproof.runtime.layout import Scope


def _gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x.mul_(torch.sigmoid(1.702 * x))
    return torch.ops.aten.gelu_.default(x, approximate=_GELU[mode])


_GELU = {"EXACT": "none", "TANH_APPROXIMATION": "tanh"}
IN_PLACE: Mapping[str, Callable[..., Tensor]] = {
    "add": Tensor.add_,
    "clip": torch.clamp_,
    "cos": torch.cos_,
    "elu": partial(F.elu, inplace=True),
    "erf": torch.erf_,
    "exp": torch.exp_,
    "gelu": _gelu,
    "leaky_relu": partial(F.leaky_relu, inplace=True),
    "mul": Tensor.mul_,
    "real_div": Tensor.div_,
    "relu": torch.relu_,
    "sigmoid": torch.sigmoid_,
    "silu": partial(F.silu, inplace=True),
    "sin": torch.sin_,
    "sqrt": torch.sqrt_,
    "square": torch.square_,
    "sub": Tensor.sub_,
    "tanh": torch.tanh_,
}
"""The form of an op that writes over its first argument, bit for bit the same otherwise."""
_COMMUTING = frozenset({"add", "mul"})
_OWN_MEMORY = frozenset(
    {
        *IN_PLACE, "batch_norm", "conv", "conv_transpose", "instance_norm", "inverse", "l2_norm",
        "layer_norm", "linear", "linear_activation", "log", "matmul", "pow", "rsqrt",
        "scaled_dot_product_attention", "softmax", "softplus",
    }
)  # fmt: skip


class Reuse:
    """What may be written over in one function. ``block`` is its body; not ``enabled``: nothing may."""

    def __init__(self, block: Block, enabled: bool) -> None:
        self._uses = Counter(_references(block))
        self._made: dict[str, tuple[Any, Scope]] = {}
        self._enabled = enabled

    def made(self, operation: Operation, own: bool, scope: Scope) -> None:
        """Note the result of ``operation``, made in ``scope`` in memory of its ``own`` or not."""
        if own and len(operation.outputs) == 1 and _is_float(operation.outputs[0].type):
            self._made[operation.outputs[0].name] = (operation.outputs[0].type, scope)

    def operand(self, operation: Operation, scope: Scope) -> str | None:
        """The argument, ``x`` or ``y``, that ``operation`` may write over."""
        if not self._enabled or operation.type not in IN_PLACE:
            return None
        # In a loop's body the operand must be of the same round, hence of the same scope.
        wanted = (operation.outputs[0].type, scope)
        for name in ("x", "y") if operation.type in _COMMUTING else ("x",):
            bindings = operation.inputs.get(name, ())
            names = [b.name for b in bindings if isinstance(b, Ref) and self._uses[b.name] == 1]
            if any(self._made.get(n) == wanted for n in names):
                return name
        return None


def own_memory(operation: Operation) -> bool:
    """Whether the op's result is never a view of what it was given."""
    return operation.type in _OWN_MEMORY


def in_place(operation: Operation) -> Callable[..., Tensor]:
    """The form of the op that writes over its first argument."""
    return IN_PLACE[operation.type]


def _references(block: Block) -> Iterator[str]:
    for operation in block.operations:
        for bindings in operation.inputs.values():
            yield from (b.name for b in bindings if isinstance(b, Ref))
        for nested in operation.blocks:
            yield from _references(nested)
    yield from block.outputs


def _is_float(kind: Any) -> bool:
    return isinstance(kind, TensorType) and kind.dtype.is_float and None not in (kind.shape or (None,))
