"""Whether two models are the same program, and where and by how much they differ.

Names are not part of the mathematics: values and ops are paired by what flows into them, so what a
converter or compiler renamed is counted, no more. Nor is how a constant is stored: in the program,
in a weight file, at which offset. Versions, ``buildInfo`` and other metadata are listed on their own
and do not make two programs differ; the opset and the declared features do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from coreproof.jsonio import json_number
from coreproof.mil.contract import Contract, Feature, read_contract
from coreproof.mil.matching import Difference, Match, match
from coreproof.mil.program import Immediate, Program
from coreproof.mil.types import DictType
from coreproof.mil.values import Change, Values
from coreproof.mil.weights import weights
from coreproof.package.reader import Package, open_package

_OWN = ("shortDescription", "author", "license", "versionString")


@dataclass(frozen=True, slots=True)
class Comparison:
    """``differences`` come in program order, functions by name. ``operations`` are the ops found in
    both, ``renamed`` those of them, and features, with another name. ``weights`` counts the stored
    constants of either; ``metadata`` is (key, first, second) of what differs there."""

    differences: tuple[Difference, ...]
    functions: int
    operations: int
    renamed: int
    weights: tuple[int, int]
    metadata: tuple[tuple[str, str, str], ...]

    @property
    def same(self) -> bool:
        return not self.differences

    @property
    def max_abs(self) -> float:
        """The largest absolute difference of any constant; NaN where NaN stands against a number."""
        sizes = [d.change.max_abs for d in self.differences if d.change.max_abs is not None]
        return next((s for s in sizes if s != s), max(sizes, default=0.0))

    def to_json(self) -> dict[str, Any]:
        differences = []
        for difference in self.differences:
            change = asdict(difference.change)
            if change["max_abs"] is not None:
                change["max_abs"] = json_number(change["max_abs"])
            differences.append({**asdict(difference), "change": change})
        return {
            **asdict(self),
            "differences": differences,
            "same": self.same,
            "max_abs": json_number(self.max_abs),
        }


def diff(first: Path, second: Path) -> Comparison:
    """Compare the models at two paths, each a package, a compiled model or a bare spec. Needs neither
    torch nor coremltools.

    Raises PackageError for one that is malformed or no ML program.
    """
    one, other = open_package(first), open_package(second)
    for package in (one, other):
        package.check()
    values = Values(one.weights.array, other.weights.array)
    found: list[Difference] = []
    matches: list[Match] = []
    for mine, yours in _functions(one.program, other.program):
        if mine is None or yours is None:
            name, which = (mine, "first") if mine is not None else (yours, "second")
            found.append(
                Difference("function", name or "", "", "", "", Change(f"function only in the {which}"))
            )
            continue
        matches.append(match(one.program.functions[mine], other.program.functions[yours], values))
        contracts = (read_contract(p.description, n) for p, n in ((one, mine), (other, yours)))
        found += [*_features(mine, *contracts), *matches[-1].differences]
    return Comparison(
        tuple(found),
        len(matches),
        sum(m.operations for m in matches),
        sum(m.renamed for m in matches),
        (len(list(weights(one.program))), len(list(weights(other.program)))),
        tuple(_metadata(one, other)),
    )


def _functions(first: Program, second: Program) -> Iterator[tuple[str | None, str | None]]:
    """Names of functions to compare: of equal name, or the only ones there are."""
    if len(first.functions) == len(second.functions) == 1:
        yield next(iter(first.functions)), next(iter(second.functions))
        return
    for name in sorted(first.functions.keys() | second.functions.keys()):
        yield name if name in first.functions else None, name if name in second.functions else None


def _features(function: str, first: Contract, second: Contract) -> Iterator[Difference]:
    """What the declared features differ in; those of another name are told by the program."""
    for kind in ("inputs", "outputs", "states"):
        there = {f.name: f for f in getattr(second, kind)}
        for feature in getattr(first, kind):
            if feature.name in there and (what := _feature(feature, there[feature.name])):
                where = f"{kind.removesuffix('s')} {feature.name!r}"
                yield Difference("feature", function, "", "", where, Change(what))


def _feature(first: Feature, second: Feature) -> str:
    pairs = ((f.name, getattr(first, f.name), getattr(second, f.name)) for f in fields(Feature))
    return "; ".join(f"{name} {one}, {other}" for name, one, other in pairs if one != other)


def _metadata(first: Package, second: Package) -> Iterator[tuple[str, str, str]]:
    ours, theirs = _described(first), _described(second)
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            yield key, ours.get(key, ""), theirs.get(key, "")


def _described(package: Package) -> dict[str, str]:
    metadata = package.description.metadata
    known = {
        "specification version": str(package.specification_version),
        **{key: getattr(metadata, key) for key in _OWN},
        **dict(metadata.userDefined),
        **_attributes("", package.program.attributes),
    }
    for name, function in package.program.functions.items():
        known.update(_attributes(f"function {name}: ", function.attributes))
    return known


def _attributes(prefix: str, attributes: Mapping[str, Any]) -> dict[str, str]:
    known = {}
    for name, value in attributes.items():
        if isinstance(value, Immediate) and isinstance(value.type, DictType):
            known.update({f"{prefix}{name} {key}": str(content) for key, content in value.data})
        else:
            known[f"{prefix}{name}"] = str(value.data) if isinstance(value, Immediate) else str(value)
    return known
