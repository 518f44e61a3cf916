"""Who changes a build after it was judged, and what ``coreproof verify`` says to each.

The last one rewrites weight, manifest and receipt together. No hash inside the build can show that;
a re-export from the checkpoint, the checkpoint's own numbers and a digest from elsewhere do.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support import Cli, Made, flip_bit, sign

from coreproof import catalog
from coreproof.evidence.receipt import write
from coreproof.jsonio import canonical
from coreproof.package.manifest import MANIFEST, load_manifest
from coreproof.package.proto import module
from coreproof.validate import validate

FP16, FP32 = "streaming_fir_fp16.mlpackage", "streaming_fir_fp32.mlpackage"
INNER = "Data/com.apple.CoreML"
WEIGHTS, SPEC = f"{FP16}/{INNER}/weights/weight.bin", f"{FP16}/{INNER}/model.mlmodel"


def one_weight(made: Made, fixture: Path) -> None:
    flip_bit(made.build / WEIGHTS)


def one_op_attribute(made: Made, fixture: Path) -> None:
    """The convolution takes every second sample."""
    path = made.build / SPEC
    model = module("Model_pb2").Model.FromString(path.read_bytes())
    (block,) = model.mlProgram.functions["main"].block_specializations.values()
    (conv,) = (o for o in block.operations if o.type == "conv")
    strides = conv.inputs["strides"].arguments[0].name
    (const,) = (o for o in block.operations if o.outputs and o.outputs[0].name == strides)
    const.attributes["val"].immediateValue.tensor.ints.values[0] = 2
    path.write_bytes(model.SerializeToString(deterministic=True))


def one_receipt_figure(made: Made, fixture: Path) -> None:
    path = made.build / "receipt-mil.json"
    content = json.loads(path.read_bytes())
    content["packages"][0]["metrics"]["filtered"]["snr_db"] = [99.0]
    path.write_bytes(canonical(content))


def one_manifest_hash(made: Made, fixture: Path) -> None:
    manifest = load_manifest(made.build)
    files = tuple(replace(f, sha256="0" * 64) if f.path == WEIGHTS else f for f in manifest.files)
    (made.build / MANIFEST).write_bytes(replace(manifest, files=files).to_bytes())


def a_swapped_package(made: Made, fixture: Path) -> None:
    """The fp32 package under the fp16 one's name."""
    shutil.rmtree(made.build / FP16)
    shutil.copytree(made.build / FP32, made.build / FP16)


def a_swapped_package_with_its_manifest(made: Made, fixture: Path) -> None:
    a_swapped_package(made, fixture)
    sign(made.build)


def a_replayed_receipt(made: Made, fixture: Path) -> None:
    """The receipt of the package as it was, beside one with another weight."""
    flip_bit(made.build / WEIGHTS)
    sign(made.build)


def everything_together(made: Made, fixture: Path) -> None:
    """Another weight, the manifest signed for it, and the suite run on it for a true receipt."""
    flip_bit(made.build / WEIGHTS, -64)
    sign(made.build)
    write(validate(made.build, catalog.find(made.model), fixture=fixture), made.build)


Tamper = Callable[[Made, Path], None]
TAMPERS: dict[Tamper, tuple[str, ...]] = {
    one_weight: (
        f"files {{build}}: {WEIGHTS} has sha256 ",
        f"weight {FP16}: taps_to_fp16 (conv): 1 of 33 elements differ; max abs 0.03125",
    ),
    one_op_attribute: (f"files {{build}}: {SPEC} has ", f"op {FP16}: ", "strides (conv): [2], [1]"),
    one_receipt_figure: ("receipt receipt-mil.json: ", f"{FP16}: gate filtered snr_db has ", "99"),
    one_manifest_hash: (f"files {{build}}: {WEIGHTS} has sha256 ", f"says {'0' * 64}"),
    a_swapped_package: (f"files {{build}}: {SPEC} has ", f"op {FP16}: "),
    a_swapped_package_with_its_manifest: (
        "receipt receipt-mil.json: ",
        "the receipt is of other bytes; an old one, or of another package",
        f"op {FP16}: ",
    ),
    a_replayed_receipt: (
        f"receipt receipt-mil.json: {WEIGHTS} has sha256 ",
        "the receipt is of other bytes; an old one, or of another package",
        f"weight {FP16}: taps_to_fp16",
    ),
    everything_together: (
        f"file {WEIGHTS}: sha256 ",
        f"weight {FP16}: taps_to_fp16 (conv): 1 of 33 elements",
    ),
}


@pytest.mark.parametrize("tamper", TAMPERS, ids=lambda t: t.__name__)
def test_a_re_export_refuses_it_with_its_reason(
    tamper: Tamper, judged_filter: Made, filter_reference: Path, cli: Cli
) -> None:
    build = judged_filter.build
    command = ("verify", build, "--model", judged_filter.model, "-c", judged_filter.checkpoint)
    assert cli(*command).status == 0
    tamper(judged_filter, filter_reference)
    ended = cli(*command)
    assert ended.status == 1
    for reason in TAMPERS[tamper]:
        assert reason.format(build=build) in ended.out, ended.out
    assert ended.out.splitlines()[-1].startswith(f"refused: {build}, for ")


@pytest.mark.parametrize("tamper", TAMPERS, ids=lambda t: t.__name__)
def test_a_pinned_digest_refuses_it_without_a_checkpoint(
    tamper: Tamper, judged_filter: Made, filter_reference: Path, cli: Cli
) -> None:
    digest = hashlib.sha256((judged_filter.build / MANIFEST).read_bytes()).hexdigest()
    command = ("verify", judged_filter.build, "--model", judged_filter.model, "--expect", digest)
    assert cli(*command).status == 0
    tamper(judged_filter, filter_reference)
    assert cli(*command).status == 1


@pytest.mark.parametrize("tamper", [one_weight, one_manifest_hash, a_swapped_package, everything_together])
def test_the_checkpoints_own_numbers_refuse_it_without_converting(
    tamper: Tamper, judged_filter: Made, filter_reference: Path, cli: Cli
) -> None:
    tamper(judged_filter, filter_reference)
    command = ("verify", "--weights-only", judged_filter.build, "--model", judged_filter.model)
    assert cli(*command, "-c", judged_filter.checkpoint).status == 1


def test_hashes_alone_cannot_catch_who_rewrites_everything(
    judged_filter: Made, filter_reference: Path, cli: Cli
) -> None:
    """What docs/trust.md says. Were this to fail, the page would be wrong."""
    everything_together(judged_filter, filter_reference)
    build, receipt = judged_filter.build, judged_filter.build / "receipt-mil.json"
    own = hashlib.sha256((build / MANIFEST).read_bytes()).hexdigest()
    model = ("--model", judged_filter.model)
    assert cli("verify", build, *model, "--expect", own).status == 0
    assert cli("verify", "--receipt", receipt, build, *model, "--fixture", filter_reference).status == 0
