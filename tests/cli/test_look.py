"""``coreproof run`` and ``coreproof inspect``."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import coremltools as ct
import numpy as np
import pytest
from coremltools.models import datatypes
from coremltools.models.neural_network import NeuralNetworkBuilder
from support import Cli, Made

X = np.array([[0.5, -1.0, 2.0]], np.float32)
INDICES = np.array([2, 0], np.int32)


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
        (_bytes("x.npy", HUGE), "x.npy: not a readable numpy file (0 bytes for an array of float32[10000000000000])"),
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
        (_file("a.onnx", b"x"), "a.onnx: neither an .mlpackage or .mlmodelc folder nor an .mlmodel file"),
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
