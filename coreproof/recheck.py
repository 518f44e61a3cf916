"""The comparison of a receipt, made again: are its figures what this machine measures?

Where the versions and the CPU capability are the receipt's, every figure must be the same number.
Elsewhere vector kernels add in another order. Then every gate's verdict must be identical, and every
metric, as its mean over the cases, within 1 dB or 10 %; in mode fp32, where what is left of an error is
float32's own rounding, within 3 dB or 30 %. One case alone may be off by 6 dB or half.

Measured between torch's kernels without vectors and those of AVX2, on the published MiniLM (268 cases,
two precisions) and a small Magenta RealTime 2: in mode typed means within 0.02 dB and 0.7 %, one case
within 1.4 dB and 41 %; in mode fp32 means within 0.7 dB and 13 %, one case within 2.9 dB and 43 %.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coreproof.catalog import ModelParts
from coreproof.convert.convert import Report
from coreproof.errors import JudgedBadError
from coreproof.evidence.check import check_receipt, number
from coreproof.evidence.receipt import receipt as as_receipt
from coreproof.explain import Finding
from coreproof.jsonio import canonical
from coreproof.package.manifest import Manifest, check_files, load_manifest
from coreproof.parity.gates import load_gates
from coreproof.parity.metrics import METRICS
from coreproof.toolchain import toolchain
from coreproof.validate import validate


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a figure in dB, and the share by which another one, may be off."""

    decibels: float
    share: float

    def of(self, metric: str) -> float:
        return self.decibels if _is_decibels(metric) else self.share

    def text(self, metric: str) -> str:
        if not self.share:
            return "the same number"
        return f"within {self.decibels:g} dB" if _is_decibels(metric) else f"within {100 * self.share:g} %"


EXACT, MEAN, MEAN_FP32, CASE = Tolerance(0, 0), Tolerance(1, 0.1), Tolerance(3, 0.3), Tolerance(6, 0.5)

_MOST_THREADS = 256
_PLACE = ("architecture", "system", "cpu_capability")

Receipt = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rechecked:
    """A receipt's comparison, made again. ``exact``: it had to give the same numbers. ``figures`` counts
    those compared, ``largest`` is the largest relative difference of one, and ``largest_db`` that of one
    in dB."""

    manifest: Manifest
    exact: bool
    why: str
    figures: int
    largest: float
    largest_db: float
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        return self.figures > 0 and not self.findings

    def to_json(self) -> dict[str, Any]:
        return {
            "verdict": "pass" if self.passed else "fail",
            "checked": ["files", "receipt", "comparison"],
            "exact": self.exact,
            "why": self.why,
            "figures": self.figures,
            "largest_relative_difference": self.largest,
            "largest_difference_db": self.largest_db,
            "findings": [f.to_json() for f in self.findings],
        }


def recheck(
    build: Path,
    path: Path,
    parts: ModelParts,
    checkpoint: Path | None,
    fixture: Path | None,
    report: Report,
) -> Rechecked:
    """Run the comparison of the receipt ``path`` on ``build`` again, on as many threads as it was run.

    Nothing is run for a receipt that is not of this build or contradicts itself. ``checkpoint`` and
    ``fixture`` as :func:`coreproof.validate.validate` takes them. Raises PackageError for a manifest or
    receipt that cannot be read, and as ``validate``.
    """
    manifest = load_manifest(build)
    try:
        check_files(build, manifest)
        then = check_receipt(path, manifest, load_gates(parts.gates))
    except JudgedBadError as error:
        return Rechecked(manifest, False, "", 0, 0.0, 0.0, (Finding("receipt", path.name, str(error)),))
    with _threads(then):
        judged = validate(build, parts, then["backend"], checkpoint, fixture, report)
    now: Receipt = json.loads(canonical(as_receipt(judged)))
    return compare(then, now, manifest)


@contextmanager
def _threads(then: Receipt) -> Iterator[None]:
    """As many threads as the receipt says it was made on: sums are split among them."""
    import torch

    asked, here = then["machine"].get("threads"), torch.get_num_threads()
    torch.set_num_threads(asked if type(asked) is int and 1 <= asked <= _MOST_THREADS else here)
    try:
        yield
    finally:
        torch.set_num_threads(here)


def compare(then: Receipt, now: Receipt, manifest: Manifest) -> Rechecked:
    """The receipt ``then`` against ``now``, which this machine just made of the same build."""
    why = _elsewhere(then, now)
    tally = _Tally(exact=not why)
    findings = [*_fixture(then, now), *_verdicts(then, now)]
    for mine, theirs in zip(then["packages"], now["packages"], strict=True):
        findings += tally.columns(mine, theirs)
        own = mine["package"], mine["mode"], mine["aggregates"], theirs["aggregates"]
        findings += tally.single("aggregate", *own)
    values = ({v["excitation"]: v["value"] for v in r["excitations"]} for r in (then, now))
    findings += tally.single("excitation", "excitations", "fp32", *values)
    return Rechecked(manifest, not why, why, tally.figures, tally.largest, tally.largest_db, tuple(findings))


def _elsewhere(then: Receipt, now: Receipt) -> str:
    """Why the figures need not be the very same numbers, in words; nothing when they must."""
    pairs = [(then["toolchain"], toolchain(), sorted(then["toolchain"].keys() | toolchain().keys()))]
    pairs.append((then["machine"], now["machine"], list(_PLACE)))
    reasons = [
        f"{name} {mine.get(name)} then, {here.get(name)} here"
        for mine, here, names in pairs
        for name in names
        if mine.get(name) != here.get(name)
    ]
    if then["fixture"]["sha256"] != now["fixture"]["sha256"]:
        reasons.append("the official implementation was run again")
    return "; ".join(reasons)


def _fixture(then: Receipt, now: Receipt) -> Iterator[Finding]:
    """Expected tensors may have been computed again, but by the same implementation."""
    if then["fixture"]["provenance"] != now["fixture"]["provenance"]:
        yield Finding(
            "receipt", "fixture", "expected values come from another implementation or configuration"
        )


def _verdicts(then: Receipt, now: Receipt) -> Iterator[Finding]:
    pairs = [("excitations", then["excitations"], now["excitations"])]
    pairs += [
        (mine["package"], mine["gates"], theirs["gates"])
        for mine, theirs in zip(then["packages"], now["packages"], strict=True)
    ]
    for where, mine, theirs in pairs:
        for one, other in zip(mine, theirs, strict=True):
            if one["passed"] != other["passed"]:
                name = next(one[k] for k in ("output", "aggregate", "excitation") if k in one)
                said, found = ("pass" if v["passed"] else "fail" for v in (one, other))
                yield Finding(
                    "gate", where, f"{name} {one.get('metric', '')}: {said} in the receipt, {found} here"
                )
    for one, other in zip(then["packages"], now["packages"], strict=True):
        if one.get("ops", other["ops"]) != other["ops"]:
            yield Finding("gate", one["package"], "its op counts are others than the receipt's")
        if one["problems"] != other["problems"]:
            yield Finding("gate", one["package"], "its problems are others than the receipt's")
    if then["verdict"] != now["verdict"]:
        yield Finding("gate", "verdict", f"{then['verdict']} in the receipt, {now['verdict']} here")


class _Tally:
    """Compares figures and keeps count of them."""

    def __init__(self, *, exact: bool) -> None:
        self.exact = exact
        self.figures = 0
        self.largest = 0.0
        self.largest_db = 0.0

    def columns(self, mine: Receipt, theirs: Receipt) -> Iterator[Finding]:
        """The metrics of one package: the same outputs, metrics and cases, and each figure the same."""
        package, mean = mine["package"], _mean(mine["mode"])
        if mine["cases"] != theirs["cases"]:
            yield Finding("metric", package, _lists(mine["cases"], theirs["cases"], "cases"))
            return
        columns = [
            {f"{o} {m}": (m, c) for o, metrics in entry["metrics"].items() for m, c in metrics.items()}
            for entry in (mine, theirs)
        ]
        if columns[0].keys() != columns[1].keys():
            yield Finding("metric", package, _lists([*columns[0]], [*columns[1]], "metrics"))
            return
        for name, (metric, then) in sorted(columns[0].items()):
            both = then, columns[1][name][1]
            yield from self._column(package, name, metric, mean, mine["cases"], both)

    def single(
        self, what: str, where: str, mode: str | None, mine: Receipt, theirs: Receipt
    ) -> Iterator[Finding]:
        """Figures by name, such as aggregates: each a mean of one."""
        if mine.keys() != theirs.keys():
            yield Finding("metric", where, _lists([*mine], [*theirs], f"{what}s"))
            return
        for name in sorted(mine):
            both = [mine[name]], [theirs[name]]
            yield from self._column(where, f"{what} {name}", name, _mean(mode), ["all"], both)

    def _column(
        self, where: str, name: str, metric: str, mean: Tolerance, cases: Sequence[str], both: tuple[Any, Any]
    ) -> Iterator[Finding]:
        """One metric of one output: its figure in every case, and their mean."""
        found: list[tuple[float, str, Any, Any]] = []
        numbers: tuple[list[float], list[float]] = ([], [])
        limit = (EXACT if self.exact else CASE).of(metric)
        for case, then, now in zip(cases, *both, strict=True):
            if then is None or now is None:
                far = 0.0 if then is now else math.inf
            else:
                self.figures += 1
                far = self._distance(metric, number(then), number(now))
                numbers[0].append(number(then))
                numbers[1].append(number(now))
            if not far <= limit:
                found.append((far, case, then, now))
        if found:
            _, case, then, now = max(found, key=lambda f: f[0])
            text = (EXACT if self.exact else CASE).text(metric)
            words = f"{then} in the receipt, {now} here, not {text}; {len(found)} such, the farthest in case {case!r}"
            yield Finding("metric", where, f"{name}: {words}")
        elif numbers[0] and not self.exact:
            then, now = (math.fsum(n) / len(n) if all(map(math.isfinite, n)) else n[0] for n in numbers)
            if not self._distance(metric, then, now) <= mean.of(metric):
                words = f"{then:.6g} in the receipt, {now:.6g} here, not {mean.text(metric)}"
                yield Finding("metric", where, f"{name}, the mean of {len(numbers[0])} cases: {words}")

    def _distance(self, metric: str, one: float, other: float) -> float:
        """In dB for what is in dB, else the share of the greater magnitude; infinite where NaN or Inf
        stands against another number."""
        if one == other or (math.isnan(one) and math.isnan(other)):
            return 0.0
        if not math.isfinite(one) or not math.isfinite(other):
            return math.inf
        far = abs(one - other)
        if _is_decibels(metric):
            self.largest_db = max(self.largest_db, far)
            return far
        share = far / max(abs(one), abs(other))
        self.largest = max(self.largest, share)
        return share


def _mean(mode: str | None) -> Tolerance:
    """How far a mean may be off; backends without numeric modes compute in float32 or on a device."""
    return MEAN if mode in ("typed", "fp16acc") else MEAN_FP32


def _is_decibels(metric: str) -> bool:
    return METRICS[metric].unit == "dB" if metric in METRICS else metric.endswith("_db")


def _lists(mine: list[str], theirs: list[str], what: str) -> str:
    missing, extra = sorted(set(mine) - set(theirs)), sorted(set(theirs) - set(mine))
    words = (
        [f"the receipt has the {what} {', '.join(missing[:5])}, measured here is none such"]
        if missing
        else []
    )
    words += [f"the receipt lacks the {what} {', '.join(extra[:5])}"] if extra else []
    return "; ".join(words) or f"the {what} are in another order"
