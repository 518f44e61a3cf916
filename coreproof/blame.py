"""Which op went wrong: run a program once in ``fp32`` mode and each of its ops once more as
another mode would compute it, on the same inputs.

What an op does to good inputs is its own fault; an error that merely arrived is not counted again.
So the first op that turns finite inputs into NaN or Inf, or loses precision, stands out. How far the
error has grown by each op is told apart from that, by a run that is in the other mode throughout.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coreproof.mil.contract import default_function
from coreproof.mil.program import Operation, Ref
from coreproof.package.reader import Package, open_package
from coreproof.runtime.codegen import call_order, engine_arguments, is_half
from coreproof.runtime.model import Model
from coreproof.runtime.numerics import round_half
from coreproof.runtime.registry import SPECIALIZATIONS, lookup

SAMPLED = 4096

Steps = Sequence[Mapping[str, np.ndarray]]
Visit = Callable[[Operation, tuple[Any, ...], Mapping[str, Any]], None]


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


@dataclass(frozen=True, slots=True)
class Observation:
    """One op in program order. ``suspect`` is what it does by itself; ``arrived`` the relative error, L2,
    that its results have by then in a run of the mode throughout, on at most SAMPLED evenly spaced
    elements of each: infinite when a result is finite in fp32 mode only, None when it is no number."""

    suspect: Suspect
    arrived: float | None


def blame(package: Path, steps: Steps, mode: str, function_name: str | None = None) -> list[Suspect]:
    """Every op that errs in ``mode`` on the last of ``steps``, the worst first. Earlier steps only
    bring the state to where it was.

    Ops that make NaN or Inf from finite inputs come before all others, in program order. Raises as
    :meth:`coreproof.runtime.model.Model.predict`.
    """
    opened = open_package(package)
    judge = _Judge(opened, mode, function_name)
    suspects: list[Suspect] = []
    _run(opened, steps, "fp32", lambda *seen: suspects.append(judge(*seen)), function_name)
    return ranked(suspects)


def ranked(suspects: Sequence[Suspect]) -> list[Suspect]:
    """Those of ``suspects``, given in program order, that err: in the order of :func:`blame`."""
    erring = [s for s in suspects if s.error > 0 or s.creates_nonfinite]
    return sorted(erring, key=lambda s: (not s.creates_nonfinite, 0.0 if s.creates_nonfinite else -s.error))


def observe(package: Path, steps: Steps, mode: str, function_name: str | None = None) -> list[Observation]:
    """Every op on the last of ``steps``, in program order, the rounds of a loop one after another.

    Raises as :meth:`coreproof.runtime.model.Model.predict`.
    """
    opened = open_package(package)
    judge = _Judge(opened, mode, function_name)
    rounds: Counter[str] = Counter()
    theirs: dict[tuple[str, int], list[torch.Tensor]] = {}
    observed: list[Observation] = []

    def key(operation: Operation) -> tuple[str, int]:
        rounds[operation.name] += 1
        return operation.name, rounds[operation.name]

    def keep(operation: Operation, results: tuple[Any, ...], given: Mapping[str, Any]) -> None:
        theirs[key(operation)] = _sample(results)

    def compare(operation: Operation, results: tuple[Any, ...], given: Mapping[str, Any]) -> None:
        pairs = zip(theirs.get(key(operation), ()), _sample(results), strict=False)
        errors = [_relative(new, old) for new, old in pairs if new.shape == old.shape]
        observed.append(Observation(judge(operation, results, given), max(errors, default=None)))

    _run(opened, steps, mode, keep, function_name)
    rounds.clear()
    _run(opened, steps, "fp32", compare, function_name)
    return observed


def _run(opened: Package, steps: Steps, mode: str, visit: Visit, function_name: str | None = None) -> None:
    """Run ``steps`` in ``mode``, calling ``visit`` after each op of the last one."""
    last = False

    def hook(operation: Operation, results: tuple[Any, ...], given: Mapping[str, Any]) -> None:
        if last:
            visit(operation, results, given)

    model = Model(opened, mode, function_name, hook=hook)
    state = model.make_state() if model.contract.states else None
    for index, inputs in enumerate(steps, start=1):
        last = index == len(steps)
        model.predict(inputs, state)


def _sample(results: tuple[Any, ...]) -> list[torch.Tensor]:
    tensors = [r for r in results if isinstance(r, torch.Tensor) and r.is_floating_point() and r.numel()]
    return [t.flatten()[:: -(-t.numel() // SAMPLED)].float().clone() for t in tensors]


class _Judge:
    """What the ops of a package do by themselves in ``mode``, told from a run in fp32 mode."""

    def __init__(self, opened: Package, mode: str, function_name: str | None = None) -> None:
        function = opened.program.functions[function_name or default_function(opened.description)]
        self._opset = SPECIALIZATIONS[function.opset]
        self._mode = mode
        self._stored = {
            o.outputs[0].name for o in function.block.walk() if o.type == "const" and any(o.blobs())
        }

    def __call__(self, operation: Operation, results: tuple[Any, ...], given: Mapping[str, Any]) -> Suspect:
        read = {n: self._weights(operation, n) for n in given}
        creates = _finite(v for n, v in given.items() if not read[n]) and not _finite(results)
        error = _own_error(operation, results, given, self._opset, self._mode)
        weights = tuple(name for names in read.values() for name in names)
        output = operation.outputs[0].name if operation.outputs else ""  # write_state has none
        return Suspect(operation.type, operation.name, output, error, creates, weights)

    def _weights(self, operation: Operation, argument: str) -> list[str]:
        return [b.name for b in operation.inputs[argument] if isinstance(b, Ref) and b.name in self._stored]


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
