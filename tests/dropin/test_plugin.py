"""The pytest plugin, in pytest runs of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coreproof.dropin.plugin import parse_slice, select
from coreproof.errors import UsageError

pytest_plugins = ["pytester"]

NODES = [
    f"a.py::test_{name}[{case}]" for name, cases in (("p", 20), ("q", 3), ("r", 1)) for case in range(cases)
]


@pytest.mark.parametrize("count", [1, 2, 4, 7, 60])
def test_slices_hold_all_cases_and_each_every_function(count: int):
    slices = [select(NODES, index, count) for index in range(count)]
    assert set().union(*slices) == set(NODES)
    for part in slices:
        assert {node.partition("[")[0] for node in part} == {"a.py::test_p", "a.py::test_q", "a.py::test_r"}
    sizes = [sum("test_p" in node for node in part) for part in slices]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) == max(1, -(-20 // count))
    assert select(NODES[::-1], 0, count) == slices[0]


@pytest.mark.parametrize("text", ["1", "2/2", "-1/3", "a/b", "0/0", "1/2/3"])
def test_a_slice_that_is_none_is_refused(text: str):
    with pytest.raises(UsageError, match=r"expected I/N with 0 <= I < N"):
        parse_slice(text)


@pytest.fixture
def run(ct: Any, pytester: pytest.Pytester) -> Callable[..., pytest.RunResult]:
    """pytest with the plugin in this process, where the drop-in is taken out again."""
    return lambda *options: pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist", *options)


_DRAWS = """
import json, random
import numpy, pytest, torch

IMPORTED = [random.random(), numpy.random.rand()]

@pytest.fixture(scope="module")
def shared():
    return random.random()

def drawn(name, *more):
    with open(f"{name}.json", "w") as file:
        json.dump([*IMPORTED, *more, random.random(), numpy.random.rand(), torch.rand(1).item()], file)

def test_first(): drawn("first")
def test_second(shared): drawn("second", shared)
"""


def test_draws_do_not_depend_on_what_else_runs(run: Callable[..., Any], pytester: pytest.Pytester):
    pytester.makepyfile(test_draws=_DRAWS)
    run("--coreproof").assert_outcomes(passed=2)
    first, second = (json.loads(Path(f"{name}.json").read_text()) for name in ("first", "second"))
    run("--coreproof", "-k", "second").assert_outcomes(passed=1, deselected=1)
    assert json.loads(Path("second.json").read_text()) == second
    assert first[-3:] != second[-3:]


_MIXED = """
import pytest

def test_passes(): pass
def test_fails(): assert 1 == 2, "two is\\tnot one"
def test_skips(): pytest.skip("not today")
@pytest.mark.xfail(reason="rdar://1")
def test_known(): assert False
@pytest.fixture
def broken(): raise OSError("no disk")
def test_error(broken): pass
"""
_OUTCOMES = [
    "test_mixed.py::test_error\terror\tOSError: no disk",
    "test_mixed.py::test_fails\tfailed\tAssertionError: two is not one assert 1 == 2",
    "test_mixed.py::test_known\txfailed\trdar://1",
    "test_mixed.py::test_skips\tskipped\tSkipped: not today",
]


def test_outcomes_are_recorded_and_then_expected(run: Callable[..., Any], pytester: pytest.Pytester):
    pytester.makepyfile(test_mixed=_MIXED)
    assert run("--coreproof", "--coreproof-record=out.txt").ret == pytest.ExitCode.TESTS_FAILED
    assert Path("out.txt").read_text().splitlines() == _OUTCOMES
    told = [_OUTCOMES[0].replace("OSError: no disk", "ours"), *_OUTCOMES[1:], "other.py::test\tfailed\tgone"]
    Path("told.txt").write_text("# why\n\n" + "\n".join(told))
    result = run("--coreproof", "--coreproof-outcomes=told.txt", "--coreproof-record=out.txt")
    result.assert_outcomes(passed=1, skipped=1, xfailed=3)
    assert result.ret == pytest.ExitCode.OK
    assert Path("out.txt").read_text().splitlines() == ["other.py::test\tfailed\tgone", *told[:-1]]


@pytest.mark.parametrize(
    ("listed", "lines"),
    [
        # Failures that nobody listed, and one listed case that passes.
        (
            [*_OUTCOMES[2:], "test_mixed.py::test_passes\tfailed\tours"],
            [f"+ {_OUTCOMES[0]}", f"+ {_OUTCOMES[1]}", "- test_mixed.py::test_passes\tfailed\tours"],
        ),
        # What the suite itself skips or expects to fail counts too.
        (_OUTCOMES[:2], [f"+ {_OUTCOMES[2]}", f"+ {_OUTCOMES[3]}"]),
        (
            [*_OUTCOMES[:3], "test_mixed.py::test_skips\txfailed\tno"],
            ["- test_mixed.py::test_skips\txfailed\tno", f"+ {_OUTCOMES[3]}"],
        ),
    ],
)
def test_any_other_outcome_fails_the_session(
    run: Callable[..., Any], pytester: pytest.Pytester, listed: list[str], lines: list[str]
):
    pytester.makepyfile(test_mixed=_MIXED)
    Path("told.txt").write_text("\n".join(listed))
    result = run("--coreproof", "--coreproof-outcomes=told.txt")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert [line for line in result.outlines if line[:2] in ("- ", "+ ")] == lines


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--coreproof", "--coreproof-slice=3/2"], "*expected I/N with 0 <= I < N*"),
        (["--coreproof", "--coreproof-mode=fp8"], "*numeric mode 'fp8' does not exist*"),
        (
            ["--coreproof", "--coreproof-outcomes=none.txt"],
            "*none.txt: the expected outcomes cannot be read*",
        ),
        (["--coreproof", "--coreproof-outcomes=bad.txt"], "*bad.txt:2: expected NODE_ID, one of failed*"),
        (["--coreproof", "--coreproof-outcomes=twice.txt"], "*twice.txt:2: a::b is listed twice*"),
        (["--coreproof-slice=0/2"], "*--coreproof-slice needs --coreproof*"),
    ],
)
def test_options_that_make_no_sense(
    run: Callable[..., Any], pytester: pytest.Pytester, options: list[str], message: str
):
    Path("bad.txt").write_text("# reasons\na::b\tpassed\twhy\n")
    Path("twice.txt").write_text("a::b\tfailed\twhy\na::b\terror\twhy\n")
    result = run(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])


def test_without_the_option_nothing_is_seeded_or_judged(run: Callable[..., Any], pytester: pytest.Pytester):
    pytester.makepyfile(test_draws=_DRAWS)
    draws = []
    for _ in range(2):
        run().assert_outcomes(passed=2)
        draws.append(Path("first.json").read_text())
    assert draws[0] != draws[1]


_CASES = """
import pytest
@pytest.mark.parametrize("value", [object() for _ in range(6)])
def test_cases(value): pass
"""
_IDS = "def pytest_make_parametrize_id(config, val, argname): return f'{argname}={val}'"


def test_ids_are_the_same_in_every_run_and_slices_deal_them_out(
    run: Callable[..., Any], pytester: pytest.Pytester
):
    pytester.makepyfile(test_cases=_CASES)
    pytester.makeconftest(_IDS)
    found = []
    for options in ([], [], ["--coreproof-slice=0/2"], ["--coreproof-slice=1/2"]):
        result = run("--coreproof", "--collect-only", "-q", *options)
        found.append([line for line in result.outlines if "::" in line])
    assert found[0] == found[1]
    assert not [node for node in found[0] if "0x" in node]
    assert [len(nodes) for nodes in found[2:]] == [3, 3]
    assert sorted(found[2] + found[3]) == sorted(found[0])


_MODELS = """
import coremltools as ct
import numpy as np
from coremltools.converters.mil import Builder as mb

def convert():
    program = mb.program(input_specs=[mb.TensorSpec((2,))])(lambda x: mb.relu(x=x, name="out"))
    return ct.convert(program, convert_to="mlprogram")

def test_predicts():
    assert convert().predict({"x": np.array([-1.0, 2.0])})["out"].tolist() == [0, 2]

def test_refused():
    model = convert()
    spec = model.get_spec()
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    next(o for o in block.operations if o.type == "relu").type = "no_such_op"
    ct.models.MLModel(spec, weights_dir=model.weights_dir)

def test_neural_network():
    program = mb.program(input_specs=[mb.TensorSpec((2,))])(lambda x: mb.relu(x=x))
    ct.convert(program, convert_to="neuralnetwork")
"""


def test_models_run_in_workers_and_one_that_cannot_load_fails_its_test(pytester: pytest.Pytester):
    pytester.makepyfile(test_models=_MODELS)
    result = pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "--coreproof", "--coreproof-record=out.txt", "-n", "2"
    )
    result.assert_outcomes(passed=2, failed=1)
    (line,) = Path("out.txt").read_text().splitlines()
    assert line.startswith(
        "test_models.py::test_refused\tfailed\tRuntimeWarning: You will not be able to run predict"
    )
    assert "op 'no_such_op'" in line
