"""A generated function in the making: its lines, its constants and the names in scope."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np

from coreproof.errors import PackageError
from coreproof.mil.program import Binding, Blob, Immediate, Operation, Ref
from coreproof.runtime.constants import Known, Lazy, from_immediate, weight
from coreproof.runtime.layout import Line, Scope
from coreproof.runtime.reuse import Reuse

# Called after each op with its results and its inputs by MIL argument name; control flow, whose
# nested ops report themselves, has none.
Hook = Callable[[Operation, tuple[Any, ...], Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Var:
    """A value computed at run time, under a local name of the generated code."""

    local: str


Value = Known | Lazy | Var


@dataclass(slots=True)
class Emission:
    """``env`` maps MIL names to values, ``namespace`` the generated code's globals to objects.
    ``where`` is the op under way, for messages; ``folded`` counts the elements that folding has added."""

    function: str
    opset: str
    mode: str
    read: Callable[[Blob], np.ndarray]
    release: Callable[[Blob], None]
    hook: Hook | None
    reuse: Reuse
    where: str = ""
    folded: int = 0
    env: dict[str, Value] = field(default_factory=dict)
    namespace: dict[str, Any] = field(default_factory=dict)
    lazy: list[Lazy] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    scope: Scope = ()
    numbers: Iterator[int] = field(default_factory=count)

    def add(self, text: str, touches: Iterable[str], operation: Operation) -> None:
        """Append a statement in the present scope."""
        self.lines.append(Line(text, tuple(touches), operation, self.scope))

    def local(self) -> str:
        """A fresh local name."""
        return f"v{next(self.numbers)}"

    def bind(self, prefix: str, value: Any) -> str:
        """A fresh global name for ``value``."""
        name = f"{prefix}{len(self.namespace)}"
        self.namespace[name] = value
        return name

    def look_up(self, name: str) -> Value:
        """What the MIL name stands for. Raises PackageError."""
        value = self.env.get(name)
        if value is None:
            raise PackageError(f"{self.where} refers to {name!r}, which nothing before it defines")
        return value

    def value(self, binding: Binding) -> Value:
        """What an argument's binding stands for. Raises PackageError."""
        return self.look_up(binding.name) if isinstance(binding, Ref) else self.constant(binding)

    def constant(self, value: Immediate | Blob) -> Known | Lazy:
        """A value of the program itself, or a weight that is read when first needed."""
        if isinstance(value, Immediate):
            return from_immediate(value)
        lazy = Lazy(self.bind("w", None), lambda: weight(value, self.read, self.release))
        self.lazy.append(lazy)
        return lazy

    def expression(self, value: Value) -> str:
        """How the generated code writes ``value``."""
        if isinstance(value, Var):
            return value.local
        return value.slot if isinstance(value, Lazy) else self.literal(value.data)

    def literal(self, value: Any) -> str:
        """How the generated code writes a Python value: itself, or a global that holds it."""
        if isinstance(value, bool | int | str) or value is None:
            return repr(value)
        return self.bind("c", value)

    def finish(
        self, operation: Operation, results: list[str], inputs: Mapping[str, str], used: Iterable[str]
    ) -> None:
        """Make the op's results known under their MIL names, and tell the hook, where there is one."""
        self.env.update((o.name, Var(local)) for o, local in zip(operation.outputs, results, strict=True))
        if self.hook:
            given = ", ".join(f"{name!r}: {expression}" for name, expression in inputs.items())
            call = f"hook({self.bind('operation', operation)}, {packed(results)}, {{{given}}})"
            self.add(call, (*results, *used), operation)


def locals_of(values: Iterable[Value]) -> tuple[str, ...]:
    """The local names among ``values``."""
    return tuple(v.local for v in values if isinstance(v, Var))


def packed(items: Iterable[str]) -> str:
    """A tuple of expressions, as source."""
    return f"({''.join(f'{item}, ' for item in items)})"
