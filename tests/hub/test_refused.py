"""What may not be published: each tampering is refused with its reason, before the Hub is asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub
from published import REPO, Publish, judge
from support import Cli, Made, flip_bit, sign

from coreproof import catalog
from coreproof.convert.export import export, select
from coreproof.evidence.seal import seal
from coreproof.jsonio import canonical
from coreproof.package.manifest import MANIFEST


def receipt(made: Made) -> Path:
    return made.build / "receipt-mil.json"


def edit(path: Path, change: Callable[[Any], None], sealed: bool = False) -> None:
    """Change a JSON file; ``sealed``: and make its seal true again."""
    content = json.loads(path.read_text())
    change(content)
    if sealed:
        content["seal"] = seal(content)
    path.write_bytes(canonical(content))


def gate(content: Any) -> Any:
    return content["packages"][0]["gates"][0]


def one_weight(made: Made) -> None:
    flip_bit(made.weights("fp32"))


def one_weight_signed(made: Made) -> None:
    flip_bit(made.weights("fp32"))
    sign(made.build)


def one_weight_signed_twice(made: Made) -> None:
    """The receipt, too, is made to name the new manifest, but not the package's new bytes."""
    one_weight_signed(made)
    from coreproof.files import sha256_of

    digest = sha256_of(made.build / MANIFEST)
    edit(receipt(made), lambda r: r["judged"].update(manifest=digest), sealed=True)


def one_op_attribute(made: Made) -> None:
    """What ``pad_type`` of the convolution says."""
    path = made.package("fp32") / "Data/com.apple.CoreML/model.mlmodel"
    data = path.read_bytes()
    assert data.count(b"valid") == 1
    path.write_bytes(data.replace(b"valid", b"same "))


def one_receipt_figure(made: Made) -> None:
    edit(receipt(made), lambda r: gate(r).update(value=gate(r)["value"] + 1))


def one_receipt_figure_sealed(made: Made) -> None:
    edit(receipt(made), lambda r: gate(r).update(value=gate(r)["value"] + 1), sealed=True)


def a_measured_figure_sealed(made: Made) -> None:
    def better(content: Any) -> None:
        content["packages"][0]["metrics"]["filtered"]["snr_db"][0] += 1

    edit(receipt(made), better, sealed=True)


def a_figure_that_is_no_number(made: Made) -> None:
    def spoil(content: Any) -> None:
        content["packages"][0]["metrics"]["filtered"]["snr_db"][0] = "nan"
        gate(content).update(value="nan")

    edit(receipt(made), spoil, sealed=True)


def a_bound_loosened(made: Made) -> None:
    edit(receipt(made), lambda r: gate(r).update(min=1.0), sealed=True)


def a_gate_left_out(made: Made) -> None:
    edit(receipt(made), lambda r: r["packages"][0]["gates"].pop(), sealed=True)


def an_excitation_raised(made: Made) -> None:
    edit(receipt(made), lambda r: r["excitations"][0].update(value=0.9), sealed=True)


def one_manifest_hash(made: Made) -> None:
    def change(content: Any) -> None:
        digest = content["files"][0]["sha256"]
        content["files"][0]["sha256"] = ("0" if digest[0] != "0" else "1") + digest[1:]

    edit(made.build / MANIFEST, change)


def a_swapped_package(made: Made) -> None:
    """The fp32 package where the fp16 one should be."""
    shutil.rmtree(made.package("fp16"))
    shutil.copytree(made.package("fp32"), made.build / "streaming_fir_fp16.mlpackage")


def a_swapped_package_signed(made: Made) -> None:
    a_swapped_package(made)
    sign(made.build)


def another_seed(made: Made) -> None:
    """Everything made again from another checkpoint, the receipt left as it was: a replay."""
    recipe = catalog.find(made.model).recipe()
    checkpoint = made.build.parent / "checkpoint-1"
    checkpoint.mkdir()
    recipe.synth(checkpoint, "small", 1)
    loaded = recipe.load(checkpoint)
    old = receipt(made).read_bytes()
    export(recipe, checkpoint, loaded, select(recipe, loaded, (), ()), made.build, lambda *_: None)
    receipt(made).write_bytes(old)


def no_receipt(made: Made) -> None:
    receipt(made).unlink()


def only_a_torch_receipt(made: Made) -> None:
    """It is green, but no package was run for it."""
    no_receipt(made)
    judge(made, "torch")


def a_package_without_receipt(made: Made) -> None:
    edit(receipt(made), lambda r: r["packages"].pop(), sealed=True)


def a_red_receipt(made: Made) -> None:
    gates = Path(made.model) / "gates.toml"
    text = gates.read_text()
    gates.write_text(text.replace("min = 100.0", "min = 1000.0"))
    judge(made)


def a_red_receipt_painted_green(made: Made) -> None:
    a_red_receipt(made)

    def paint(content: Any) -> None:
        content["verdict"] = "pass"
        for package in content["packages"]:
            for verdict in package["gates"]:
                verdict["passed"] = True

    edit(receipt(made), paint, sealed=True)


def a_second_receipt_that_is_red(made: Made) -> None:
    """As a Mac would add it, where a device does what the graph does not say."""

    def fail(content: Any) -> None:
        content.update(backend="coreml", verdict="fail")
        for package in content["packages"]:
            package.update(
                mode=None, problems=["case 'noise', output 'filtered': 1 of 8000 elements are NaN or Inf"]
            )

    edit(receipt(made), fail, sealed=True)
    shutil.move(receipt(made), made.build / "receipt-coreml.json")
    judge(made)


def other_bounds(made: Made) -> None:
    gates = Path(made.model) / "gates.toml"
    gates.write_text(gates.read_text().replace("max = 0.5", "max = 0.4"))


def other_gates(made: Made) -> None:
    """The same bounds, so that no verdict tells."""
    gates = Path(made.model) / "gates.toml"
    gates.write_text(gates.read_text() + "# And so on.\n")


def another_suite(made: Made) -> None:
    suite = Path(made.model) / "suite.py"
    suite.write_text(suite.read_text() + "\n# Easier now.\n")


def a_file_that_is_no_receipt(made: Made) -> None:
    receipt(made).write_text('{"schema": "coreproof.receipt/1"}')


def a_figure_that_decides_nothing(made: Made) -> None:
    """No gate looks at it: only the seal knows."""
    edit(receipt(made), lambda r: r["packages"][0]["metrics"]["filtered"].update(max_abs_error=[0.0]))


def no_seal(made: Made) -> None:
    edit(receipt(made), lambda r: r.pop("seal"))


def another_manifest(made: Made) -> None:
    """The same bytes, but what the manifest says of a weight's origin is another."""

    def change(content: Any) -> None:
        content["packages"][0]["weights"][0]["transform"] = "identity"

    edit(made.build / MANIFEST, change)


def a_package_on_record_that_fails(made: Made) -> None:
    """The gate file judges the fp16 package by the fp32 one's gates, for the record."""
    gates = Path(made.model) / "gates.toml"
    own = '[[gate]]\nvariant = "fp16"\n'
    before, _, after = gates.read_text().partition(own)
    before = before.replace('fp16 = "typed"\n', "").replace("[[exc", '[recorded]\nfp16 = "fp32"\n[[exc')
    gates.write_text(before + after.partition("\n\n")[2])
    judge(made)
    assert json.loads(receipt(made).read_text())["verdict"] == "pass"


def a_file_more(made: Made) -> None:
    (made.build / "extra.bin").write_bytes(b"?")


@pytest.mark.parametrize(
    ("tamper", "status", "reason"),
    [
        (one_weight, 1, "weights/weight.bin has sha256 "),
        (one_weight_signed, 1, "weights/weight.bin has sha256 "),
        (one_weight_signed_twice, 1, "the receipt is of other bytes"),
        (one_op_attribute, 1, "model.mlmodel has sha256 "),
        (one_receipt_figure, 1, "gate filtered snr_db has value "),
        (one_receipt_figure_sealed, 1, "gate filtered snr_db has value "),
        (a_measured_figure_sealed, 1, "gate filtered snr_db has "),
        (a_figure_that_is_no_number, 1, "gate filtered snr_db has "),
        (a_bound_loosened, 1, "gate filtered snr_db has "),
        (a_gate_left_out, 1, "streaming_fir_fp16.mlpackage: judged by the gates "),
        (an_excitation_raised, 1, "excitations: gate history has "),
        (a_figure_that_decides_nothing, 1, "was edited after it was written: its seal is of another content"),
        (no_seal, 1, "written by an earlier version, without a seal"),
        (another_manifest, 1, "of another coreproof.json than the one here"),
        (one_manifest_hash, 1, "coreproof.json says "),
        (a_swapped_package, 1, "streaming_fir_fp16.mlpackage/"),
        (a_swapped_package_signed, 1, "the receipt is of other bytes; an old one, or of another package"),
        (another_seed, 1, "receipt-mil.json: its checkpoint is "),
        (
            no_receipt,
            1,
            "has no receipt of a backend that runs the packages (mil, coreml); run coreproof validate",
        ),
        (only_a_torch_receipt, 1, "has no receipt of a backend that runs the packages"),
        (a_package_without_receipt, 1, "it is of the packages streaming_fir_fp16.mlpackage; the build has "),
        (a_red_receipt, 1, "its verdict is fail"),
        (a_red_receipt_painted_green, 1, "gate filtered snr_db has passed true"),
        (a_package_on_record_that_fails, 1, "fp16.mlpackage did not pass; export without its variant 'fp16'"),
        (a_second_receipt_that_is_red, 1, "receipt-coreml.json: its verdict is fail"),
        (other_bounds, 1, "gate filtered log_spectral_distance_db has "),
        (other_gates, 1, "judged by other gates than streaming_fir has now"),
        (another_suite, 1, "judged by another suite than streaming_fir has now"),
        (a_file_that_is_no_receipt, 2, "receipt-mil.json: has the keys "),
        (a_file_more, 1, "extra.bin is not listed in coreproof.json"),
    ],
)
def test_what_was_tampered_with_is_refused(
    tamper: Callable[[Made], None], status: int, reason: str, judged: Made, hub: Hub, publish: Publish
) -> None:
    tamper(judged)
    ended = publish(judged)
    assert (ended.status, ended.out) == (status, "")
    assert reason in ended.err
    assert ended.err.startswith("error: ")
    assert hub.requests == []


def test_synthetic_weights_are_refused_unless_asked_for(judged: Made, hub: Hub, cli: Cli) -> None:
    ended = cli("publish", judged.build, "--repo", REPO, "--model", judged.model)
    assert ended.status == 2
    assert (
        "holds synthetic weights (seed 0), of use to nobody but a test; pass --allow-synthetic" in ended.err
    )
    assert hub.requests == []


def test_weights_of_unknown_licence_need_one(judged: Made, hub: Hub, cli: Cli) -> None:
    """A checkpoint that is neither synthetic nor the pinned one."""
    checkpoint = judged.build.parent / "own"
    checkpoint.mkdir()
    shutil.copy(judged.checkpoint / "filter.safetensors", checkpoint)
    recipe = catalog.find(judged.model).recipe()
    loaded = recipe.load(checkpoint)
    export(recipe, checkpoint, loaded, select(recipe, loaded, (), ()), judged.build, lambda *_: None)
    judge(judged)
    arguments = ("publish", judged.build, "--repo", REPO, "--model", judged.model)
    ended = cli(*arguments)
    assert ended.status == 2
    assert "so their licence is not known; pass --license with its SPDX identifier" in ended.err
    assert hub.requests == []
    assert cli(*arguments, "--license", "CC-BY-4.0").status == 0
    card = hub.content(REPO, "README.md").decode()
    assert "\nlicense: cc-by-4.0\n" in card
    assert "The publisher states the licence of the weights as CC-BY-4.0." in card
    assert "synthetic" not in card


def test_a_licence_that_is_known_cannot_be_restated(judged: Made, hub: Hub, publish: Publish) -> None:
    ended = publish(judged, "--license", "MIT")
    assert ended.status == 2
    assert "--license MIT: the weights are synthetic, so their licence is known already" in ended.err


def test_figures_rewritten_together_are_believed(judged: Made, hub: Hub, publish: Publish) -> None:
    """The limit that docs/publishing.md names: nothing in a receipt contradicts a forger who rewrites
    every figure and seals it again. Running the suite does."""

    def rewrite(content: Any) -> None:
        content["packages"][0]["metrics"]["filtered"]["snr_db"][0] = "inf"
        gate(content).update(value="inf", detail="inf in case 'noise', the worst of 1; min 50")

    edit(receipt(judged), rewrite, sealed=True)
    assert publish(judged, "--dry-run").status == 0
    judge(judged)
    assert gate(json.loads(receipt(judged).read_text()))["value"] != "inf"
