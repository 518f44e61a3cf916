"""Canonical packages: the same bytes, whatever varied in the conversion."""

import errno
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from coreproof.atomic import atomic_directory
from coreproof.errors import CoreproofError, PackageError
from coreproof.mil.types import DType
from coreproof.mil.weights import references
from coreproof.package.blob import BlobWriter
from coreproof.package.layout import list_files
from coreproof.package.proto import module, read_spec
from coreproof.package.reader import open_package
from coreproof.package.writer import write_canonical

_SPEC = "Data/com.apple.CoreML/model.mlmodel"
_WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
_PREFIX = "com.github.apple.coremltools."


def _rewrite(package: Path, destination: Path) -> Path:
    opened = open_package(package)
    write_canonical(opened.spec, opened.weights, destination)
    return destination


def _bytes(package: Path) -> dict[str, bytes]:
    return {path: (package / path).read_bytes() for path in list_files(package)}


@pytest.fixture
def package(sample_package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sample_package, tmp_path / "copy.mlpackage"))


def test_means_the_same_to_coremltools(sample_package: Path, tmp_path: Path):
    import coremltools as ct

    written = _rewrite(sample_package, tmp_path / "w.mlpackage")
    model = ct.models.MLModel(str(written), skip_model_load=True)
    assert model.weights_dir == str(written / "Data/com.apple.CoreML/weights")
    before, after = ct.utils.load_spec(str(sample_package)), ct.utils.load_spec(str(written))
    for spec in (before, after):
        spec.description.metadata.userDefined.pop(f"{_PREFIX}conversion_date", None)
        _forget_offsets(spec)
    assert before == after
    old, new = open_package(sample_package), open_package(written)
    pairs = list(zip(references(old.program), references(new.program), strict=True))
    assert len(pairs) >= 5
    for mine, theirs in pairs:
        np.testing.assert_array_equal(old.weights.array(mine.blob), new.weights.array(theirs.blob))


def _forget_offsets(spec: object) -> None:
    for operation in _operations(spec):
        values = [operation.attributes[k] for k in operation.attributes]
        values += [b.value for k in operation.inputs for b in operation.inputs[k].arguments]
        for value in values:
            if value.WhichOneof("value") == "blobFileValue":
                value.blobFileValue.offset = 0


def _operations(spec: object) -> list:
    return list(spec.mlProgram.functions["main"].block_specializations["CoreML8"].operations)


def test_idempotent(sample_package: Path, tmp_path: Path):
    first = _rewrite(sample_package, tmp_path / "first.mlpackage")
    second = _rewrite(first, tmp_path / "elsewhere" / "second.mlpackage")
    assert _bytes(first) == _bytes(second)
    assert list(_bytes(first)) == [_SPEC, _WEIGHTS, "Manifest.json"]


def test_the_given_spec_is_left_alone(sample_package: Path, tmp_path: Path):
    opened = open_package(sample_package)
    before = opened.spec.SerializeToString(deterministic=True)
    write_canonical(opened.spec, opened.weights, tmp_path / "w.mlpackage")
    assert opened.spec.SerializeToString(deterministic=True) == before


def test_equal_weights_are_stored_once(sample_package: Path, tmp_path: Path):
    written = open_package(_rewrite(sample_package, tmp_path / "w.mlpackage"))
    offsets = {r.name: r.blob.offset for r in references(written.program)}
    first, third = offsets["first_weight_0"], offsets["third_weight_0"]
    assert first == third == 64
    ordered = list(dict.fromkeys(offsets.values()))
    assert ordered == sorted(ordered) and len(ordered) < len(offsets)


def test_one_file_in_order_of_use(package: Path, tmp_path: Path):
    """The same weights in two files, backwards and with garbage between them, come out the same."""
    expected = _bytes(_rewrite(package, tmp_path / "expected.mlpackage"))
    opened = open_package(package)
    spec = read_spec(package / _SPEC)
    weights = package / "Data/com.apple.CoreML/weights"
    references = [v for o in _operations(spec) for v in _values(o) if v.HasField("blobFileValue")]
    assert len(references) >= 4
    with BlobWriter(weights / "a.bin") as one, BlobWriter(weights / "b.bin") as two:
        for index, value in enumerate(reversed(references)):
            writer, name = (one, "a.bin") if index % 2 else (two, "b.bin")
            source = opened.weights.file(value.blobFileValue.fileName)
            writer.add(bytes(100), DType.INT8)
            value.blobFileValue.offset = writer.copy(source, source.entry(value.blobFileValue.offset))
            value.blobFileValue.fileName = f"@model_path/weights/{name}"
    (package / _SPEC).write_bytes(spec.SerializeToString())
    (package / _WEIGHTS).rename(weights / "weight.bin.old")
    shutil.copy(weights / "weight.bin.old", package / _WEIGHTS)
    assert _bytes(_rewrite(package, tmp_path / "w.mlpackage")) == expected


def _values(operation: object) -> list:
    bound = [b.value for k in sorted(operation.inputs) for b in operation.inputs[k].arguments]
    nested = [v for b in operation.blocks for o in b.operations for v in _values(o)]
    return [*bound, *nested, *(operation.attributes[k] for k in sorted(operation.attributes))]


def test_what_varies_is_removed(package: Path, tmp_path: Path):
    variants = []
    for date, torch in [
        ("2026-01-01", "2.13.0+cpu"),
        ("2031-12-31", "2.13.0+cu130.local-1"),
        (None, "2.13.0"),
    ]:
        spec = read_spec(package / _SPEC)
        user = spec.description.metadata.userDefined
        user.clear()
        user.update(
            {"note": "torch==9+mine", f"{_PREFIX}source": f"torch=={torch}", f"{_PREFIX}version": "9.0"}
        )
        if date:
            user[f"{_PREFIX}conversion_date"] = date
        dictionary = spec.mlProgram.attributes["buildInfo"].immediateValue.dictionary
        dictionary.values[1].value.immediateValue.tensor.strings.values[:] = [torch]
        (package / _SPEC).write_bytes(spec.SerializeToString())
        variants.append(_bytes(_rewrite(package, tmp_path / "w.mlpackage")))
    assert variants[0] == variants[1] == variants[2]
    spec = read_spec(tmp_path / "w.mlpackage" / _SPEC)
    assert dict(spec.description.metadata.userDefined) == {
        "note": "torch==9+mine",
        f"{_PREFIX}source": "torch==2.13.0",
        f"{_PREFIX}version": "9.0",
    }
    info = dict(open_package(tmp_path / "w.mlpackage").program.attributes["buildInfo"].data)
    assert info == {"coremltools-version": "9.0", "coremltools-component-milinternal": "2.13.0"}


def test_map_order_does_not_show(package: Path, tmp_path: Path):
    expected = _bytes(_rewrite(package, tmp_path / "expected.mlpackage"))
    spec = read_spec(package / _SPEC)
    for operation in _operations(spec):
        inputs = [(k, operation.inputs[k].SerializeToString()) for k in operation.inputs]
        operation.inputs.clear()
        for key, content in sorted(inputs, reverse=True):
            operation.inputs[key].ParseFromString(content)
    (package / _SPEC).write_bytes(spec.SerializeToString())
    assert _bytes(_rewrite(package, tmp_path / "w.mlpackage")) == expected


def test_functions_by_name_and_blobs_anywhere(package: Path, tmp_path: Path):
    """Weights of all functions, in nested values too, follow the order of names."""
    opened = open_package(package)
    spec = read_spec(package / _SPEC)
    mil = module("MIL_pb2")
    stored = np.arange(32, dtype=np.float32)
    with BlobWriter(package / "Data/com.apple.CoreML/weights/more.bin") as writer:
        offsets = [writer.add(stored + index, DType.FP32) for index in range(2)]

    def value(offset: int) -> object:
        made = mil.Value()
        made.type.tensorType.dataType, made.type.tensorType.rank = mil.FLOAT32, 1
        made.type.tensorType.dimensions.add().constant.size = 32
        made.blobFileValue.fileName, made.blobFileValue.offset = "@model_path/weights/more.bin", offset
        return made

    spec.mlProgram.functions["zeta"].attributes["last"].CopyFrom(value(offsets[0]))
    pair = spec.mlProgram.functions["alpha"].attributes["first"].immediateValue.tuple
    pair.values.add().CopyFrom(value(offsets[1]))
    write_canonical(spec, opened.weights, tmp_path / "w.mlpackage")
    written = read_spec(tmp_path / "w.mlpackage" / _SPEC).mlProgram.functions
    first = written["alpha"].attributes["first"].immediateValue.tuple.values[0].blobFileValue
    last = written["zeta"].attributes["last"].blobFileValue
    data = (tmp_path / "w.mlpackage" / _WEIGHTS).read_bytes()
    assert first.offset == 64 and last.offset == len(data) - 192
    assert data[128:256] == (stored + 1).tobytes() and data[-128:] == stored.tobytes()


def test_without_weights(weightless_package: Path, tmp_path: Path):
    import coremltools as ct

    written = _rewrite(weightless_package, tmp_path / "w.mlpackage")
    assert list_files(written) == (_SPEC, "Manifest.json")
    assert not (written / "Data/com.apple.CoreML/weights").exists()
    assert ct.utils.load_spec(str(written)).specificationVersion == 8
    assert ct.models.MLModel(str(written), skip_model_load=True).get_spec().WhichOneof("Type") == "mlProgram"
    assert _bytes(_rewrite(written, tmp_path / "again.mlpackage")) == _bytes(written)


def test_replaces_packages_only(sample_package: Path, weightless_package: Path, tmp_path: Path):
    destination = _rewrite(sample_package, tmp_path / "w.mlpackage")
    _rewrite(weightless_package, destination)
    assert list_files(destination) == (_SPEC, "Manifest.json")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").touch()
    with pytest.raises(CoreproofError, match="not something to overwrite"):
        _rewrite(sample_package, tmp_path / "mine")


def test_a_package_may_replace_itself(package: Path, tmp_path: Path):
    expected = _bytes(_rewrite(package, tmp_path / "w.mlpackage"))
    assert _bytes(_rewrite(package, package)) == expected


def test_inside_a_build_in_progress(sample_package: Path, tmp_path: Path):
    with atomic_directory(tmp_path / "build") as folder:
        _rewrite(sample_package, folder / "w.mlpackage")
    assert [p.name for p in (tmp_path / "build").iterdir()] == ["w.mlpackage"]


def test_bad_weights_write_nothing(package: Path, tmp_path: Path):
    data = bytearray((package / _WEIGHTS).read_bytes())
    data[64] ^= 1
    (package / _WEIGHTS).write_bytes(data)
    with pytest.raises(PackageError, match="expected 0xDEADBEEF"):
        _rewrite(package, tmp_path / "out" / "w.mlpackage")
    assert not (tmp_path / "out").exists()


def test_disk_space_is_checked_first(sample_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CoreproofError, match="the disk has 100 free"):
        _rewrite(sample_package, tmp_path / "out" / "w.mlpackage")
    assert not (tmp_path / "out").exists()


def test_full_disk(sample_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(BlobWriter, "copy", full)
    with pytest.raises(CoreproofError, match=r"w\.mlpackage: cannot be written: No space left on device"):
        _rewrite(sample_package, tmp_path / "w.mlpackage")
    assert list(tmp_path.iterdir()) == []


_LIMITED = """
import resource, sys
from pathlib import Path
from coreproof.errors import CoreproofError
from coreproof.package.reader import open_package
from coreproof.package.writer import write_canonical
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
opened = open_package(Path(sys.argv[1]))
try:
    write_canonical(opened.spec, opened.weights, Path(sys.argv[2]))
except CoreproofError as error:
    sys.exit(str(error))
"""
_KILLED = """
import os, signal, sys
from pathlib import Path
from coreproof.package.blob import BlobWriter
from coreproof.package.reader import open_package
from coreproof.package.writer import write_canonical
copy, calls = BlobWriter.copy, []
def dying(self, *arguments):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return copy(self, *arguments)
BlobWriter.copy = dying
opened = open_package(Path(sys.argv[1]))
write_canonical(opened.spec, opened.weights, Path(sys.argv[2]))
"""


def _run(script: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_write_that_fails_half_way(sample_package: Path, tmp_path: Path):
    done = _run(_LIMITED, sample_package, tmp_path / "w.mlpackage")
    assert done.returncode == 1
    assert done.stderr == f"{tmp_path / 'w.mlpackage'}: cannot be written: File too large\n"
    assert list(tmp_path.iterdir()) == []


def test_killed_half_way(sample_package: Path, tmp_path: Path):
    destination = tmp_path / "w.mlpackage"
    assert _run(_KILLED, sample_package, destination).returncode == -signal.SIGKILL
    assert not destination.exists() and len(list(tmp_path.iterdir())) == 1
    _rewrite(sample_package, destination)
    assert [p.name for p in tmp_path.iterdir()] == ["w.mlpackage"]
    open_package(destination).check()
