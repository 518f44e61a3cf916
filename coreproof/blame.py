"""Which op went wrong: run a program once in ``fp32`` mode and each of its ops once more as
another mode would compute it, on the same inputs.

What an op does to good inputs is its own fault; an error that merely arrived is not counted again.
So the first op that turns finite inputs into NaN or Inf, or loses precision, stands out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coreproof.mil.contract import default_function
from coreproof.mil.program import Operation, Ref
from coreproof.package.reader import open_package
from coreproof.runtime.codegen import call_order, engine_arguments, is_half
from coreproof.runtime.model import Model
from coreproof.runtime.numerics import round_half
from coreproof.runtime.registry import SPECIALIZATIONS, lookup


@dataclass(frozen=True, slots=True)
class Suspect:
    """What one op does by itself.

    ``error``: |mode - fp32| / |fp32|, L2, on the op's fp32 inputs; infinite when the mode gives NaN
    or Inf where fp32 does not. ``creates_nonfinite``: NaN or Inf already in fp32 mode, from finite
    values of earlier ops. ``weights``: what it reads from the weight file; their names tell the torch
    module the op came from.
    """

    op: str
    name: str
    output: str
    error: float
    creates_nonfinite: bool
    weights: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "error": self.error if np.isfinite(self.error) else str(self.error)}


def blame(package: Path, steps: Sequence[Mapping[str, np.ndarray]], mode: str) -> list[Suspect]:
    """Every op that errs in ``mode`` on the last of ``steps``, the worst first. Earlier steps only
    bring the state to where it was.

    Ops that make NaN or Inf from finite inputs come before all others, in program order. Raises as
    :meth:`coreproof.runtime.model.Model.predict`.
    """
    opened = open_package(package)
    function = opened.program.functions[default_function(opened.description)]
    opset = SPECIALIZATIONS[function.opset]
    stored = {o.outputs[0].name for o in function.block.walk() if o.type == "const" and any(o.blobs())}
    suspects: list[Suspect] = []

    def watch(operation: Operation, results: tuple[Any, ...], given: Mapping[str, Any]) -> None:
        read = {
            n: [b.name for b in operation.inputs[n] if isinstance(b, Ref) and b.name in stored] for n in given
        }
        creates = _finite(v for n, v in given.items() if not read[n]) and not _finite(results)
        error = _own_error(operation, results, given, opset, mode)
        if error > 0 or creates:
            weights = tuple(name for names in read.values() for name in names)
            output = operation.outputs[0].name
            suspects.append(Suspect(operation.type, operation.name, output, error, creates, weights))

    model = Model(opened, "fp32", hook=watch)
    state = model.make_state() if model.contract.states else None
    for inputs in steps:
        suspects.clear()
        model.predict(inputs, state)
    return sorted(suspects, key=lambda s: (not s.creates_nonfinite, 0.0 if s.creates_nonfinite else -s.error))


def _own_error(
    operation: Operation, results: tuple[Any, ...], given: Mapping[str, Any], opset: str, mode: str
) -> float:
    """The relative error of ``mode`` on the op's fp32 inputs, over all its fp16 results."""
    if not given:
        return 0.0
    definition = lookup(operation.type, opset)
    halves = [is_half(o) for o in operation.outputs]
    if mode == "fp32" or definition.moves or not definition.pure or not any(halves):
        return 0.0
    positional, named = call_order(definition, given)
    again = definition.fn(*positional, **named, **engine_arguments(operation, definition, mode))
    pairs = zip(halves, results, again if len(halves) > 1 else (again,), strict=True)
    return max(_relative(round_half(new), old) for half, old, new in pairs if half)


def _relative(new: torch.Tensor, old: torch.Tensor) -> float:
    good = torch.isfinite(old)
    if not bool(torch.isfinite(new[good]).all()):
        return float("inf")
    scale = float(old[good].double().norm())
    error = float((new[good].double() - old[good].double()).norm())
    return error / scale if scale else error


def _finite(values: Any) -> bool:
    tensors = [v for v in values if isinstance(v, torch.Tensor) and v.is_floating_point()]
    return all(bool(torch.isfinite(t).all()) for t in tensors)
