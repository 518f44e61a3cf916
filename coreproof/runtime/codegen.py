"""From a MIL function to one straight-line Python function over torch.

Names are resolved, arguments converted and constants folded here, once; the generated function
does nothing but call the ops and drop values after their last use. With ``hook`` the same function
also reports each op's results, which is how a single op is watched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coreproof.errors import CoreproofError, PackageError, UnsupportedOpError
from coreproof.mil.program import Binding, Blob, Function, Immediate, NamedType, Operation, Ref
from coreproof.mil.types import DType, TensorType
from coreproof.runtime.constants import Known, Lazy, from_immediate, static, weight
from coreproof.runtime.numerics import FP16ACC, WIDE, round_half
from coreproof.runtime.registry import REQUIRED, SPECIALIZATIONS, OpDef, Param, lookup

MODES = ("typed", "fp32", "fp16acc")

# What torch and the ops raise on arguments that do not fit together.
OP_FAILURES = (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class Var:
    """A value computed at run time, under a local name of the generated code."""

    local: str


@dataclass(frozen=True, slots=True)
class Line:
    """One statement of the generated code, the locals it touches and the op it belongs to."""

    text: str
    touches: tuple[str, ...]
    operation: Operation


@dataclass(slots=True)
class Compiled:
    """``source`` defines ``run(inputs...)`` over ``namespace``; ``lines`` maps its line numbers to
    operations; ``lazy`` are the constants to make before the first run, in order."""

    source: str
    namespace: dict[str, Any]
    lines: dict[int, Operation]
    lazy: list[Lazy]
    inputs: tuple[NamedType, ...]
    outputs: tuple[str, ...]
    run: Callable[..., tuple[Any, ...]]


@dataclass(slots=True)
class _State:
    opset: str
    mode: str
    read: Callable[[Blob], np.ndarray]
    hook: Callable[[Operation, tuple[Any, ...]], None] | None
    env: dict[str, Known | Lazy | Var] = field(default_factory=dict)
    namespace: dict[str, Any] = field(default_factory=dict)
    lazy: list[Lazy] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)

    def bind(self, prefix: str, value: Any) -> str:
        """A fresh global name for ``value``."""
        name = f"{prefix}{len(self.namespace)}"
        self.namespace[name] = value
        return name


def compile_function(
    function: Function,
    read: Callable[[Blob], np.ndarray],
    mode: str,
    hook: Callable[[Operation, tuple[Any, ...]], None] | None = None,
) -> Compiled:
    """Compile ``function`` for numeric ``mode``; ``read`` gives the array of a weight.

    Raises UnsupportedOpError naming the op and its place, PackageError for a program that refers
    to names it does not define or gives arguments that do not exist.
    """
    if mode not in MODES:
        raise UnsupportedOpError(f"numeric mode {mode!r} does not exist; choose one of {', '.join(MODES)}")
    if function.opset not in SPECIALIZATIONS:
        raise UnsupportedOpError(f"function {function.name!r}: opset {function.opset!r} is not known")
    state = _State(SPECIALIZATIONS[function.opset], mode, read, hook)
    state.namespace.update(rh=round_half, static=static, hook=hook)
    for index, feature in enumerate(function.inputs):
        state.env[feature.name] = Var(f"i{index}")
    for operation in function.block.operations:
        _compile(state, operation, function.name)
    returned = [
        _expression(state, state_lookup(state, n, "the block's outputs")) for n in function.block.outputs
    ]
    arguments = ", ".join(f"i{index}" for index in range(len(function.inputs)))
    body, lines = _layout(state.lines, returned)
    source = f"def run({arguments}):\n{body}    return ({''.join(r + ', ' for r in returned)})\n"
    exec(compile(source, f"<mil {function.name}>", "exec"), state.namespace)
    return Compiled(
        source,
        state.namespace,
        lines,
        state.lazy,
        function.inputs,
        function.block.outputs,
        state.namespace["run"],
    )


def state_lookup(state: _State, name: str, where: str) -> Known | Lazy | Var:
    value = state.env.get(name)
    if value is None:
        raise PackageError(f"{where} refers to {name!r}, which nothing before it defines")
    return value


def _compile(state: _State, operation: Operation, function: str) -> None:
    where = f"function {function!r}, op {operation.type!r} (name {operation.name!r}, {state.opset})"
    try:
        if operation.type == "const":
            state.env[operation.outputs[0].name] = _constant(state, operation.attributes["val"])
            return
        definition = lookup(operation.type, state.opset)
        arguments = _arguments(state, operation, definition, where)
        if definition.pure and not any(isinstance(a, Var) for group in arguments.values() for a in group):
            _fold(state, operation, definition, arguments, where)
        else:
            _emit(state, operation, definition, arguments)
    except CoreproofError as error:
        raise type(error)(str(error) if str(error).startswith("function ") else f"{where}: {error}") from None


def _constant(state: _State, value: Immediate | Blob) -> Known | Lazy:
    if isinstance(value, Immediate):
        return from_immediate(value)
    slot = state.bind("w", None)
    lazy = Lazy(slot, lambda: weight(value, state.read))
    state.lazy.append(lazy)
    return lazy


Arguments = dict[str, tuple[Known | Lazy | Var, ...]]


def _arguments(state: _State, operation: Operation, definition: OpDef, where: str) -> Arguments:
    given: Mapping[str, tuple[Binding, ...]] = operation.inputs
    unknown = sorted(set(given) - set(definition.params))
    if unknown:
        raise UnsupportedOpError(
            f"{where} has no argument {unknown[0]!r}; it takes {', '.join(definition.params)}"
        )
    missing = [p.name for p in definition.params.values() if p.default is REQUIRED and not given.get(p.name)]
    if missing:
        raise PackageError(f"{where} lacks its required argument {missing[0]!r}")
    return {
        name: tuple(
            state_lookup(state, b.name, where) if isinstance(b, Ref) else _constant(state, b)
            for b in bindings
        )
        for name, bindings in given.items()
    }


def _rounds(state: _State, definition: OpDef, output: NamedType) -> bool:
    half = isinstance(output.type, TensorType) and output.type.dtype is DType.FP16
    return half and state.mode != "fp32" and not definition.moves


def _keywords(state: _State, operation: Operation, definition: OpDef) -> dict[str, Any]:
    keywords: dict[str, Any] = {}
    if "out" in definition.wants:
        keywords["out"] = tuple(o.type for o in operation.outputs)
    if "num" in definition.wants:
        narrow = state.mode == "fp16acc" and any(_is_half(o) for o in operation.outputs)
        keywords["num"] = FP16ACC if narrow else WIDE
    return keywords


def _is_half(output: NamedType) -> bool:
    return isinstance(output.type, TensorType) and output.type.dtype is DType.FP16


def _fold(state: _State, operation: Operation, definition: OpDef, arguments: Arguments, where: str) -> None:
    """Evaluate an op whose inputs are all constant: now, or with the weights it depends on."""
    keywords = _keywords(state, operation, definition)
    rounds = [_rounds(state, definition, o) for o in operation.outputs]

    def value(argument: Known | Lazy | Var) -> Any:
        return state.namespace[argument.slot] if isinstance(argument, Lazy) else argument.data  # type: ignore[union-attr]

    def evaluate() -> tuple[Any, ...]:
        given = {
            n: _python(definition.params[n], [value(a) for a in group]) for n, group in arguments.items()
        }
        positional, named = _call_order(definition, given)
        try:
            result = definition.fn(*positional, **named, **keywords)
        except OP_FAILURES as error:
            raise PackageError(f"{where} failed on constants: {error}") from error
        results = result if len(rounds) > 1 else (result,)
        return tuple(round_half(r) if half else r for r, half in zip(results, rounds, strict=True))

    if not any(isinstance(a, Lazy) for group in arguments.values() for a in group):
        for output, known in zip(operation.outputs, evaluate(), strict=True):
            state.env[output.name] = Known(known)
        return
    whole = Lazy(state.bind("w", None), evaluate)
    state.lazy.append(whole)
    for index, output in enumerate(operation.outputs):
        part = Lazy(state.bind("w", None), lambda index=index: state.namespace[whole.slot][index])  # type: ignore[misc]
        state.lazy.append(part)
        state.env[output.name] = part


def _python(param: Param, values: list[Any]) -> Any:
    if param.kind == "tensors":
        return list(values)
    return values[0] if param.kind == "tensor" else static(param.kind, values[0])


def _call_order(definition: OpDef, given: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Arguments by position as far as they are given without a gap, the rest by name, because
    torch's own functions use other names than MIL for the leading ones."""
    positional: list[Any] = []
    names = list(definition.params)
    while names and names[0] in given:
        positional.append(given[names.pop(0)])
    return positional, {n: given[n] for n in names if n in given}


def _emit(state: _State, operation: Operation, definition: OpDef, arguments: Arguments) -> None:
    given = {}
    for name, group in arguments.items():
        kind = definition.params[name].kind
        if kind == "tensors":
            given[name] = "[" + ", ".join(_expression(state, a) for a in group) + "]"
        elif kind == "tensor":
            given[name] = _expression(state, group[0])
        elif isinstance(group[0], Known):
            given[name] = _literal(state, static(kind, group[0].data))
        else:
            given[name] = f"static({kind!r}, {_expression(state, group[0])})"
    positional, named = _call_order(definition, given)
    keywords = {k: state.bind(k, v) for k, v in _keywords(state, operation, definition).items()}
    call = ", ".join([*positional, *(f"{k}={v}" for k, v in {**named, **keywords}.items())])
    expression = f"{state.bind(operation.type + '_', definition.fn)}({call})"
    locals_ = [f"v{len(state.env)}_{i}" for i in range(len(operation.outputs))]
    for output, local in zip(operation.outputs, locals_, strict=True):
        state.env[output.name] = Var(local)
    rounds = [_rounds(state, definition, o) for o in operation.outputs]
    if rounds == [True]:
        expression = f"rh({expression})"
    target = ", ".join(locals_)
    used = [a.local for group in arguments.values() for a in group if isinstance(a, Var)]
    text = f"{target} = {expression}" if target else expression
    state.lines.append(Line(text, (*used, *locals_), operation))
    if len(rounds) > 1:
        state.lines.extend(
            Line(f"{v} = rh({v})", (v,), operation) for v, r in zip(locals_, rounds, strict=True) if r
        )
    if state.hook:
        name = state.bind("operation", operation)
        state.lines.append(
            Line(f"hook({name}, ({target}{',' if target else ''}))", tuple(locals_), operation)
        )


def _expression(state: _State, value: Known | Lazy | Var) -> str:
    if isinstance(value, Var):
        return value.local
    if isinstance(value, Lazy):
        return value.slot
    return _literal(state, value.data)


def _literal(state: _State, value: Any) -> str:
    if isinstance(value, bool | int | str) or value is None:
        return repr(value)
    return state.bind("c", value)


def _layout(lines: list[Line], returned: list[str]) -> tuple[str, dict[int, Operation]]:
    """The function's body, with a ``del`` after the last use of each local, and which operation
    each of its lines belongs to (line 1 is the ``def``)."""
    last = {name: index for index, line in enumerate(lines) for name in line.touches}
    drop: dict[int, list[str]] = {}
    for name, index in last.items():
        if name not in returned:
            drop.setdefault(index, []).append(name)
    body: list[str] = []
    numbers: dict[int, Operation] = {}
    for index, line in enumerate(lines):
        body.append(f"    {line.text}\n")
        numbers[len(body) + 1] = line.operation
        if index in drop:
            body.append(f"    del {', '.join(drop[index])}\n")
    return "".join(body), numbers
