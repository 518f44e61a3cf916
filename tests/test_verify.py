"""Re-exporting a build: what passes, what is caught, and what the message names."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support import Cli, Made, digests, flip_bit, sign

from coreproof import catalog
from coreproof.package.manifest import load_manifest

WEIGHTS = "streaming_fir_fp16.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
SPEC = "streaming_fir_fp32.mlpackage/Data/com.apple.CoreML/model.mlmodel"
PACKAGE = "streaming_fir_fp16.mlpackage"


def verify(cli: Cli, made: Made, *options: object) -> tuple[int, str, str]:
    ended = cli("verify", made.build, "--model", made.model, "-c", made.checkpoint, *options)
    return ended.status, ended.out, ended.err


def test_a_fresh_build_is_identical(streaming_fir: Made, cli: Cli) -> None:
    before = digests(streaming_fir.build)
    status, out, _ = verify(cli, streaming_fir)
    assert (status, out) == (
        0,
        f"identical: all {len(before) - 1} files of {streaming_fir.build} re-exported byte for byte\n",
    )
    assert digests(streaming_fir.build) == before


def test_a_shipped_model_needs_no_recipe_folder(minilm: Made, cli: Cli) -> None:
    ended = cli("verify", minilm.build, "-c", minilm.checkpoint, "--json")
    files = len(digests(minilm.build)) - 1
    assert (ended.status, json.loads(ended.out)) == (
        0,
        {"verdict": "pass", "files": files, "checked": ["files", "re-export"], "findings": []},
    )


def test_a_build_of_one_variant_is_verified_alone(shared_filter: Made, tmp_path: Path, cli: Cli) -> None:
    made = replace(shared_filter, build=tmp_path / "build")
    cli("export", made.model, "-c", made.checkpoint, "-o", made.build, "--variant", "fp32")
    assert verify(cli, made)[0] == 0


def test_receipts_are_no_part_of_the_build(streaming_fir: Made, filter_reference: Path, cli: Cli) -> None:
    cli("validate", streaming_fir.build, "--model", streaming_fir.model, "--fixture", filter_reference)
    assert (streaming_fir.build / "receipt-mil.json").is_file()
    status, out, _ = verify(cli, streaming_fir)
    assert status == 0
    assert out.startswith(f"the receipts of {streaming_fir.build} are of these bytes\nidentical: all ")


@pytest.mark.parametrize("file", [WEIGHTS, SPEC])
@pytest.mark.parametrize("command", ["verify", "validate"])
def test_one_flipped_bit_is_caught_by_name(command: str, file: str, streaming_fir: Made, cli: Cli) -> None:
    flip_bit(streaming_fir.build / file)
    ended = cli(command, streaming_fir.build, "--model", streaming_fir.model, "-c", streaming_fir.checkpoint)
    assert ended.status == 1
    said = ended.out if command == "verify" else ended.err
    assert f"{file} has sha256 " in said
    assert "coreproof.json says " in said


def _forge_weight(build: Path) -> None:
    flip_bit(build / WEIGHTS)
    sign(build)


def _add_file(build: Path) -> None:
    (build / "more.txt").write_text("more")
    sign(build)


def _drop_package(build: Path) -> None:
    """Only the manifest knows that the package was there."""
    for path in sorted((build / "streaming_fir_fp32.mlpackage").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    sign(build)


def _forge_origin(build: Path) -> None:
    record, *others = load_manifest(build).packages
    (weight,) = record.weights
    forged = replace(record, weights=(replace(weight, transform="identity"),))
    sign(build, packages=(forged, *others))


def _forge_reason(build: Path) -> None:
    record, *others = load_manifest(build).packages
    forged = replace(record, precision=replace(record.precision, kept_fp32=("conv",), reason="safe"))
    sign(build, packages=(forged, *others))


def _forge_kind(build: Path) -> None:
    record = load_manifest(build).checkpoint
    sign(build, checkpoint=replace(record, kind="published", seed=None))


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (_forge_weight, f"file {WEIGHTS}: sha256 "),
        (_forge_weight, f"weight {PACKAGE}: taps_to_fp16 (conv): 1 of 33 elements differ; max abs 0.03125\n"),
        (_add_file, "file more.txt: only the build has it\n"),
        (
            _forge_origin,
            f"manifest {PACKAGE}: weight taps_to_fp16: transform 'identity', its re-export says "
            "'reversed, as (1, 1, taps); rounded to float16'\n",
        ),
        (_forge_reason, f"contract {PACKAGE}: precision {{'compute': 'fp16', 'kept_fp32': ('conv',), "),
        (_forge_kind, "checkpoint kind: 'published' in the build, 'synthetic' in its re-export\n"),
    ],
)
def test_a_forgery_with_a_fitting_manifest_is_caught(
    forge: Callable[[Path], None], message: str, streaming_fir: Made, cli: Cli
) -> None:
    forge(streaming_fir.build)
    status, out, err = verify(cli, streaming_fir)
    assert (status, err) == (1, "")
    assert f"\n{message}" in f"\n{out}"
    assert out.splitlines()[-1].startswith(f"refused: {streaming_fir.build}, for ")


def test_a_manifest_that_lists_a_package_without_files_is_refused(streaming_fir: Made, cli: Cli) -> None:
    _drop_package(streaming_fir.build)
    status, _, err = verify(cli, streaming_fir)
    assert status == 2
    assert "package 'streaming_fir_fp32.mlpackage' is listed twice or has no files" in err


def test_another_checkpoint_is_named_file_by_file(streaming_fir: Made, tmp_path: Path, cli: Cli) -> None:
    other = tmp_path / "other"
    cli("synth", streaming_fir.model, "--seed", 1, "-o", other)
    status, out, _ = verify(cli, replace(streaming_fir, checkpoint=other))
    recipe = catalog.find(streaming_fir.model).recipe()
    # The digest of one file is that of its sha256sum line.
    digest = load_manifest(streaming_fir.build).checkpoint.sha256
    assert recipe.load(other).files != recipe.load(streaming_fir.checkpoint).files
    assert status == 1
    first, second, last = out.splitlines()
    assert first.startswith(f"checkpoint {other}: is checkpoint ")
    assert f"the build says {digest[:12]}; nothing was exported from it" in first
    assert second.startswith("checkpoint filter.safetensors: sha256 ")
    assert last == f"refused: {streaming_fir.build}, for 2 reasons"


def test_other_versions_of_the_tools_are_named(streaming_fir: Made, cli: Cli) -> None:
    tools = dict(load_manifest(streaming_fir.build).toolchain)
    here = tools["torch"]
    flip_bit(streaming_fir.build / WEIGHTS)
    sign(streaming_fir.build, toolchain={**tools, "torch": "1.0.0", "numpy": "1.26.4"})
    status, out, _ = verify(cli, streaming_fir)
    assert status == 1
    numpy, torch_, file, weight, _ = out.splitlines()
    assert numpy == f"toolchain numpy: 1.26.4 made the build, {tools['numpy']} is here"
    assert torch_ == f"toolchain torch: 1.0.0 made the build, {here} is here"
    assert file.startswith(f"file {WEIGHTS}: sha256 ")
    assert weight.startswith(f"weight {PACKAGE}: taps_to_fp16 (conv): 1 of 33 ")


def test_a_build_that_only_claims_other_tools_is_no_match(streaming_fir: Made, cli: Cli) -> None:
    tools = dict(load_manifest(streaming_fir.build).toolchain)
    sign(streaming_fir.build, toolchain={**tools, "coremltools": "8.3"})
    assert verify(cli, streaming_fir)[:2] == (
        1,
        f"toolchain coremltools: 8.3 made the build, {tools['coremltools']} is here\n"
        f"refused: {streaming_fir.build}, for 1 reason\n",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "the build is of 'streaming_fir', which is not shipped; pass --model with its recipe folder"),
        (("--model", "minilm"), "--model minilm is 'minilm', the build is of 'streaming_fir'"),
        (
            ("--model", "maxilm"),
            "no model named 'maxilm'; give one of minilm, mrt2, styletts2, tangoflux, or a folder with a recipe.py",
        ),
    ],
)
def test_the_model_must_be_the_builds(
    options: tuple[str, ...], message: str, streaming_fir: Made, cli: Cli
) -> None:
    ended = cli("verify", streaming_fir.build, "-c", streaming_fir.checkpoint, *options)
    assert (ended.status, ended.err) == (2, f"error: {message}\n")


def test_a_folder_without_a_manifest_is_no_build(tmp_path: Path, cli: Cli) -> None:
    ended = cli("verify", tmp_path)
    assert (ended.status, ended.err) == (
        2,
        f"error: {tmp_path}: not a coreproof build, it has no coreproof.json\n",
    )
