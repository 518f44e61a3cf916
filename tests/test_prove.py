"""Planted defects: each is caught by the gates that name it, and a gate that catches nothing shows."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from support import Cli, Ended, Made, digests

# What the toy's gate file says: gate -> the controls it names, for each of two packages.
NAMED = {
    "filtered snr_db": ["forgetful", "nan_weight"],
    "filtered log_spectral_distance_db": ["forgetful", "nan_weight"],
    "filtered finite_ratio": ["nan_weight"],
}
PACKAGES = ["streaming_fir_fp16.mlpackage", "streaming_fir_fp32.mlpackage"]


@pytest.fixture
def recipe_folder(streaming_fir: Made, filter_reference: Path, tmp_path: Path) -> Made:
    folder = shutil.copytree(streaming_fir.model, tmp_path / "streaming_fir")
    shutil.copytree(filter_reference, folder / "fixtures" / filter_reference.name)
    return replace(streaming_fir, model=str(folder))


def controls(cli: Cli, made: Made, *options: object) -> Ended:
    return cli("validate", made.build, "--model", made.model, "--controls", *options)


def test_every_defect_is_caught_by_every_gate_that_names_it(recipe_folder: Made, cli: Cli) -> None:
    before = digests(recipe_folder.build)
    ended = controls(cli, recipe_folder, "-c", recipe_folder.checkpoint, "--json")
    proofs = json.loads(ended.out)
    assert ended.status == 0
    assert {(p["package"], p["gate"], p["control"]) for p in proofs} == {
        (package, gate, control) for package in PACKAGES for gate, names in NAMED.items() for control in names
    }
    assert len(proofs) == 10
    assert all(p["caught"] for p in proofs)
    assert {p["value"] for p in proofs if p["control"] == "nan_weight"} == {"nan", "0"}
    assert digests(recipe_folder.build) == before


def test_the_table_says_so(recipe_folder: Made, cli: Cli) -> None:
    ended = controls(cli, recipe_folder, "-c", recipe_folder.checkpoint)
    assert ended.status == 0
    assert "MISSED" not in ended.out
    assert ended.out.endswith("10 of 10 caught\n")


def test_a_gate_that_misses_its_defect_fails_the_proof(recipe_folder: Made, cli: Cli) -> None:
    """The spectrum of noise through a filter without memory is not 9 dB off."""
    gates = Path(recipe_folder.model) / "gates.toml"
    gates.write_text(gates.read_text().replace("max = 0.5", "max = 9.0"))
    ended = controls(cli, recipe_folder, "-c", recipe_folder.checkpoint)
    assert ended.status == 1
    missed = [line.split() for line in ended.out.splitlines() if "MISSED" in line]
    assert [line[:3] for line in missed] == [["forgetful", "filtered", "log_spectral_distance_db"]] * 2
    assert ended.out.endswith("8 of 10 caught\n")


def test_a_defect_in_the_stage_needs_the_checkpoint(recipe_folder: Made, cli: Cli) -> None:
    ended = controls(cli, recipe_folder)
    assert (ended.status, ended.out) == (2, "")
    assert "control 'forgetful' changes the Stage: pass --checkpoint to export it again" in ended.err


def test_nothing_is_planted_in_a_build_that_fails_already(recipe_folder: Made, cli: Cli) -> None:
    gates = Path(recipe_folder.model) / "gates.toml"
    gates.write_text(gates.read_text().replace("min = 100.0", "min = 300.0"))
    ended = controls(cli, recipe_folder, "-c", recipe_folder.checkpoint)
    assert (ended.status, ended.out) == (1, "")
    assert "does not pass as it is; run coreproof validate first" in ended.err


def test_a_given_fixture_is_used(streaming_fir: Made, filter_reference: Path, cli: Cli) -> None:
    options = ("--fixture", filter_reference, "-c", streaming_fir.checkpoint)
    assert controls(cli, streaming_fir, *options).status == 0
    missing = controls(cli, streaming_fir, "--fixture", filter_reference.parent / "none")
    assert missing.status == 2
    assert "holds no fixture.json" in missing.err


@pytest.mark.parametrize("control", ["package=None", "package=print, stage=lambda s, c: s"])
def test_a_control_must_say_what_it_changes(control: str, recipe_folder: Made, cli: Cli) -> None:
    suite = Path(recipe_folder.model) / "suite.py"
    old = '"the state is cleared after every chunk", stage=forget'
    assert old in suite.read_text()
    suite.write_text(suite.read_text().replace(old, f'"the state is cleared", {control}'))
    ended = controls(cli, recipe_folder, "-c", recipe_folder.checkpoint)
    assert ended.status == 2
    assert "control 'forgetful' must change either the package or the Stage" in ended.err
