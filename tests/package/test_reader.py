"""Opening packages: as coremltools wrote them, and as nobody should have."""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from coreproof.errors import PackageError
from coreproof.mil.program import Blob
from coreproof.mil.types import DType, StateType, TensorType
from coreproof.mil.weights import references
from coreproof.package.proto import new_model, read_spec
from coreproof.package.reader import open_package

_SPEC = "Data/com.apple.CoreML/model.mlmodel"
_WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


@pytest.fixture
def package(sample_package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sample_package, tmp_path / "copy.mlpackage"))


def _weights(opened) -> dict[str, np.ndarray]:
    operations = opened.program.functions["main"].block.walk()
    values = {o.name: o.attributes.get("val") for o in operations if o.type == "const"}
    return {n: opened.weights.array(v) for n, v in values.items() if isinstance(v, Blob)}


def test_opens_what_coremltools_wrote(sample_package: Path):
    import coremltools as ct

    opened = open_package(sample_package)
    opened.check()
    assert opened.path == sample_package
    assert opened.spec == ct.utils.load_spec(str(sample_package))
    assert opened.files() == (_SPEC, _WEIGHTS, "Manifest.json")
    arrays = _weights(opened)
    expected = np.arange(24, dtype=np.float32).reshape(4, 6) / 7
    np.testing.assert_array_equal(arrays["first_weight_0"], expected)
    np.testing.assert_array_equal(arrays["second_weight_0"], expected + 1)
    assert all(a.dtype == np.float32 for a in arrays.values())


def test_packed_weights_come_as_bytes(sample_package: Path):
    opened = open_package(sample_package)
    (lut,) = [o for o in opened.program.functions["main"].block.walk() if o.type.startswith("constexpr")]
    (indices,) = lut.inputs["indices"]
    assert isinstance(indices, Blob) and indices.type == TensorType(DType.UINT4, (4, 6))
    nibbles = np.arange(24) % 16
    np.testing.assert_array_equal(opened.weights.array(indices), nibbles[0::2] | nibbles[1::2] << 4)


def test_bare_spec(package: Path):
    bare = open_package(package / _SPEC)
    bare.check()
    assert bare.files() == ("model.mlmodel", "weights/weight.bin")
    assert _weights(bare).keys() == _weights(open_package(package)).keys()


def test_weightless(weightless_package: Path):
    opened = open_package(weightless_package)
    opened.check()
    assert [o.type for o in opened.program.functions["main"].block.walk()] == ["relu"]


def test_weight_record(sample_package: Path):
    opened = open_package(sample_package)
    blob = next(r.blob for r in references(opened.program) if r.name == "first_weight_0")
    record = opened.weights.record("w", blob, ("key",), "identity")
    stored = (np.arange(24, dtype=np.float32) / 7).tobytes()
    assert (record.dtype, record.shape, record.size) == ("fp32", (4, 6), len(stored))
    assert (record.file, record.offset, record.keys) == ("weights/weight.bin", blob.offset, ("key",))
    assert record.sha256 == hashlib.sha256(stored).hexdigest()


def test_wrong_places(tmp_path: Path, package: Path):
    (tmp_path / "empty.mlpackage").mkdir()
    (tmp_path / "file.mlpackage").write_text("x")
    (tmp_path / "file.mlmodelc").write_text("x")
    (tmp_path / "c.mlmodelc").mkdir()
    os.mkfifo(tmp_path / "pipe.mlmodel")
    for name, message in {
        "absent.mlpackage": "cannot be opened: No such file",
        "x" * 300: "cannot be opened: File name too long",
        "empty.mlpackage": "not a Core ML package, it has no Manifest.json",
        "file.mlpackage": "neither an .mlpackage or .mlmodelc folder nor an .mlmodel file",
        "file.mlmodelc": "neither an .mlpackage or .mlmodelc folder nor an .mlmodel file",
        "c.mlmodelc": "not a compiled ML program, it has no model.mil",
        "pipe.mlmodel": "not a regular file",
    }.items():
        with pytest.raises(PackageError, match=message):
            open_package(tmp_path / name)


@pytest.mark.parametrize("kind", ["neuralNetwork", "pipeline", "glmRegressor"])
def test_other_model_types(tmp_path: Path, kind: str):
    spec = new_model()
    getattr(spec, kind).SetInParent()
    path = tmp_path / "m.mlmodel"
    path.write_bytes(spec.SerializeToString())
    with pytest.raises(PackageError, match=f"a {kind} model, not an ML program"):
        open_package(path)


def test_empty_spec(tmp_path: Path):
    (tmp_path / "m.mlmodel").write_bytes(b"")
    with pytest.raises(PackageError, match="a file without a model"):
        open_package(tmp_path / "m.mlmodel")


@pytest.mark.parametrize("size", [0, 63, 100, 200, 300])
def test_truncated_weights(package: Path, size: int):
    os.truncate(package / _WEIGHTS, size)
    with pytest.raises(PackageError, match=r"weight\.bin"):
        open_package(package).check()


def test_missing_weights(package: Path):
    (package / _WEIGHTS).unlink()
    with pytest.raises(PackageError, match="No such file"):
        open_package(package).check()


def test_weights_behind_a_link(package: Path):
    (package / _WEIGHTS).rename(package.parent / "secret")
    (package / _WEIGHTS).symlink_to(package.parent / "secret")
    with pytest.raises(PackageError, match="reached through a link"):
        open_package(package).check()


def _blob_value(spec) -> object:
    for operation in spec.mlProgram.functions["main"].block_specializations["CoreML8"].operations:
        if operation.attributes["val"].WhichOneof("value") == "blobFileValue":
            return operation.attributes["val"]
    raise AssertionError("no blob")


@pytest.mark.parametrize(
    ("file", "offset", "message"),
    [
        ("@model_path/../../../secret", 64, "not a plain relative path"),
        ("@model_path//etc/passwd", 64, "not a plain relative path"),
        ("/etc/passwd", 64, "must start with @model_path/"),
        ("@model_path/weights/other.bin", 64, "No such file"),
        ("@model_path/weights/weight.bin", 2**64 - 64, "offset 18446744073709551552"),
        ("@model_path/weights/weight.bin", 65, "no entry can start at offset 65"),
        ("@model_path/weights/weight.bin", 128, "expected 0xDEADBEEF"),
    ],
)
def test_hostile_references(package: Path, file: str, offset: int, message: str):
    (package.parent / "secret").write_bytes((package / _WEIGHTS).read_bytes())
    spec = read_spec(package / _SPEC)
    value = _blob_value(spec)
    value.blobFileValue.fileName, value.blobFileValue.offset = file, offset
    (package / _SPEC).write_bytes(spec.SerializeToString())
    with pytest.raises(PackageError, match=message) as caught:
        open_package(package).check()
    assert "function 'main', op '" in str(caught.value) and "argument 'val'" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "number", "message"), [("dataType", 10, "declares fp16"), ("dataType", 23, "declares int32")]
)
def test_types_that_are_not_stored(package: Path, field: str, number: int, message: str):
    spec = read_spec(package / _SPEC)
    setattr(_blob_value(spec).type.tensorType, field, number)
    (package / _SPEC).write_bytes(spec.SerializeToString())
    with pytest.raises(PackageError, match=message):
        open_package(package).check()


def test_only_tensors_are_weights(sample_package: Path):
    blob = Blob(StateType(TensorType(DType.FP16, (2,))), "@model_path/weights/weight.bin", 64)
    with pytest.raises(PackageError, match=r"state<fp16\[2\]> cannot be in a weight file"):
        open_package(sample_package).weights.array(blob)


def test_damaged_specs_end_in_package_errors(package: Path):
    spec = (package / _SPEC).read_bytes()
    rng = np.random.default_rng(0)
    read = 0
    for _ in range(400):
        damaged = bytearray(spec)
        for at in rng.integers(0, len(spec), rng.integers(1, 4)):
            damaged[at] = rng.integers(0, 256)
        cut = len(spec) if rng.random() < 0.7 else int(rng.integers(0, len(spec)))
        (package / _SPEC).write_bytes(damaged[:cut])
        try:
            open_package(package).check()
            read += 1
        except PackageError:
            pass
    assert 0 < read < 400  # the damage neither always nor never shows
