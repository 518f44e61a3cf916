"""Exported packages of Magenta RealTime 2, small: the suite's verdict, memory, the host loop, determinism."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import Export, Variants, digests

import coreproof
from coreproof import catalog
from coreproof.backends import Target, create
from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.convert import convert_stage
from coreproof.mil.weights import weights
from coreproof.package.manifest import load_manifest
from coreproof.package.reader import open_package
from coreproof.parity.metrics import METRICS
from coreproof.parity.suite import Case
from coreproof.validate import Validation, run_case, validate
from coreproof_exporters.mrt2 import contract, host, recipe
from coreproof_validation import mrt2 as suite
from coreproof_validation.mrt2_controls import CONTROLS


def quiet(step: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def build(mrt2_build: Path) -> Path:
    return mrt2_build


@pytest.fixture(scope="module")
def judged(build: Path) -> Validation:
    return validate(build, catalog.find("mrt2"))


@pytest.fixture(scope="module")
def official(judged: Validation) -> dict[str, np.ndarray]:
    return dict(judged.fixture.arrays)


def test_every_gate_passes(judged: Validation) -> None:
    wrong = [v.detail for p in judged.packages for v in p.judgement.verdicts if not v.passed]
    wrong += [problem for p in judged.packages for problem in p.judgement.problems]
    assert not wrong
    assert judged.passed
    assert len(judged.packages) == 11


def test_the_drift_curve_is_in_the_receipt(judged: Validation) -> None:
    carry = next(p for p in judged.packages if (p.record.stage, p.mode) == ("temporal_carry", "typed"))
    assert {f"snr_db_frame_{n}" for n in (1, 42, 83, 128)} <= carry.aggregates.keys()


def test_weights_are_what_the_checkpoint_says(build: Path) -> None:
    for package in load_manifest(build).packages:
        for weight in package.weights:
            assert (
                weight.keys
                or weight.name.startswith(("linear_", "needed", "later"))
                or ("offsets" in weight.name or "broadcast" in weight.name)
            ), (package.package, weight.name)


def test_no_constant_is_infinite(build: Path) -> None:
    for path in sorted(build.glob("*.mlpackage")):
        package = open_package(path)
        for operation in package.program.functions["main"].block.walk():
            assert "inf" not in str(operation), (path.name, operation.name)
        for name, blob in weights(package.program):
            assert np.isfinite(package.weights.array(blob)).all(), (path.name, name)


def test_export_is_deterministic(mrt2_export: Export, mrt2_packages: Variants, build: Path) -> None:
    assert digests(mrt2_export(mrt2_packages)) == digests(build)


def temporal_case(stage: str, official: dict[str, np.ndarray]) -> Case:
    return next(c for c in suite.cases(official) if c.stage == stage)


def outputs(build: Path, case: Case, package: str) -> np.ndarray:
    runner = create("mil")
    runner.load(Target(build / package, "typed"))
    halves = [n for n in case.steps[0] if n.endswith(("_in", "_bias"))]
    return run_case(runner, case, halves)["temporal_outputs"]


@pytest.fixture(scope="module")
def carried(build: Path, official: dict[str, np.ndarray]) -> np.ndarray:
    return outputs(build, temporal_case("temporal_carry", official), "mrt2_temporal_carry_fp16.mlpackage")


@pytest.mark.parametrize("stage", ["temporal_stateful", "temporal_published_contract"])
def test_states_give_the_bits_of_carried_caches(
    build: Path, official: dict[str, np.ndarray], carried: np.ndarray, stage: str
) -> None:
    states = outputs(build, temporal_case(stage, official), f"mrt2_{stage}_fp16.mlpackage")
    np.testing.assert_array_equal(states, carried)


def test_a_warm_stream_is_not_a_fresh_one(
    build: Path, official: dict[str, np.ndarray], carried: np.ndarray
) -> None:
    model = coreproof.load(build / "mrt2_temporal_stateful_fp16.mlpackage")
    case = temporal_case("temporal_stateful", official)
    for frame in (42, 83, 128):
        step = {n: a.astype(np.float16) if n.endswith("bias") else a for n, a in case.steps[frame].items()}
        fresh = model.predict(step, model.make_state())["temporal_outputs"]
        assert METRICS["relative_error"].fn(fresh, carried[frame]) > 1e-2, frame


def test_the_memoryless_design_is_caught(
    mrt2_loaded: Checkpoint, official: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """The published stateful graph: a slot is written, and no cached slot is ever seen."""
    stage = next(s for s in recipe.stages(mrt2_loaded, "fp16") if s.name == "temporal_stateful")
    memoryless = next(c for c in CONTROLS if c.name == "memoryless").stage
    assert memoryless is not None
    convert_stage(memoryless(stage, mrt2_loaded), mrt2_loaded, tmp_path / "m.mlpackage", quiet)
    case = temporal_case("temporal_stateful", official)
    made = outputs(tmp_path, case, "m.mlpackage")
    correlation = METRICS["pearson_correlation"].fn
    expected = case.expected["temporal_outputs"]
    assert correlation(made[0], expected[0]) > 0.999  # one frame alone cannot show it
    assert max(correlation(a, e) for a, e in zip(made[1:], expected[1:], strict=True)) < 0.99


def test_a_ring_of_caches_gives_the_bits_of_moved_ones(
    build: Path, official: dict[str, np.ndarray], carried: np.ndarray
) -> None:
    """The host's caches, on all frames: the window wraps three times."""
    case = temporal_case("temporal_carry", official)
    record = host.find_record(build, load_manifest(build), "temporal_carry", "fp16")
    for ring in (True, False):
        graph = host.Graph(build, record, "mil")
        window, caches = (
            host.Window(graph.inputs["cache_valid_bias"]),
            host.Caches(graph.zeros("_in"), ring=ring),
        )
        for frame, (step, expected) in enumerate(zip(case.steps, carried, strict=True)):
            plain = {n: step[n] for n in ("temporal_inputs", "source_encoded")}
            made = graph(**plain, cache_valid_bias=window.bias, **caches.tensors)
            caches.append(made)
            window.advance()
            np.testing.assert_array_equal(
                made["temporal_outputs"], expected, f"frame {frame + 1}, ring {ring}"
            )


def test_names_are_the_published_ones() -> None:
    names = contract.stems({"layers": 12})
    assert len(names) == 48
    assert names[:4] == [
        f"temporal_layer_00_{kind}_cache" for kind in ("self_key", "self_value", "cross_key", "cross_value")
    ]
