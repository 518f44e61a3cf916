"""From a MIL function to one straight-line Python function over torch.

Names are resolved, arguments converted and constants folded here, once; the generated function
does nothing but call the ops and drop values after their last use. With ``hook`` the same function
also reports each op with its results and inputs, which is how a single op is watched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from coreproof.errors import CoreproofError, ExecutionError, PackageError, UnsupportedOpError
from coreproof.mil.families import FAMILIES
from coreproof.mil.program import Binding, Blob, Block, Function, NamedType, Operation
from coreproof.mil.types import DType, TensorType
from coreproof.runtime.bounds import MAX_FOLDED, limited, within
from coreproof.runtime.constants import Known, Lazy, static
from coreproof.runtime.control import CONTROL
from coreproof.runtime.emission import Emission, Hook, Value, Var, locals_of, packed
from coreproof.runtime.layout import layout
from coreproof.runtime.numerics import FP16ACC, WIDE, round_half, round_half_
from coreproof.runtime.registry import REQUIRED, SPECIALIZATIONS, OpDef, Param, lookup
from coreproof.runtime.reuse import Reuse, in_place, own_memory

MODES = ("typed", "fp32", "fp16acc")

# What torch and the ops raise on arguments that do not fit together.
OP_FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)

_KEPT = 4 << 20  # bytes; untouched, so it never counts as used

Arguments = Mapping[str, tuple[Value, ...]]


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

    def read_weights(self, place: Callable[[Any], Any]) -> None:
        """Make the lazy constants, each passed through ``place`` (which may move it to a device), and
        keep those that the code uses."""
        # glibc gives freed memory back at once and takes it again page by page, which costs more than
        # the ops of a small model. Freeing one large block raises the size from which it does so.
        torch.empty(_KEPT, dtype=torch.uint8)
        used = set(self.run.__code__.co_names)
        for lazy in self.lazy:
            self.namespace[lazy.slot] = place(lazy.make())
        for lazy in self.lazy:
            if lazy.slot not in used:
                del self.namespace[lazy.slot]


def compile_function(
    function: Function,
    read: Callable[[Blob], np.ndarray],
    mode: str,
    hook: Hook | None = None,
    release: Callable[[Blob], None] = lambda blob: None,
) -> Compiled:
    """Compile ``function`` for numeric ``mode``; ``read`` gives the array of a weight, ``release`` is
    told of one that is not looked at again.

    Raises UnsupportedOpError naming the op and its place, PackageError for a program that refers
    to names it does not define or gives arguments that do not exist.
    """
    if mode not in MODES:
        raise UnsupportedOpError(f"numeric mode {mode!r} does not exist; choose one of {', '.join(MODES)}")
    if function.opset not in SPECIALIZATIONS:
        raise UnsupportedOpError(f"function {function.name!r}: opset {function.opset!r} is not known")
    reuse = Reuse(function.block, enabled=hook is None)
    emission = Emission(function.name, SPECIALIZATIONS[function.opset], mode, read, release, hook, reuse)
    emission.namespace.update(rh=round_half, rh_=round_half_, static=static, hook=hook)
    arguments = [f"i{index}" for index in range(len(function.inputs))]
    emission.env.update((f.name, Var(a)) for f, a in zip(function.inputs, arguments, strict=True))
    returned = [emission.expression(v) for v in _block(emission, function.block)]
    body, lines = layout(emission.lines, arguments, set(returned))
    source = f"def run({', '.join(arguments)}):\n{body}    return {packed(returned)}\n"
    exec(compile(source, f"<mil {function.name!r}>", "exec"), emission.namespace)
    return Compiled(
        source,
        emission.namespace,
        lines,
        emission.lazy,
        function.inputs,
        function.block.outputs,
        emission.namespace["run"],
    )


def _block(emission: Emission, block: Block) -> list[Value]:
    """Compile a block's operations where the emission stands; the values of its outputs."""
    for operation in block.operations:
        _compile(emission, operation)
    emission.where = f"function {emission.function!r}, a block's output"
    return [emission.look_up(name) for name in block.outputs]


def _compile(emission: Emission, operation: Operation) -> None:
    where = (
        f"function {emission.function!r}, op {operation.type!r} (name {operation.name!r}, {emission.opset})"
    )
    emission.where = where
    try:
        if operation.type == "const":
            _constant(emission, operation)
        elif operation.type in CONTROL:
            CONTROL[operation.type](emission, operation, _block)
        else:
            definition = lookup(operation.type, emission.opset)
            arguments = _arguments(emission, operation, definition)
            if definition.pure and not any(locals_of(group) for group in arguments.values()):
                _fold(emission, operation, definition, arguments)
            else:
                _emit(emission, operation, definition, arguments)
    except CoreproofError as error:
        raise type(error)(str(error) if str(error).startswith("function ") else f"{where}: {error}") from None
    except OP_FAILURES as error:
        raise PackageError(f"{where}: its arguments or results are not as they should be: {error}") from error


def _constant(emission: Emission, operation: Operation) -> None:
    value = operation.attributes.get("val")
    if value is None or len(operation.outputs) != 1:
        raise PackageError(
            f"a const of {len(operation.outputs)} results {'with' if value else 'without'} a val"
        )
    emission.env[operation.outputs[0].name] = emission.constant(value)


def _arguments(emission: Emission, operation: Operation, definition: OpDef) -> Arguments:
    given: dict[str, tuple[Binding, ...]] = dict(operation.inputs)
    if operation.type.startswith("constexpr_"):  # before iOS 18 their values are attributes
        given.update((n, (v,)) for n, v in operation.attributes.items() if n != "name")
    unknown = sorted(set(given) - set(definition.params))
    if unknown:
        raise UnsupportedOpError(
            f"{emission.where} has no argument {unknown[0]!r}; it takes {', '.join(definition.params)}"
        )
    missing = [p.name for p in definition.params.values() if p.default is REQUIRED and not given.get(p.name)]
    if missing:
        raise PackageError(f"{emission.where} lacks its required argument {missing[0]!r}")
    return {name: tuple(emission.value(b) for b in bindings) for name, bindings in given.items()}


def _rounds(emission: Emission, definition: OpDef, output: NamedType) -> bool:
    return is_half(output) and emission.mode != "fp32" and not definition.moves


def engine_arguments(operation: Operation, definition: OpDef, mode: str) -> dict[str, Any]:
    """The arguments an op gets from the engine and not from the program: ``out`` and ``num``."""
    keywords: dict[str, Any] = {}
    if "out" in definition.wants:
        keywords["out"] = tuple(o.type for o in operation.outputs)
    if "num" in definition.wants:
        narrow = mode == "fp16acc" and any(is_half(o) for o in operation.outputs)
        keywords["num"] = FP16ACC if narrow else WIDE
    return keywords


def is_half(output: NamedType) -> bool:
    """Whether an op's output is typed fp16."""
    return isinstance(output.type, TensorType) and output.type.dtype is DType.FP16


def _fold(emission: Emission, operation: Operation, definition: OpDef, arguments: Arguments) -> None:
    """Evaluate an op whose inputs are all constant: now, or with the weights it depends on."""
    where = emission.where
    keywords = engine_arguments(operation, definition, emission.mode)
    rounds = [_rounds(emission, definition, o) for o in operation.outputs]

    def value(argument: Value) -> Any:
        return emission.namespace[argument.slot] if isinstance(argument, Lazy) else argument.data  # type: ignore[union-attr]

    def evaluate() -> tuple[Any, ...]:
        values = {n: [value(a) for a in group] for n, group in arguments.items()}
        try:
            if operation.type in FAMILIES["elementwise_binary"]:  # they do not ask themselves
                within(torch.broadcast_shapes(*(a.shape for group in values.values() for a in group)))
            given = {n: _python(definition.params[n], group) for n, group in values.items()}
            positional, named = call_order(definition, given)
            result = definition.fn(*positional, **named, **keywords)
            results = result if len(rounds) > 1 else (result,)
            return tuple(round_half(r) if half else r for r, half in zip(results, rounds, strict=True))
        except (ExecutionError, *OP_FAILURES) as error:
            raise PackageError(f"{where} failed on constants: {error}") from error

    if not any(isinstance(a, Lazy) for group in arguments.values() for a in group):
        with limited(MAX_FOLDED - emission.folded):
            results = evaluate()
        inputs = [value(a) for group in arguments.values() for a in group]
        emission.folded += max(0, _numel(results) - _numel(inputs))
        for output, known in zip(operation.outputs, results, strict=True):
            emission.env[output.name] = Known(known)
        return
    whole = Lazy(emission.bind("w", None), evaluate)
    emission.lazy.append(whole)
    for index, output in enumerate(operation.outputs):
        part = Lazy(emission.bind("w", None), lambda index=index: emission.namespace[whole.slot][index])  # type: ignore[misc]
        emission.lazy.append(part)
        emission.env[output.name] = part


def _numel(values: Iterable[Any]) -> int:
    return sum(v.numel() for v in values if isinstance(v, torch.Tensor))


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


def _emit(emission: Emission, operation: Operation, definition: OpDef, arguments: Arguments) -> None:
    given = {name: _written(emission, definition.params[name], group) for name, group in arguments.items()}
    locals_ = [emission.local() for _ in operation.outputs]
    used = locals_of(a for group in arguments.values() for a in group)
    target, expression = ", ".join(locals_), _call(emission, operation, definition, given)
    rounds = [_rounds(emission, definition, o) for o in operation.outputs]
    own = own_memory(operation)
    if rounds == [True]:
        expression = f"rh_({expression})" if own else f"rh({expression})"
    emission.add(f"{target} = {expression}" if target else expression, (*used, *locals_), operation)
    if len(rounds) > 1:
        for local in (v for v, r in zip(locals_, rounds, strict=True) if r):
            emission.add(f"{local} = rh({local})", (local,), operation)
    emission.reuse.made(operation, own or rounds == [True], emission.scope)
    emission.finish(operation, locals_, given, used)


def _written(emission: Emission, param: Param, group: tuple[Value, ...]) -> str:
    """How the generated code writes an argument."""
    if param.kind == "tensors":
        return "[" + ", ".join(emission.expression(a) for a in group) + "]"
    if param.kind == "tensor":
        return emission.expression(group[0])
    if isinstance(group[0], Known):
        return emission.literal(static(param.kind, group[0].data))
    return f"static({param.kind!r}, {emission.expression(group[0])})"


def _call(emission: Emission, operation: Operation, definition: OpDef, given: Mapping[str, str]) -> str:
    overwritten = emission.reuse.operand(operation, emission.scope)
    function = in_place(operation) if overwritten else definition.fn
    positional, named = call_order(definition, given)
    if overwritten == "y":
        positional.reverse()
    keywords = {
        k: emission.bind(k, v) for k, v in engine_arguments(operation, definition, emission.mode).items()
    }
    call = ", ".join([*positional, *(f"{k}={v}" for k, v in {**named, **keywords}.items())])
    return f"{emission.bind(operation.type + '_', function)}({call})"
