"""``coreproof diff``, and the other commands that look into models, on every form of one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pair import Pair, published_pair
from support import Cli, flip_bit

from coreproof.package.proto import new_model


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return published_pair(tmp_path)


def test_the_same_program(pair: Pair, cli: Cli) -> None:
    ended = cli("diff", pair.package, pair.compiled)
    assert (ended.status, ended.err) == (0, "")
    lines = [line.split() for line in ended.out.splitlines()]
    assert ended.out.startswith("same program: 48 ops, 13 weights\n")
    assert lines[1:] == [
        ["metadata", "first", "second"],
        ["buildInfo", "coremlc-component-MIL", "3500.14.1"],
        ["buildInfo", "coremlc-version", "3500.32.1"],
    ]
    assert cli("diff", pair.package, pair.package).out == "same program: 48 ops, 13 weights\n"


def test_one_changed_weight_is_named(pair: Pair, cli: Cli) -> None:
    flip_bit(pair.compiled / "weights/weight.bin", 128 + 1)  # an exponent bit of the first element
    ended = cli("diff", pair.package, pair.compiled)
    assert (ended.status, ended.err) == (1, "")
    first, second, third, *_ = ended.out.splitlines()
    assert first == "different programs: 1 difference (1 constant)"
    assert second.startswith("in both: 48 ops, 13 weights; largest difference of a constant ")
    assert third.startswith(
        "stft_out_cast_fp16 (conv) weight (stft_forward_basis_to_fp16): 1 of 66048 elements differ; max abs "
    )


def test_many_differences_are_counted(pair: Pair, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coreproof.cli.look._SHOWN", 3)
    text = (pair.compiled / "model.mil").read_text()
    (pair.compiled / "model.mil").write_text(text.replace("int32, []>(1)", "int32, []>(2)"))
    lines = cli("diff", pair.package, pair.compiled).out.splitlines()
    assert lines[0] == "different programs: 6 differences (6 constant)"
    assert lines[2:6] == [
        "stft_out_cast_fp16 (conv) groups: 1, 2; 1 of 1 elements differ; max abs 1",
        "input_3_cast_fp16 (conv) groups: 1, 2; 1 of 1 elements differ; max abs 1",
        "input_7_cast_fp16 (conv) groups: 1, 2; 1 of 1 elements differ; max abs 1",
        "and 3 more; --json has them all",
    ]


def test_json(pair: Pair, cli: Cli) -> None:
    same = json.loads(cli("diff", pair.package, pair.compiled, "--json").out)
    assert same["same"] is True and same["differences"] == [] and same["max_abs"] == 0
    assert (same["operations"], same["renamed"], same["functions"], same["weights"]) == (48, 0, 1, [13, 13])
    assert ["buildInfo coremlc-version", "", "3500.32.1"] in same["metadata"]
    text = (pair.compiled / "model.mil").read_text()
    (pair.compiled / "model.mil").write_text(text.replace("(0x1p-24)", "(inf)"))
    ended = cli("diff", pair.package, pair.compiled, "--json")
    assert ended.status == 1
    found = json.loads(ended.out)
    assert found["same"] is False and found["max_abs"] == "inf"
    assert found["differences"] == [
        {
            "kind": "constant",
            "function": "main",
            "op": "op_37_cast_fp16",
            "op_type": "add",
            "argument": "y",
            "weight": "",
            "change": {"what": f"{2.0**-24}, inf", "elements": 1, "differing": 1, "max_abs": "inf"},
        }
    ]


def test_names_that_differ(pair: Pair, cli: Cli) -> None:
    text = (pair.compiled / "model.mil").read_text()
    (pair.compiled / "model.mil").write_text(
        text.replace("x_5_cast_fp16", "renamed").replace('("cast_2")', '("c")')
    )
    ended = cli("diff", pair.package, pair.compiled)
    assert ended.status == 0
    assert ended.out.splitlines()[:2] == [
        "same program: 48 ops, 13 weights",
        "names differ: 2 ops or features",
    ]


@pytest.mark.parametrize("form", ["package", "compiled"])
def test_inspect_and_run_take_either_form(form: str, pair: Pair, tmp_path: Path, cli: Cli) -> None:
    path = getattr(pair, form)
    seen = json.loads(cli("inspect", path, "--json").out)
    main = seen["functions"]["main"]
    assert (main["op_count"], main["opset"], seen["specification_version"]) == (48, "CoreML5", 6)
    assert [(f["name"], f["shape"]) for f in main["inputs"]] == [
        ("audio_input", "[1, 576]"),
        ("hidden_state", "[1, 128]"),
        ("cell_state", "[1, 128]"),
    ]
    assert len(seen["weights"]["list"]) == 13 and seen["metadata"]["version"] == "6.0.0"
    assert cli("inspect", path).out.startswith(f"{path.name}: specification version 6, ")
    rng = np.random.default_rng(0)
    inputs = {
        f["name"]: rng.standard_normal(json.loads(f["shape"])).astype(np.float32) for f in main["inputs"]
    }
    np.savez(tmp_path / "in.npz", **inputs)
    ended = cli("run", path, "-i", tmp_path / "in.npz", "--json")
    assert (ended.status, ended.err) == (0, "")
    outputs = json.loads(ended.out)["outputs"]
    assert {n: o["shape"] for n, o in outputs.items()} == {
        "vad_output": [1, 1, 1],
        "new_hidden_state": [1, 128],
        "new_cell_state": [1, 128],
    }
    assert all(o["finite_ratio"] == 1 for o in outputs.values())


def spec_of(kind: str, folder: Path) -> Path:
    spec = new_model()
    getattr(spec, kind).SetInParent()
    path = folder / f"{kind}.mlmodel"
    path.write_bytes(spec.SerializeToString())
    return path


GATES = """
schema = "coreproof.gates/1"
[[gate]]
output = "y"
metric = "max_abs_error"
max = 1.0
"""

KINDS = (
    "neuralNetwork",
    "neuralNetworkClassifier",
    "pipeline",
    "treeEnsembleRegressor",
    "glmClassifier",
    "customModel",
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_command_says_when_a_model_is_no_ml_program(
    kind: str, pair: Pair, tmp_path: Path, cli: Cli
) -> None:
    path = spec_of(kind, tmp_path)
    (tmp_path / "g.toml").write_text(GATES)
    np.savez(tmp_path / "r.npz", **{"input/x": np.zeros(3), "expected/y": np.zeros(3)})
    judged = ("compare", path, "--reference", tmp_path / "r.npz", "--gates", tmp_path / "g.toml")
    for command in (
        ("run", path),
        ("inspect", path),
        ("diff", path, pair.package),
        ("diff", pair.package, path),
        judged,
    ):
        ended = cli(*command)
        assert (ended.status, ended.out) == (2, ""), command
        assert ended.err == f"error: {path}: a {kind} model, not an ML program\n"


def test_what_cannot_be_compared_ends_with_2(pair: Pair, tmp_path: Path, cli: Cli) -> None:
    ended = cli("diff", pair.package, tmp_path / "none.mlpackage")
    assert (ended.status, ended.out) == (2, "")
    assert "none.mlpackage: cannot be opened" in ended.err
    (pair.compiled / "model.mil").write_text("program(1.0) {")
    ended = cli("diff", pair.package, pair.compiled)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.endswith("model.mil: line 1, column 15: expected 'func', found the end of the text\n")


@pytest.mark.parametrize("command", ["diff", "inspect"])
def test_looking_needs_neither_torch_nor_coremltools(command: str, pair: Pair) -> None:
    paths = [str(pair.package), str(pair.compiled)]
    for arguments in [paths] if command == "diff" else [[path] for path in paths]:
        code = (
            "import sys\n"
            f"sys.argv = {['coreproof', command, *arguments]!r}\n"
            "from coreproof.cli import main\n"
            "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
            "assert not {'torch', 'coremltools', 'scipy'} & set(sys.modules)\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_importing_coreproof_takes_a_moment() -> None:
    code = "import time; begun = time.process_time(); import coreproof; print(time.process_time() - begun)"
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(ended.stdout) < 0.3
