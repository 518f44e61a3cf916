"""The ``coreproof`` command: what it prints, how it ends, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types
from coremltools.models import datatypes
from coremltools.models.neural_network import NeuralNetworkBuilder
from safetensors.numpy import load_file, save_file
from support import Cli, Made, digests

import coreproof
from coreproof_exporters.minilm.checkpoint import PUBLISHED

COMMANDS = {
    "export": "Turn a checkpoint into Core ML packages",
    "synth": "Write a synthetic checkpoint",
    "reference": "Compute the expected tensors with the official implementation",
    "verify": "Re-export a build from its checkpoint and compare every byte",
    "validate": "Run a build's packages and judge them",
    "compare": "Judge one package against reference tensors of your own",
    "models": "Write MODELS.md from recorded receipts",
    "run": "Run a package once on given inputs, with no Mac",
    "inspect": "Show a package's contract",
    "backends": "List the ways to run a package",
}
COREPROOF = [sys.executable, "-c", "from coreproof.cli import main; main()"]  # in a process of its own
X = np.array([[0.5, -1.0, 2.0]], np.float32)
INDICES = np.array([2, 0], np.int32)


@pytest.fixture(scope="module")
def picking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain coremltools' work: picks 2 of 3 numbers. Its metadata looks like console markup."""

    @mb.program(
        input_specs=[mb.TensorSpec((1, 3)), mb.TensorSpec((2,), dtype=types.int32)],
        opset_version=ct.target.iOS17,
    )
    def program(x, indices):
        return mb.gather(x=x, indices=indices, axis=1, name="picked")

    model = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS17,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    model.user_defined_metadata["[/title]"] = "[red]loud[/]"
    path = tmp_path_factory.mktemp("picking") / "[red]" / "[/odd] names" / "picking.mlpackage"
    path.parent.mkdir(parents=True)
    model.save(str(path))
    return path


# Help, versions, endings


def test_every_command_is_listed_with_what_it_does(cli: Cli) -> None:
    ended = cli("--help")
    assert ended.status == 0
    for name, what in COMMANDS.items():
        assert any(line.split()[1:2] == [name] and what in line for line in ended.out.splitlines()), name


@pytest.mark.parametrize(("command", "what"), COMMANDS.items())
def test_help_of_a_command(command: str, what: str, cli: Cli) -> None:
    for option in ("--help", "-h"):
        ended = cli(command, option)
        assert (ended.status, ended.err) == (0, "")
        assert what in ended.out
        assert f" {command} [" in ended.out.splitlines()[1]


def test_without_arguments_there_is_help(cli: Cli) -> None:
    ended = cli()
    assert ended.status in (0, 2)
    assert "Usage:" in ended.out + ended.err


def test_version(cli: Cli) -> None:
    ended = cli("--version")
    assert (ended.status, ended.out) == (0, f"{coreproof.__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [("exprot",), ("export",), ("export", "minilm", "--colour"), ("synth", "minilm", "--seed", "-1")],
)
def test_wrong_use_ends_with_2(arguments: tuple[str, ...], cli: Cli) -> None:
    ended = cli(*arguments)
    assert (ended.status, ended.out) == (2, "")
    assert "Error" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "maxilm"), "no model named 'maxilm'; give one of minilm, or a folder with a recipe.py"),
        (("export", "."), ".: no recipe.py in that folder; give one of minilm, or a folder with a recipe.py"),
        (("synth", "minilm", "--size", "medium"), "--size medium: choose small or full"),
        (("validate", "."), ".: not a coreproof build, it has no coreproof.json"),
    ],
)
def test_errors_are_one_sentence(
    arguments: tuple[str, ...], message: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = cli(*arguments)
    assert (ended.status, ended.out, ended.err) == (2, "", f"error: {message}\n")
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(cli: Cli) -> None:
    ended = cli("--debug", "export", "maxilm")
    assert ended.status == 2
    assert "Traceback" in ended.err
    assert "\nerror: no model named 'maxilm'; give one of minilm, or a folder with" in ended.err


def test_a_bug_is_called_one(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> dict[str, str | None]:
        raise KeyError("[/oops]")

    monkeypatch.setattr("coreproof.backends.available", broken)
    ended = cli("backends")
    assert ended.status == 2
    assert ended.err.startswith("internal error: KeyError: '[/oops]'\n")
    assert "run again with --debug" in ended.err
    assert "Traceback" not in ended.err
    assert "Traceback" in cli("--debug", "backends").err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("recipe.py", "def", "recipe.py cannot be imported: SyntaxError: "),
        ("recipe.py", "import nonesuch_package", "recipe.py needs the Python package 'nonesuch_package'"),
        ("recipe.py", "RECIPE = 3", "recipe.py must define RECIPE as a Recipe"),
        ("recipe.py", "1 / 0", "recipe.py cannot be imported: ZeroDivisionError: division by zero"),
    ],
)
def test_a_broken_recipe_is_the_recipes_fault(
    name: str, content: str, message: str, cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    ended = cli("export", tmp_path, "-c", tmp_path)
    assert ended.status == 2
    assert ended.err.startswith(f"error: {message}")


# run


@pytest.fixture
def inputs(tmp_path: Path) -> Mapping[str, list[str]]:
    """The same inputs in every form."""
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "i.npy", INDICES)
    np.savez(tmp_path / "both.npz", x=X, indices=INDICES)
    (tmp_path / "both.json").write_text(json.dumps({"x": X.tolist(), "indices": INDICES.tolist()}))
    return {
        "npy": ["-i", f"x={tmp_path}/x.npy", "-i", f"indices={tmp_path}/i.npy"],
        "npz": ["-i", f"{tmp_path}/both.npz"],
        "json": ["--input", f"{tmp_path}/both.json"],
        "mixed": ["-i", f"{tmp_path}/both.json", "-i", f"x={tmp_path}/x.npy"],
    }


@pytest.mark.parametrize("form", ["npy", "npz", "json", "mixed"])
def test_run_reads_every_form(
    form: str, picking: Path, inputs: Mapping[str, list[str]], tmp_path: Path, cli: Cli
) -> None:
    ended = cli("run", picking, *inputs[form], "-o", tmp_path / "out.npz", "--json")
    assert (ended.status, ended.err) == (0, "")
    found = json.loads(ended.out)["outputs"]["picked"]
    assert found["values"] == [[2.0, 0.5]]
    assert (found["dtype"], found["shape"], found["finite_ratio"]) == ("float32", [1, 2], 1.0)
    assert (found["min"], found["max"], found["mean"]) == (0.5, 2.0, 1.25)
    with np.load(tmp_path / "out.npz", allow_pickle=False) as stored:
        np.testing.assert_array_equal(stored["picked"], X[:, [2, 0]], strict=True)


def test_run_prints_a_table(picking: Path, inputs: Mapping[str, list[str]], tmp_path: Path, cli: Cli) -> None:
    ended = cli("run", picking, *inputs["npz"], "--output", tmp_path / "[/out].npz")
    assert (ended.status, ended.err) == (0, "")
    (line,) = [line for line in ended.out.splitlines() if line.startswith("picked")]
    assert line.split() == ["picked", "float32", "[1,", "2]", "0.5", "2", "1.25", "1"]
    assert ended.out.endswith(f"outputs -> {tmp_path}/[/out].npz\n")


def _npy(array: np.ndarray, *, pickled: bool = False) -> Callable[[Path], list[str]]:
    def write(folder: Path) -> list[str]:
        np.save(folder / "x.npy", array, allow_pickle=pickled)
        np.save(folder / "i.npy", INDICES)
        return ["-i", f"x={folder}/x.npy", "-i", f"indices={folder}/i.npy"]

    return write


def _json(content: object) -> Callable[[Path], list[str]]:
    def write(folder: Path) -> list[str]:
        (folder / "in.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return ["-i", f"{folder}/in.json"]

    return write


def _bytes(name: str, content: bytes) -> Callable[[Path], list[str]]:
    def write(folder: Path) -> list[str]:
        (folder / name).write_bytes(content)
        return ["-i", f"x={folder}/{name}" if name.endswith(".npy") else f"{folder}/{name}"]

    return write


def _broken_zip(folder: Path) -> list[str]:
    """A .npz whose member does not match its checksum."""
    np.savez(folder / "in.npz", x=X, indices=INDICES)
    with zipfile.ZipFile(folder / "in.npz") as archive:
        start = archive.getinfo("x.npy").header_offset
    data = bytearray((folder / "in.npz").read_bytes())
    data[start + 160] ^= 1
    (folder / "in.npz").write_bytes(data)
    return ["-i", f"{folder}/in.npz"]


HUGE = (
    b"\x93NUMPY\x01\x00v\x00"
    + ("{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000,), }".ljust(117) + "\n").encode()
)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_npy(X.astype(np.float64)), "input 'x': dtype float64, expected float32; convert it with .astype('float32')"),
        (_npy(X[0]), "input 'x': shape [3], expected [1, 3]"),
        (_npy(X.astype(object), pickled=True), "x.npy: not a readable numpy file (Object arrays cannot be loaded"),
        (_json({"x": X.tolist()}), "missing input 'indices'; picking.mlpackage takes x: float32 [1, 3], indices"),
        (_json({"x": X.tolist(), "indices": [0, 1], "z": 1}), "unknown input 'z'; picking.mlpackage takes x"),
        (_json({"x": X.tolist(), "indices": [0, 1.5]}), "in.json: 'indices': a number does not fit dtype int32"),
        (_json({"x": X.tolist(), "indices": [0, 2**40]}), "in.json: 'indices': a number does not fit dtype int32"),
        (_json({"x": [[1, 2, 1e39]], "indices": [0, 1]}), "in.json: 'x': a number does not fit dtype float32"),
        (_json({"x": [[1, 2, "3"]], "indices": [0, 1]}), "in.json: 'x': expected nested lists of numbers"),
        (_json({"x": [[1, 2], [3]], "indices": [0, 1]}), "in.json: 'x': setting an array element"),
        (_json([1, 2]), "in.json: expected an object of NAME: nested lists of numbers"),
        (_json('{"x": NaN}'), "in.json: not the JSON that is expected: NaN is not a finite number"),
        (_json("{"), "in.json: not the JSON that is expected"),
        (_bytes("x.npy", b""), "x.npy: not a readable numpy file"),
        (_bytes("x.npy", HUGE), "x.npy: too large"),
        (_bytes("in.npz", b"PK\x03\x04 and no more"), "in.npz: not a readable numpy file"),
        (_broken_zip, "in.npz: unreadable array (Bad CRC-32"),
        (lambda folder: ["-i", f"{folder}/in.npz"], "in.npz does not exist"),
        (lambda folder: ["-i", "x=5"], "--input x=5: give NAME=FILE.npy, FILE.npz or FILE.json"),
        (lambda folder: [], "missing input 'x'; picking.mlpackage takes x: float32 [1, 3], indices: int32 [2]"),
    ],
)  # fmt: skip
def test_run_refuses_what_does_not_fit(
    write: Callable[[Path], list[str]], message: str, picking: Path, tmp_path: Path, cli: Cli
) -> None:
    ended = cli("run", picking, *write(tmp_path), "-o", tmp_path / "out.npz")
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith("error: ")
    assert message in ended.err
    assert not (tmp_path / "out.npz").exists()


def test_run_names_the_op_that_fails(picking: Path, tmp_path: Path, cli: Cli) -> None:
    ended = cli("run", picking, *_json({"x": X.tolist(), "indices": [0, 3]})(tmp_path))
    assert (ended.status, ended.out) == (2, "")
    assert "error: op 'gather' (name 'picked" in ended.err
    assert "index 3 is out of bounds for a dimension of size 3" in ended.err


def test_run_keeps_nan_and_infinity_apart_from_numbers(tmp_path: Path, cli: Cli, picking: Path) -> None:
    write = _npy(np.array([[np.inf, 0, np.nan]], np.float32))
    found = json.loads(cli("run", picking, *write(tmp_path), "--json").out)["outputs"]["picked"]
    assert found["values"] == [["nan", "inf"]]
    assert (found["finite_ratio"], found["max"]) == (0.0, "nan")


@pytest.mark.parametrize("option", [("--mode", "fp64"), ("--function", "decode")])
def test_run_refuses_an_unknown_name(
    option: tuple[str, str], picking: Path, inputs: Mapping[str, list[str]], cli: Cli
) -> None:
    ended = cli("run", picking, *inputs["npz"], *option)
    assert ended.status == 2
    assert repr(option[1]) in ended.err


# inspect


def test_inspect_of_a_package_by_coremltools(picking: Path, cli: Cli) -> None:
    seen = json.loads(cli("inspect", picking, "--json").out)
    main = seen["functions"]["main"]
    assert seen["specification_version"] == 8
    assert main["opset"] == "CoreML7"
    features = [(f["name"], f["dtype"], f["shape"]) for f in (*main["inputs"], *main["outputs"])]
    assert features == [
        ("x", "float32", "[1, 3]"),
        ("indices", "int32", "[2]"),
        ("picked", "float32", "[1, 2]"),
    ]
    assert main["ops"]["scatter_gather"] == {"gather": 1}
    assert seen["weights"] == {"by_dtype": {}, "list": []}
    assert seen["metadata"]["[/title]"] == "[red]loud[/]"
    assert seen["bytes"] == sum(p.stat().st_size for p in picking.rglob("*") if p.is_file())


def test_inspect_prints_names_as_they_are(picking: Path, cli: Cli) -> None:
    ended = cli("inspect", picking)
    assert (ended.status, ended.err) == (0, "")
    (line,) = [line for line in ended.out.splitlines() if line.startswith("[/title]")]
    assert line.split() == ["[/title]", "[red]loud[/]"]


def test_inspect_lists_weights_and_states(shared_filter: Made, cli: Cli) -> None:
    seen = json.loads(cli("inspect", shared_filter.package("fp16"), "--json").out)
    (state,) = seen["functions"]["main"]["states"]
    assert (state["name"], state["dtype"], state["shape"]) == ("history", "float16", "[1, 1, 32]")
    (weight,) = seen["weights"]["list"]
    assert (weight["dtype"], weight["shape"], weight["bytes"]) == ("fp16", [1, 1, 33], 66)
    assert seen["weights"]["by_dtype"] == {"fp16": {"count": 1, "bytes": 66}}
    table = cli("inspect", shared_filter.package("fp16"), "--weights")
    assert table.status == 0
    assert any(line.split()[:2] == ["state", "history"] for line in table.out.splitlines())
    assert weight["name"] in table.out


def _neural_network(folder: Path) -> Path:
    array = datatypes.Array(3)
    builder = NeuralNetworkBuilder([("x", array)], [("y", array)])
    builder.add_activation("relu", "RELU", "x", "y")
    ct.models.utils.save_spec(builder.spec, str(folder / "old.mlmodel"))
    return folder / "old.mlmodel"


def _file(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


@pytest.mark.parametrize("command", ["inspect", "run"])
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_neural_network, "old.mlmodel: a neuralNetwork model, not an ML program"),
        (_file("a.mlmodel", b"\xff" * 40), "a.mlmodel: not a Core ML model, or a truncated one (40 bytes)"),
        (_file("a.onnx", b"x"), "a.onnx: neither an .mlpackage folder nor an .mlmodel file"),
        (lambda folder: folder / "none.mlpackage", "none.mlpackage: cannot be opened: No such file or directory"),
        (lambda folder: folder, "not a Core ML package, it has no Manifest.json"),
    ],
)  # fmt: skip
def test_what_is_no_ml_program_is_refused(
    command: str, write: Callable[[Path], Path], message: str, tmp_path: Path, cli: Cli
) -> None:
    ended = cli(command, write(tmp_path))
    assert (ended.status, ended.out) == (2, "")
    assert message in ended.err


# compare

GATES = """
schema = "coreproof.gates/1"
[[gate]]
output = "picked"
metric = "max_abs_error"
max = 0.0009765625
"""


def compare(
    cli: Cli, package: Path, folder: Path, gates: str = GATES, **arrays: object
) -> tuple[int, str, str]:
    np.savez(folder / "case.npz", **{k.replace("__", "/"): np.asarray(v) for k, v in arrays.items()})
    (folder / "gates.toml").write_text(gates)
    ended = cli("compare", package, "-r", folder / "case.npz", "-g", folder / "gates.toml", "--json")
    return ended.status, ended.out, ended.err


@pytest.mark.parametrize(("error", "status"), [(0.0, 0), (2.0**-10, 0), (2.0**-9, 1), (np.nan, 1)])
def test_compare_one_case(error: float, status: int, picking: Path, tmp_path: Path, cli: Cli) -> None:
    """0.5 and 2 in fp32, and a reference that is ``error`` away from one of them."""
    expected = np.array([[2.0, 0.5 + error]])
    ended = compare(cli, picking, tmp_path, input__x=X, input__indices=INDICES, expected__picked=expected)
    assert (ended[0], ended[2]) == (status, "")
    judged = json.loads(ended[1])
    assert (judged["cases"], judged["passed"]) == (1, status == 0)
    assert judged["verdicts"][0]["passed"] is (status == 0)


def test_compare_several_cases_names_the_worst(picking: Path, tmp_path: Path, cli: Cli) -> None:
    inputs = np.stack([X, X + 1, X + 2])
    expected = inputs[:, :, [2, 0]].copy()
    expected[1] += 0.25
    status, out, _ = compare(
        cli,
        picking,
        tmp_path,
        input__x=inputs,
        input__indices=np.stack([INDICES] * 3),
        expected__picked=expected,
    )
    judged = json.loads(out)
    assert (status, judged["cases"]) == (1, 3)
    assert (judged["verdicts"][0]["case"], judged["verdicts"][0]["value"]) == ("case 1", 0.25)


def test_compare_prints_a_table(picking: Path, tmp_path: Path, cli: Cli) -> None:
    compare(cli, picking, tmp_path, input__x=X, input__indices=INDICES, expected__picked=X[:, [2, 0]])
    options = ("-r", tmp_path / "case.npz", "-g", tmp_path / "gates.toml", "--mode", "fp32")
    ended = cli("compare", picking, *options)
    assert (ended.status, ended.err) == (0, "")
    (line,) = [line for line in ended.out.splitlines() if line.startswith("picked max_abs_error")]
    assert line.split()[2:] == ["0", "<=", "0.0009766", "case", "pass"]


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"expected__picked": None}, 2, "needs input/x, input/indices and at least one expected/NAME"),
        ({"input__x": None}, 2, "needs input/x, input/indices and at least one expected/NAME; it has"),
        ({"input__x": X.astype(np.float64)}, 2, "input 'x': dtype float64, expected float32"),
        ({"input__more": X}, 2, "unknown input 'more'"),
        ({"expected__other": X}, 1, "output 'other': not an output of the package's contract"),
        ({"expected__picked": X}, 1, "shape (1, 2) where the reference has (1, 3)"),
        ({"input__x": np.stack([X, X])}, 2, "hold different numbers of cases"),
        ({"sample_rate": [16000, 1]}, 2, "sample_rate is [16000     1]; give one whole number of Hz"),
        ({"sample_rate": 16000.5}, 2, "sample_rate is 16000.5; give one whole number of Hz"),
        ({"sample_rate": "16 kHz"}, 2, "sample_rate is 16 kHz; give one whole number of Hz"),
    ],
)
def test_compare_fails_closed_on_odd_references(
    changes: dict[str, Any], status: int, message: str, picking: Path, tmp_path: Path, cli: Cli
) -> None:
    arrays = {"input__x": X, "input__indices": INDICES, "expected__picked": X[:, [2, 0]]} | changes
    given = {name: array for name, array in arrays.items() if array is not None}
    ended = compare(cli, picking, tmp_path, **given)
    assert ended[0] == status
    assert message in (ended[2] if status == 2 else ended[1])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (GATES, "", "the gate file is empty"),
        ("max_abs_error", "max_abs_eror", "unknown metric 'max_abs_eror'; did you mean 'max_abs_error'?"),
        (
            "max = 0.0009765625",
            "min = 0.0009765625",
            "min on max_abs_error, where lower is better, passes the worst; use max",
        ),
        ("output =", 'variant = "fp16"\noutput =', "unknown variant 'fp16'"),
        ('output = "picked"', 'output = "pick"', "no case expects an output 'pick'"),
    ],
)
def test_compare_fails_closed_on_odd_gates(
    old: str, new: str, message: str, picking: Path, tmp_path: Path, cli: Cli
) -> None:
    arrays = {"input__x": X, "input__indices": INDICES, "expected__picked": X[:, [2, 0]]}
    status, out, err = compare(cli, picking, tmp_path, GATES.replace(old, new), **arrays)
    assert status == 1
    assert message in out + err


# Checkpoints


@pytest.fixture
def checkpoint(tmp_path: Path, cli: Cli) -> Path:
    cli("synth", "minilm", "-o", tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_synth_says_what_it_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.chdir(tmp_path)
    ended = cli("synth", "minilm", "--size", "small", "--seed", 3)
    assert ended.out == "synthetic minilm checkpoint, small, seed 3 -> checkpoints/minilm-small-3\n"
    as_json = json.loads(cli("synth", "minilm", "--seed", 3, "-o", "again", "--json").out)
    assert as_json == {"model": "minilm", "size": "small", "seed": 3, "folder": "again"}
    assert digests(tmp_path / "again") == digests(tmp_path / "checkpoints/minilm-small-3")


def test_reference_says_what_it_computed(shared_filter: Made, tmp_path: Path, cli: Cli) -> None:
    command = ("reference", shared_filter.model, "-c", shared_filter.checkpoint, "-o", tmp_path)
    found = json.loads(cli(*command, "--json").out)
    digest = found["checkpoint_sha256"]
    assert found == {
        "model": "streaming_fir",
        "checkpoint_sha256": digest,
        "folder": str(tmp_path / digest[:12]),
    }
    said = f"3 arrays for synthetic checkpoint {digest[:12]} -> {tmp_path / digest[:12]}\n"
    assert cli(*command).out == said


BIAS = "encoder.layer.1.output.dense.bias"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(BIAS), f"missing {BIAS}; expected the 37 keys of a BertModel"),
        (lambda t: t.update(extra=t[BIAS]), "unknown extra; expected the 37 keys of a BertModel"),
        (lambda t: t.update({BIAS: np.zeros(31, np.float32)}), f"{BIAS} (F32 (31,), expected F32 (32,))"),
        (lambda t: t.update({BIAS: np.full(32, np.nan, np.float32)}), f"NaN or infinity in {BIAS}"),
    ],
)
def test_a_bad_checkpoint_is_refused(
    edit: Callable[[dict[str, np.ndarray]], object], message: str, checkpoint: Path, cli: Cli
) -> None:
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)
    build = checkpoint.parent / "build"
    ended = cli("export", "minilm", "-c", checkpoint, "-o", build)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith(f"error: {file}: ")
    assert message in ended.err
    assert not build.exists()


def test_offline_the_download_command_is_named(tmp_path: Path) -> None:
    """In a process of its own: the client reads its settings when it is first imported."""
    ended = subprocess.run(
        [*COREPROOF, "export", "minilm", "-o", tmp_path / "build"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    files = "config.json model.safetensors tokenizer.json"
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: could not download the minilm checkpoint (")
    assert (
        f"  hf download sentence-transformers/all-MiniLM-L6-v2 {files} "
        f"--revision {PUBLISHED.revision} --local-dir checkpoints/minilm\n"
        "then pass --checkpoint checkpoints/minilm\n"
    ) in ended.stderr
    assert list(tmp_path.iterdir()) == []


# Interruptions

# The streaming filter as two packages, of which the second takes for ever to make.
SLOW = """
import time
from dataclasses import replace
from pathlib import Path
from coreproof import catalog

filter_ = catalog.find({folder!r}).recipe()

def wait(checkpoint):
    Path({marker!r}).touch()
    while Path({hold!r}).exists():
        time.sleep(0.01)
    return filter_.stages(checkpoint, "fp32")[0].module(checkpoint)

def stages(checkpoint, variant):
    (stage,) = filter_.stages(checkpoint, variant)
    return (stage, replace(stage, name="slow", package="slow", module=wait))

RECIPE = replace(filter_, name="slow", variants=("fp32",), stages=stages)
"""


@pytest.mark.parametrize("earlier", [False, True])
def test_an_interrupted_export_leaves_what_was_there(
    earlier: bool, shared_filter: Made, tmp_path: Path, cli: Cli
) -> None:
    """Killed in the middle, then interrupted in the middle, then left alone."""
    marker, hold, parent = tmp_path / "marker", tmp_path / "hold", tmp_path / "builds"
    recipe = tmp_path / "slow"
    recipe.mkdir()
    parent.mkdir()
    text = SLOW.format(folder=shared_filter.model, marker=str(marker), hold=str(hold))
    (recipe / "recipe.py").write_text(text)
    command = ["export", str(recipe), "-c", str(shared_filter.checkpoint), "-o", str(parent / "build")]
    if earlier:
        assert cli(*command, "--stage", "filter").status == 0
    before = digests(parent)
    hold.touch()
    for sent in (signal.SIGKILL, signal.SIGINT):
        marker.unlink(missing_ok=True)
        process = subprocess.Popen([*COREPROOF, *command], stderr=subprocess.PIPE, text=True)
        _wait_for(marker, process)
        os.kill(process.pid, sent)
        _, stderr = process.communicate(timeout=60)
        whole = {n: d for n, d in digests(parent).items() if not n.startswith(".build.coreproof-")}
        assert whole == before
        if sent == signal.SIGINT:
            assert (process.returncode, stderr) == (
                130,
                "interrupted; nothing half-written was left behind\n",
            )
            assert digests(parent) == before  # nor is anything left of the killed one
    hold.unlink()
    assert cli(*command).status == 0
    assert sorted(p.name for p in parent.iterdir()) == ["build"]
    packages = sorted(p.name for p in (parent / "build").glob("*.mlpackage"))
    assert packages == ["slow.mlpackage", "streaming_fir_fp32.mlpackage"]


def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, "it ended before it was interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.02)
