"""Compiled models: a published one beside its package, the builders' compiled as Apple's compiler does,
and folders that nobody should have made."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import MODELS
from pair import PUBLISHED, Pair, compile_as_apple, coremldata, published_pair

import coreproof
from coreproof.errors import PackageError
from coreproof.mil.contract import Contract, Feature, read_contract
from coreproof.mil.identity import difference
from coreproof.package.compiled import read_description
from coreproof.package.proto import new_model
from coreproof.package.reader import open_package
from coreproof.package.writer import write_canonical
from coreproof.runtime.state import State


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return published_pair(tmp_path)


def seeded(contract: Contract) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    inputs = {}
    for feature in contract.inputs:
        high = 2 if feature.dtype == "int32" else 256
        numbers = rng.integers(0, high, feature.shape) if feature.dtype in ("int32", "uint8") else (
            rng.standard_normal(feature.shape)
        )  # fmt: skip
        inputs[feature.name] = numbers.astype(feature.dtype)
    return inputs


def same(first: Any, second: Any) -> bool:
    if isinstance(first, np.ndarray):
        return (first.dtype, first.shape, first.tobytes()) == (second.dtype, second.shape, second.tobytes())
    return type(first) is type(second) and first == second


def test_a_published_model_predicts_the_same_bits_in_both_forms(pair: Pair) -> None:
    package, compiled = coreproof.load(pair.package), coreproof.load(pair.compiled)
    assert compiled.contract == package.contract
    rng = np.random.default_rng(0)
    states = {"hidden_state": np.zeros((1, 128), np.float32), "cell_state": np.zeros((1, 128), np.float32)}
    heard = []
    for _ in range(20):
        inputs = {"audio_input": rng.standard_normal((1, 576)).astype(np.float32), **states}
        expected, found = package.predict(inputs), compiled.predict(inputs)
        assert expected.keys() == found.keys() == {"vad_output", "new_hidden_state", "new_cell_state"}
        assert all(same(expected[name], found[name]) for name in expected)
        states = {"hidden_state": found["new_hidden_state"], "cell_state": found["new_cell_state"]}
        heard.append(found["vad_output"].item())
    assert np.isfinite(heard).all() and len(set(heard)) > 10


def test_what_a_published_compiled_model_says_of_itself(pair: Pair) -> None:
    package, compiled = open_package(pair.package), open_package(pair.compiled)
    compiled.check()
    assert compiled.description == package.spec.description
    assert compiled.specification_version == package.specification_version == 6
    assert compiled.files() == ("coremldata.bin", "metadata.json", "model.mil", "weights/weight.bin")
    assert compiled.weight_files() == ("weights/weight.bin",)


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"random"}))
def test_a_compiled_model_predicts_what_its_package_does(
    name: str, built: Callable[[str], Path], tmp_path: Path
) -> None:
    path = compile_as_apple(built(name), tmp_path / "m.mlmodelc")
    package, compiled = coreproof.load(built(name)), coreproof.load(path)
    assert compiled.contract == package.contract
    inputs = seeded(package.contract)
    states = [m.make_state() if m.contract.states else None for m in (package, compiled)]
    for _ in range(2):
        expected, found = (m.predict(inputs, s) for m, s in zip((package, compiled), states, strict=True))
        assert expected.keys() == found.keys() and expected
        assert all(same(expected[output], found[output]) for output in expected)
    if isinstance(states[1], State):
        for feature in compiled.contract.states:
            assert states[1].read_state(feature.name).any()


def test_a_package_made_of_a_compiled_model(pair: Pair, tmp_path: Path) -> None:
    opened = open_package(pair.compiled)
    write_canonical(opened.spec, opened.weights, tmp_path / "again.mlpackage")
    again = open_package(tmp_path / "again.mlpackage")
    assert difference(again.program, opened.program) is None
    assert again.spec.description.input == opened.spec.description.input and again.specification_version == 6
    model = coreproof.load(tmp_path / "again.mlpackage")
    inputs = seeded(model.contract)
    expected = coreproof.load(pair.package).predict(inputs)
    assert all(same(expected[n], v) for n, v in model.predict(inputs).items())


# metadata.json


def without_coremldata(pair: Pair, change: Callable[[dict[str, Any]], None] = lambda entry: None) -> Path:
    (pair.compiled / "coremldata.bin").unlink()
    content = json.loads((pair.compiled / "metadata.json").read_text())
    change(content[0])
    (pair.compiled / "metadata.json").write_text(json.dumps(content))
    return pair.compiled


def test_without_coremldata_the_features_come_from_metadata_json(pair: Pair) -> None:
    package, compiled = open_package(pair.package), open_package(without_coremldata(pair))
    assert compiled.specification_version == 6
    assert compiled.description == package.spec.description
    assert read_contract(compiled.description, "main") == read_contract(package.description, "main")


def test_flexible_shapes_functions_and_states_in_metadata_json(pair: Pair) -> None:
    def array(name: str, shape: str, **more: str) -> dict[str, str]:
        return {
            "name": name,
            "type": "MultiArray",
            "dataType": "Float16",
            "shape": shape,
            "isOptional": "0",
            **more,
        }

    def change(entry: dict[str, Any]) -> None:
        entry["functions"] = [
            {
                "name": "first",
                "inputSchema": [
                    array("a", "[4]", shapeRange="[[0, 4]]"),
                    array("b", "[2, 3]", enumeratedShapes="[[2, 3], [4, 3]]"),
                    array("c", "[1, 2]", shapeRange="[[1, 1], [2, -1]]", isOptional="1"),
                ],
                "outputSchema": [array("y", "[]")],
                "stateSchema": [{**array("s", "[1, 8]"), "type": "State"}],
            },
            {"name": "second", "inputSchema": [], "outputSchema": []},
        ]
        entry["defaultFunctionName"] = "second"

    described = read_description(without_coremldata(pair, change)).description
    first = read_contract(described, "first")
    assert first.inputs == (
        Feature("a", "multiArray", "float16", (4,), ranges=((0, 4),)),
        Feature("b", "multiArray", "float16", (2, 3), ((2, 3), (4, 3))),
        Feature("c", "multiArray", "float16", (1, 2), ranges=((1, 1), (2, None)), optional=True),
    )
    assert first.outputs == (Feature("y", "multiArray", "float16", ()),)
    assert first.states == (Feature("s", "multiArray", "float16", (1, 8)),)
    assert read_contract(described, "second") == Contract((), (), ())
    assert described.defaultFunctionName == "second"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("modelType", {"name": "MLModelType_neuralNetwork"}, "a neuralNetwork model, not an ML program"),
        ("modelType", "x", "does not describe a compiled model"),
        ("specificationVersion", "six", "does not describe a compiled model"),
        ("specificationVersion", 2**40, "does not describe a compiled model"),
        ("inputSchema", [{"name": "x"}], "KeyError"),
        ("inputSchema", [{"name": "x", "type": "MultiArray", "dataType": "Float32", "shape": "[" * 9999}], "does not"),
        ("inputSchema", [{"name": "x", "type": "MultiArray", "dataType": "Float32", "shape": "[1.5]"}], "does not"),
        ("inputSchema", [{"name": "x", "type": "MultiArray", "dataType": "Int7", "shape": "[1]"}], "is needed for"),
        ("inputSchema", [{"name": "x", "type": "Image", "dataType": "?", "formattedType": "Image (Color)"}],
         r"coremldata.bin is needed for a Image \(Color\) \('x'\)"),
        ("userDefinedMetadata", {"a": 1}, "does not describe a compiled model"),
    ],
)  # fmt: skip
def test_metadata_json_of_another_kind(key: str, value: Any, message: str, pair: Pair) -> None:
    path = without_coremldata(pair, lambda entry: entry.update({key: value}))
    with pytest.raises(PackageError, match=message) as caught:
        open_package(path)
    assert "metadata.json: " in str(caught.value)


# Folders that are no compiled model, or a hostile one


def empty(path: Path) -> None:
    for child in path.iterdir():
        shutil.rmtree(child) if child.is_dir() else child.unlink()


def rewrite(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: (path / name).write_bytes(change((path / name).read_bytes())) and None


def other_type(kind: str) -> Callable[[Path], None]:
    spec = new_model()
    number = spec.DESCRIPTOR.fields_by_name[kind].number
    return lambda path: (path / "coremldata.bin").write_bytes(coremldata(spec, number)) and None


def link(name: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        (path / name).rename(path.parent / "elsewhere")
        (path / name).symlink_to(path.parent / "elsewhere")

    return change


def text(old: bytes, new: bytes) -> Callable[[Path], None]:
    return rewrite("model.mil", lambda data: data.replace(old, new, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (empty, "not a compiled ML program, it has no model.mil; open the .mlpackage it was made from"),
        (lambda p: (p / "model.mil").unlink(), "^[^:]*model.mil: cannot be read: No such file"),
        (
            lambda p: [(p / n).unlink() for n in ("coremldata.bin", "metadata.json")],
            "neither coremldata.bin nor",
        ),
        (
            rewrite("coremldata.bin", lambda d: b""),
            "coremldata.bin: not laid out as known compilers write it",
        ),
        (
            rewrite("coremldata.bin", lambda d: d[:70]),
            r"truncated \(70 bytes\); move it away to have metadata",
        ),
        (rewrite("coremldata.bin", lambda d: d[:200]), r"truncated \(200 bytes\)"),
        (rewrite("coremldata.bin", lambda d: struct.pack("<I", 12345) + d[4:]), "not laid out as known"),
        (rewrite("coremldata.bin", lambda d: d[:28] + b"\xff" * 8 + d[36:]), "not laid out as known"),
        (
            rewrite("coremldata.bin", lambda d: d[:75] + b"\xff" * 7 + b"\x7f" + d[83:]),
            "not laid out as known",
        ),
        (rewrite("coremldata.bin", lambda d: d[:83] + b"\xff" * (len(d) - 83)), "not laid out as known"),
        (other_type("neuralNetwork"), "coremldata.bin: a neuralNetwork model, not an ML program"),
        (other_type("pipeline"), "coremldata.bin: a pipeline model, not an ML program"),
        (link("model.mil"), "'model.mil' is reached through a link"),
        (link("coremldata.bin"), "'coremldata.bin' is reached through a link"),
        (link("weights/weight.bin"), "reached through a link"),
        (text(b"program", b"prgram"), "^[^:]*model.mil: line 1, column 1: expected 'program'"),
        (text(b"offset = tensor<uint64, []>(64)", b"offset = tensor<uint64, []>(65)"), "start at offset 65"),
        (text(b"@model_path/weights", b"@model_path/../x"), "not a plain relative path"),
        (text(b"@model_path/weights", b"/etc"), "must start with @model_path/"),
        (lambda p: shutil.rmtree(p / "weights"), "No such file"),
    ],
)
def test_what_is_refused(change: Callable[[Path], Any], message: str, pair: Pair) -> None:
    change(pair.compiled)
    with pytest.raises(PackageError, match=message):
        open_package(pair.compiled).check()


def test_every_cut_of_coremldata_ends_in_a_package_error(pair: Pair) -> None:
    whole = (PUBLISHED / "coremldata.bin").read_bytes()
    trailer = 16
    for length in range(0, len(whole) - trailer, 7):
        (pair.compiled / "coremldata.bin").write_bytes(whole[:length])
        with pytest.raises(PackageError, match="truncated"):
            open_package(pair.compiled)
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(0, len(whole))] = rng.integers(0, 256)
        (pair.compiled / "coremldata.bin").write_bytes(damaged)
        try:
            opened = open_package(pair.compiled)
            read_contract(opened.description, "main")
        except PackageError:
            pass
