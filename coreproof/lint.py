"""Static checks of a program: forms known to convert without a word and to compute something else.

A check reads the program alone. An error is a program that cannot mean what its author meant; a warning is
something to know of. Adding one is a function here under ``@_check``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from coreproof.mil.families import FAMILIES
from coreproof.mil.program import Binding, Function, Immediate, Operation, Program, Ref
from coreproof.mil.types import DType, TensorType, ValueType

Level = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """``op``: the operation's name, ``type`` its MIL name."""

    level: Level
    check: str
    function: str
    op: str
    type: str
    what: str


@dataclass(slots=True)
class _Before:
    """What is known where an operation stands: the types of the values it sees, and what made them."""

    types: dict[str, ValueType] = field(default_factory=dict)
    makers: dict[str, Operation] = field(default_factory=dict)

    def tensor(self, operation: Operation, argument: str) -> TensorType | None:
        """The type of a tensor argument; None when it is absent or something else."""
        (binding, *_) = operation.inputs.get(argument, (None,))
        found = self.types.get(binding.name) if isinstance(binding, Ref) else getattr(binding, "type", None)
        return found if isinstance(found, TensorType) else None

    def constant(self, operation: Operation, argument: str) -> Any:
        """The value of an argument that the program itself states, else None."""
        (binding, *_) = operation.inputs.get(argument, (None,))
        if isinstance(binding, Ref) and binding.name in self.makers:
            binding = self.makers[binding.name].attributes.get("val")
        return binding.data if isinstance(binding, Immediate) else None

    def sources(self, operation: Operation, through: frozenset[str]) -> Iterator[Operation]:
        """The operations whose results reach ``operation``, passing only ones of the types ``through``."""
        waiting, met = [operation], {id(operation)}
        while waiting:
            for binding in _bindings(waiting.pop()):
                maker = self.makers.get(binding.name) if isinstance(binding, Ref) else None
                if maker is not None and id(maker) not in met:
                    met.add(id(maker))
                    yield maker
                    if maker.type in through:
                        waiting.append(maker)


Check = Callable[[Operation, _Before], str | None]
CHECKS: dict[str, tuple[Level, Check]] = {}


def lint(program: Program) -> list[Finding]:
    """What the checks find, in program order."""
    return [f for _, function in sorted(program.functions.items()) for f in _lint_function(function)]


def _lint_function(function: Function) -> Iterator[Finding]:
    before = _Before({i.name: i.type for i in function.inputs})
    for operation in function.block.walk():
        for name, (level, check) in CHECKS.items():
            what = check(operation, before)
            if what is not None:
                yield Finding(level, name, function.name, operation.name, operation.type, what)
        # No name is given twice where both are seen, so the latest is the one that is meant.
        for block in operation.blocks:
            before.types.update((i.name, i.type) for i in block.inputs)
        before.types.update((o.name, o.type) for o in operation.outputs)
        before.makers.update((o.name, operation) for o in operation.outputs)


def _check(level: Level) -> Callable[[Check], Check]:
    def register(check: Check) -> Check:
        CHECKS[check.__name__.removeprefix("_").replace("_", "-")] = level, check
        return check

    return register


_FIXED: Mapping[str, str] = {
    "sub": "0", "real_div": "1", "floor_div": "1", "mod": "0", "less": "false", "greater": "false",
    "less_equal": "true", "greater_equal": "true", "logical_xor": "false",
}  # fmt: skip


@_check("error")
def _identical_operands(operation: Operation, before: _Before) -> str | None:
    """``sub(x, x)`` is 0 and not worth computing. coremltools 9.0 makes it of ``x % 1`` (its pass
    noop_elimination drops the division; apple/coremltools issue 2761). ``not_equal(x, x)`` is how it
    writes isnan, so that and ``equal`` are let be."""
    first, second = (operation.inputs.get(name) for name in ("x", "y"))
    if operation.type not in _FIXED or not first or first != second or not isinstance(first[0], Ref):
        return None
    return f"both operands are {first[0].name}: always {_FIXED[operation.type]}; was it x % 1?"


@_check("error")
def _initial_state_shape(operation: Operation, before: _Before) -> str | None:
    """The initial state of a recurrent op is (batch, width), x is (time, batch, width) (MIL op reference,
    ``recurrent``). coremltools 9.0 gives a packed sequence's LSTM one of (time, width)."""
    if operation.type not in ("lstm", "gru", "rnn"):
        return None
    x = before.tensor(operation, "x")
    for name in ("initial_h", "initial_c"):
        state = before.tensor(operation, name)
        if state is None or x is None or not state.shape or not x.shape or len(x.shape) < 2:
            continue
        if None not in (state.shape[0], x.shape[1]) and state.shape[0] != x.shape[1]:
            return f"{name} is {state}, x {x}: the batch is {x.shape[1]}"
    return None


@_check("error")
def _aligned_corners_of_one(operation: Operation, before: _Before) -> str | None:
    """With ``align_corners`` samples are (in - 1) / (out - 1) apart, which is 0/0 on an axis of one
    (MIL op reference, ``image_resizing``). Interpolation of (batch, channels, time) has such an axis."""
    if (
        not operation.type.startswith("upsample_bilinear")
        or before.constant(operation, "align_corners") is None
    ):
        return None
    if not bool(np.all(before.constant(operation, "align_corners"))):
        return None
    shape = _shape(operation)
    return f"align_corners on an axis of one: result {list(shape)}" if 1 in shape[-2:] else None


_ELEMENTWISE = ("elementwise_binary", "elementwise_unary")
_MOVING = ("tensor_operation", "tensor_transformation", "image_resizing")
_ALONG = frozenset(op for family in (*_ELEMENTWISE, *_MOVING) for op in FAMILIES[family])


@_check("error")
def _half_precision_phase(operation: Operation, before: _Before) -> str | None:
    """A phase summed in fp16: numbers above 2048 are 2 apart, so its sine is noise, and beyond 65504 NaN.
    Wrapping it afterwards is too late (patches/styletts2/README.md)."""
    if operation.type not in ("sin", "cos"):
        return None
    for source in before.sources(operation, _ALONG):
        result = source.outputs[0].type if source.outputs else None
        if source.type == "cumsum" and isinstance(result, TensorType) and result.dtype == DType.FP16:
            return f"of what cumsum {source.name} adds up in fp16; keep the sum in fp32"
    return None


@_check("warning")
def _shifted_reciprocal(operation: Operation, before: _Before) -> str | None:
    """``inverse`` is 1 / (x + epsilon), epsilon 1e-4 unless given (MIL op reference,
    ``elementwise_unary``). coremltools 9.0 makes it of ``1 / x`` and gives none."""
    if operation.type != "inverse":
        return None
    given = before.constant(operation, "epsilon")
    epsilon = 1e-4 if given is None else float(np.max(given))
    return f"computes 1 / (x + {epsilon:.3g})" if epsilon > 1e-6 else None


@_check("warning")
def _random(operation: Operation, before: _Before) -> str | None:
    """Draws anew at every prediction, so no two agree; nothing can be compared bit for bit. Feed noise as an
    input where that matters."""
    return "draws anew at each prediction" if operation.type.startswith("random_") else None


@_check("warning")
def _scattered_write(operation: Operation, before: _Before) -> str | None:
    """Assignment to a part of a tensor becomes a scatter over all of it, by an index an element. Where
    the part is a slice, a concatenation does."""
    if operation.type not in ("scatter", "scatter_nd", "scatter_along_axis"):
        return None
    return f"writes into {list(_shape(operation))}; for a slice, concat does"


@_check("warning")
def _unexpected_dimension(operation: Operation, before: _Before) -> str | None:
    """A dimension known at run time only, though those of the operands are known: shapes computed from
    values, which keep a program from accelerators that compile for fixed shapes."""
    if None not in _shape(operation):
        return None
    operands = (before.types.get(b.name) for b in _bindings(operation) if isinstance(b, Ref))
    if any(isinstance(t, TensorType) and (t.shape is None or None in t.shape) for t in operands):
        return None
    return f"result is {operation.outputs[0].type}, of operands of known shape"


def _shape(operation: Operation) -> tuple[int | None, ...]:
    result = operation.outputs[0].type if operation.outputs else None
    return result.shape or () if isinstance(result, TensorType) else ()


def _bindings(operation: Operation) -> Iterator[Binding]:
    for several in operation.inputs.values():
        yield from several
