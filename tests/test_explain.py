"""What a difference between two exports is said to be, from coarse to fine, and the pinned digest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import Cli, Made, flip_bit, sign

from coreproof.explain import LEVELS, Finding, explain
from coreproof.package.manifest import MANIFEST, load_manifest

INNER = "Data/com.apple.CoreML"
FP16, FP32 = "streaming_fir_fp16.mlpackage", "streaming_fir_fp32.mlpackage"


def edit_spec(package: Path, edit: Any) -> None:
    """Change the protobuf message of a package in place."""
    from coreproof.package.proto import module

    path = package / INNER / "model.mlmodel"
    model = module("Model_pb2").Model.FromString(path.read_bytes())
    edit(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def set_pad(model: Any) -> None:
    """One op's attribute: the convolution pads."""
    (block,) = model.mlProgram.functions["main"].block_specializations.values()
    (conv,) = (o for o in block.operations if o.type == "conv")
    name = conv.inputs["pad_type"].arguments[0].name
    (const,) = (o for o in block.operations if o.outputs and o.outputs[0].name == name)
    const.attributes["val"].immediateValue.tensor.strings.values[0] = "same"


def found(shared: Made, changed: Made) -> tuple[Finding, ...]:
    return explain(changed.build, load_manifest(changed.build), shared.build, load_manifest(shared.build))


def test_the_same_folder_twice(shared_filter: Made, streaming_fir: Made) -> None:
    assert found(shared_filter, streaming_fir) == ()


def test_one_op_attribute(shared_filter: Made, streaming_fir: Made) -> None:
    edit_spec(streaming_fir.build / FP32, set_pad)
    sign(streaming_fir.build)
    file, op = found(shared_filter, streaming_fir)
    assert (file.level, file.where) == ("file", f"{FP32}/{INNER}/model.mlmodel")
    assert (op.level, op.where) == ("op", FP32)
    assert " pad_type (conv): " in op.what
    assert "same" in op.what and "valid" in op.what


def test_the_size_of_a_numeric_difference(shared_filter: Made, streaming_fir: Made) -> None:
    flip_bit(streaming_fir.weights("fp32"))
    sign(streaming_fir.build)
    file, weight = found(shared_filter, streaming_fir)
    assert (file.level, weight.level) == ("file", "weight")
    last = streaming_fir.weights("fp32").read_bytes(), shared_filter.weights("fp32").read_bytes()
    import numpy as np

    a, b = (float(np.frombuffer(data[-4:], "<f4")[0]) for data in last)
    assert weight.max_abs == abs(a - b) > 0
    assert f"1 of 33 elements differ; max abs {abs(a - b):.4g}" in weight.what
    assert weight.to_json() == {
        "level": "weight", "where": FP32, "what": weight.what, "max_abs": weight.max_abs
    }  # fmt: skip


def test_metadata_alone(shared_filter: Made, streaming_fir: Made) -> None:
    def describe(model: Any) -> None:
        model.description.metadata.author = "someone"

    edit_spec(streaming_fir.build / FP16, describe)
    sign(streaming_fir.build)
    _, same = found(shared_filter, streaming_fir)
    assert same == Finding(
        "file", FP16, "the same program and weights; metadata 'author' is 'someone', in its re-export ''"
    )


def test_padding_alone(shared_filter: Made, streaming_fir: Made) -> None:
    """A byte of the header that no reader looks at."""
    flip_bit(streaming_fir.weights("fp16"), 20)
    sign(streaming_fir.build)
    _, stored = found(shared_filter, streaming_fir)
    assert stored.where == f"{FP16}/{INNER}/weights/weight.bin"
    assert stored.what == (
        "the same program and weights, stored otherwise: 1 bytes differ, the first at offset 20"
    )


def test_what_cannot_be_read(shared_filter: Made, streaming_fir: Made) -> None:
    (streaming_fir.build / FP16 / INNER / "model.mlmodel").write_bytes(b"\xff" * 100)
    sign(streaming_fir.build)
    _, op = found(shared_filter, streaming_fir)
    assert op.level == "op"
    assert op.what.startswith("cannot be compared: ")


def test_contracts_come_before_files(shared_filter: Made, streaming_fir: Made) -> None:
    flip_bit(streaming_fir.weights("fp16"))
    first, second = load_manifest(streaming_fir.build).packages
    (audio,) = first.contract.inputs
    other = replace(first.contract, inputs=(replace(audio, shape=(1, 1, 640)),))
    tools = {**load_manifest(streaming_fir.build).toolchain, "torch": "1.0"}
    sign(
        streaming_fir.build,
        packages=(replace(first, contract=other, target="iOS17"), second),
        toolchain=tools,
    )
    findings = found(shared_filter, streaming_fir)
    assert [f.level for f in findings] == ["toolchain", "contract", "contract", "file", "weight"]
    assert [LEVELS.index(f.level) for f in findings] == sorted(LEVELS.index(f.level) for f in findings)
    assert findings[1].what == (
        "inputs audio fp32[1, 1, 640] in the build, audio fp32[1, 1, 320] in its re-export"
    )
    assert findings[2].what == "target 'iOS17' in the build, 'iOS18' in its re-export"


def test_a_list_in_another_order(shared_filter: Made, streaming_fir: Made) -> None:
    sign(streaming_fir.build, packages=load_manifest(streaming_fir.build).packages[::-1])
    (finding,) = found(shared_filter, streaming_fir)
    assert (finding.level, finding.where) == ("manifest", MANIFEST)


def pin(build: Path) -> str:
    return hashlib.sha256((build / MANIFEST).read_bytes()).hexdigest()


def test_a_pinned_digest_needs_no_checkpoint(streaming_fir: Made, cli: Cli) -> None:
    digest = pin(streaming_fir.build)
    ended = cli("verify", streaming_fir.build, "--model", streaming_fir.model, "--expect", digest)
    files = len(load_manifest(streaming_fir.build).files)
    assert (ended.status, ended.out) == (
        0,
        f"pinned: coreproof.json of {streaming_fir.build} is the expected one, its {files} files are as it says\n",
    )


@pytest.mark.parametrize("resign", [False, True])
def test_a_pinned_digest_catches_who_rewrites_weights_and_manifest(
    resign: bool, streaming_fir: Made, cli: Cli
) -> None:
    digest = pin(streaming_fir.build)
    flip_bit(streaming_fir.weights("fp16"))
    if resign:
        sign(streaming_fir.build)
    command = ("verify", streaming_fir.build, "--model", streaming_fir.model, "--expect", digest)
    ended = cli(*command, "--json")
    (finding,) = json.loads(ended.out)["findings"]
    assert ended.status == 1
    assert finding["level"] == ("pin" if resign else "files")
    if resign:
        assert finding["what"] == f"has sha256 {pin(streaming_fir.build)}, expected {digest}"


def test_a_pin_is_of_the_canonical_form(streaming_fir: Made, cli: Cli) -> None:
    path = streaming_fir.build / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_bytes())))
    digest = pin(streaming_fir.build)
    ended = cli("verify", streaming_fir.build, "--model", streaming_fir.model, "--expect", digest)
    assert ended.status == 1
    assert "pin coreproof.json: is not in its canonical form" in ended.out


def test_a_pin_goes_with_a_re_export(streaming_fir: Made, cli: Cli) -> None:
    command = ("verify", streaming_fir.build, "--model", streaming_fir.model, "-c", streaming_fir.checkpoint)
    ended = cli(*command, "--expect", pin(streaming_fir.build), "--json")
    assert json.loads(ended.out)["checked"] == ["pin", "files", "re-export"]
    ended = cli(*command, "--expect", "abc")
    assert (ended.status, ended.err) == (
        2,
        "error: --expect abc: give the 64 hexadecimal digits of sha256sum coreproof.json\n",
    )
