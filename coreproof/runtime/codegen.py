"""From a MIL function to one straight-line Python function over torch.

Names are resolved, arguments converted and constants folded here, once; the generated function
does nothing but call the ops and drop values after their last use. With ``hook`` the same function
also reports each op with its results and inputs, which is how a single op is watched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import numpy as np

from coreproof.errors import CoreproofError, PackageError, UnsupportedOpError
from coreproof.mil.program import Binding, Blob, Block, Function, Immediate, NamedType, Operation, Ref
from coreproof.mil.types import DType, TensorType
from coreproof.runtime.constants import Known, Lazy, from_immediate, static, weight
from coreproof.runtime.layout import Line, Scope, layout
from coreproof.runtime.numerics import FP16ACC, WIDE, round_half
from coreproof.runtime.registry import REQUIRED, SPECIALIZATIONS, OpDef, Param, lookup

MODES = ("typed", "fp32", "fp16acc")

# What torch and the ops raise on arguments that do not fit together.
OP_FAILURES = (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError)


# Called after each op with its results and its inputs by MIL argument name; control flow, whose
# nested ops report themselves, has none.
Hook = Callable[[Operation, tuple[Any, ...], Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Var:
    """A value computed at run time, under a local name of the generated code."""

    local: str


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
    function: str
    opset: str
    mode: str
    read: Callable[[Blob], np.ndarray]
    hook: Hook | None
    env: dict[str, Known | Lazy | Var] = field(default_factory=dict)
    namespace: dict[str, Any] = field(default_factory=dict)
    lazy: list[Lazy] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    scope: Scope = ()
    numbers: Iterator[int] = field(default_factory=count)

    def add(self, text: str, touches: Iterable[str], operation: Operation) -> None:
        self.lines.append(Line(text, tuple(touches), operation, self.scope))

    def local(self) -> str:
        """A fresh local name."""
        return f"v{next(self.numbers)}"

    def bind(self, prefix: str, value: Any) -> str:
        """A fresh global name for ``value``."""
        name = f"{prefix}{len(self.namespace)}"
        self.namespace[name] = value
        return name


def compile_function(
    function: Function,
    read: Callable[[Blob], np.ndarray],
    mode: str,
    hook: Hook | None = None,
) -> Compiled:
    """Compile ``function`` for numeric ``mode``; ``read`` gives the array of a weight.

    Raises UnsupportedOpError naming the op and its place, PackageError for a program that refers
    to names it does not define or gives arguments that do not exist.
    """
    if mode not in MODES:
        raise UnsupportedOpError(f"numeric mode {mode!r} does not exist; choose one of {', '.join(MODES)}")
    if function.opset not in SPECIALIZATIONS:
        raise UnsupportedOpError(f"function {function.name!r}: opset {function.opset!r} is not known")
    state = _State(function.name, SPECIALIZATIONS[function.opset], mode, read, hook)
    state.namespace.update(rh=round_half, static=static, hook=hook)
    for index, feature in enumerate(function.inputs):
        state.env[feature.name] = Var(f"i{index}")
    returned = [_expression(state, v) for v in _block(state, function.block)]
    arguments = [f"i{index}" for index in range(len(function.inputs))]
    body, lines = layout(state.lines, arguments, set(returned))
    source = f"def run({', '.join(arguments)}):\n{body}    return ({''.join(r + ', ' for r in returned)})\n"
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


def _block(state: _State, block: Block) -> list[Known | Lazy | Var]:
    """Compile a block's operations where the state stands; the values of its outputs."""
    for operation in block.operations:
        _compile(state, operation)
    return [_look_up(state, name, "a block's output") for name in block.outputs]


def _look_up(state: _State, name: str, where: str) -> Known | Lazy | Var:
    value = state.env.get(name)
    if value is None:
        raise PackageError(f"{where} refers to {name!r}, which nothing before it defines")
    return value


def _compile(state: _State, operation: Operation) -> None:
    where = f"function {state.function!r}, op {operation.type!r} (name {operation.name!r}, {state.opset})"
    try:
        if operation.type == "const":
            state.env[operation.outputs[0].name] = _constant(state, operation.attributes["val"])
            return
        if operation.type in _CONTROL:
            _CONTROL[operation.type](state, operation, where)
            return
        definition = lookup(operation.type, state.opset)
        arguments = _arguments(state, operation, definition, where)
        if definition.pure and not any(isinstance(a, Var) for group in arguments.values() for a in group):
            _fold(state, operation, definition, arguments, where)
        else:
            _emit(state, operation, definition, arguments)
    except CoreproofError as error:
        raise type(error)(str(error) if str(error).startswith("function ") else f"{where}: {error}") from None


def _value(state: _State, binding: Binding, where: str) -> Known | Lazy | Var:
    return _look_up(state, binding.name, where) if isinstance(binding, Ref) else _constant(state, binding)


def _constant(state: _State, value: Immediate | Blob) -> Known | Lazy:
    if isinstance(value, Immediate):
        return from_immediate(value)
    slot = state.bind("w", None)
    lazy = Lazy(slot, lambda: weight(value, state.read))
    state.lazy.append(lazy)
    return lazy


Arguments = dict[str, tuple[Known | Lazy | Var, ...]]


def _arguments(state: _State, operation: Operation, definition: OpDef, where: str) -> Arguments:
    given: dict[str, tuple[Binding, ...]] = dict(operation.inputs)
    if operation.type.startswith("constexpr_"):  # before iOS 18 their values are attributes
        given.update((n, (v,)) for n, v in operation.attributes.items() if n != "name")
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
            _look_up(state, b.name, where) if isinstance(b, Ref) else _constant(state, b) for b in bindings
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
        positional, named = call_order(definition, given)
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


def call_order(definition: OpDef, given: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
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
    positional, named = call_order(definition, given)
    keywords = {k: state.bind(k, v) for k, v in _keywords(state, operation, definition).items()}
    call = ", ".join([*positional, *(f"{k}={v}" for k, v in {**named, **keywords}.items())])
    expression = f"{state.bind(operation.type + '_', definition.fn)}({call})"
    locals_ = [state.local() for _ in operation.outputs]
    state.env.update((o.name, Var(local)) for o, local in zip(operation.outputs, locals_, strict=True))
    rounds = [_rounds(state, definition, o) for o in operation.outputs]
    if rounds == [True]:
        expression = f"rh({expression})"
    used = [a.local for group in arguments.values() for a in group if isinstance(a, Var)]
    target = ", ".join(locals_)
    state.add(f"{target} = {expression}" if target else expression, (*used, *locals_), operation)
    if len(rounds) > 1:
        for local in (v for v, r in zip(locals_, rounds, strict=True) if r):
            state.add(f"{local} = rh({local})", (local,), operation)
    _report(state, operation, locals_, given, used)


def _report(
    state: _State, operation: Operation, locals_: list[str], inputs: Mapping[str, str], used: Iterable[str]
) -> None:
    """Tell the hook, where there is one, what ``operation`` gave and was given."""
    if state.hook:
        given = ", ".join(f"{name!r}: {expression}" for name, expression in inputs.items())
        call = f"hook({state.bind('operation', operation)}, {_tuple(locals_)}, {{{given}}})"
        state.add(call, (*locals_, *used), operation)


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


def _cond(state: _State, operation: Operation, where: str) -> None:
    """``cond``: an ``if`` over the two nested blocks; only the one that is taken runs."""
    pred = _only(state, operation, "pred", where)
    results = _declare(state, operation, ["None"] * len(operation.outputs), where)
    outer, statement = state.scope, next(state.numbers)
    for header, block in zip((f"if {_truth(state, pred)}:", "else:"), _blocks(operation, where), strict=True):
        state.scope = (*outer, statement)
        state.add(header, _locals(pred), operation)
        state.scope = (*outer, statement, next(state.numbers))
        _assign(state, operation, results, _inner(state, block, [], where), where)
    state.scope = outer
    _bind_results(state, operation, results)


def _while_loop(state: _State, operation: Operation, where: str) -> None:
    """``while_loop``: the first block decides on the loop variables, the second makes the next ones."""
    given = [_value(state, b, where) for b in operation.inputs.get("loop_vars", ())]
    loop = _declare(state, operation, [_expression(state, g) for g in given], where)
    state.lines[-1] = replace(state.lines[-1], touches=(*(n for g in given for n in _locals(g)), *loop))
    condition, body = _blocks(operation, where)
    outer, statement = state.scope, next(state.numbers)
    state.scope = (*outer, statement)
    state.add("while True:", loop, operation)
    state.scope = (*outer, statement, next(state.numbers))
    go_on = _inner(state, condition, loop, where)
    if len(go_on) != 1:
        raise PackageError(f"{where}: the condition gives {len(go_on)} values, expected 1")
    state.add(f"if not {_truth(state, go_on[0])}: break", _locals(go_on[0]), operation)
    results = _inner(state, body, loop, where)
    _assign(state, operation, loop, results, where)
    state.scope = outer
    _bind_results(state, operation, loop)


_CONTROL: dict[str, Callable[[_State, Operation, str], None]] = {"cond": _cond, "while_loop": _while_loop}


def _only(state: _State, operation: Operation, name: str, where: str) -> Known | Lazy | Var:
    bindings = operation.inputs.get(name, ())
    if len(bindings) != 1:
        raise PackageError(f"{where} lacks its required argument {name!r}")
    return _value(state, bindings[0], where)


def _blocks(operation: Operation, where: str) -> tuple[Block, Block]:
    if len(operation.blocks) != 2:
        raise PackageError(f"{where} has {len(operation.blocks)} nested blocks, expected 2")
    first, second = operation.blocks
    return first, second


def _inner(state: _State, block: Block, inputs: list[str], where: str) -> list[Known | Lazy | Var]:
    """Compile a nested block whose inputs are the locals ``inputs``; what it names stays inside."""
    if len(block.inputs) != len(inputs):
        raise PackageError(
            f"{where}: a nested block takes {len(block.inputs)} inputs, expected {len(inputs)}"
        )
    outside = dict(state.env)
    state.env.update((i.name, Var(local)) for i, local in zip(block.inputs, inputs, strict=True))
    results = _block(state, block)
    state.env = outside
    return results


def _declare(state: _State, operation: Operation, values: list[str], where: str) -> list[str]:
    """Fresh locals for the results of a control statement, made outside of it."""
    if len(values) != len(operation.outputs):
        raise PackageError(f"{where} has {len(operation.outputs)} outputs for {len(values)} values")
    locals_ = [state.local() for _ in values]
    state.add(f"{_tuple(locals_)} = {_tuple(values)}", locals_, operation)
    return locals_


def _assign(
    state: _State, operation: Operation, targets: list[str], values: list[Known | Lazy | Var], where: str
) -> None:
    if len(values) != len(targets):
        raise PackageError(f"{where}: a nested block gives {len(values)} values for {len(targets)} outputs")
    used = [n for v in values for n in _locals(v)]
    state.add(
        f"{_tuple(targets)} = {_tuple([_expression(state, v) for v in values])}", (*targets, *used), operation
    )


def _bind_results(state: _State, operation: Operation, locals_: list[str]) -> None:
    state.env.update((o.name, Var(local)) for o, local in zip(operation.outputs, locals_, strict=True))
    _report(state, operation, locals_, {}, ())


def _truth(state: _State, value: Known | Lazy | Var) -> str:
    return f"bool({_expression(state, value)})"


def _locals(value: Known | Lazy | Var) -> tuple[str, ...]:
    return (value.local,) if isinstance(value, Var) else ()


def _tuple(items: list[str]) -> str:
    return f"({''.join(f'{item}, ' for item in items)})"
