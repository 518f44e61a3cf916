"""The compression ladder of Magenta RealTime 2: judged by the shipping gates, on record, never in the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from coreproof import catalog
from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.export import export, select
from coreproof.evidence import receipt
from coreproof.evidence.models_page import models_page
from coreproof.package.manifest import load_manifest
from coreproof.validate import Validation, validate
from coreproof_exporters.mrt2 import checkpoint as reader
from coreproof_exporters.mrt2 import recipe, synth

QUIET: Callable[[str, int, int], None] = lambda step, done, total: None  # noqa: E731
RUNGS = ("int8", "palette4_grouped")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ladder")
    synth.synth(made, "small", 0)
    return made


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Checkpoint:
    return reader.load(folder)


@pytest.fixture(scope="module")
def judged(folder: Path, loaded: Checkpoint) -> Validation:
    pairs = select(recipe.RECIPE, loaded, ("fp16", *RUNGS), ("temporal_carry",))
    export(recipe.RECIPE, folder, loaded, pairs, folder / "build", QUIET)
    return validate(folder / "build", catalog.find("mrt2"))


def test_no_rung_is_exported_unasked(loaded: Checkpoint) -> None:
    assert {v for v, _ in select(recipe.RECIPE, loaded, (), ())} == set(recipe.VARIANTS)
    assert {s.name for _, s in select(recipe.RECIPE, loaded, ("int8",), ())} == {
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


def test_the_models_page_has_them_in_a_table_of_their_own(judged: Validation, folder: Path) -> None:
    receipt.record(judged, folder / "receipts")
    page = models_page(folder / "receipts")
    lines = [line for line in page.splitlines() if line.startswith("| `mrt2_temporal_carry_palette4_grouped")]
    assert [line.split(" | ")[1] for line in lines] == ["palette 4 bit, a table each 16 channels"] * 2
    assert all(line.endswith("| FAIL |") for line in lines)
    assert "### `mrt2_temporal_carry_int8.mlpackage`" not in page


def test_the_manifest_names_what_every_compressed_weight_is_of(judged: Validation, folder: Path) -> None:
    record = next(p for p in load_manifest(folder / "build").packages if p.variant == "int8")
    data = {w.name: w.keys for w in record.weights if w.name.endswith(".data")}
    assert len(data) >= 20
    assert all(len(keys) >= 1 for keys in data.values())
    assert record.compression is not None
    assert record.compression.left == ()
