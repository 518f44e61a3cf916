"""Planted defects change the named weight and nothing else.

The sample's weights (conftest.py) are, for 0 <= i < 24: first i / 7, second i / 7 + 1, third i / 7.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from coreproof.errors import UsageError
from coreproof.mil.weights import weights as program_weights
from coreproof.package.reader import open_package
from coreproof.parity.defects import plant_nan, swap_weights

SEVENTHS = np.arange(24, dtype=np.float32).reshape(4, 6) / 7


@pytest.fixture
def package(sample_package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sample_package, tmp_path / "copy.mlpackage"))


def weights(package: Path) -> dict[str, np.ndarray]:
    opened = open_package(package)
    return {name: np.array(opened.weights.array(blob)) for name, blob in program_weights(opened.program)}


def other_files(package: Path) -> dict[str, bytes]:
    paths = [path for path in package.rglob("*") if path.is_file() and path.name != "weight.bin"]
    return {path.relative_to(package).as_posix(): path.read_bytes() for path in paths}


def test_plant_nan(package: Path, sample_package: Path) -> None:
    plant_nan(package, "second_weight*")
    changed, before = weights(package), weights(sample_package)
    second = changed.pop("second_weight_0")
    assert np.isnan(second[0, 0])
    np.testing.assert_array_equal(second.flat[1:], SEVENTHS.flat[1:] + 1)
    for name, values in changed.items():
        np.testing.assert_array_equal(values, before[name])
    assert other_files(package) == other_files(sample_package)


def test_swap_weights(package: Path, sample_package: Path) -> None:
    swap_weights(package, "first_*", "second_*")
    changed = weights(package)
    np.testing.assert_array_equal(changed["first_weight_0"], SEVENTHS + 1)
    np.testing.assert_array_equal(changed["second_weight_0"], SEVENTHS)
    assert other_files(package) == other_files(sample_package)


@pytest.mark.parametrize(
    ("defect", "message"),
    [
        (lambda p: plant_nan(p, "sixth*"), "0 weights fit 'sixth\\*'"),
        (
            lambda p: plant_nan(p, "*_weight_0"),
            "3 weights fit .*: first_weight_0, second_weight_0, third_weight_0",
        ),
        (lambda p: plant_nan(p, "palettized.indices"), "is uint4.*; NaN needs fp16 or fp32"),
        (lambda p: swap_weights(p, "first*", "palettized.lut"), "they cannot swap"),
        (lambda p: swap_weights(p, "first*", "third*"), "hold the same values"),
    ],
)
def test_refused_and_nothing_changed(package: Path, defect, message: str) -> None:
    stored = next(package.rglob("weight.bin"))
    before = stored.read_bytes()
    with pytest.raises(UsageError, match=message):
        defect(package)
    assert stored.read_bytes() == before
