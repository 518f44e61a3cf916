"""The text of a generated function: indentation, and values dropped after their last use."""

from __future__ import annotations

from dataclasses import dataclass

from coreproof.mil.program import Operation

Scope = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """One statement, the locals it touches, the op it belongs to and where it lies.

    ``scope`` names the enclosing control statements from the outermost inwards, two numbers each:
    the statement's own and that of its branch or body. A header (``if``, ``else``, ``while``) has its
    statement's number without the second. Numbers are unique in a function.
    """

    text: str
    touches: tuple[str, ...]
    operation: Operation
    scope: Scope = ()


def layout(lines: list[Line], arguments: list[str], kept: set[str]) -> tuple[str, dict[int, Operation]]:
    """The function's body and the operation of each of its lines (line 1 is the ``def``).

    A local is dropped with ``del`` after its last use, or, when that is inside a control statement
    the local was made outside of, after that statement: a loop may come back to it, another branch
    may need it. ``arguments`` are made before the first line; what is in ``kept`` stays.
    """
    drop = _drops(lines, arguments, kept)
    body: list[str] = []
    numbers: dict[int, Operation] = {}
    for index, line in enumerate(lines):
        body.append(f"{_indent(line.scope)}{line.text}\n")
        numbers[len(body) + 1] = line.operation
        for scope, names in sorted(drop.get(index, {}).items(), key=lambda d: -len(d[0])):
            body.append(f"{_indent(scope)}del {', '.join(names)}\n")
    return "".join(body), numbers


def _drops(lines: list[Line], arguments: list[str], kept: set[str]) -> dict[int, dict[Scope, list[str]]]:
    """After which line, and in which scope, which locals go."""
    home: dict[str, Scope] = dict.fromkeys(arguments, ())
    last: dict[str, int] = {}
    for index, line in enumerate(lines):
        for name in line.touches:
            home.setdefault(name, line.scope)
            last[name] = index
    drops: dict[int, dict[Scope, list[str]]] = {}
    for name, index in last.items():
        if name not in kept:
            drops.setdefault(_end(lines, index, home[name]), {}).setdefault(home[name], []).append(name)
    return drops


def _end(lines: list[Line], index: int, home: Scope) -> int:
    """The last line of the control statement in ``home`` that line ``index`` is part of; ``index``
    itself when it is part of none."""
    statement = lines[index].scope[: len(home) + 1]
    if len(statement) == len(home):
        return index
    while index + 1 < len(lines) and lines[index + 1].scope[: len(home) + 1] == statement:
        index += 1
    return index


def _indent(scope: Scope) -> str:
    return "    " * (len(scope) // 2 + 1)
