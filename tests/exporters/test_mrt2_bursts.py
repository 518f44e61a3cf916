"""Several frames a call: the suite's verdict, and that a burst is the one-frame graph over again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import Export

from coreproof import catalog
from coreproof.backends import Target, create
from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.convert import convert_stage
from coreproof.convert.export import select
from coreproof.package.reader import open_package
from coreproof.parity.metrics import METRICS
from coreproof.validate import Validation, run_case, validate
from coreproof_exporters.mrt2 import contract, recipe
from coreproof_validation import mrt2 as suite
from coreproof_validation.mrt2_controls import CONTROLS

QUIET: Callable[[str, int, int], None] = lambda step, done, total: None  # noqa: E731
BURSTS = (5, 25)
SNR = METRICS["snr_db"].fn


@pytest.fixture(scope="module")
def build(mrt2_export: Export) -> Path:
    bursts = [f"temporal_burst_{frames}" for frames in BURSTS]
    return mrt2_export({"bursts": bursts, "fp16": ["temporal_stateful"]})


@pytest.fixture(scope="module")
def judged(build: Path) -> Validation:
    return validate(build, catalog.find("mrt2"))


def streamed(package: Path, stage: str, judged: Validation, mode: str) -> np.ndarray:
    """The outputs of the suite's stream, float32 (frames, width)."""
    case = next(c for c in suite.cases(judged.fixture.arrays) if c.stage == stage)
    runner = create("mil")
    runner.load(Target(package, mode))
    outputs = run_case(runner, case, ("cache_valid_bias",))["temporal_outputs"]
    return outputs.reshape(-1, outputs.shape[-1])


def test_every_gate_passes(judged: Validation) -> None:
    assert judged.passed
    assert [p.record.stage for p in judged.packages] == [
        "temporal_burst_5",
        "temporal_burst_25",
        "temporal_stateful",
    ]


@pytest.mark.parametrize("frames", BURSTS)
@pytest.mark.parametrize(("mode", "median", "least"), [("fp32", 100, 80), ("typed", 55, 40)])
def test_a_burst_is_the_one_frame_graph_over_again(
    judged: Validation, build: Path, frames: int, mode: str, median: float, least: float
) -> None:
    single = build / "mrt2_temporal_stateful_fp16.mlpackage"
    several = build / f"mrt2_temporal_burst_{frames}_fp16.mlpackage"
    one = streamed(single, "temporal_stateful", judged, mode)
    more = streamed(several, f"temporal_burst_{frames}", judged, mode)
    assert len(more) == 130 // frames * frames  # the window of 41 wraps three times
    snr = [SNR(a, b) for a, b in zip(more, one, strict=False)]
    assert np.median(snr) >= median
    assert min(snr) >= least


def test_the_frames_of_a_burst_share_every_op(build: Path, judged: Validation) -> None:
    def count(name: str) -> int:
        program = open_package(build / f"mrt2_{name}_fp16.mlpackage").program
        return sum(o.type != "const" for o in program.functions["main"].block.walk())

    assert count("temporal_burst_25") == count("temporal_burst_5") < 1.2 * count("temporal_stateful")


def test_what_ports_report_is_in_the_package(build: Path, judged: Validation) -> None:
    model = open_package(build / "mrt2_temporal_burst_5_fp16.mlpackage")
    assert "not measured here" in model.description.metadata.userDefined["reported"]


@pytest.mark.parametrize("frames", [2, 25])
def test_a_frame_of_a_burst_sees_what_it_sees_alone(frames: int) -> None:
    for start in (0, 3, 40, 41, 80):
        bias = contract.burst_bias(start, frames)[0, 0]
        for frame, row in enumerate(bias):
            seen = np.flatnonzero(row == 0.0)
            # By age: the frame itself is 0 old, the last cached one a frame older than the call's first.
            ages = sorted(frame + 42 - column for column in seen if column > 0)
            assert seen[0] == 0
            assert ages == list(range(min(start + frame, 41) + 1))


def test_a_burst_without_memory_is_caught(
    mrt2_loaded: Checkpoint, build: Path, judged: Validation, tmp_path: Path
) -> None:
    control = next(c for c in CONTROLS if c.name == "memoryless").stage
    assert control is not None
    ((_, stage),) = select(recipe.RECIPE, mrt2_loaded, ("bursts",), ("temporal_burst_5",))
    convert_stage(control(stage, mrt2_loaded), mrt2_loaded, tmp_path / "m.mlpackage", QUIET)
    made = streamed(tmp_path / "m.mlpackage", "temporal_burst_5", judged, "typed")
    expected = judged.fixture.arrays["temporal_outputs"]
    correlation = METRICS["pearson_correlation"].fn
    assert min(correlation(a, e) for a, e in zip(made[:5], expected[:5], strict=True)) > 0.999
    assert min(correlation(a, e) for a, e in zip(made[5:], expected[5:], strict=True)) < 0.99


def test_bursts_are_exported_only_when_asked_for(mrt2_loaded: Checkpoint) -> None:
    assert not [s.name for _, s in select(recipe.RECIPE, mrt2_loaded, (), ()) if "burst" in s.name]
    assert len(select(recipe.RECIPE, mrt2_loaded, ("bursts",), ())) == 24
