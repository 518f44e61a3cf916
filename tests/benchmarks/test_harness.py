"""Medians, ratios and turns of the benchmarks, and what becomes of an arm that fails."""

import json
import sys

import harness
import pytest
import run
from arms import ARMS, NEEDS
from harness import PEAK, ArmError, Comparison, Figures, Ratio, Side

COMPARISON = Comparison("open", Side("a", "first", "grown"), Side("b", "warm"))


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_ratio_is_of_medians_and_its_spread_is_of_pairs() -> None:
    assert harness.ratio([1.0, 9.0, 2.0], [2.0, 3.0, 4.0]) == Ratio(2.0, 3.0, 2.0 / 3.0, 0.5, 3.0)


def test_a_ratio_needs_whole_pairs() -> None:
    with pytest.raises(ValueError, match="shorter"):
        harness.ratio([1.0, 2.0], [1.0])


def test_each_side_names_its_own_figures() -> None:
    samples = {"a": [{"first": 3.0, "grown": 10.0, PEAK: 7.0}], "b": [{"warm": 2.0, PEAK: 40.0}]}
    seconds, memory = harness.ratios(COMPARISON, samples)
    assert (seconds.value, memory and memory.value) == (1.5, 0.25)


def test_memory_is_left_out_where_a_side_names_none() -> None:
    samples = {"a": [{"first": 3.0}], "b": [{"warm": 2.0}]}
    comparison = Comparison("first", Side("a", "first", None), Side("b", "warm", None))
    assert harness.ratios(comparison, samples)[1] is None


def test_arms_take_turns_and_a_failed_one_is_left_out() -> None:
    order = []

    def one(arm: str) -> Figures:
        order.append(arm)
        if arm == "b" and order.count("b") == 2:
            raise ArmError("no luck")
        return {"seconds": float(len(order))}

    reports: list[tuple[str, int, int]] = []
    samples, failures = harness.measure(["a", "b"], 3, one, lambda *step: reports.append(step))
    assert order == ["a", "b", "a", "b", "a"]
    assert samples == {"a": [{"seconds": 1.0}, {"seconds": 3.0}, {"seconds": 5.0}]}
    assert failures == {"b": "no luck"}
    assert reports == [("a", 0, 6), ("b", 1, 6), ("a", 2, 6), ("b", 3, 6), ("a", 4, 6)]


def test_an_arm_is_a_fresh_process_with_the_peak_the_system_reports() -> None:
    allocated = harness.peak_bytes() + (32 << 20)
    code = f"""
import json, os
content = b"x" * {allocated}
print("noise")
print(json.dumps({{"pid": os.getpid(), "threads": int(os.environ["OMP_NUM_THREADS"])}}))
"""
    first, second = (harness.run_arm(python(code), threads=3) for _ in range(2))
    assert first["threads"] == 3
    assert first["pid"] != second["pid"]
    assert allocated < first[PEAK] < allocated + (64 << 20)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit('first line\\nno weights')", "^no weights$"),
        ("import os; os._exit(3)", "^exit status 3$"),
        ("import os; os.kill(os.getpid(), 9)", "^exit status -9$"),
        ("print('done')", "printed 'done', expected a JSON object"),
        ("print('[1]')", r"printed '\[1\]', expected a JSON object"),
        ("", "printed '', expected a JSON object"),
        ("print('{}')", "cannot be told from that of the process that started it"),
    ],
)
def test_an_arm_that_fails_says_why(code: str, message: str) -> None:
    with pytest.raises(ArmError, match=message):
        harness.run_arm(python(code), threads=1)


def test_every_comparison_is_of_arms_that_exist() -> None:
    compared = {side.arm for c in run.COMPARISONS for side in (c.a, c.b)}
    assert compared | set(NEEDS) | set(NEEDS.values()) | {"machine"} == set(ARMS)


def fake_run(fails: str):
    def one(folder: object, threads: int, arm: str) -> Figures:
        if arm == fails:
            raise ArmError(f"{arm} fell over")
        return {"warm": 2.0, PEAK: 1.0}

    return one


@pytest.mark.parametrize(
    ("fails", "left"),
    [
        ("onnxruntime", {"mil fp32", "mil typed", "torch eager"}),
        ("onnx model", {"mil fp32", "mil typed", "torch eager"}),
        ("torch eager", {"mil fp32", "mil typed", "onnxruntime"}),
        ("build", {"torch eager", "onnxruntime"}),
        ("machine", {"mil fp32", "mil typed", "torch eager", "onnxruntime"}),
    ],
)
def test_a_failure_is_reported_and_the_rest_is_measured(
    fails: str, left: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "_run", fake_run(fails))
    monkeypatch.setattr(sys, "argv", ["run.py", "runtime", "--pairs", "3", "--json"])
    assert run.main() == 1
    said, complained = capsys.readouterr()
    document = json.loads(said)
    assert document["failures"] == {fails: f"{fails} fell over"}
    assert set(document["samples"]) == left
    compared = {arm for result in document["results"] for arm in (result["a"]["arm"], result["b"]["arm"])}
    assert fails not in compared
    assert f"{fails} failed: {fails} fell over" in complained


def test_the_table_shows_every_comparison(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "_run", fake_run(fails="nothing"))
    monkeypatch.setattr(sys, "argv", ["run.py", "runtime"])
    assert run.main() == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("runtime  mil")]
    assert [row[-4:] for row in rows] == [["1.00", "1.00..1.00", "1.00", "1.00..1.00"]] * 4


@pytest.mark.parametrize("arguments", [["speed"], ["--pairs", "2"], ["--threads", "0"]])
def test_wrong_use_ends_with_2(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        run.main()
    assert ended.value.code == 2
