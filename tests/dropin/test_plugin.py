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
@pytest.mark.parametrize("value", [*[object() for _ in range(5)], "two\\nlines\\t of text"])
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
    assert len(found[0]) == 6
    assert not [node for node in found[0] if "0x" in node]
    assert found[0][5] == "test_cases.py::test_cases[value=two lines of text]"
    assert [len(nodes) for nodes in found[2:]] == [3, 3]
    assert sorted(found[2] + found[3]) == sorted(found[0])


_MODELS = """
import gc
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

def test_what_was_collected_is_no_garbage_collectors_business():
    assert gc.get_freeze_count() > 100_000

def test_neural_network():
    program = mb.program(input_specs=[mb.TensorSpec((2,))])(lambda x: mb.relu(x=x))
    ct.convert(program, convert_to="neuralnetwork")
"""


def test_models_run_in_workers_and_one_that_cannot_load_fails_its_test(pytester: pytest.Pytester):
    pytester.makepyfile(test_models=_MODELS)
    result = pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "--coreproof", "--coreproof-record=out.txt", "-n", "2"
    )
    result.assert_outcomes(passed=3, failed=1)
    (line,) = Path("out.txt").read_text().splitlines()
    assert line.startswith(
        "test_models.py::test_refused\tfailed\tRuntimeWarning: You will not be able to run predict"
    )
    assert "op 'no_such_op'" in line


_UNCOLLECTED = "import no_such_package_anywhere\ndef test(): pass\n"


def test_a_file_that_cannot_be_collected_is_an_outcome(run: Callable[..., Any], pytester: pytest.Pytester):
    pytester.makepyfile(test_mixed=_MIXED, test_uncollected=_UNCOLLECTED)
    options = ["--coreproof", "--continue-on-collection-errors"]
    assert run(*options, "--coreproof-record=out.txt").ret == pytest.ExitCode.TESTS_FAILED
    line = "test_uncollected.py\terror\tModuleNotFoundError: No module named 'no_such_package_anywhere'"
    assert Path("out.txt").read_text().splitlines() == [*_OUTCOMES, line]
    assert run(*options, "--coreproof-outcomes=out.txt").ret == pytest.ExitCode.OK
    Path("out.txt").write_text("\n".join(_OUTCOMES))
    result = run(*options, "--coreproof-outcomes=out.txt")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert [text for text in result.outlines if text[:2] in ("- ", "+ ")] == [f"+ {line}"]


_COMPARED = """
import shutil
import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.testing_utils import compare_backend

X = np.array([-1.0, 2.0])

@pytest.fixture(scope="module")
def model():
    def convert(precision):
        program = mb.program(input_specs=[mb.TensorSpec((2,))])(lambda x: mb.relu(x=x, name="out"))
        return ct.convert(program, convert_to="mlprogram", compute_precision=precision)
    return convert

def test_near(model):
    half = model(ct.precision.FLOAT16)
    compare_backend(half, {"x": X}, {"out": np.array([0, 2.0])}, dtype="fp16")
    compare_backend(half, {"x": X}, {"out": np.array([0, 2 + 3 / 512])}, dtype="fp16")

def test_within_the_suite_only(model):
    compare_backend(model(ct.precision.FLOAT16), {"x": X}, {"out": np.array([0.25, 2])}, dtype="fp16")

def test_compares_otherwise(model):
    assert model(ct.precision.FLOAT32).predict({"x": X})["out"].tolist() == [0, 2]

def test_single(model):
    single = model(ct.precision.FLOAT32)
    shutil.rmtree(single.package_path)
    np.testing.assert_allclose([2.0, 0], single.predict({"x": X})["out"][::-1])

def test_makes_no_model(): np.testing.assert_allclose(1, 2, rtol=9)
"""


def test_predictions_are_held_to_a_tight_tolerance_that_fails_nothing(
    run: Callable[..., Any], pytester: pytest.Pytester
):
    pytester.makepyfile(test_compared=_COMPARED)
    result = run("--coreproof", "--coreproof-tight", "--coreproof-report=out.json")
    result.assert_outcomes(passed=5)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(
        [
            "fp16: 1 of 3 comparisons (33.33%) are further off than 0.002 + 0.002 x |expected|",
            "fp32: 0 of 1 comparisons (0.00%) are further off than 1.9e-06 + 1.9e-06 x |expected|",
            "*102 x,*1 of*1 cases  test_compared.py::test_within_the_suite_only",
        ],
        consecutive=True,
    )
    seen = {
        node.partition("::")[2]: (case["models"], case["predictions"], case["compared"])
        for node, case in json.loads(Path("out.json").read_text()).items()
    }
    assert seen == {
        "test_near": (1, 2, {"fp16": [0, pytest.approx(3 / (3 + 3 / 512))]}),
        "test_within_the_suite_only": (1, 1, {"fp16": [pytest.approx(102.4)]}),
        "test_compares_otherwise": (1, 1, {}),
        "test_single": (1, 1, {"fp32": [0]}),
        "test_makes_no_model": (0, 0, {}),
    }


def test_a_run_that_judges_no_prediction_fails(run: Callable[..., Any], pytester: pytest.Pytester):
    pytester.makepyfile(test_compared=_COMPARED)
    result = run("--coreproof", "--coreproof-tight", "-k", "otherwise or no_model")
    result.assert_outcomes(passed=2, deselected=3)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["1 cases predicted, and none of them compared a prediction through *"])
