"""Whether two programs are one and the same: every name, type, attribute and stored bit.

:mod:`coreproof.diff` asks for less, the same mathematics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from coreproof.mil.program import Binding, Block, Function, Immediate, Operation, Program


def difference(first: Program, second: Program) -> str | None:
    """The first place where two programs are not the same, in words; None when there is none.

    Weights count as the same when their type, file and offset are.
    """
    if first.version != second.version:
        return f"version {first.version}, {second.version}"
    return _attributes(first.attributes, second.attributes, "the program") or _mapped(
        first.functions, second.functions, "functions", _function
    )


def same_value(first: Binding, second: Binding) -> bool:
    """Whether two values, or names of values, are the same bit for bit."""
    if isinstance(first, Immediate) and isinstance(second, Immediate):
        return first.type == second.type and _same_data(first.data, second.data)
    return first == second


def _same_data(first: Any, second: Any) -> bool:
    if isinstance(first, np.ndarray):
        return (
            isinstance(second, np.ndarray)
            and (first.dtype, first.shape) == (second.dtype, second.shape)
            and first.tobytes() == second.tobytes()
        )
    if type(first) is not type(second):
        return False
    if isinstance(first, tuple):
        return len(first) == len(second) and all(map(_same_data, first, second))
    return bool(first == second)


def _mapped(first: Mapping[str, Any], second: Mapping[str, Any], what: str, compare: Any) -> str | None:
    if list(first) != list(second):
        return f"{what} {list(first)}, {list(second)}"
    return next(filter(None, (compare(first[name], second[name]) for name in first)), None)


def _attributes(first: Mapping[str, Any], second: Mapping[str, Any], where: str) -> str | None:
    if list(first) != list(second):
        return f"attributes of {where}: {list(first)}, {list(second)}"
    other = [name for name in first if not same_value(first[name], second[name])]
    return f"attribute {other[0]!r} of {where}" if other else None


def _function(first: Function, second: Function) -> str | None:
    where = f"function {first.name!r}"
    if (first.name, first.inputs, first.opset) != (second.name, second.inputs, second.opset):
        return f"name, inputs or opset of {where}"
    return _attributes(first.attributes, second.attributes, where) or _block(first.block, second.block, where)


def _block(first: Block, second: Block, where: str) -> str | None:
    if (first.inputs, first.outputs) != (second.inputs, second.outputs):
        return f"inputs or outputs of a block of {where}"
    if len(first.operations) != len(second.operations):
        return f"{len(first.operations)}, {len(second.operations)} operations in a block of {where}"
    pairs = zip(first.operations, second.operations, strict=True)
    return next(filter(None, (_operation(a, b, where) for a, b in pairs)), None)


def _operation(first: Operation, second: Operation, where: str) -> str | None:
    place = f"op {first.name!r} ({first.type}) of {where}"
    if (first.type, first.outputs, len(first.blocks)) != (second.type, second.outputs, len(second.blocks)):
        return f"type, outputs or blocks of {place}"
    if list(first.inputs) != list(second.inputs) or not all(
        _same_bindings(first.inputs[name], second.inputs[name]) for name in first.inputs
    ):
        return f"inputs of {place}"
    found = _attributes(first.attributes, second.attributes, place)
    pairs = zip(first.blocks, second.blocks, strict=True)
    return found or next(filter(None, (_block(a, b, place) for a, b in pairs)), None)


def _same_bindings(first: Sequence[Binding], second: Sequence[Binding]) -> bool:
    return len(first) == len(second) and all(map(same_value, first, second))
