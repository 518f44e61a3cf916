"""What a report says: a build's manifest and its receipt, held against each other.

Nothing in a receipt is believed for being written there. A verdict counts as passed only if its own
figures say so, at the bounds of the model's gate file, about the bytes that lie in the build; and a
build without a receipt fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from coreproof.backends.device import Measured
from coreproof.blame import Suspect
from coreproof.catalog import ModelParts
from coreproof.errors import JudgedBadError, PackageError
from coreproof.evidence.check import byte_faults, load_receipt, number, verdict_faults
from coreproof.evidence.proof import origin_faults
from coreproof.evidence.seal import seal
from coreproof.files import sha256_of
from coreproof.package.manifest import MANIFEST, Manifest, PackageRecord, check_files, load_manifest
from coreproof.parity.gates import Gates, Verdict, load_gates

_MOST = 20  # problems of one check

Columns = Mapping[str, Mapping[str, tuple[float | None, ...]]]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that the evidence must have in order. ``what`` says it as it should be."""

    what: str
    problems: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.problems


@dataclass(frozen=True, slots=True)
class PackageFacts:
    """One package of the build; what is empty or None where no receipt speaks of it. ``judged_as``: the
    variant whose gates judge it, None for its own; then it is on record and fails no build. ``metrics``:
    output -> metric -> one value a case, None where it was not measured."""

    record: PackageRecord
    digest: str
    size: int
    judged_as: str | None = None
    mode: str | None = None
    cases: tuple[str, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    problems: tuple[str, ...] = ("no receipt speaks of this package: it was not judged",)
    suspects: tuple[Suspect, ...] = ()
    metrics: Columns = ()  # type: ignore[assignment]

    @property
    def passed(self) -> bool:
        return bool(self.verdicts) and not self.problems and all(v.passed for v in self.verdicts)


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that all forms of a report say. ``machine``, ``provenance`` and ``measured``, what devices
    told of packages of the build, are the receipt's."""

    manifest: Manifest
    backend: str
    machine: Mapping[str, Any]
    provenance: Mapping[str, Any]
    checks: tuple[Check, ...]
    excitations: tuple[Verdict, ...]
    packages: tuple[PackageFacts, ...]
    measured: tuple[Measured, ...] = ()

    @property
    def shipping(self) -> tuple[PackageFacts, ...]:
        """The packages whose failing fails the build."""
        return tuple(p for p in self.packages if p.judged_as is None)

    @property
    def passed(self) -> bool:
        return (
            bool(self.shipping)
            and all(c.passed for c in self.checks)
            and all(v.passed for v in self.excitations)
            and all(p.passed for p in self.shipping)
        )


def gather(build: Path, parts: ModelParts, backend: str) -> Facts:
    """The facts about the build folder ``build`` and its receipt by ``backend``.

    Raises PackageError for a malformed manifest or receipt, GateError for a bad gate file. Everything
    else that is not in order is a failing check.
    """
    manifest = load_manifest(build)
    gates = load_gates(parts.gates)
    files = Check(
        "every file of the build is the one that coreproof.json lists", _file_problems(build, manifest)
    )
    path = build / f"receipt-{backend}.json"
    if not path.is_file():
        missing = f"{path.name} is missing; run coreproof validate --backend {backend}"
        checks = (Check(f"there is a receipt of backend {backend}", (missing,)), files)
        return Facts(manifest, backend, {}, {}, checks, (), tuple(_unjudged(manifest, gates)))
    content = load_receipt(path)
    try:
        origin = Check(
            "the receipt is as it was written, with this manifest, gate file and suite",
            (*_unsealed(content), *origin_faults(content, sha256_of(build / MANIFEST), parts)),
        )
        return _facts(content, manifest, backend, gates, (files, origin))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise PackageError(
            f"{path}: lacks what a receipt has ({type(error).__name__}: {error}); run coreproof validate again"
        ) from None


def _facts(
    content: Mapping[str, Any], manifest: Manifest, backend: str, gates: Gates, checks: tuple[Check, ...]
) -> Facts:
    entries = {entry["package"]: entry for entry in content["packages"]}
    excitations = tuple(_verdict(v) for v in content["excitations"])
    packages = tuple(
        _package(entries[p.record.package], p) if p.record.package in entries else p
        for p in _unjudged(manifest, gates)
    )
    wrong = () if content["backend"] == backend else (f"it is of backend {content['backend']!r}",)
    checks = (
        Check(f"there is a receipt of backend {backend}", wrong),
        *checks,
        Check("the receipt is of these very bytes", _first(byte_faults(content, manifest))),
        Check(
            "its verdicts follow from its figures at the gate file's bounds",
            _first(verdict_faults(content, gates)),
        ),
    )
    provenance = content["fixture"]["provenance"]
    machine, lines = dict(content["machine"]), tuple(_measured(m) for m in content.get("measured", ()))
    return Facts(manifest, backend, machine, dict(provenance), checks, excitations, packages, lines)


def _file_problems(build: Path, manifest: Manifest) -> tuple[str, ...]:
    try:
        check_files(build, manifest)
    except JudgedBadError as error:
        return (str(error).removeprefix(f"{build}: "),)
    return ()


def _unsealed(content: Mapping[str, Any]) -> tuple[str, ...]:
    edited = "seal" in content and content["seal"] != seal(content)
    return ("it was edited after it was written: its seal is of another content",) if edited else ()


def _first(faults: Iterator[str]) -> tuple[str, ...]:
    """The first of them; one wrong figure can be behind thousands."""
    return tuple(islice(faults, _MOST))


def _unjudged(manifest: Manifest, gates: Gates) -> list[PackageFacts]:
    return [
        PackageFacts(
            record,
            manifest.package_digest(record.package),
            sum(f.size for f in manifest.package_files(record.package)),
            gates.recorded.get(record.variant),
            metrics={},
        )
        for record in manifest.packages
    ]


def _package(entry: Mapping[str, Any], of: PackageFacts) -> PackageFacts:
    cases = tuple(_text(case) for case in entry["cases"])
    metrics = {
        output: {metric: _column(values, len(cases)) for metric, values in sorted(columns.items())}
        for output, columns in sorted(entry["metrics"].items())
    }
    return PackageFacts(
        of.record,
        of.digest,
        of.size,
        of.judged_as,
        None if entry["mode"] is None else _text(entry["mode"]),
        cases,
        tuple(_verdict(v) for v in entry["gates"]),
        tuple(_text(p) for p in entry["problems"]),
        tuple(_suspect(s) for s in entry["suspects"]),
        metrics,
    )


def _column(values: Sequence[Any], cases: int) -> tuple[float | None, ...]:
    if len(values) != cases:
        raise ValueError(f"{len(values)} values for {cases} cases")
    return tuple(None if v is None else number(v) for v in values)


def _verdict(entry: Mapping[str, Any]) -> Verdict:
    kind: Any = next(k for k in ("output", "aggregate", "excitation", "") if k in entry or not k)
    side: Any = "max" if "max" in entry else "min"
    bound, value = (None if entry[key] is None else number(entry[key]) for key in (side, "value"))
    within = value is not None and bound is not None and (value >= bound if side == "min" else value <= bound)
    return Verdict(
        kind=kind,
        name=_text(entry[kind]),
        metric=_text(entry["metric"]) if "metric" in entry else None,
        side=side,
        bound=bound,
        value=value,
        passed=entry["passed"] is True and within,
        detail=_text(entry["detail"]),
        case=None if entry["case"] is None else _text(entry["case"]),
        controls=tuple(_text(c) for c in entry["controls"]),
    )


def _suspect(entry: Mapping[str, Any]) -> Suspect:
    return Suspect(
        _text(entry["op"]),
        _text(entry["name"]),
        _text(entry["output"]),
        number(entry["error"]),
        entry["creates_nonfinite"] is True,
        tuple(_text(w) for w in entry["weights"]),
    )


def _measured(entry: Mapping[str, Any]) -> Measured:
    package, device, system, units = (
        _text(entry[key]) for key in ("package", "device", "system", "compute_units")
    )
    load, first, median, p90 = (number(entry[f"{key}_ms"]) for key in ("load", "first", "median", "p90"))
    placement = {_text(kind): int(number(ops)) for kind, ops in entry["placement"].items()}
    predictions = int(number(entry["predictions"]))
    return Measured(package, device, system, units, load, first, predictions, median, p90, placement)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def label(verdict: Verdict) -> str:
    """A gate's name for people: the output and its metric, or the aggregate."""
    return f"{verdict.name} {verdict.metric}" if verdict.metric else verdict.name
