"""Why two exports of one checkpoint are not the same bytes, from coarse to fine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from coreproof.convert.checkpoint import FileDigest
from coreproof.convert.recipe import TensorSpec
from coreproof.diff import Comparison, diff
from coreproof.errors import PackageError
from coreproof.jsonio import json_number
from coreproof.mil.matching import Difference
from coreproof.package.layout import list_files
from coreproof.package.manifest import (
    MANIFEST,
    Manifest,
    PackageRecord,
    WeightRecord,
    digest_files,
    is_unlisted,
)

# What the folder says of itself comes first, then causes before effects.
LEVELS = (
    "pin",
    "files",
    "receipt",
    "toolchain",
    "checkpoint",
    "contract",
    "file",
    "op",
    "weight",
    "manifest",
)

_PIECE = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference. ``level`` is one of LEVELS, ``where`` a file, package or name, ``what`` the words.
    ``max_abs`` is the largest absolute difference of a constant, where numbers were compared."""

    level: str
    where: str
    what: str
    max_abs: float | None = None

    def to_json(self) -> dict[str, Any]:
        size = {} if self.max_abs is None else {"max_abs": json_number(self.max_abs)}
        return {"level": self.level, "where": self.where, "what": self.what, **size}


def explain(build: Path, manifest: Manifest, again: Path, remade: Manifest) -> tuple[Finding, ...]:
    """How the folder ``build``, which ``manifest`` describes, differs from its re-export ``again``.

    Compares the files themselves, whatever ``manifest`` says of them; nothing comes when all bytes
    are the same. Raises PackageError for links and special files.
    """
    found = tuple(_differences(build, manifest, again, remade))
    if not found and manifest.to_bytes() != remade.to_bytes():
        return (Finding("manifest", MANIFEST, "lists the same packages otherwise than its re-export"),)
    return found


def _differences(build: Path, manifest: Manifest, again: Path, remade: Manifest) -> Iterator[Finding]:
    found = digest_files(build, [p for p in list_files(build) if not is_unlisted(p)])
    yield from _toolchain(manifest, remade)
    yield from _checkpoint(manifest, remade)
    yield from _contracts(manifest, remade)
    yield from unequal_files("file", found, remade.files, "the build", "its re-export")
    other = {f.path for f in set(found) ^ set(remade.files)}
    packages = {p.package for p in remade.packages}
    for name in sorted({p.partition("/")[0] for p in other} & packages):
        if (build / name).is_dir():
            yield from _programs(build / name, again / name)
    for path in sorted(p for p in other if p.partition("/")[0] not in packages):
        if (build / path).is_file() and (again / path).is_file():
            yield Finding("file", path, _bytes(build / path, again / path))
    yield from _origins(manifest, remade, unchanged=not other)


def unequal_files(
    level: str, first: Iterable[FileDigest], second: Iterable[FileDigest], one: str, two: str
) -> Iterator[Finding]:
    """A finding for each path that is not the same file in both; ``one`` and ``two`` name the sides."""
    mine, theirs = ({f.path: f for f in files} for files in (first, second))
    for path in sorted(mine.keys() | theirs.keys()):
        if path not in theirs:
            yield Finding(level, path, f"only {one} has it")
        elif path not in mine:
            yield Finding(level, path, f"only {two} has it")
        elif mine[path] != theirs[path]:
            a, b = mine[path], theirs[path]
            sizes = f" ({a.size} and {b.size} bytes)" if a.size != b.size else ""
            yield Finding(level, path, f"sha256 {a.sha256[:12]} in {one}, {b.sha256[:12]} in {two}{sizes}")


def _toolchain(manifest: Manifest, remade: Manifest) -> Iterator[Finding]:
    for name in sorted(manifest.toolchain.keys() | remade.toolchain.keys()):
        then, here = manifest.toolchain.get(name), remade.toolchain.get(name)
        if then != here:
            yield Finding(
                "toolchain", name, f"{then or 'not named'} made the build, {here or 'none'} is here"
            )


def _checkpoint(manifest: Manifest, remade: Manifest) -> Iterator[Finding]:
    yield from _fields("checkpoint", "", asdict(manifest.checkpoint), asdict(remade.checkpoint))


def _contracts(manifest: Manifest, remade: Manifest) -> Iterator[Finding]:
    if manifest.model != remade.model:
        yield Finding(
            "contract", "model", f"{manifest.model!r} in the build, {remade.model!r} in its re-export"
        )
    mine, theirs = ({p.package: p for p in m.packages} for m in (manifest, remade))
    for name in sorted(mine.keys() | theirs.keys()):
        if name not in theirs:
            yield Finding("contract", name, f"the recipe has no such stage ({mine[name].stage!r}) any more")
        elif name not in mine:
            yield Finding("contract", name, "only its re-export has it")
        else:
            yield from _contract(mine[name], theirs[name])


def _contract(mine: PackageRecord, theirs: PackageRecord) -> Iterator[Finding]:
    for kind in ("inputs", "outputs", "states"):
        ours, others = (tuple(map(_feature, getattr(r.contract, kind))) for r in (mine, theirs))
        if ours != others:
            yield Finding(
                "contract",
                mine.package,
                f"{kind} {', '.join(ours) or 'none'} in the build, {', '.join(others) or 'none'} in its re-export",
            )
    fields = ("stage", "variant", "target", "compute_units", "precision", "compression")
    pairs = ({n: _plain(getattr(r, n)) for n in fields} for r in (mine, theirs))
    yield from _fields("contract", mine.package, *pairs)


def _feature(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype}{list(spec.shape)}"


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str) else asdict(value)


def _fields(level: str, where: str, mine: dict[str, Any], theirs: dict[str, Any]) -> Iterator[Finding]:
    for name, value in mine.items():
        if value != theirs[name]:
            both = f"{_short(value)} in the build, {_short(theirs[name])} in its re-export"
            yield Finding(level, where or name, f"{name} {both}" if where else both)


def _programs(mine: Path, theirs: Path) -> Iterator[Finding]:
    """The first op and the first weight that differ between two packages."""
    try:
        found = diff(mine, theirs)
    except PackageError as error:
        yield Finding("op", mine.name, f"cannot be compared: {error}")
        return
    if found.same:
        yield from _stored_otherwise(mine, theirs, found)
        return
    ops = [d for d in found.differences if not d.weight]
    weights = [d for d in found.differences if d.weight]
    for level, differences in (("op", ops), ("weight", weights)):
        if differences:
            yield _first(level, mine.name, differences)


def _first(level: str, package: str, differences: list[Difference]) -> Finding:
    one = differences[0]
    name = one.weight or " ".join(filter(None, (one.op, one.argument))) or f"function {one.function}"
    of = f" ({one.op_type})" if one.op_type else ""
    words = [one.change.what] if one.change.what else []
    if one.change.differing is not None and one.change.max_abs is not None:
        words.append(f"{one.change.differing} of {one.change.elements} elements differ")
        words.append(f"max abs {one.change.max_abs:.4g}")
    rest = len(differences) - 1
    more = f"; and {rest} more {level}{'s' if rest > 1 else ''}" if rest else ""
    sizes = [d.change.max_abs for d in differences if d.change.max_abs is not None]
    largest = next((s for s in sizes if s != s), max(sizes, default=None))
    return Finding(level, package, f"{name}{of}: {'; '.join(words)}{more}", largest)


def _stored_otherwise(mine: Path, theirs: Path, found: Comparison) -> Iterator[Finding]:
    if found.metadata:
        key, ours, others = found.metadata[0]
        more = f"; and {len(found.metadata) - 1} more" if len(found.metadata) > 1 else ""
        words = f"metadata {key!r} is {_short(ours)}, in its re-export {_short(others)}{more}"
        yield Finding("file", mine.name, f"the same program and weights; {words}")
        return
    for path in list_files(mine):
        if (theirs / path).is_file() and (where := _bytes(mine / path, theirs / path)):
            yield Finding(
                "file", f"{mine.name}/{path}", f"the same program and weights, stored otherwise: {where}"
            )


def _bytes(mine: Path, theirs: Path) -> str:
    """Where two files differ, in words; nothing when they are equal."""
    offset, differing, first = 0, 0, None
    with mine.open("rb") as one, theirs.open("rb") as other:
        while True:
            a, b = one.read(_PIECE), other.read(_PIECE)
            if not a and not b:
                break
            if a != b:
                both, longer = min(len(a), len(b)), max(len(a), len(b))
                places = np.flatnonzero(
                    np.frombuffer(a[:both], np.uint8) != np.frombuffer(b[:both], np.uint8)
                )
                first = offset + int(next(iter(places), both)) if first is None else first
                differing += len(places) + longer - both
            offset += max(len(a), len(b))
    return "" if first is None else f"{differing} bytes differ, the first at offset {first}"


def _origins(manifest: Manifest, remade: Manifest, *, unchanged: bool) -> Iterator[Finding]:
    """What the manifest alone says wrongly: of files, and of where weights came from."""
    mine, theirs = ({p.package: p for p in m.packages} for m in (manifest, remade))
    for name in sorted(mine.keys() & theirs.keys()):
        ours, others = ({(w.file, w.offset): w for w in r[name].weights} for r in (mine, theirs))
        for place in sorted(ours.keys() | others.keys()):
            one, other = ours.get(place), others.get(place)
            if one is None or other is None:
                side = "the build" if one else "its re-export"
                yield Finding("manifest", name, f"only {side} has a weight at {place[0]} offset {place[1]}")
                break
            if _described(one, unchanged) != _described(other, unchanged):
                changed = {k: v for k, v in asdict(one).items() if v != asdict(other)[k]}
                key = next(iter(changed))
                both = f"{_short(changed[key])}, its re-export says {_short(asdict(other)[key])}"
                yield Finding("manifest", name, f"weight {one.name}: {key} {both}")
                break
    if unchanged:
        yield from unequal_files("manifest", manifest.files, remade.files, "coreproof.json", "its re-export")


def _described(record: WeightRecord, whole: bool) -> WeightRecord:
    """A record without its content, where the files are known to differ."""
    return record if whole else replace(record, sha256="")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
