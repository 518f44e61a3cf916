"""Exported packages of TangoFlux, small: the suite's verdict, what the graphs are made of, planted defects."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import digests

from coreproof import catalog
from coreproof.convert.export import export, select
from coreproof.errors import JudgedBadError
from coreproof.mil.program import Program
from coreproof.mil.types import TensorType
from coreproof.mil.weights import weights
from coreproof.package.manifest import Manifest, digest_files, load_manifest
from coreproof.package.reader import open_package
from coreproof.prove import prove
from coreproof.validate import Validation, validate
from coreproof.weights_only import WeightsOnly, verify_weights
from coreproof_exporters.tangoflux import checkpoint as reader
from coreproof_exporters.tangoflux import recipe
from coreproof_exporters.tangoflux.architecture import SIZES, tangoflux_shapes
from coreproof_validation import tangoflux as suite

PUBLISHED = "tangoflux_transformer_published_contract_fp16.mlpackage"


def quiet(step: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def judged(tangoflux_build: Path) -> Validation:
    return validate(tangoflux_build, catalog.find("tangoflux"))


@pytest.fixture(scope="module")
def manifest(tangoflux_build: Path) -> Manifest:
    return load_manifest(tangoflux_build)


def program(build: Path, name: str) -> Program:
    return open_package(build / name).program


def test_every_gate_passes(judged: Validation) -> None:
    wrong = [v.detail for p in judged.packages for v in p.judgement.verdicts if not v.passed]
    wrong += [problem for p in judged.packages for problem in p.judgement.problems]
    assert not wrong
    assert judged.passed
    assert len(judged.packages) == 11


def test_the_drift_of_every_step_is_in_the_receipt(judged: Validation) -> None:
    for variant in ("fp16", "fp32"):
        found = next(
            p for p in judged.packages if (p.record.stage, p.record.variant) == ("transformer", variant)
        )
        assert {f"snr_db_step_{n:02d}" for n in range(1, 26)} <= found.aggregates.keys()


def test_the_suite_s_numbers_are_the_reference_s() -> None:
    from coreproof_exporters.tangoflux import reference

    for name in ("STEPS", "GUIDANCE", "JUDGED_STEPS", "OTHER_STEP", "PUBLISHED_STEPS"):
        assert getattr(suite, name) == getattr(reference, name)


def test_the_whole_transformer_is_accounted_for(manifest: Manifest) -> None:
    expected = {key for key in tangoflux_shapes(SIZES["small"]) if key.startswith("transformer.")}
    for package in manifest.packages:
        if package.stage.startswith("transformer"):
            keys = {key for weight in package.weights for key in weight.keys}
            # What has fewer than ten elements lies in the program; nothing of a transformer does.
            assert keys == expected, package.package


def test_numpy_alone_finds_every_weight_in_the_checkpoint(
    tangoflux_folder: Path, tangoflux_build: Path, manifest: Manifest, tmp_path: Path
) -> None:
    def verified(build: Path) -> WeightsOnly:
        return verify_weights(build, catalog.find("tangoflux"), tangoflux_folder, quiet)

    found = verified(tangoflux_build)
    assert found.passed, found.findings
    assert [(p.package, p.weights) for p in found.packages] == [
        (p.package, len(p.weights)) for p in manifest.packages
    ]
    forged = tmp_path / "forged"
    shutil.copytree(tangoflux_build, forged)
    path = forged / "tangoflux_transformer_fp16.mlpackage" / "Data/com.apple.CoreML/weights/weight.bin"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    own = load_manifest(forged)
    signed = replace(own, files=digest_files(forged, [f.path for f in own.files]))
    (forged / "coreproof.json").write_bytes(signed.to_bytes())
    assert not verified(forged).passed


def test_the_tokenizer_is_the_checkpoint_s_and_the_manifest_s(
    tangoflux_folder: Path, tangoflux_build: Path, manifest: Manifest, tmp_path: Path
) -> None:
    (listed,) = (f for f in manifest.files if f.path == "tokenizer.json")
    (source,) = (f for f in manifest.checkpoint.files if f.path == "tokenizer.json")
    assert listed == source
    other = tmp_path / "other"
    shutil.copytree(tangoflux_build, other)
    with (other / "tokenizer.json").open("a") as stream:
        stream.write(" ")
    with pytest.raises(JudgedBadError, match=r"tokenizer\.json has"):
        validate(other, catalog.find("tangoflux"))
    (other / "tokenizer.json").unlink()
    with pytest.raises(JudgedBadError, match=r"tokenizer\.json is missing"):
        validate(other, catalog.find("tangoflux"))


def test_the_contract_is_the_published_one(manifest: Manifest) -> None:
    record = next(p for p in manifest.packages if p.variant == "published-contract")
    assert [(i.name, i.shape, i.dtype) for i in record.contract.inputs] == [
        ("hidden_states", (2, 217, 64), "fp16"),
        ("timestep", (1,), "fp16"),
        ("pooled_projections", (2, 64), "fp16"),
        ("encoder_hidden_states", (2, 65, 64), "fp16"),
        ("txt_ids", (2, 65, 3), "fp16"),
        ("img_ids", (2, 217, 3), "fp16"),
    ]
    assert [(o.name, o.shape, o.dtype) for o in record.contract.outputs] == [
        ("noise_pred", (2, 217, 64), "fp16")
    ]


@pytest.mark.parametrize(
    "name", ["tangoflux_transformer_fp16.mlpackage", "tangoflux_transformer_fp32.mlpackage", PUBLISHED]
)
def test_graphs_have_no_einsum_and_at_most_four_axes(tangoflux_build: Path, name: str) -> None:
    operations = list(program(tangoflux_build, name).functions["main"].block.walk())
    types = [operation.type for operation in operations]
    assert "einsum" not in types
    assert types.count("scaled_dot_product_attention") == 2
    ranks = [len(o.type.shape) for op in operations for o in op.outputs if isinstance(o.type, TensorType)]
    assert max(ranks) == 4


def test_only_angles_stay_fp32(tangoflux_build: Path, manifest: Manifest) -> None:
    kept = {p.package: set(p.precision.kept_fp32) for p in manifest.packages if p.precision.compute == "fp16"}
    for name, most in (("tangoflux_transformer_fp16.mlpackage", 8), (PUBLISHED, 16)):
        operations = program(tangoflux_build, name).functions["main"].block.walk()
        types = [o.type for o in operations if o.name in kept[name]]
        assert {"sin", "cos"} <= set(types)
        assert len(types) <= most
        assert not {"layer_norm", "scaled_dot_product_attention", "gelu"} & set(types)


def test_no_constant_is_infinite(tangoflux_build: Path) -> None:
    for path in sorted(tangoflux_build.glob("*.mlpackage")):
        package = open_package(path)
        for name, blob in weights(package.program):
            assert np.isfinite(package.weights.array(blob)).all(), (path.name, name)


def test_export_is_deterministic(tangoflux_folder: Path, tangoflux_build: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    loaded = reader.load(tangoflux_folder)
    stages = ("transformer", "text_encoder", "vae_decoder_chunk")
    pairs = select(recipe.RECIPE, loaded, ("fp16",), stages)
    export(recipe.RECIPE, tangoflux_folder, loaded, pairs, again, quiet)
    first, second = digests(tangoflux_build), digests(again)
    same = [name for name in second if name != "coreproof.json"]
    assert {"tokenizer.json", "tangoflux.json"} <= set(same)
    assert {name: second[name] for name in same} == {name: first[name] for name in same}


@pytest.mark.parametrize(
    ("variant", "stage", "planted"),
    [
        (
            "fp16",
            "transformer",
            {
                "nan_weight",
                "no_positions",
                "halves_swapped",
                "guidance_from_conditional",
                "norm_out_swapped",
                "block_skipped",
                "mask_dropped",
                "timestep_fp16",
            },
        ),
        (
            "fp16",
            "text_encoder",
            {"nan_weight", "all_fp16", "stream_fp16", "no_position_bias", "padding_seen"},
        ),
        ("fp32", "conditioning", {"padding_seen", "cosine_first", "nan_weight"}),
    ],
)
def test_planted_defects_are_caught(
    tangoflux_folder: Path, tmp_path: Path, variant: str, stage: str, planted: set[str]
) -> None:
    loaded = reader.load(tangoflux_folder)
    pairs = select(recipe.RECIPE, loaded, (variant,), (stage,))
    build = tmp_path / "build"
    export(recipe.RECIPE, tangoflux_folder, loaded, pairs, build, quiet)
    proofs = prove(build, catalog.find("tangoflux"), tangoflux_folder, None, quiet)
    assert {p.control for p in proofs} == planted
    assert not [p for p in proofs if not p.caught]


def test_the_reference_is_the_recorded_one(tangoflux_folder: Path, tangoflux_official: dict) -> None:
    """The official code, run again, gives the fixture; the last bits are the processor's."""
    from coreproof_exporters.tangoflux import reference

    arrays = reference.compute(tangoflux_folder).arrays
    assert arrays.keys() == tangoflux_official.keys()
    for name, array in arrays.items():
        assert (array.dtype, array.shape) == (tangoflux_official[name].dtype, tangoflux_official[name].shape)
        np.testing.assert_allclose(array, tangoflux_official[name], rtol=1e-4, atol=1e-4, err_msg=name)
