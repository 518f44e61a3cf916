"""Two models compared: the same program in other clothes, and one thing changed at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pair import Pair, compile_as_apple, published_pair
from support import Made

from coreproof.diff import Comparison, diff
from coreproof.errors import PackageError
from coreproof.mil.types import DType
from coreproof.mil.weights import weights
from coreproof.package.blob import BlobWriter
from coreproof.package.proto import read_spec
from coreproof.package.reader import open_package
from coreproof.package.writer import write_canonical
from coreproof.parity.defects import plant_nan

_SPEC = "Data/com.apple.CoreML/model.mlmodel"
_WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return published_pair(tmp_path)


@pytest.fixture
def package(sample_package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sample_package, tmp_path / "copy.mlpackage"))


def changed(package: Path, change: Callable[[Any], None]) -> Path:
    """``package``, with its spec changed in place."""
    spec = read_spec(package / _SPEC)
    change(spec)
    (package / _SPEC).write_bytes(spec.SerializeToString())
    return package


def operation(spec: Any, name: str) -> Any:
    operations = spec.mlProgram.functions["main"].block_specializations["CoreML8"].operations
    return next(o for o in operations if o.attributes["name"].immediateValue.tensor.strings.values[0] == name)


def found(result: Comparison) -> list[tuple[str, str, str, str, str]]:
    return [(d.kind, d.op, d.argument, d.weight, d.change.what) for d in result.differences]


# The same


def test_the_published_pair_is_the_same_program(pair: Pair) -> None:
    result = diff(pair.package, pair.compiled)
    assert result.same and result.differences == ()
    assert (result.operations, result.renamed, result.weights) == (48, 0, (13, 13))
    assert {key: (one, other) for key, one, other in result.metadata} == {
        "buildInfo coremlc-component-MIL": ("", "3500.14.1"),
        "buildInfo coremlc-version": ("", "3500.32.1"),
    }


def test_one_program_in_every_form(sample_package: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(sample_package / "Data/com.apple.CoreML", tmp_path / "bare") / "model.mlmodel"
    compiled = compile_as_apple(sample_package, tmp_path / "m.mlmodelc")
    opened = open_package(sample_package)
    write_canonical(opened.spec, opened.weights, tmp_path / "canonical.mlpackage")
    forms = [sample_package, Path(bare), compiled, tmp_path / "canonical.mlpackage"]
    for first in forms:
        for second in forms:
            result = diff(first, second)
            assert result.same, (first, second, found(result))
            assert result.operations == 13 and result.renamed == 0


def test_names_are_counted_and_no_difference(package: Path, sample_package: Path) -> None:
    def rename(spec: Any) -> None:
        second = operation(spec, "second")
        second.attributes["name"].immediateValue.tensor.strings.values[0] = "other"
        for weight in ("first_weight_0", "third_weight_0"):
            operation(spec, weight).attributes["name"].immediateValue.tensor.strings.values[0] = "const"

    result = diff(sample_package, changed(package, rename))
    assert result.same and result.renamed == 1


def test_where_a_constant_is_stored_does_not_matter(package: Path, sample_package: Path) -> None:
    opened = open_package(package)
    arrays = {name: opened.weights.array(blob) for name, blob in weights(opened.program)}

    def move(spec: Any) -> None:
        with BlobWriter(package / "Data/com.apple.CoreML/weights/other.bin") as writer:
            writer.add(bytes(640), DType.INT8)
            value = operation(spec, "first_weight_0").attributes["val"]
            value.blobFileValue.offset = writer.add(np.array(arrays["first_weight_0"]), DType.FP32)
            value.blobFileValue.fileName = "@model_path/weights/other.bin"
        second = operation(spec, "second_weight_0").attributes["val"]
        second.immediateValue.tensor.floats.values.extend(arrays["second_weight_0"].reshape(-1).tolist())

    result = diff(sample_package, changed(package, move))
    assert result.same and result.weights == (5, 4)


def test_metadata_is_told_apart(package: Path, sample_package: Path) -> None:
    def change(spec: Any) -> None:
        spec.specificationVersion = 10
        spec.description.metadata.author = "someone"
        spec.description.metadata.userDefined["k"] = "v"
        pairs = spec.mlProgram.attributes["buildInfo"].immediateValue.dictionary.values
        pairs[0].value.immediateValue.tensor.strings.values[0] = "9.9"

    result = diff(sample_package, changed(package, change))
    assert result.same
    assert [key for key, _, _ in result.metadata] == [
        "author",
        "buildInfo coremltools-version",
        "k",
        "specification version",
    ]
    assert ("specification version", "9", "10") in result.metadata


# Different


def test_one_changed_element_of_one_weight(pair: Pair) -> None:
    opened = open_package(pair.compiled)
    (name, blob), *_ = weights(opened.program)
    values = np.array(opened.weights.array(blob))
    entry = opened.weights.entry(blob)
    after = values.copy()
    after.flat[5] += np.float16(0.5)
    stored = bytearray((pair.compiled / "weights/weight.bin").read_bytes())
    stored[entry.data_offset : entry.data_offset + entry.nbytes] = after.tobytes()
    (pair.compiled / "weights/weight.bin").write_bytes(stored)
    result = diff(pair.package, pair.compiled)
    assert not result.same
    assert found(result) == [("constant", "stft_out_cast_fp16", "weight", name, "")]
    (difference,) = result.differences
    assert name == "stft_forward_basis_to_fp16" and difference.op_type == "conv"
    assert (difference.change.differing, difference.change.elements) == (1, 258 * 256)
    assert difference.change.max_abs == result.max_abs == abs(float(after.flat[5]) - float(values.flat[5]))


def test_a_changed_constant_in_the_text(pair: Pair) -> None:
    text = (pair.compiled / "model.mil").read_bytes()
    (pair.compiled / "model.mil").write_bytes(text.replace(b"(0x1p-24)", b"(0x1p-20)"))
    assert found(diff(pair.package, pair.compiled)) == [
        ("constant", "op_37_cast_fp16", "y", "", f"{2.0**-24}, {2.0**-20}")
    ]
    (pair.compiled / "model.mil").write_bytes(text.replace(b'("reflect")', b'("constant")'))
    assert found(diff(pair.package, pair.compiled)) == [
        ("constant", "x_1_cast_fp16", "mode", "", "'reflect', 'constant'")
    ]


def test_nan_and_the_sign_of_zero(package: Path, sample_package: Path) -> None:
    plant_nan(package, "second_weight_0")
    result = diff(sample_package, package)
    assert [(d.weight, d.change.differing) for d in result.differences] == [("second_weight_0", 1)]
    assert np.isnan(result.max_abs)
    assert diff(package, package).same
    assert json.loads(json.dumps(result.to_json()))["max_abs"] == "nan"
    zero = open_package(sample_package)
    (blob,) = [b for n, b in weights(zero.program) if n == "first_weight_0"]
    data = bytearray((sample_package / _WEIGHTS).read_bytes())
    data[zero.weights.entry(blob).data_offset + 3] = 0x80  # the first element is 0
    (package / _WEIGHTS).write_bytes(data)
    changes = [d.change for d in diff(sample_package, package).differences]
    assert {(c.differing, c.max_abs) for c in changes} == {(1, 0.0)}


def test_packed_weights_are_compared_by_their_values(package: Path, sample_package: Path) -> None:
    opened = open_package(package)
    (blob,) = [b for n, b in weights(opened.program) if n == "palettized.indices"]
    data = bytearray((package / _WEIGHTS).read_bytes())
    at = opened.weights.entry(blob).data_offset
    assert data[at] == 0x10  # the indices 0 and 1
    data[at] = 0x7F
    (package / _WEIGHTS).write_bytes(data)
    (difference,) = diff(sample_package, package).differences
    assert difference.weight == "palettized.indices" and difference.op_type == "constexpr_lut_to_dense"
    assert (difference.change.differing, difference.change.elements) == (2, 24)
    assert difference.change.max_abs == 15


def test_features(package: Path, sample_package: Path) -> None:
    def change(spec: Any) -> None:
        spec.description.input[0].type.multiArrayType.dataType = 65552
        del spec.description.output[0].type.multiArrayType.shape[:]

    result = diff(sample_package, changed(package, change))
    assert [(d.kind, d.argument, d.change.what) for d in result.differences] == [
        ("feature", "input 'x'", "dtype float32, float16"),
        ("feature", "output 'out'", "shape (1, 4), ()"),
    ]


def test_another_shape_and_dtype_of_a_weight(shared_filter: Made) -> None:
    result = diff(shared_filter.package("fp16"), shared_filter.package("fp32"))
    (taps,) = [d for d in result.differences if d.kind == "constant" and d.weight]
    assert taps.change.what == "fp16[1,1,33], fp32[1,1,33]"
    assert taps.change.differing and taps.change.max_abs and taps.change.max_abs < 1e-3
    assert "type" in {d.kind for d in result.differences}


def test_functions(tmp_path: Path) -> None:
    def write(name: str, *functions: str) -> Path:
        folder = tmp_path / f"{name}.mlmodelc"
        folder.mkdir()
        bodies = "".join(f"func {f}<ios18>(fp32 x) {{ fp32 y = {op}(x = x); }} -> (y);" for f, op in
                         (f.split(":") for f in functions))  # fmt: skip
        (folder / "model.mil").write_text(f"program(1.3) {{ {bodies} }}")
        shape = {"type": "MultiArray", "dataType": "Float32", "shape": "[]"}
        schema = {"inputSchema": [{"name": "x", **shape}], "outputSchema": [{"name": "y", **shape}]}
        entry = {"modelType": {"name": "MLModelType_mlProgram"}, "specificationVersion": 9}
        entry["functions"] = [{"name": f.split(":")[0], **schema} for f in functions]
        (folder / "metadata.json").write_text(json.dumps([entry]))
        return folder

    first = write("first", "a:relu", "b:exp")
    assert diff(first, write("same", "b:exp", "a:relu")).same
    result = diff(first, write("other", "a:relu", "c:exp"))
    assert [(d.kind, d.function, d.change.what) for d in result.differences] == [
        ("function", "b", "function only in the first"),
        ("function", "c", "function only in the second"),
    ]
    assert result.functions == 1
    alone = write("alone", "a:relu")
    assert diff(alone, write("renamed", "z:relu")).same
    (difference,) = diff(first, write("changed", "a:relu", "b:log")).differences
    assert (difference.function, difference.op, difference.change.what) == ("b", "y", "is log in the second")


def test_what_cannot_be_compared(package: Path, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="cannot be opened"):
        diff(package, tmp_path / "nowhere.mlpackage")
    (package / _WEIGHTS).write_bytes((package / _WEIGHTS).read_bytes()[:200])
    with pytest.raises(PackageError, match=r"weight\.bin"):
        diff(package, package)
