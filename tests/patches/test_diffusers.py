"""patches/diffusers on the sdists it is for: what fails without it, what holds with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pytest
from upstream import REPOSITORY, apply, layer, unpack

import coreproof
from coreproof.inspect import inspect

DIFFS = REPOSITORY / "patches/diffusers"
FLUX = Path(__file__).parent / "flux.py"
CLOSE = 2e-4  # of outputs whose standard deviation is 1.1; measured: 1.7e-5 and 2.3e-5
VERSIONS = ("0.30.0", "0.30.1", "0.30.2", "0.30.3")
LATER = "0.42.1"
REQUIRED = ("certifi", "charset-normalizer", "importlib-metadata", "requests", "urllib3", "zipp")
EINSUM = 'torch.einsum("...n,d->...nd", pos, omega)'


@dataclass(frozen=True)
class Outcome:
    folder: Path

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(self.folder / "expected.npz") as file:
            return dict(file)

    @property
    def error(self) -> str:
        return (self.folder / "error.txt").read_text()

    @property
    def package(self) -> Path:
        path = self.folder / "flux.mlpackage"
        assert path.exists(), self.error
        return path


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory):
    """``outcome(version, change, *layers)``: that version's source, changed or not, run and converted."""

    @cache
    def run(version: str, change: str = "", *layers: str) -> Outcome:
        folder = tmp_path_factory.mktemp("flux")
        tree = unpack("diffusers", version, folder)
        if change == "patched":
            apply(_diff(version), tree)
        elif change == "no einsum":
            path = tree / "src/diffusers/models/transformers/transformer_flux.py"
            source = path.read_text()
            assert source.count(EINSUM) == 1
            path.write_text(source.replace(EINSUM, "pos.unsqueeze(-1) * omega"))
        paths = os.pathsep.join(map(str, (tree / "src", layer(*REQUIRED, *layers))))
        command = [sys.executable, str(FLUX), str(folder)]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        versions = json.loads((folder / "versions.json").read_text())
        assert versions["diffusers"] == version
        assert versions["numpy"].startswith("2.4.") == ("numpy" in layers)
        return Outcome(folder)

    return run


@pytest.mark.parametrize("version", VERSIONS)
def test_unpatched_conversion_fails_at_the_einsum(outcome, version):
    assert "perm should have the same length as rank(x): 4 != 2" in outcome(version).error


@pytest.mark.parametrize("version", (VERSIONS[0], VERSIONS[-1]))
def test_without_the_einsum_conversion_fails_at_rank_six(outcome, version):
    error = outcome(version, "no einsum").error
    assert "Core ML only supports tensors with rank <= 5" in error
    assert "rank 6 tensor" in error


@pytest.mark.parametrize("version", (*VERSIONS, LATER))
def test_patched_source_computes_the_same_bits_and_converts(outcome, version):
    before, after = outcome(version), outcome(version, "patched")
    assert before.arrays.keys() == after.arrays.keys()
    for name, array in before.arrays.items():
        np.testing.assert_array_equal(after.arrays[name], array, strict=True, err_msg=name)
    assert _effect_of_positions(before) > 0.05
    assert inspect(after.package)["functions"]["main"]["highest_rank"] == 5
    assert _error(after) < CLOSE


def test_a_later_version_converts_as_released_with_wrong_frequencies(outcome):
    assert _error(outcome(LATER)) > 20 * CLOSE


def test_versions_agree(outcome):
    later, first = (outcome(v).arrays["noise_pred"] for v in (LATER, VERSIONS[0]))
    assert np.abs(later - first).max() < 1e-5


def test_numpy_2_4_stops_coremltools_9_patched_or_not(outcome):
    expected = "TypeError: only 0-dimensional arrays can be converted to Python scalars"
    for version in (VERSIONS[-1], LATER):
        assert outcome(version, "patched", "numpy").error == expected


def test_a_diff_that_does_not_fit_is_noticed(tmp_path):
    tree = unpack("diffusers", LATER, tmp_path)
    with pytest.raises(AssertionError, match="FAILED"):
        apply(_diff(VERSIONS[0]), tree)


def _diff(version: str) -> Path:
    return DIFFS / ("rotary-frequencies-0.42.diff" if version == LATER else "flux-rope-0.30.diff")


def _effect_of_positions(outcome: Outcome) -> float:
    """How much the output changes, relative, when every position is 0: what a wrong rotation could hide in."""
    with_positions, without = outcome.arrays["noise_pred"], outcome.arrays["without_positions"]
    return float(np.linalg.norm(with_positions - without) / np.linalg.norm(with_positions))


def _error(outcome: Outcome) -> float:
    """Largest difference of the converted program from torch."""
    model = coreproof.load(outcome.package, mode="fp32")
    given = {name: outcome.arrays[name] for name in (f.name for f in model.contract.inputs)}
    difference = model.predict(given)["noise_pred"] - outcome.arrays["noise_pred"]
    assert np.isfinite(difference).all()
    return float(np.abs(difference).max())
