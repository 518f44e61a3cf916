"""Comparing cases and judging them: each way to fail closed, and a way to pass."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from coreproof.parity.comparison import CaseComparison, Judgement, compare_case, judge, judge_excitations
from coreproof.parity.gates import ExcitationGate, Gate, Gates, Verdict
from coreproof.parity.suite import Case, Outcome

CONTRACT = {"y": ((2, 3), "float16")}
EXPECTED = np.arange(6, dtype=np.float32).reshape(2, 3)
ACTUAL = EXPECTED.astype(np.float16)
CLOSE = Gate("output", "y", "max_abs_error", "max", 0.5, controls=("swap",))
ALIKE = Gate("output", "y", "cosine", "min", 0.9)


def case(name: str = "c1", *, steps: int = 1, rate: int | None = None, **expected: np.ndarray) -> Case:
    return Case(name, "encoder", [{}] * steps, expected or {"y": EXPECTED}, rate)


def compared(actual: np.ndarray, name: str = "c1") -> CaseComparison:
    return compare_case(Outcome(case(name), {"y": actual}), CONTRACT)


def verdict(comparisons: list[CaseComparison], gate: Gate, **aggregates: float) -> Verdict:
    judgement = judge(comparisons, aggregates, Gates((gate,), (), {}), "encoder", "fp16")
    assert judgement.passed is (judgement.verdicts[0].passed and not judgement.problems)
    return judgement.verdicts[0]


def test_a_good_case_has_metrics_and_no_problems() -> None:
    comparison = compared(ACTUAL + np.float16(0.25))
    assert comparison.problems == ()
    assert comparison.outputs["y"].metrics["max_abs_error"] == 0.25
    assert comparison.outputs["y"].metrics["finite_ratio"] == 1


def broken(*bad: float) -> np.ndarray:
    array = ACTUAL.copy()
    array.ravel()[: len(bad)] = bad
    return array


PROBLEMS = {
    "missing": ({}, "output 'y': missing from what the package returned"),
    "shape": ({"y": ACTUAL.ravel()}, r"shape \(6,\) where the contract has \(2, 3\)"),
    "shape of reference": ({"y": ACTUAL.ravel()}, r"shape \(6,\) where the reference has \(2, 3\)"),
    "dtype": ({"y": EXPECTED}, "dtype float32 where the contract has float16"),
    "not finite": ({"y": broken(math.nan, math.inf)}, "2 of 6 elements are NaN or Inf"),
    "empty": ({"y": np.zeros((0,), np.float16)}, "output 'y': empty"),
    "complex": ({"y": ACTUAL.astype(np.complex64)}, "dtype complex64 where numbers are compared"),
    "undeclared": ({"y": ACTUAL, "z": ACTUAL}, "case 'c1', output 'z': not an output of the package's contr"),
}


@pytest.mark.parametrize(("actual", "message"), PROBLEMS.values(), ids=PROBLEMS)
def test_a_problem_of_an_output_fails_even_under_gates_that_pass(
    actual: dict[str, np.ndarray], message: str
) -> None:
    comparison = compare_case(Outcome(case(), actual), CONTRACT)
    fine = Gate("aggregate", "agreement", None, "min", 0.0)
    judgement = judge([comparison], {"agreement": 1.0}, Gates((fine,), (), {}), "encoder", "fp16")
    assert judgement.verdicts[0].passed
    assert not judgement.passed
    assert any(re.search(message, problem) for problem in judgement.problems)


@pytest.mark.parametrize("dtype", ["float16", "int32"])
def test_metrics_follow_the_kind_of_the_arrays(dtype: str) -> None:
    tokens = EXPECTED.astype(dtype)
    outcome = Outcome(case(y=tokens), {"y": tokens})
    metrics = compare_case(outcome, {"y": ((2, 3), dtype)}).outputs["y"].metrics
    assert ("token_mismatches" in metrics) is (dtype == "int32")
    assert ("cosine" in metrics) is (dtype == "float16")


def test_a_declared_output_that_no_case_expects_must_still_be_right() -> None:
    contract = CONTRACT | {"extra": ((1,), "float16")}
    fine = compare_case(Outcome(case(), {"y": ACTUAL, "extra": np.ones(1, np.float16)}), contract)
    assert fine.problems == ()
    assert fine.outputs["extra"].metrics == {}
    bad = compare_case(Outcome(case(), {"y": ACTUAL, "extra": np.array([np.nan])}), contract)
    assert len(bad.problems) == 2


def test_a_reference_that_is_not_finite_is_a_problem() -> None:
    outcome = Outcome(case(y=broken(math.nan).astype(np.float32)), {"y": ACTUAL})
    assert compare_case(outcome, CONTRACT).problems == (
        "case 'c1', output 'y': in the reference: 1 of 6 elements are NaN or Inf",
    )


def test_a_flexible_shape_is_held_to_the_reference() -> None:
    contract = {"y": (None, "float16")}
    assert compare_case(Outcome(case(), {"y": ACTUAL}), contract).problems == ()
    assert len(compare_case(Outcome(case(), {"y": ACTUAL[:1]}), contract).problems) == 1


def test_steps_lead_the_shape_and_audio_is_measured_across_their_seams() -> None:
    rng = np.random.default_rng(0)
    signal, error = rng.standard_normal((2, 2, 4096))
    chunks = [np.moveaxis(x.reshape(2, 8, 512), 1, 0) for x in (signal + error, signal)]
    contract = {"y": ((2, 512), "float64")}
    streamed = compare_case(Outcome(case(steps=8, rate=16000, y=chunks[1]), {"y": chunks[0]}), contract)
    whole = compare_case(
        Outcome(case(rate=16000, y=signal), {"y": signal + error}), {"y": ((2, 4096), "float64")}
    )
    assert streamed.problems == ()
    assert streamed.outputs["y"].metrics == pytest.approx(whole.outputs["y"].metrics, rel=1e-9)
    assert "log_mel_correlation" in streamed.outputs["y"].metrics


@pytest.mark.parametrize(
    ("gate", "value", "worst", "passed"),
    [
        (CLOSE, 0.25, "c2", True),
        (replace(CLOSE, bound=0.1), 0.25, "c2", False),
        (Gate("output", "y", "snr_db", "min", 20.0), 10 * math.log10(55 / (6 * 0.25**2)), "c2", True),
    ],
)
def test_the_worst_case_is_judged_and_named(gate: Gate, value: float, worst: str, passed: bool) -> None:
    cases = [compared(ACTUAL + np.float16(d), f"c{i}") for i, d in enumerate((0.125, 0, 0.25, 0.0625))]
    judged = verdict(cases, gate)
    assert (judged.value, judged.case, judged.passed) == (pytest.approx(value), worst, passed)
    assert f"in case '{worst}', the worst of 4" in judged.detail
    assert judged.controls == gate.controls


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (1, 2, 0)])
@pytest.mark.parametrize("gate", [CLOSE, ALIKE])
def test_a_nan_never_loses_to_a_number(gate: Gate, order: tuple[int, ...]) -> None:
    cases = [compared(broken(math.nan), "nan"), compared(ACTUAL, "good"), compared(-ACTUAL, "bad")]
    judged = verdict([cases[i] for i in order], gate)
    assert math.isnan(judged.value)
    assert (judged.case, judged.passed) == ("nan", False)


@pytest.mark.parametrize("actual", [{}, {"y": ACTUAL.ravel()}])
def test_one_case_that_could_not_be_compared_poisons_the_gate(actual: dict[str, np.ndarray]) -> None:
    judged = verdict([compared(ACTUAL, "good"), compare_case(Outcome(case("lost"), actual), CONTRACT)], CLOSE)
    assert math.isnan(judged.value)
    assert (judged.case, judged.passed) == ("lost", False)


def test_a_case_that_does_not_expect_an_output_says_nothing_about_it() -> None:
    contract = CONTRACT | {"z": ((1,), "float16")}
    one = np.ones(1, np.float16)
    both = Outcome(case("both", y=EXPECTED, z=one), {"y": ACTUAL, "z": one})
    comparisons = [
        compare_case(Outcome(case(), {"y": ACTUAL, "z": one}), contract),
        compare_case(both, contract),
    ]
    judged = verdict(comparisons, Gate("output", "z", "max_abs_error", "max", 0.0))
    assert (judged.value, judged.case, judged.passed) == (0.0, "both", True)


@pytest.mark.parametrize(
    ("gate", "detail"),
    [
        (replace(CLOSE, name="embedding"), "no case expects an output 'embedding'"),
        (replace(ALIKE, metric="log_mel_correlation"), "measured in no case; .* sample_rate"),
        (replace(CLOSE, metric="token_mismatches"), "measured in no case; it needs integer outputs"),
        (Gate("aggregate", "agreement", None, "min", 1.0), "measures no aggregate 'agreement'; .*: other"),
    ],
)
def test_what_was_never_measured_fails(gate: Gate, detail: str) -> None:
    judged = verdict([compared(ACTUAL)], gate, other=1.0)
    assert judged.value is None
    assert not judged.passed
    assert re.search(detail, judged.detail)


@pytest.mark.parametrize(("value", "passed"), [(1.0, True), (0.99, False), (math.nan, False)])
def test_aggregates_are_judged_over_all_cases(value: float, passed: bool) -> None:
    judged = verdict([compared(ACTUAL)], Gate("aggregate", "agreement", None, "min", 1.0), agreement=value)
    assert judged.passed is passed
    assert judged.case is None


NO_GATE = "no gate applies to stage 'encoder' of variant 'fp16'; add one"


@pytest.mark.parametrize(
    ("comparisons", "gates", "problem"),
    [
        ([], (CLOSE,), "no cases for stage 'encoder'; nothing was compared"),
        (
            [replace(compared(ACTUAL), stage="decoder")],
            (CLOSE,),
            "no cases for stage 'encoder'; nothing was compared",
        ),
        ([compared(ACTUAL)], (replace(CLOSE, variant="fp32"),), NO_GATE),
        ([compared(ACTUAL)], (replace(CLOSE, stage="decoder"),), NO_GATE),
        ([compared(ACTUAL)], (), NO_GATE),
        ([compared(ACTUAL)] * 2, (CLOSE,), "case id 'c1' is used 2 times; ids must differ"),
    ],
)
def test_nothing_to_judge_and_nothing_to_judge_by_fail(
    comparisons: list[CaseComparison], gates: tuple[Gate, ...], problem: str
) -> None:
    judgement = judge(comparisons, {}, Gates(gates, (), {}), "encoder", "fp16")
    assert not judgement.passed
    assert judgement.problems == (problem,)


def test_no_verdicts_are_no_pass() -> None:
    assert not Judgement("encoder", "fp16", cases=1, verdicts=(), problems=()).passed


def test_a_gate_on_an_aggregate_cannot_pass_without_cases() -> None:
    gates = Gates((Gate("aggregate", "agreement", None, "min", 0.0),), (), {})
    assert not judge([], {"agreement": 1.0}, gates, "encoder", "fp16").passed


def test_trap_of_the_finite_part_fails_at_a_gate_on_correlation() -> None:
    rng = np.random.default_rng(0)
    expected = rng.standard_normal(1000).astype(np.float32)
    actual = expected.copy()
    actual[rng.permutation(1000)[:157]] = np.nan
    comparison = compare_case(Outcome(case(y=expected), {"y": actual}), {"y": ((1000,), "float32")})
    judged = verdict([comparison], replace(ALIKE, metric="pearson_correlation"))
    assert not judged.passed
    assert comparison.problems == ("case 'c1', output 'y': 157 of 1000 elements are NaN or Inf",)
    assert verdict([comparison], replace(ALIKE, metric="finite_ratio")).value == 0.843


BOUND = (ExcitationGate("mask", 0.01),)


@pytest.mark.parametrize(
    ("values", "bounds", "passed", "detail"),
    [
        ({"mask": 0.01}, BOUND, True, "0.01 on the reference; min 0.01"),
        ({"mask": 0.001}, BOUND, False, "0.001 on the reference; min 0.01"),
        ({"mask": math.nan}, BOUND, False, "nan on the reference; min 0.01"),
        ({}, BOUND, False, "not measured by the suite; min 0.01"),
        ({"mask": 9.0}, (), False, "9 on the reference; no [[excitation]] of the gate file bounds it"),
        ({}, (), False, "not measured by the suite; no [[excitation]] of the gate file bounds it"),
    ],
)
def test_excitations_must_be_measured_bounded_and_reached(
    values: dict[str, float], bounds: tuple[ExcitationGate, ...], passed: bool, detail: str
) -> None:
    (judged,) = judge_excitations(values, Gates((CLOSE,), bounds, {}))
    assert (judged.passed, judged.detail) == (passed, detail)


def test_every_excitation_gets_its_own_verdict() -> None:
    verdicts = judge_excitations({"mask": 1.0, "order": 1.0}, Gates((CLOSE,), BOUND, {}))
    assert [(v.name, v.passed) for v in verdicts] == [("mask", True), ("order", False)]


def test_results_are_strict_json() -> None:
    comparison = compared(ACTUAL)
    judgement = judge([comparison], {}, Gates((CLOSE,), (), {}), "encoder", "fp16")
    assert (
        json.loads(json.dumps(comparison.to_json(), allow_nan=False))["outputs"]["y"]["metrics"]["snr_db"]
        == "inf"
    )
    assert json.loads(json.dumps(judgement.to_json(), allow_nan=False)) == {
        "stage": "encoder", "variant": "fp16", "cases": 1, "passed": True, "problems": [],
        "verdicts": [
            {
                "output": "y", "metric": "max_abs_error", "max": 0.5, "value": 0.0, "case": "c1",
                "passed": True, "detail": "0 in case 'c1', the worst of 1; max 0.5", "controls": ["swap"],
            }
        ],
    }  # fmt: skip
