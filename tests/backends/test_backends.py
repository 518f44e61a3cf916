"""The ways to run a stage: which are here, what they return, and how an absent one says so."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from support import Cli, Made

from coreproof import catalog
from coreproof.backends import BACKENDS, Target, available, create
from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.recipe import Stage
from coreproof.errors import BackendError, InputError

CHUNK = np.linspace(-1, 1, 320, dtype=np.float32).reshape(1, 1, 320)


def parts(made: Made, variant: str = "fp32") -> tuple[Stage, Checkpoint]:
    recipe = catalog.find(made.model).recipe()
    checkpoint = recipe.load(made.checkpoint)
    (stage,) = recipe.stages(checkpoint, variant)
    return stage, checkpoint


def target(made: Made, variant: str = "fp32") -> Target:
    stage, checkpoint = parts(made, variant)
    return Target(made.package(variant), "fp32", None, stage, checkpoint)


def test_the_backends_here(cli: Cli) -> None:
    assert list(available()) == list(BACKENDS) == ["mil", "torch", "coreml", "coreai", "mlx"]
    ended = cli("backends", "--json")
    assert (ended.status, json.loads(ended.out)) == (0, available())
    assert available()["mil"] is available()["torch"] is available()["mlx"] is None
    table = cli("backends")
    assert table.status == 0
    for name, reason in available().items():
        assert f"{name:7}  {'yes' if reason is None else f'no: {reason}'}" in table.out


def test_an_unknown_backend() -> None:
    with pytest.raises(
        BackendError, match="no backend 'onnx'; choose one of mil, torch, coreml, coreai, mlx"
    ):
        create("onnx")


@pytest.mark.parametrize("platform", ["linux", "freebsd14"])
def test_core_ml_is_absent_off_a_mac(
    platform: str, monkeypatch: pytest.MonkeyPatch, streaming_fir: Made, filter_reference: Path, cli: Cli
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    reason = f"Core ML predicts only on macOS, this is {platform}"
    assert available()["coreml"] == reason
    options = ("--model", streaming_fir.model, "--fixture", filter_reference, "--backend", "coreml")
    ended = cli("validate", streaming_fir.build, *options)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err == f"error: backend 'coreml' is absent here: {reason}\n"


@pytest.mark.parametrize("name", ["mil", "torch", "coreml", "coreai", "mlx"])
def test_nothing_runs_before_load_or_after_close(name: str, shared_filter: Made) -> None:
    runner = __import__(BACKENDS[name], fromlist=["Runner"]).Runner()
    assert runner.name == name
    with pytest.raises(BackendError, match=f"backend '{name}' has no (package|stage) loaded; call load"):
        runner.predict({"audio": CHUNK})
    if name in ("coreml", "coreai"):
        return
    runner.load(target(shared_filter))
    runner.close()
    with pytest.raises(BackendError, match="call load"):
        runner.make_state()


@pytest.mark.parametrize("name", ["mil", "torch", "mlx"])
def test_one_stream_keeps_its_history(name: str, shared_filter: Made) -> None:
    """Two chunks of a stream are the filter of the whole signal (numpy.convolve)."""
    runner = create(name)
    runner.load(target(shared_filter))
    stage, checkpoint = parts(shared_filter)
    taps = checkpoint.tensors["taps"].reshape(-1)[::-1].astype(np.float64)
    signal = np.concatenate([CHUNK, CHUNK[..., ::-1] ** 2], axis=-1)
    expected = np.convolve(signal.reshape(-1).astype(np.float64), taps)[:640]
    state, other = runner.make_state(), runner.make_state()
    found = []
    for chunk in (signal[..., :320], signal[..., 320:]):
        found.append(runner.predict({"audio": chunk}, state)["filtered"])
        runner.predict({"audio": -chunk}, other)  # a second stream in between
    assert [f.dtype for f in found] == [np.float32] * 2
    whole = np.concatenate(found, axis=-1)
    assert whole.shape == (1, 1, 640)
    # The state is fp16 in the package and float32 in the module.
    np.testing.assert_allclose(whole.reshape(-1), expected, atol=2e-3 if name == "mil" else 1e-6)
    assert np.abs(whole[..., 320:352] - np.convolve(signal[0, 0, 320:], taps)[:32]).max() > 0.1
    assert stage.states[0].name == "history"


@pytest.mark.parametrize("name", ["mil", "torch"])
def test_a_stateless_stage_has_no_state(name: str, shared_minilm: Made) -> None:
    runner = create(name)
    runner.load(target(shared_minilm))
    assert runner.make_state() is None
    ones = np.ones((1, 128), np.int32)
    found = runner.predict({"input_ids": ones, "attention_mask": ones})["embedding"]
    assert (found.shape, found.dtype) == ((1, 32), np.float32)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", ["mil", "torch", "mlx"])
@pytest.mark.parametrize(
    ("inputs", "with_state", "message"),
    [({}, True, "missing input 'audio'"), ({"audio": CHUNK}, False, r"is stateful: pass state=.*make_state\(\)")],
)  # fmt: skip
def test_inputs_that_do_not_fit(
    name: str, inputs: dict[str, Any], with_state: bool, message: str, shared_filter: Made
) -> None:
    runner = create(name)
    runner.load(target(shared_filter))
    with pytest.raises(InputError, match=message):
        runner.predict(inputs, runner.make_state() if with_state else None)


@pytest.mark.parametrize(("name", "what"), [("torch", "module"), ("mlx", "MLX program")])
def test_what_is_no_package_needs_the_checkpoint(name: str, what: str, shared_filter: Made) -> None:
    with pytest.raises(
        BackendError, match=f"backend '{name}' runs the Stage's {what}: it needs --checkpoint"
    ):
        create(name).load(Target(shared_filter.package("fp32")))


def test_mlx_needs_a_program(shared_minilm: Made) -> None:
    with pytest.raises(BackendError, match=r"stage '.*' has no MLX program"):
        create("mlx").load(target(shared_minilm))


def test_mlx_refuses_another_shape(shared_filter: Made) -> None:
    runner = create("mlx")
    runner.load(target(shared_filter))
    with pytest.raises(InputError, match=r"input 'audio' has shape \(1, 320\), expected \(1, 1, 320\)"):
        runner.predict({"audio": CHUNK[0]}, runner.make_state())


def test_mlx_says_why_it_is_absent(monkeypatch: pytest.MonkeyPatch, shared_filter: Made) -> None:
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    reason = available()["mlx"]
    assert reason is not None
    assert reason.endswith("pip install 'coreproof[mlx]'")
    with pytest.raises(BackendError, match="backend 'mlx' is absent here: MLX cannot be imported"):
        create("mlx")


def test_mlx_passes_the_gates(streaming_fir: Made, filter_reference: Path, cli: Cli) -> None:
    options = ("--model", streaming_fir.model, "--fixture", filter_reference, "--backend", "mlx")
    ended = cli("validate", streaming_fir.build, *options, "--checkpoint", streaming_fir.checkpoint)
    assert ended.status == 0, ended.err
    receipt = json.loads((streaming_fir.build / "receipt-mlx.json").read_bytes())
    assert (receipt["backend"], receipt["verdict"]) == ("mlx", "pass")


# Core ML's backend against a stand-in: it shows what coreproof asks of coremltools, not what Core ML
# answers, which only a Mac can.


@dataclass
class StandIn:
    """Records how it is called, in place of ``coremltools.models.MLModel``."""

    path: str
    compute_units: Any = None
    function_name: str | None = None
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    made: ClassVar[list[StandIn]] = []
    states: ClassVar[list[str]] = []

    def __post_init__(self) -> None:
        self.made.append(self)

    def predict(self, data: dict[str, Any], state: Any = None) -> dict[str, Any]:
        self.calls.append((data, state))
        if "fail" in data:
            raise RuntimeError("the neural engine said no")
        return {"filtered": data["audio"] * 2}

    def make_state(self) -> str:
        return "a state"

    def get_spec(self) -> Any:
        return SimpleNamespace(description=SimpleNamespace(state=self.states))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    units = SimpleNamespace(ALL="all units", CPU_AND_NE="cpu and ne")
    fake = SimpleNamespace(models=SimpleNamespace(MLModel=StandIn), ComputeUnit=units)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("coreproof.backends.coreml.coremltools", lambda: fake)
    monkeypatch.setattr(StandIn, "made", [])
    monkeypatch.setattr(StandIn, "states", [])
    return StandIn


def test_stand_in_gets_the_package_the_units_and_the_arrays(
    stand_in: type[StandIn], shared_filter: Made
) -> None:
    """A stand-in, not Core ML."""
    runner = create("coreml")
    runner.load(target(shared_filter))
    found = runner.predict({"audio": CHUNK})
    (model,) = stand_in.made
    assert (model.path, model.compute_units) == (str(shared_filter.package("fp32")), "all units")
    assert model.function_name is None
    ((data, state),) = model.calls
    assert data["audio"] is CHUNK
    assert state is None
    np.testing.assert_array_equal(found["filtered"], CHUNK * 2)


def test_stand_in_is_told_the_function_and_needs_no_stage(
    stand_in: type[StandIn], shared_filter: Made
) -> None:
    """A stand-in, not Core ML."""
    create("coreml").load(Target(shared_filter.package("fp16"), "typed", "decode"))
    (model,) = stand_in.made
    assert (model.function_name, model.compute_units) == ("decode", "all units")


@pytest.mark.parametrize(("states", "expected"), [([], None), (["history"], "a state")])
def test_stand_in_makes_a_state_for_a_stateful_package_only(
    states: list[str], expected: str | None, stand_in: type[StandIn], monkeypatch: pytest.MonkeyPatch,
    shared_filter: Made,
) -> None:  # fmt: skip
    """A stand-in, not Core ML; its ``make_state``, like MLModel's, is not for stateless models."""
    monkeypatch.setattr(stand_in, "states", states)
    runner = create("coreml")
    runner.load(target(shared_filter))
    state = runner.make_state()
    assert state == expected
    runner.predict({"audio": CHUNK}, state)
    assert stand_in.made[0].calls[0][1] == expected


def test_stand_in_failing_is_a_backend_error(
    stand_in: type[StandIn], shared_filter: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in, not Core ML."""
    runner = create("coreml")
    runner.load(target(shared_filter))
    with pytest.raises(BackendError, match="Core ML could not predict: the neural engine said no"):
        runner.predict({"audio": CHUNK, "fail": CHUNK})

    def refuse(self: StandIn) -> None:
        raise RuntimeError("cannot compile")

    monkeypatch.setattr(stand_in, "__post_init__", refuse)
    with pytest.raises(
        BackendError, match=r"Core ML could not load streaming_fir_fp32.mlpackage: cannot comp"
    ):
        runner.load(target(shared_filter))


def test_stand_in_is_judged_like_any_backend(
    stand_in: type[StandIn], streaming_fir: Made, filter_reference: Path, cli: Cli
) -> None:
    """A stand-in, not Core ML: it doubles the audio, and the gates say that this is no filter."""
    options = ("--model", streaming_fir.model, "--fixture", filter_reference, "--backend", "coreml")
    ended = cli("validate", streaming_fir.build, *options)
    assert ended.status == 1
    assert "FAIL: 0 of 2 packages\n" in ended.out
    receipt = json.loads((streaming_fir.build / "receipt-coreml.json").read_bytes())
    assert (receipt["backend"], receipt["verdict"]) == ("coreml", "fail")
    assert [p["mode"] for p in receipt["packages"]] == [None, None]
