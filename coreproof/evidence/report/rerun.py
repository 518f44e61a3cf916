"""Runs a few of a suite's cases again, for what a receipt has no room for: tensors, sound, each op.

Of every package the first case and, of each output, the worst. What is measured now is held to what the
receipt says of the same case.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coreproof.backends import Target, create
from coreproof.blame import Observation, observe
from coreproof.catalog import ModelParts
from coreproof.convert.convert import Report
from coreproof.convert.recipe import NUMPY
from coreproof.errors import CoreproofError, FixtureError
from coreproof.evidence.report.facts import Facts, PackageFacts
from coreproof.package.manifest import PackageRecord
from coreproof.parity.comparison import compare_case, joined, part_of
from coreproof.parity.fixture import find, load
from coreproof.parity.gates import load_gates
from coreproof.parity.metrics import METRICS
from coreproof.parity.suite import Arrays, Case, Heard, Outcome, Suite
from coreproof.validate import cached_fixtures, run_case

MOST_OUTPUTS = 6  # shown of one package
# How far another processor's rounding may move an error: this factor, or that many dB. Larger ones are a
# receipt of something else; coreproof verify --receipt is stricter.
FACTOR = 2.0
FACTOR_DB = 6.0


@dataclass(frozen=True, slots=True)
class Trace:
    """One output of one case, as run: arrays of equal shape, steps first where ``steps`` is above 1."""

    output: str
    actual: np.ndarray
    expected: np.ndarray
    steps: int
    sample_rate: int | None


@dataclass(frozen=True, slots=True)
class CaseRun:
    """One case, run again. ``why`` says what it was chosen for."""

    case: str
    why: str
    traces: tuple[Trace, ...]
    heard: tuple[Heard, ...]


@dataclass(frozen=True, slots=True)
class PackageRun:
    """What running a package again gave. ``curve``: its ops in program order on the case ``curve_case``,
    in ``mode`` against fp32 mode. ``problems``: where the receipt says something else. ``note``: why there
    is less to see than there could be."""

    mode: str
    cases: tuple[CaseRun, ...] = ()
    curve: tuple[Observation, ...] = ()
    curve_case: str = ""
    problems: tuple[str, ...] = ()
    note: str = ""


def rerun(
    build: Path, parts: ModelParts, facts: Facts, fixture: Path | None, report: Report
) -> Iterator[PackageRun]:
    """A run of each package, in the order of ``facts.packages``, by the ``mil`` backend.

    ``fixture``: a folder to use instead of searching. Raises FixtureError when there is no reference of
    the build's checkpoint. A package that fails to run has that for its note.
    """
    suite = parts.suite()
    arrays = reference(parts, facts, fixture)
    modes = load_gates(parts.gates).modes
    cases = tuple(suite.cases(arrays))
    for index, package in enumerate(facts.packages):
        report(f"{package.record.package}: running again", index, len(facts.packages))
        mode = package.mode or modes.get(package.judged_as or package.record.variant, "typed")
        own = [case for case in cases if case.stage == package.record.stage]
        try:
            yield _package(build, package, own, suite, mode, facts.backend)
        except CoreproofError as error:
            yield PackageRun(mode, problems=(f"it could not be run again: {error}",))


def reference(parts: ModelParts, facts: Facts, fixture: Path | None) -> Arrays:
    """The expected tensors of the build's checkpoint. Raises FixtureError when none are recorded."""
    model, digest = facts.manifest.model, facts.manifest.checkpoint.sha256
    if fixture is not None:
        return load(fixture, model, digest).arrays
    found = find((*parts.fixtures, cached_fixtures(model)), model, digest)
    if found is None:
        raise FixtureError(
            f"no reference for checkpoint {digest[:12]} of {model}; run coreproof reference {parts.argument} "
            f"--checkpoint CHECKPOINT -o {parts.fixtures[0]}"
        )
    return found.arrays


class _Recording:
    """A backend's runner that keeps what it was given: every step of a program with states, else the
    last one only."""

    def __init__(self, runner: Any, record: PackageRecord) -> None:
        self._runner = runner
        self._all = bool(record.contract.states)
        self.name = runner.name
        self.make_state = runner.make_state
        self.load = runner.load
        self.close = runner.close
        self.steps: list[Mapping[str, np.ndarray]] = []

    def predict(self, inputs: Mapping[str, np.ndarray], state: Any = None) -> dict[str, np.ndarray]:
        self.steps = [*(self.steps if self._all else ()), dict(inputs)]
        predicted: dict[str, np.ndarray] = self._runner.predict(inputs, state)
        return predicted


def _package(
    build: Path, package: PackageFacts, cases: Sequence[Case], suite: Suite, mode: str, backend: str
) -> PackageRun:
    record = package.record
    if not cases:
        return PackageRun(mode, note="The suite has no case for this stage.")
    runner = create("mil")
    halves = {i.name for i in record.contract.inputs if i.dtype == "fp16"}
    runs: list[CaseRun] = []
    problems: list[str] = []
    steps: Sequence[Mapping[str, np.ndarray]] = ()
    function: str | None = None
    for case, why, outputs in choose(package, cases):
        runner.load(Target(build / record.package, mode, case.function))
        specs = record.contract.outputs_of(case.function)
        contract = {o.name: (tuple(o.shape), NUMPY[o.dtype]) for o in specs}
        recording = _Recording(runner, record)
        outcome = Outcome(case, run_case(recording, case, halves))
        compared = compare_case(outcome, contract)
        if backend == "mil":
            problems += _disagreements(package, case.id, {o: c.metrics for o, c in compared.outputs.items()})
        drawn = Outcome(case, {n: part_of(a, case.parts.get(n)) for n, a in outcome.actual.items()})
        runs.append(CaseRun(case.id, why, tuple(_traces(drawn, outputs)), tuple(_heard(suite, drawn))))
        # The ops are watched on the case that was chosen last: a worst one, where there is one.
        steps, function = recording.steps, case.function
        runner.close()
    curve = observe(build / record.package, steps, mode, function)
    left = len({o for c in cases for o in c.expected}) - MOST_OUTPUTS
    note = f"{left} more outputs are compared but not drawn." if left > 0 else ""
    return PackageRun(mode, tuple(runs), tuple(curve), runs[-1].case, tuple(problems), note)


def choose(package: PackageFacts, cases: Sequence[Case]) -> list[tuple[Case, str, set[str]]]:
    """The cases to run again, with the reason and the outputs to show: the first one, then each
    output's worst."""
    named = list(dict.fromkeys(output for case in cases for output in case.expected))[:MOST_OUTPUTS]
    if len(cases) == 1:
        return [(cases[0], "the only case", set(named))]
    chosen: dict[str, tuple[list[str], set[str]]] = {cases[0].id: (["the first case"], set(named))}
    for output in named:
        case, reason = worst_case(package, output) or (None, "")
        if case is not None:
            reasons, outputs = chosen.setdefault(case, ([], set()))
            reasons.append(f"the worst of {len(package.cases)} by {reason}")
            outputs.add(output)
    by_id = {case.id: case for case in cases}
    return [(by_id[i], "; ".join(why), outputs) for i, (why, outputs) in chosen.items() if i in by_id]


def worst_case(package: PackageFacts, output: str) -> tuple[str, str] | None:
    """The case in which ``output`` came out worst, and by what: by the first failing gate that names one,
    else by SNR or the number of wrong tokens, NaN being the worst. None where nothing was measured."""
    for verdict in package.verdicts:
        if not verdict.passed and verdict.name == output and verdict.case is not None:
            return verdict.case, f"{output} {verdict.metric}, which fails"
    columns = package.metrics.get(output, {})
    for metric, sign in (("snr_db", 1.0), ("token_mismatches", -1.0)):
        values = {c: v for c, v in zip(package.cases, columns.get(metric, ()), strict=False) if v is not None}
        if values:
            goodness = {case: -math.inf if math.isnan(v) else sign * v for case, v in values.items()}
            return min(goodness, key=goodness.__getitem__), f"{output} {metric}"
    return None


def _traces(outcome: Outcome, outputs: Iterable[str]) -> Iterator[Trace]:
    case = outcome.case
    for name in sorted(outputs):
        actual, expected = outcome.actual.get(name), case.expected.get(name)
        if actual is not None and expected is not None and actual.shape == expected.shape and actual.size:
            yield Trace(name, actual, expected, case.compared, case.sample_rate)


def _heard(suite: Suite, outcome: Outcome) -> Sequence[Heard]:
    if suite.heard is not None:
        return suite.heard(outcome)
    case = outcome.case
    sounds = []
    for name, expected in case.expected.items():
        actual = outcome.actual.get(name)
        if case.sample_rate is None or expected.dtype.kind != "f":
            continue
        if actual is None or actual.shape != expected.shape or not actual.size:
            continue
        pair = [joined(a) if case.compared > 1 else a for a in (actual, expected)]
        heard, wanted = (a.reshape(-1, a.shape[-1]).T for a in pair)  # (samples, channels)
        sounds.append(Heard(name, heard, wanted, case.sample_rate))
    return sounds


def _disagreements(
    package: PackageFacts, case: str, metrics: Mapping[str, Mapping[str, float]]
) -> Iterator[str]:
    if case not in package.cases:
        yield f"case {case!r} of the suite is not in the receipt"
        return
    row = package.cases.index(case)
    for output, columns in package.metrics.items():
        for metric, column in columns.items():
            now, then = metrics.get(output, {}).get(metric), column[row]
            if not _alike(now, then, metric):
                yield f"{output} {metric} of case {case!r} is {now} now, {then} in the receipt"


def _alike(now: float | None, then: float | None, metric: str) -> bool:
    if now is None or then is None:
        return now is then
    if now == then or (math.isnan(now) and math.isnan(then)):
        return True
    known = METRICS.get(metric)
    if known is None:
        return False
    if known.unit == "dB" and known.better == "higher":
        return abs(now - then) <= FACTOR_DB
    best = 1.0 if known.unit == "1" and known.better != "lower" else 0.0
    small, large = sorted((abs(now - best), abs(then - best)))
    return large <= FACTOR * small + 1e-12
