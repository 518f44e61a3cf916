"""The runner of Apple's suites: what it counts, and that the lists of failures can be counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import round_trip
import suites
from stand_ins import StandIn

from coreproof.dropin import outcomes
from coreproof.dropin.results import Case
from coreproof.mil import to_proto
from coreproof.package.proto import module
from coreproof.runtime import model

CASES = {
    "a": Case(models=1, predictions=2, compared={"fp16": [0.5, 2.0], "fp32": [0.0]}),
    "b": Case(models=2),
    "c": Case(),  # made no model: proves nothing of the runtime
    "d": Case("failed", "ours: wrong", models=1),
    "e": Case("error", "package absent: peft"),
    "f": Case("xfailed", "rdar://1", models=1, predictions=1),
    "g": Case("skipped", "not today"),
}


def test_the_share_counts_failures_before_a_model_and_leaves_out_apples_own_marks():
    assert suites.share(CASES) == 50
    assert suites.share({"a": CASES["a"]}) == 100
    assert suites.share({}) == 0


def test_the_table():
    lines = {line[:-10].strip(): line[-10:].strip() for line in suites.table({"ops": CASES})}
    assert lines == {
        "": "ops", "collected": "7", "ran": "6", "passed": "3", "failed": "1", "error": "1", "skipped": "1",
        "xfailed": "1", "made a model": "4", "predicted": "2", "passed of those that make a model": "50.00 %",
        "comparisons in fp16": "2", "outside the tight tolerance, fp16": "1",
        "comparisons in fp32": "1", "outside the tight tolerance, fp32": "0",
        **dict.fromkeys(suites.CATEGORIES, "0"), "ours": "1", "package absent": "1",
    }  # fmt: skip


@pytest.mark.parametrize("suite", suites.SUITES, ids=lambda suite: suite.name)
def test_every_failure_is_explained(suite: suites.Suite):
    assert suites.uncategorized(suite) == []
    kinds = {outcome.kind for outcome in outcomes.read(suite.expected).values()}
    assert {"failed", "skipped", "xfailed"} <= kinds


def test_a_failure_without_a_category_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "ops.txt").write_text("a::b\tfailed\tit broke\na::c\tfailed\tours: x\na::d\tskipped\tno\n")
    monkeypatch.setattr(suites, "HERE", tmp_path)
    assert suites.uncategorized(suites.SUITES[0]) == ["ops.txt: a::b: it broke"]


def test_a_whole_suite_has_all_its_cases_and_enough_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "ops.txt").write_text("d\tfailed\tours: wrong\nz\tskipped\tno\n")
    monkeypatch.setattr(suites, "HERE", tmp_path)
    assert list(suites.shortcomings(suites.Suite("ops", "folder", 7, 50.1), CASES)) == [
        "ops.txt: no such case: z",
        "ops: 50.00 % passed, expected at least 50.1 %",
    ]
    assert list(suites.shortcomings(suites.Suite("ops", "folder", 8, 50.0), CASES | {"z": CASES["g"]})) == []
    assert list(suites.shortcomings(suites.Suite("ops", "folder", 9, 50.0), CASES | {"z": CASES["g"]})) == [
        "ops: 8 cases, expected 9"
    ]


def test_a_stand_in_refuses_to_be_used():
    module = StandIn("peft")
    with pytest.raises(ImportError, match="package absent: peft, whose get_peft_model was called"):
        module.get_peft_model(1, config=2)
    assert not hasattr(module, "__path__")


def test_a_program_that_changes_when_it_is_written_fails_its_test(
    sample_package: Path, monkeypatch: pytest.MonkeyPatch
):
    load = round_trip.checked(model.load)
    assert load(sample_package, "typed").mode == "typed"
    monkeypatch.setattr(to_proto, "write_program", lambda _: module("MIL_pb2").Program(version=1))
    with pytest.raises(AssertionError, match="changes when it is written as protobuf"):
        load(sample_package, "typed")
