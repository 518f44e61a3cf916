"""The compression ladder of Magenta RealTime 2: judged by the shipping gates, on record, never in the way."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support import Export, sign

from coreproof import catalog
from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.export import select
from coreproof.evidence import receipt
from coreproof.evidence.models_page import models_page
from coreproof.package.manifest import load_manifest
from coreproof.validate import Validation, validate
from coreproof.weights_only import verify_weights
from coreproof_exporters.mrt2 import recipe

QUIET: Callable[[str, int, int], None] = lambda step, done, total: None  # noqa: E731
RUNGS = ("int8", "palette4_grouped")


@pytest.fixture(scope="module")
def build(mrt2_export: Export) -> Path:
    return mrt2_export({variant: ["temporal_carry"] for variant in ("fp16", *RUNGS)})


@pytest.fixture(scope="module")
def judged(build: Path) -> Validation:
    return validate(build, catalog.find("mrt2"))


def test_no_rung_is_exported_unasked(mrt2_loaded: Checkpoint) -> None:
    assert {v for v, _ in select(recipe.RECIPE, mrt2_loaded, (), ())} == set(recipe.VARIANTS)
    assert {s.name for _, s in select(recipe.RECIPE, mrt2_loaded, ("int8",), ())} == {
        "temporal_carry",
        "depth_rollout",
    }


def test_a_rung_that_fails_says_so_and_fails_no_build(judged: Validation) -> None:
    plain, *rungs = judged.packages
    assert plain.judgement.passed
    assert [(r.record.variant, r.judged_as, r.judgement.passed) for r in rungs] == [
        ("int8", "fp16", False),
        ("palette4_grouped", "fp16", False),
    ]
    assert judged.passed
    assert [v.name for v in rungs[0].judgement.verdicts] == [v.name for v in plain.judgement.verdicts]


def test_the_rungs_are_smaller_and_further_off(judged: Validation) -> None:
    snr = [p.comparisons[0].outputs["temporal_outputs"].metrics["snr_db"] for p in judged.packages]
    sizes = [sum(w.size for w in p.record.weights) for p in judged.packages]
    assert snr[0] > 50 > snr[1] > 20 > snr[2] > 0
    assert sizes == sorted(sizes, reverse=True)


def test_rungs_alone_pass_nothing(judged: Validation) -> None:
    assert not replace(judged, packages=judged.packages[1:]).passed


def test_the_models_page_has_them_in_a_table_of_their_own(judged: Validation, tmp_path: Path) -> None:
    receipt.record(judged, tmp_path)
    page = models_page(tmp_path)
    lines = [line for line in page.splitlines() if line.startswith("| `mrt2_temporal_carry_palette4_grouped")]
    assert [line.split(" | ")[1] for line in lines] == ["palette 4 bit, a table each 16 channels"] * 2
    assert all(line.endswith("| FAIL |") for line in lines)
    assert "### `mrt2_temporal_carry_int8.mlpackage`" not in page


def test_the_manifest_names_what_every_compressed_weight_is_of(build: Path) -> None:
    record = next(p for p in load_manifest(build).packages if p.variant == "int8")
    data = {w.name: w.keys for w in record.weights if w.name.endswith(".data")}
    assert len(data) >= 20
    assert all(len(keys) >= 1 for keys in data.values())
    assert record.compression is not None
    assert record.compression.left == ()


def test_the_weights_alone_show_where_they_came_from(build: Path, mrt2_folder: Path) -> None:
    found = verify_weights(build, catalog.find("mrt2"), mrt2_folder, QUIET)
    assert found.passed, found.findings
    assert all(package.weights > 50 for package in found.packages)


@pytest.mark.parametrize(
    ("variant", "part"),
    [("int8", ".data"), ("int8", ".scale"), ("palette4_grouped", ".indices"), ("palette4_grouped", ".lut")],
)
def test_a_compressed_weight_of_another_key_is_found(
    build: Path, mrt2_folder: Path, tmp_path: Path, variant: str, part: str
) -> None:
    forged_build = tmp_path / "build"
    shutil.copytree(build, forged_build)
    manifest = load_manifest(build)
    record = next(p for p in manifest.packages if p.variant == variant)
    kernels = [w for w in record.weights if w.name.endswith(part) and "key_projection" in w.keys[0]]
    first = kernels[0]
    other = next(w for w in kernels[1:] if w.shape == first.shape)
    forged = tuple(replace(w, keys=other.keys) if w is first else w for w in record.weights)
    packages = tuple(replace(p, weights=forged) if p is record else p for p in manifest.packages)
    sign(forged_build, packages=packages)
    found = verify_weights(forged_build, catalog.find("mrt2"), mrt2_folder, QUIET)
    assert len(found.findings) == 1
    assert first.name in str(found.findings[0])
    assert "is not " in str(found.findings[0])
