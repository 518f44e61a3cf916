"""Which operations of two functions are the same, found by what flows into them and not by names.

Operations are paired in program order: two are the same when their types agree and every input comes
from operations that are the same already. Constants are no operations here but arguments, compared
by value. Where nothing pairs by flow, the operation of the same kind at the same place in the order
is taken instead and what differs between the two is reported, so that one change does not make all
that follows differ.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Hashable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field

from coreproof.mil.alignment import align
from coreproof.mil.program import Binding, Blob, Block, Function, NamedType, Operation, Ref, Value
from coreproof.mil.scopes import constants, require_unique_names
from coreproof.mil.values import Change, Values

_CANDIDATES = 64  # operations with equal inputs that are looked through for the best
_WRITES = "write_state"

Names = MutableMapping[str, str]


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that differs.

    ``kind``: function, feature, opset, op (in one program only, or of another type), type, argument
    (in one only), constant, wiring (from where a value comes), block or order (of a state's reads
    and writes). ``op`` is the operation's name in the program that has it, the first before the
    second, after the operations it lies in; ``weight`` is the name of a stored constant.
    """

    kind: str
    function: str
    op: str
    op_type: str
    argument: str
    change: Change
    weight: str = ""


@dataclass(slots=True)
class Match:
    """What pairing two functions found, in program order. ``operations`` counts the pairs, ``renamed``
    those of them, and inputs and outputs of the functions, whose names differ."""

    differences: list[Difference] = field(default_factory=list)
    operations: int = 0
    renamed: int = 0


def match(first: Function, second: Function, values: Values) -> Match:
    """Pair the operations of two functions.

    Raises PackageError for a weight that cannot be read, and for a function that gives one name to two
    values of which the second is visible where the first is.
    """
    for function in (first, second):
        require_unique_names(function)
    return _Matcher(first, second, values).run()


@dataclass(slots=True)
class _Side:
    """What is known of one program: its constants, the states' versions, who made which value."""

    constants: ChainMap[str, Value] = field(default_factory=ChainMap)
    versions: dict[str, int] = field(default_factory=dict)
    unpaired: set[str] = field(default_factory=set)

    def constant(self, binding: Binding) -> Value | None:
        if isinstance(binding, Ref):
            return self.constants.get(binding.name)
        return binding


class _Matcher:
    def __init__(self, first: Function, second: Function, values: Values) -> None:
        self._functions = (first, second)
        self._values = values
        self._sides = (_Side(), _Side())
        self._match = Match()
        self._wiring: list[tuple[Difference, str]] = []

    def run(self) -> Match:
        first, second = self._functions
        if first.opset != second.opset:
            self._report("opset", None, "", f"opset {first.opset}, {second.opset}")
        names: Names = self._inputs(first.inputs, second.inputs, by_name=True)
        for side, function in zip(self._sides, self._functions, strict=True):
            side.constants = ChainMap(constants(function.block))
        self._operations(first.block, second.block, names, "")
        outputs = self._output_pairs(first.block.outputs, second.block.outputs)
        for one, other in outputs:
            self._match.renamed += one != other
            self._bindings(None, f"output {one!r}", (Ref(one),), (Ref(other),), names)
        dropped = {id(d) for d, name in self._wiring if name in self._sides[1].unpaired}
        self._match.differences = [d for d in self._match.differences if id(d) not in dropped]
        return self._match

    def _output_pairs(self, first: Sequence[str], second: Sequence[str]) -> Iterator[tuple[str, str]]:
        if len(first) != len(second):
            self._report("feature", None, "", f"{len(first)} outputs, {len(second)}")
        if set(first) == set(second):
            return ((name, name) for name in first)
        return zip(first, second, strict=False)

    def _inputs(
        self, first: Sequence[NamedType], second: Sequence[NamedType], by_name: bool
    ) -> dict[str, str]:
        """The names that inputs of the first have in the second: the same, else by position."""
        if len(first) != len(second):
            self._report("feature", None, "", f"{len(first)} inputs, {len(second)}")
        there = {n.name for n in second} if by_name else set()
        here = {n.name for n in first} & there
        names = {name: name for name in here}
        rest = zip(
            (n for n in first if n.name not in here), (n for n in second if n.name not in here), strict=False
        )
        for one, other in rest:
            names[one.name] = other.name
            self._match.renamed += one.name != other.name
        types = {n.name: n.type for n in second}
        for one in first:
            if one.name in names and types[names[one.name]] != one.type:
                self._report("type", None, f"input {one.name!r}", f"{one.type}, {types[names[one.name]]}")
        return names

    def _operations(self, first: Block, second: Block, names: Names, path: str) -> None:
        """Pair the operations of two blocks, adding what they make to ``names``."""
        ours, theirs = (_without_constants(b.operations) for b in (first, second))
        versions, before = [side.versions for side in self._sides], self._match.differences
        for side in self._sides:
            side.versions = {}
        index, keys = self._index(theirs)
        named = {o.name: o for o in ours}
        partners: dict[int, int] | None = None
        paired: dict[int, int] = {}
        found: list[list[Difference]] = [[] for _ in (*ours, None)]
        for here, operation in enumerate(ours):
            self._match.differences = found[here]
            key = self._key(0, operation, names)
            there = None if key is None else self._choose(operation, index.get(key, {}), theirs, named)
            if there is None:
                partners = align(ours, theirs) if partners is None else partners
                there = partners.get(here)
            if there is None or there in paired:
                self._lone(0, operation, path)
            else:
                paired[there] = here
                named.pop(operation.name, None)
                del index[keys[there]][there]
                self._pair(operation, theirs[there], names, path)
                if key not in (None, keys[there]) and not found[here]:
                    self._report("order", operation, "", "another order of reading and writing a state", path)
            self._written(0, operation, names)
        place = 0
        for there, operation in enumerate(theirs):
            place = paired.get(there, place)
            if there not in paired:
                self._match.differences = found[place]
                self._lone(1, operation, path)
        before.extend(d for at in found for d in at)
        self._match.differences = before
        for side, kept in zip(self._sides, versions, strict=True):
            side.versions = kept

    def _lone(self, side: int, operation: Operation, path: str) -> None:
        """Report an operation that only one program has."""
        self._report("op", operation, "", f"only in the {('first', 'second')[side]}", path)
        self._sides[side].unpaired.update(o.name for o in operation.outputs)

    def _index(
        self, operations: Sequence[Operation]
    ) -> tuple[dict[Hashable, dict[int, None]], list[Hashable]]:
        """The operations of the second program by what flows into them, in order; and each one's key."""
        index: dict[Hashable, dict[int, None]] = {}
        keys = []
        for number, operation in enumerate(operations):
            keys.append(self._key(1, operation, None))
            index.setdefault(keys[-1], {})[number] = None
            self._written(1, operation, None)
        return index, keys

    def _key(self, side: int, operation: Operation, names: Names | None) -> Hashable | None:
        """The kind of an operation and where its inputs come from, in the second program's names; None
        when an input has no counterpart there."""
        parts: list[Hashable] = [operation.type, len(operation.outputs), len(operation.blocks)]
        for name, bindings in sorted(_arguments(operation).items()):
            parts.append(name)
            for binding in bindings:
                if not isinstance(binding, Ref) or self._sides[side].constant(binding) is not None:
                    parts.append(None)
                    continue
                source = binding.name if names is None else names.get(binding.name)
                if source is None:
                    return None
                parts.append((source, self._sides[side].versions.get(source, 0)))
        return (*parts, *self._states_inside(side, operation, names))

    def _states_inside(self, side: int, operation: Operation, names: Names | None) -> list[tuple[str, int]]:
        """The states, written before, that blocks of ``operation`` use, each with its version."""
        nested = (o for b in operation.blocks for o in b.walk())
        used = {b.name for o in nested for bs in o.inputs.values() for b in bs if isinstance(b, Ref)}
        there = used if names is None else {names.get(name, "") for name in used}
        versions = self._sides[side].versions
        return sorted((name, versions[name]) for name in there if name in versions)

    def _written(self, side: int, operation: Operation, names: Names | None) -> None:
        """Note the states that ``operation`` writes: what reads them later reads something else."""
        nested = (o for b in operation.blocks for o in b.walk())
        for writer in (o for o in (operation, *nested) if o.type == _WRITES):
            for binding in writer.inputs.get("input", ()):
                if isinstance(binding, Ref):
                    name = binding.name if names is None else names.get(binding.name, "")
                    versions = self._sides[side].versions
                    versions[name] = versions.get(name, 0) + 1

    def _choose(
        self,
        operation: Operation,
        candidates: Mapping[int, None],
        theirs: Sequence[Operation],
        ours: Mapping[str, Operation],
    ) -> int | None:
        """The best of the candidates: one with equal constants, if it has the same name or is not what
        an operation of its own name wants; then one of the same name."""
        if len(candidates) < 2:
            return next(iter(candidates), None)
        best: tuple[tuple[bool, bool, bool], int] | None = None
        for number, _ in zip(candidates, range(_CANDIDATES), strict=False):
            other = theirs[number]
            alike, same = self._alike(operation, other), operation.name == other.name
            namesake = ours.get(other.name)
            wanted = namesake is not None and not same and self._alike(namesake, other)
            score = (alike and not wanted, same, alike)
            if best is None or score > best[0]:
                best = (score, number)
            if alike and same:
                break
        return best[1] if best else None

    def _alike(self, first: Operation, second: Operation) -> bool:
        """Whether two operations are of one type and their constant arguments are the same bits."""
        ours, theirs = _arguments(first), _arguments(second)
        if first.type != second.type or ours.keys() != theirs.keys():
            return False
        pairs = ((a, b) for name in ours for a, b in zip(ours[name], theirs[name], strict=False))
        constants = ((self._sides[0].constant(a), self._sides[1].constant(b)) for a, b in pairs)
        return all(a is None or b is None or self._values.alike(a, b) for a, b in constants)

    def _pair(self, first: Operation, second: Operation, names: Names, path: str) -> None:
        """Report what differs between two paired operations."""
        self._match.operations += 1
        outputs = list(zip(first.outputs, second.outputs, strict=False))
        named = [(first.name, second.name), *((a.name, b.name) for a, b in outputs)]
        self._match.renamed += any(a != b for a, b in named)
        if first.type != second.type:
            self._report("op", first, "", f"is {second.type} in the second", path)
        if len(first.outputs) != len(second.outputs):
            self._report("op", first, "", f"{len(first.outputs)} results, {len(second.outputs)}", path)
        for one, other in outputs:
            if one.type != other.type:
                self._report("type", first, f"result {one.name!r}", f"{one.type}, {other.type}", path)
        ours, theirs = _arguments(first), _arguments(second)
        for name in sorted(ours.keys() | theirs.keys()):
            if name in ours and name in theirs:
                self._bindings(first, name, ours[name], theirs[name], names, path)
            else:
                which = "first" if name in ours else "second"
                self._report("argument", first, name, f"only in the {which}", path)
        self._blocks(first, second, names, path)
        names.update((a.name, b.name) for a, b in outputs)

    def _blocks(self, first: Operation, second: Operation, names: Names, path: str) -> None:
        if len(first.blocks) != len(second.blocks):
            self._report("block", first, "", f"{len(first.blocks)} blocks, {len(second.blocks)}", path)
        for number, (one, other) in enumerate(zip(first.blocks, second.blocks, strict=False)):
            inside = f"{path}{first.name} block {number} / "
            inner: Names = ChainMap(self._inputs(one.inputs, other.inputs, by_name=False), names)
            kept = [side.constants for side in self._sides]
            for side, block in zip(self._sides, (one, other), strict=True):
                side.constants = side.constants.new_child(constants(block))
            self._operations(one, other, inner, inside)
            if len(one.outputs) != len(other.outputs):
                self._report(
                    "block", first, "", f"{len(one.outputs)} outputs of a block, {len(other.outputs)}", path
                )
            for index, (a, b) in enumerate(zip(one.outputs, other.outputs, strict=False)):
                what = f"output {index} of block {number}"
                self._bindings(first, what, (Ref(a),), (Ref(b),), inner, path)
            for side, outer in zip(self._sides, kept, strict=True):
                side.constants = outer

    def _bindings(
        self,
        operation: Operation | None,
        argument: str,
        first: Sequence[Binding],
        second: Sequence[Binding],
        names: Names,
        path: str = "",
    ) -> None:
        if len(first) != len(second):
            self._report("argument", operation, argument, f"{len(first)} values, {len(second)}", path)
        for one, other in zip(first, second, strict=False):
            mine, yours = self._sides[0].constant(one), self._sides[1].constant(other)
            if mine is not None and yours is not None:
                self._constants(operation, argument, (one, mine), yours, path)
            elif mine is not None or yours is not None:
                self._report(
                    "wiring", operation, argument, f"{_source(one, mine)}, {_source(other, yours)}", path
                )
            elif isinstance(one, Ref) and isinstance(other, Ref):
                self._wires(operation, argument, one.name, other.name, names, path)

    def _wires(
        self, operation: Operation | None, argument: str, first: str, second: str, names: Names, path: str
    ) -> None:
        if names.get(first) == second or first in self._sides[0].unpaired:
            return
        made = self._report("wiring", operation, argument, f"from {first!r}, {second!r}", path)
        self._wiring.append((made, second))

    def _constants(
        self,
        operation: Operation | None,
        argument: str,
        first: tuple[Binding, Value],
        second: Value,
        path: str,
    ) -> None:
        binding, value = first
        change = self._values.compare(value, second)
        if change is not None:
            stored = isinstance(value, Blob) or isinstance(second, Blob)
            owner = f"{operation.name}." if operation else ""
            name = binding.name if isinstance(binding, Ref) else f"{owner}{argument}"
            self._report("constant", operation, argument, change, path, name if stored else "")

    def _report(
        self,
        kind: str,
        operation: Operation | None,
        argument: str,
        change: Change | str,
        path: str = "",
        weight: str = "",
    ) -> Difference:
        name, type_ = (f"{path}{operation.name}", operation.type) if operation else ("", "")
        change = Change(change) if isinstance(change, str) else change
        made = Difference(kind, self._functions[0].name, name, type_, argument, change, weight)
        self._match.differences.append(made)
        return made


def _without_constants(operations: Iterable[Operation]) -> list[Operation]:
    return [o for o in operations if o.type != "const"]


def _arguments(operation: Operation) -> dict[str, tuple[Binding, ...]]:
    """Arguments and attributes, but for the op's name: before iOS 18 a constexpr has the latter only."""
    attributes = {n: (v,) for n, v in operation.attributes.items() if n != "name"}
    return {**attributes, **operation.inputs}


def _source(binding: Binding, value: Value | None) -> str:
    if value is not None:
        stored = "weight" if isinstance(value, Blob) else "constant"
        return f"a {stored} of type {value.type}"
    return f"from {binding.name!r}" if isinstance(binding, Ref) else "a value"
