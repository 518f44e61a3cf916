"""Compare what a package computed with what was expected, and judge the result by the gates.

Everything here fails closed: what is missing, of another shape or dtype, not finite, unmeasured or
judged by no gate never passes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coreproof.jsonio import json_number
from coreproof.parity.gates import ExcitationGate, Gate, Gates, Side, Verdict, judge_value
from coreproof.parity.metrics import METRICS, measure
from coreproof.parity.suite import Case, Outcome

ContractOutputs = Mapping[str, tuple[tuple[int, ...] | None, str]]


@dataclass(frozen=True, slots=True)
class OutputComparison:
    """One output of one case. ``expected``: the case has a tensor to compare it with. ``metrics`` is
    empty when it has none, and when the two could not be compared."""

    expected: bool
    metrics: Mapping[str, float]
    problems: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        return {
            "metrics": {name: json_number(value) for name, value in self.metrics.items()},
            "problems": list(self.problems),
        }


@dataclass(frozen=True, slots=True)
class CaseComparison:
    """One case: a comparison for each output that is expected, declared or returned."""

    case: str
    stage: str
    outputs: Mapping[str, OutputComparison]

    @property
    def problems(self) -> tuple[str, ...]:
        """Every output's problems, with case and output named."""
        return tuple(
            f"case {self.case!r}, output {name!r}: {problem}"
            for name, output in self.outputs.items()
            for problem in output.problems
        )

    def to_json(self) -> dict[str, object]:
        return {
            "case": self.case,
            "stage": self.stage,
            "outputs": {name: output.to_json() for name, output in self.outputs.items()},
        }


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdicts on one package. ``cases`` is how many were compared; any problem fails it, even
    one that no gate looks at."""

    stage: str
    variant: str
    cases: int
    verdicts: tuple[Verdict, ...]
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return bool(self.verdicts) and not self.problems and all(v.passed for v in self.verdicts)

    def to_json(self) -> dict[str, object]:
        return {
            "stage": self.stage,
            "variant": self.variant,
            "cases": self.cases,
            "passed": self.passed,
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
            "problems": list(self.problems),
        }


def compare_case(outcome: Outcome, contract_outputs: ContractOutputs) -> CaseComparison:
    """Measure every output of one case.

    ``contract_outputs``: name -> (shape of one prediction, None when flexible; numpy dtype name, such
    as ``float16``). Whatever is wrong with an output becomes one of its problems and raises nothing.
    """
    case, actual = outcome.case, outcome.actual
    names = dict.fromkeys([*case.expected, *contract_outputs, *actual])
    outputs = {name: _compare_output(name, case, actual.get(name), contract_outputs) for name in names}
    return CaseComparison(case.id, case.stage, outputs)


def _compare_output(
    name: str, case: Case, actual: np.ndarray | None, contract: ContractOutputs
) -> OutputComparison:
    expected = case.expected.get(name)
    part = case.parts.get(name)
    problems = _problems(name, actual, expected, contract, steps=case.compared, part=part)
    actual = actual if actual is None else part_of(actual, part)
    if actual is None or expected is None or actual.shape != expected.shape or _not_real(actual, expected):
        return OutputComparison(expected is not None, {}, problems)
    if case.sample_rate is not None and case.compared > 1:
        actual, expected = joined(actual), joined(expected)
    return OutputComparison(True, measure(actual, expected, case.sample_rate), problems)


def _problems(
    name: str,
    actual: np.ndarray | None,
    expected: np.ndarray | None,
    contract: ContractOutputs,
    *,
    steps: int,
    part: tuple[slice, ...] | None,
) -> tuple[str, ...]:
    if name not in contract:
        return ("not an output of the package's contract",)
    if actual is None:
        return ("missing from what the package returned",)
    problems = _contract_problems(actual, *contract[name], steps=steps) + _value_problems(actual)
    if expected is not None:
        problems += [f"in the reference: {problem}" for problem in _value_problems(expected)]
        compared = part_of(actual, part)
        if compared.shape != expected.shape:
            problems.append(f"shape {compared.shape} where the reference has {expected.shape}")
    return tuple(problems)


def part_of(array: np.ndarray, part: tuple[slice, ...] | None) -> np.ndarray:
    """``array[part]``; the whole where it has fewer axes, which the contract says of it."""
    return array if part is None or len(part) > array.ndim else array[part]


def _contract_problems(
    actual: np.ndarray, shape: tuple[int, ...] | None, dtype: str, *, steps: int
) -> list[str]:
    problems = []
    wanted = shape if shape is None or steps == 1 else (steps, *shape)
    if wanted is not None and actual.shape != wanted:
        problems.append(f"shape {actual.shape} where the contract has {wanted}")
    if actual.dtype.name != dtype:
        problems.append(f"dtype {actual.dtype.name} where the contract has {dtype}")
    return problems


def _value_problems(array: np.ndarray) -> list[str]:
    if _not_real(array):
        return [f"dtype {array.dtype} where numbers are compared"]
    if array.size == 0:
        return ["empty"]
    bad = array.size - np.count_nonzero(np.isfinite(array))
    return [f"{bad} of {array.size} elements are NaN or Inf"] if bad else []


def _not_real(*arrays: np.ndarray) -> bool:
    return any(array.dtype.kind not in "biuf" for array in arrays)


def joined(array: np.ndarray) -> np.ndarray:
    """Chunks (step, ..., samples) as one signal (..., step * samples), so that the spectra of the
    audio metrics span the seams."""
    if array.ndim < 2:
        return array
    together = np.moveaxis(array, 0, -2)
    return together.reshape(*together.shape[:-2], -1)


def judge(
    comparisons: Sequence[CaseComparison],
    aggregates: Mapping[str, float],
    gates: Gates,
    stage: str,
    variant: str,
) -> Judgement:
    """Judge one stage of one variant: one verdict for each gate that applies, on the worst case.

    Comparisons of other stages are left out. No case and no gate that applies are problems.
    """
    own = [comparison for comparison in comparisons if comparison.stage == stage]
    applying = [gate for gate in gates.gates if gate.applies(stage, variant)]
    problems = [problem for comparison in own for problem in comparison.problems]
    problems += [
        f"case id {case!r} is used {count} times; ids must differ"
        for case, count in Counter(comparison.case for comparison in own).items()
        if count > 1
    ]
    if not own:
        problems.append(f"no cases for stage {stage!r}; nothing was compared")
    if not applying:
        problems.append(f"no gate applies to stage {stage!r} of variant {variant!r}; add one")
    verdicts = tuple(
        _judge_output(gate, own) if gate.kind == "output" else _judge_aggregate(gate, aggregates)
        for gate in applying
    )
    return Judgement(stage, variant, len(own), verdicts, tuple(problems))


def _judge_output(gate: Gate, comparisons: Sequence[CaseComparison]) -> Verdict:
    metric = str(gate.metric)
    compared = {
        c.case: c.outputs[gate.name].metrics
        for c in comparisons
        if gate.name in c.outputs and c.outputs[gate.name].expected
    }
    if not compared:
        return _verdict(gate, None, f"no case expects an output {gate.name!r}")
    if not any(metric in metrics for metrics in compared.values()):
        return _verdict(gate, None, f"{metric} was measured in no case{_why_unmeasured(metric)}")
    values = {case: metrics.get(metric, math.nan) for case, metrics in compared.items()}
    case, value = _worst(values, gate.side)
    return _verdict(gate, value, f"{value:.9g} in case {case!r}, the worst of {len(compared)}", case)


def _worst(values: Mapping[str, float], side: Side) -> tuple[str, float]:
    """The case, and its value, nearest to failing. NaN is worse than any number, so that no other
    case can hide it; the first of equals."""
    for case, value in values.items():
        if math.isnan(value):
            return case, value
    case = (min if side == "min" else max)(values, key=values.__getitem__)
    return case, values[case]


def _why_unmeasured(metric: str) -> str:
    if METRICS[metric].audio:
        return "; it needs floating outputs and a case with a sample_rate"
    return "; it needs integer outputs" if METRICS[metric].tokens else "; it needs floating outputs"


def _judge_aggregate(gate: Gate, aggregates: Mapping[str, float]) -> Verdict:
    if gate.name not in aggregates:
        known = ", ".join(sorted(aggregates)) or "none"
        return _verdict(gate, None, f"the suite measures no aggregate {gate.name!r}; it measures: {known}")
    value = float(aggregates[gate.name])
    return _verdict(gate, value, f"{value:.9g} over all cases")


def _verdict(gate: Gate, value: float | None, what: str, case: str | None = None) -> Verdict:
    passed = value is not None and judge_value(gate, value)
    return Verdict(
        kind=gate.kind,
        name=gate.name,
        metric=gate.metric,
        side=gate.side,
        bound=gate.bound,
        value=value,
        passed=passed,
        detail=f"{what}; {gate.side} {gate.bound:.9g}",
        case=case,
        controls=gate.controls,
    )


def judge_excitations(values: Mapping[str, float], gates: Gates) -> list[Verdict]:
    """One verdict for each excitation that is gated, measured, or both.

    ``values``: what the suite measured on the reference alone. An excitation that only one side knows
    fails, and so does a suite that measures none at all.
    """
    bounds = {gate.name: gate.bound for gate in gates.excitations}
    if not bounds and not values:
        return [_excitation_verdict("any", None, None)]
    return [
        _excitation_verdict(name, bounds.get(name), values.get(name))
        for name in dict.fromkeys([*bounds, *values])
    ]


def _excitation_verdict(name: str, bound: float | None, value: float | None) -> Verdict:
    what = "not measured by the suite" if value is None else f"{value:.9g} on the reference"
    limit = f"min {bound:.9g}" if bound is not None else "no [[excitation]] of the gate file bounds it"
    passed = bound is not None and value is not None and judge_value(ExcitationGate(name, bound), value)
    return Verdict(
        kind="excitation",
        name=name,
        metric=None,
        side="min",
        bound=bound,
        value=value if value is None else float(value),
        passed=passed,
        detail=f"{what}; {limit}",
    )
