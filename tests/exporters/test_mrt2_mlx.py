"""The graphs of Magenta RealTime 2 in MLX, small, against what the official JAX code computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coreproof import catalog
from coreproof.convert.export import export, select
from coreproof.validate import validate
from coreproof_exporters.mrt2 import checkpoint, recipe


@pytest.fixture(scope="module")
def build(mrt2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only the stages that have an MLX program."""
    made = tmp_path_factory.mktemp("mrt2-mlx") / "build"
    loaded = checkpoint.load(mrt2_folder)
    stages = {
        "fp16": ("temporal_stateful",),
        "fp32": ("temporal_carry", "depth_logits", "conditioning_encoder"),
    }
    pairs = [pair for v, names in stages.items() for pair in select(recipe.RECIPE, loaded, (v,), names)]
    export(recipe.RECIPE, mrt2_folder, loaded, pairs, made, lambda *_: None)
    return made


def test_mlx_passes_the_gates_of_every_stage_it_has(build: Path, mrt2_folder: Path) -> None:
    judged = validate(build, catalog.find("mrt2"), "mlx", mrt2_folder)
    assert [v.detail for p in judged.packages for v in p.judgement.verdicts if not v.passed] == []
    assert judged.passed
    assert {p.record.stage for p in judged.packages} == set(recipe.MLX_PROGRAMS)
    drift = {p.record.stage: p.aggregates.get("frame_snr_db") for p in judged.packages}
    # The stateful one is float32 here, so it is as near as the other, past every wrap of the window.
    assert min(drift["temporal_stateful"] or 0, drift["temporal_carry"] or 0) >= 95


def test_the_gates_see_a_fault_in_mlx_too(
    build: Path, mrt2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from coreproof_exporters.mrt2 import mlx_programs

    own = mlx_programs._rows
    monkeypatch.setattr(mlx_programs, "_rows", lambda config: own(config) - np.int32(1))
    judged = validate(build, catalog.find("mrt2"), "mlx", mrt2_folder)
    failed = {p.record.stage for p in judged.packages if not p.judgement.passed}
    assert failed == {"conditioning_encoder"}
