"""Small faults to plant in a module, one at a time, on its syntax tree."""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
_TURNED = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
"""Comparisons whose replacement already is their negation."""
_NAMES = {
    "floor": "ceil", "ceil": "floor", "round": "floor", "min": "max", "max": "min", "amin": "amax",
    "amax": "amin", "argmin": "argmax", "argmax": "argmin", "triu": "tril", "tril": "triu",
    "minimum": "maximum", "maximum": "minimum", "any": "all", "all": "any", "sqrt": "square",
}  # fmt: skip
_WITHOUT_EFFECT = {"moves", "maxsize", "device"}
"""Keywords that change speed or where a tensor lies, never a result on the CPU: an op that ``moves``
has representable results, which rounding leaves as they are."""
_REGISTERS = {"op", "add", "Param"}
"""Calls whose strings are names that coremltools' registry fixes: no fault in them could stay hidden."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """``index``: its place among the module's mutants. ``code``: the line it changes, stripped. ``nth``: its
    place among those of the same code that change the same text in the same way."""

    family: str
    index: int
    line: int
    code: str
    before: str
    after: str
    nth: int = 0


def mutants(family: str, source: str) -> list[Mutant]:
    """Every mutant of a module, in the order of its source."""
    finder = _Mutator(None)
    finder.visit(ast.parse(source))
    lines = source.splitlines()
    seen: Counter[tuple[str, str, str]] = Counter()
    result = []
    for index, (line, before, after) in enumerate(finder.found):
        alike = lines[line - 1].strip(), before, after
        result.append(Mutant(family, index, line, *alike, seen[alike]))
        seen[alike] += 1
    return result


def mutated(source: str, index: int) -> ast.Module:
    """The syntax tree of the module with mutant ``index`` planted. Raises IndexError."""
    planter = _Mutator(index)
    tree = planter.visit(ast.parse(source))
    if len(planter.found) <= index:
        raise IndexError(f"the module has {len(planter.found)} mutants, not {index + 1}")
    return ast.fix_missing_locations(tree)


class _Mutator(ast.NodeTransformer):
    """Offers every fault it knows; plants the one whose number is ``wanted``."""

    def __init__(self, wanted: int | None) -> None:
        self.wanted = wanted
        self.found: list[tuple[int, str, str]] = []
        self.bound: set[str] = set()
        self.inside = False  # a function

    def _offer(self, node: Any, faults: Iterable[ast.AST]) -> Any:
        """``node``, or the fault that is wanted."""
        chosen = node
        for fault in faults:
            if len(self.found) == self.wanted:
                chosen = ast.copy_location(fault, node)
            self.found.append((node.lineno, _text(node), _text(fault)))
        return chosen

    # Places where a fault would say nothing: annotations, documentation, messages.

    def visit_Import(self, node: ast.Import) -> ast.AST:
        return node

    visit_ImportFrom = visit_JoinedStr = visit_Import

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        if isinstance(node.value, ast.Constant):
            return node
        self.generic_visit(node)
        return self._offer(node, [ast.Pass()] if self.inside else [])

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is not None:
            node.value = self.visit(node.value)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.body = [self.visit(statement) for statement in node.body]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        outside, given = (self.bound, self.inside), node.args
        given.defaults = [self.visit(d) for d in given.defaults]
        node.decorator_list = [self.visit(d) for d in node.decorator_list]
        self.bound, self.inside = {a.arg for a in (*given.args, *given.kwonlyargs)}, True
        node.body = [self.visit(statement) for statement in node.body]
        self.bound, self.inside = outside
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return self._offer(node, [ast.Pass()])

    def visit_If(self, node: ast.If) -> ast.AST:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return node
        self.generic_visit(node)
        node.test = self._offer(node.test, _negated(node.test))
        return node

    # The faults.

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self.generic_visit(node)
        node.test = self._offer(node.test, _negated(node.test))
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        node.value = self.visit(node.value)
        names = {n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
        again = names <= self.bound and self.inside
        self.bound |= names
        return self._offer(node, [ast.Pass()] if again else [])

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        self.generic_visit(node)
        faults: list[ast.AST] = [ast.Pass()]
        if type(node.op) in _OPERATORS:
            faults.append(ast.AugAssign(node.target, _OPERATORS[type(node.op)](), node.value))
        return self._offer(node, faults)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        return self._offer(node, _with_other_operator(node, [node.op]))

    visit_BoolOp = visit_BinOp

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        return self._offer(node, _with_other_operator(node, node.ops))

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        return self._offer(node, [node.operand])

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return self._offer(node, [ast.Constant(v) for v in _others(node.value)])

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        other = _NAMES.get(node.attr)
        return self._offer(node, [ast.Attribute(node.value, other, node.ctx)] if other else [])

    def visit_Dict(self, node: ast.Dict) -> ast.AST:
        node.values = [self.visit(v) for v in node.values]
        for place, value in enumerate(node.values):
            follower = node.values[(place + 1) % len(node.values)]
            if isinstance(value, ast.Attribute) and ast.dump(value) != ast.dump(follower):
                node.values[place] = self._offer(value, [copy.deepcopy(follower)])
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        registers = isinstance(node.func, ast.Name) and node.func.id in _REGISTERS
        node.func = self.visit(node.func)
        node.args = [a if registers and _is_text(a) else self.visit(a) for a in node.args]
        for place, keyword in enumerate(node.keywords):
            if keyword.arg in _WITHOUT_EFFECT or (registers and _is_text(keyword.value)):
                continue
            keyword.value = self.visit(keyword.value)
            rest = node.keywords[:place] + node.keywords[place + 1 :]
            if not isinstance(keyword.value, ast.Constant):
                node = self._offer(node, [ast.Call(node.func, node.args, rest)])
        return node


def _with_other_operator(node: ast.AST, operators: Sequence[ast.AST]) -> Iterator[ast.AST]:
    for place, operator in enumerate(operators):
        if type(operator) in _OPERATORS:
            fault = copy.deepcopy(node)
            other = _OPERATORS[type(operator)]()
            if isinstance(fault, ast.Compare):
                fault.ops[place] = other
            else:
                fault.op = other
            yield fault


def _negated(test: ast.expr) -> list[ast.AST]:
    """The opposite of a condition, unless another fault of it already is."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return []
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], _TURNED):
        return []
    return [ast.UnaryOp(ast.Not(), copy.deepcopy(test))]


def _others(value: object) -> list[object]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1]
    return [f"{value}_"] if isinstance(value, str) else []


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _text(node: ast.AST) -> str:
    return ast.unparse(ast.fix_missing_locations(copy.deepcopy(node)))
