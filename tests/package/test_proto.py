"""The message modules, loaded apart from coremltools."""

import subprocess
import sys
from pathlib import Path

import pytest

from coreproof.errors import CoreproofError, PackageError
from coreproof.package import proto

_ORDERS = {
    "ours first": "ours(); theirs()",
    "theirs first": "theirs(); ours()",
    "ours alone": "ours(); assert not any(m.partition('.')[0] == 'coremltools' for m in sys.modules)",
}
_SCRIPT = """
import sys
from pathlib import Path
path, made = Path(sys.argv[1]), {}
def ours():
    from coreproof.package.proto import module, read_spec
    made["ours"] = read_spec(path), module("MIL_pb2").Program
def theirs():
    import coremltools
    made["theirs"] = coremltools.utils.load_spec(str(path)), coremltools.proto.MIL_pb2.Program
"""
_COMPARE = """
if len(made) == 2:
    assert type(made["ours"][0]) is type(made["theirs"][0])
    assert made["ours"][1] is made["theirs"][1]
    assert made["ours"][0] == made["theirs"][0]
assert made["ours"][0].mlProgram.functions["main"].opset == "CoreML8"
"""


@pytest.mark.parametrize("order", _ORDERS)
def test_same_messages_in_either_order(sample_package: Path, order: str):
    spec = sample_package / "Data/com.apple.CoreML/model.mlmodel"
    script = _SCRIPT + _ORDERS[order] + _COMPARE
    done = subprocess.run(
        [sys.executable, "-c", script, str(spec)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    if order == "ours alone":
        assert done.stdout + done.stderr == ""


def test_missing_coremltools(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "_coreproof_coremltools_proto", raising=False)
    with pytest.raises(CoreproofError, match="coremltools is not installed"):
        proto.module.__wrapped__("MIL_pb2")


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + _varint(value >> 7)


def _field(number: int, content: bytes) -> bytes:
    """A submessage in protobuf's wire format."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _nested(levels: int) -> bytes:
    """A model with a program attribute that is a list in a list, ``levels`` deep."""
    value = b""
    for _ in range(levels):
        value = _field(3, _field(3, _field(1, value)))  # Value.immediateValue.list.values
    return _field(502, _field(4, _field(1, b"deep") + _field(2, value)))  # Model.mlProgram.attributes


@pytest.mark.parametrize(
    "content", [b"\x08", b"\xff" * 100, b"\x12\x7f\x00", _nested(50)], ids=["cut", "garbage", "short", "deep"]
)
def test_not_a_model(tmp_path: Path, content: bytes):
    path = tmp_path / "model.mlmodel"
    path.write_bytes(content)
    with pytest.raises(PackageError, match="not a Core ML model, or a truncated one"):
        proto.read_spec(path)


def test_nesting_below_the_limit_is_read(tmp_path: Path):
    path = tmp_path / "model.mlmodel"
    path.write_bytes(_nested(10))
    value = proto.read_spec(path).mlProgram.attributes["deep"]
    assert value.immediateValue.list.values[0].WhichOneof("value") == "immediateValue"


def test_too_large_is_refused_unread(tmp_path: Path):
    path = tmp_path / "model.mlmodel"
    with path.open("wb") as stream:
        stream.truncate(proto.MAX_SPEC_BYTES + 1)
    with pytest.raises(PackageError, match=f"larger than the {proto.MAX_SPEC_BYTES} bytes"):
        proto.read_spec(path)
