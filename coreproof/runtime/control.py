"""``cond`` and ``while_loop`` (coremltools 9.0 ops/defs/iOS15/control_flow.py) as Python's own ``if``
and ``while``, with the ops of their nested blocks in line."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from coreproof.errors import PackageError
from coreproof.mil.program import Block, Operation
from coreproof.runtime.emission import Emission, Value, Var, locals_of, packed

CompileBlock = Callable[[Emission, Block], list[Value]]


def cond(emission: Emission, operation: Operation, compile_block: CompileBlock) -> None:
    """The first nested block where ``pred`` is true, else the second; the other does not run."""
    where = emission.where
    given = operation.inputs.get("pred", ())
    if len(given) != 1:
        raise PackageError(f"{where} lacks its required argument 'pred'")
    pred = emission.value(given[0])
    results = _declare(emission, operation, ["None"] * len(operation.outputs), ())
    outer, statement = emission.scope, next(emission.numbers)
    headers = (f"if {_truth(emission, pred)}:", "else:")
    for header, block in zip(headers, _two(operation, where), strict=True):
        emission.scope = (*outer, statement)
        emission.add(header, locals_of([pred]), operation)
        emission.scope = (*outer, statement, next(emission.numbers))
        values = _nested(emission, block, [], compile_block, where)
        _assign(emission, operation, results, values, where)
    emission.scope = outer
    emission.finish(operation, results, {}, ())


def while_loop(emission: Emission, operation: Operation, compile_block: CompileBlock) -> None:
    """``loop_vars`` go through the second nested block as long as the first says so of them."""
    where = emission.where
    given = [emission.value(b) for b in operation.inputs.get("loop_vars", ())]
    loop = _declare(emission, operation, [emission.expression(g) for g in given], locals_of(given))
    condition, body = _two(operation, where)
    outer, statement = emission.scope, next(emission.numbers)
    emission.scope = (*outer, statement)
    emission.add("while True:", loop, operation)
    emission.scope = (*outer, statement, next(emission.numbers))
    go_on = _nested(emission, condition, loop, compile_block, where)
    if len(go_on) != 1:
        raise PackageError(f"{where}: the condition gives {len(go_on)} values, expected 1")
    emission.add(f"if not {_truth(emission, go_on[0])}: break", locals_of(go_on), operation)
    _assign(emission, operation, loop, _nested(emission, body, loop, compile_block, where), where)
    emission.scope = outer
    emission.finish(operation, loop, {}, ())


CONTROL = {"cond": cond, "while_loop": while_loop}


def _two(operation: Operation, where: str) -> tuple[Block, Block]:
    if len(operation.blocks) != 2:
        raise PackageError(f"{where} has {len(operation.blocks)} nested blocks, expected 2")
    first, second = operation.blocks
    return first, second


def _nested(
    emission: Emission, block: Block, inputs: list[str], compile_block: CompileBlock, where: str
) -> list[Value]:
    """Compile a nested block whose inputs are the locals ``inputs``; what it names stays inside."""
    if len(block.inputs) != len(inputs):
        raise PackageError(
            f"{where}: a nested block takes {len(block.inputs)} inputs, expected {len(inputs)}"
        )
    outside = dict(emission.env)
    emission.env.update((i.name, Var(local)) for i, local in zip(block.inputs, inputs, strict=True))
    values = compile_block(emission, block)
    emission.env = outside
    emission.where = where
    return values


def _declare(
    emission: Emission, operation: Operation, values: Sequence[str], used: tuple[str, ...]
) -> list[str]:
    """Fresh locals for the results of a control statement, made outside of it."""
    if len(values) != len(operation.outputs):
        raise PackageError(f"{emission.where} has {len(operation.outputs)} outputs for {len(values)} values")
    results = [emission.local() for _ in values]
    emission.add(f"{packed(results)} = {packed(values)}", (*used, *results), operation)
    return results


def _assign(
    emission: Emission, operation: Operation, targets: list[str], values: list[Value], where: str
) -> None:
    if len(values) != len(targets):
        raise PackageError(f"{where}: a nested block gives {len(values)} values for {len(targets)} outputs")
    written = packed(emission.expression(v) for v in values)
    emission.add(f"{packed(targets)} = {written}", (*targets, *locals_of(values)), operation)


def _truth(emission: Emission, value: Value) -> str:
    return f"bool({emission.expression(value)})"
