"""Planted defects change the named weight and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from coreproof.errors import UsageError
from coreproof.package.reader import open_package
from coreproof.parity.defects import plant_nan, swap_weights

WEIGHT = np.arange(24, dtype=np.float32).reshape(4, 6) / 7  # of the op "first"; "second" adds 1


@pytest.fixture
def package(sample_package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sample_package, tmp_path / "copy.mlpackage"))


def _weights(package: Path) -> dict[str, np.ndarray]:
    opened = open_package(package)
    values = {
        o.outputs[0].name: o.attributes.get("val") for o in opened.program.functions["main"].block.walk()
    }
    return {n: np.array(opened.weights.array(v)) for n, v in values.items() if hasattr(v, "offset")}
