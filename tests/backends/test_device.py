"""Times and placement, with coremltools played by a stand-in: what we ask, count and write, not what a Mac says."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support import Cli, Made

from coreproof.backends import device
from coreproof.errors import BackendError
from coreproof.evidence.check import load_receipt
from coreproof.evidence.seal import seal
from coreproof.runtime.model import load

MLCPUComputeDevice = type("MLCPUComputeDevice", (), {})
MLNeuralEngineComputeDevice = type("MLNeuralEngineComputeDevice", (), {})


@dataclass
class Operation:
    operator_name: str
    device: Any = None
    blocks: list[Any] = field(default_factory=list)


CPU, ENGINE = MLCPUComputeDevice(), MLNeuralEngineComputeDevice()
INNER = SimpleNamespace(operations=[Operation("ios18.add", CPU)])
BLOCK = SimpleNamespace(
    operations=[
        Operation("const"), Operation("ios18.conv", ENGINE), Operation("ios18.relu", ENGINE),
        Operation("ios18.cond", CPU, [INNER]), Operation("ios18.new_kind"),
    ]
)  # fmt: skip


class Plan:
    program: Any = SimpleNamespace(functions={"main": SimpleNamespace(block=BLOCK)})

    @classmethod
    def load_from_path(cls, path: str, units: str) -> Plan:
        assert path.endswith(".mlmodelc") and units == "all units"
        return cls()

    @property
    def model_structure(self) -> Any:
        return SimpleNamespace(program=self.program)

    def get_compute_device_usage_for_mlprogram_operation(self, operation: Operation) -> Any:
        return (
            None if operation.device is None else SimpleNamespace(preferred_compute_device=operation.device)
        )


class Played:
    """``MLModel`` over coreproof's own runtime."""

    def __init__(self, path: str, compute_units: Any = None, function_name: str | None = None) -> None:
        self.model = load(Path(path), "typed" if "fp16" in path else "fp32", function_name)
        self.predictions = 0

    def predict(self, data: dict[str, np.ndarray], state: Any = None) -> dict[str, np.ndarray]:
        self.predictions += 1
        return self.model.predict(data, state)

    def make_state(self) -> Any:
        return self.model.make_state()

    def get_spec(self) -> Any:
        return SimpleNamespace(description=SimpleNamespace(state=self.model.contract.states))

    def get_compiled_model_path(self) -> str:
        return "/somewhere/compiled.mlmodelc"


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> None:
    models = SimpleNamespace(MLModel=Played, compute_plan=SimpleNamespace(MLComputePlan=Plan))
    fake = SimpleNamespace(models=models, ComputeUnit=SimpleNamespace(ALL="all units"))
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("coreproof.backends.coreml.coremltools", lambda: fake)
    monkeypatch.setattr(device, "coremltools", lambda: fake)
    monkeypatch.setattr(device, "device_name", lambda: "Mac99,1, Apple M99")
    monkeypatch.setattr(device.platform, "mac_ver", lambda: ("15.9", ("", "", ""), ""))


PLACEMENT = {"cpu": 2, "neural_engine": 2, "unknown": 1}


def test_the_lines_go_into_every_receipt_of_the_build(
    mac: None, judged_filter: Made, filter_reference: Path, cli: Cli
) -> None:
    """The same suite and gates through the stand-in, its lines beside the other backend's figures."""
    options = ("--model", judged_filter.model, "--fixture", filter_reference)
    ended = cli("validate", judged_filter.build, *options, "--backend", "coreml", "--measure")
    assert ended.status == 0, ended.err
    assert "measured on Mac99,1, Apple M99, macOS 15.9" in ended.out
    assert "cpu 2 neural_engine 2 unknown 1" in ended.out
    for backend in ("coreml", "mil"):
        receipt = load_receipt(judged_filter.build / f"receipt-{backend}.json")
        assert receipt["seal"] == seal(receipt)
        assert [line["package"] for line in receipt["measured"]] == [
            p["package"] for p in receipt["packages"]
        ]
        for line in receipt["measured"]:
            assert line["placement"] == PLACEMENT
            assert (line["compute_units"], line["predictions"]) == ("ALL", 30)
            assert 0 < line["median_ms"] <= line["p90_ms"] and line["load_ms"] > 0 and line["first_ms"] > 0
    again = cli("validate", judged_filter.build, *options, "--backend", "coreml", "--measure", "--json")
    assert len(json.loads(again.out)["measured"]) == 2
    assert len(load_receipt(judged_filter.build / "receipt-mil.json")["measured"]) == 2  # of the same device
    assert cli("verify", judged_filter.build, "-c", judged_filter.checkpoint, *options[:2]).status == 0


def test_off_a_mac_nothing_is_measured(judged_filter: Made, filter_reference: Path, cli: Cli) -> None:
    options = ("--model", judged_filter.model, "--fixture", filter_reference)
    ended = cli("validate", judged_filter.build, *options, "--measure")
    assert (ended.status, ended.err) == (
        2,
        "error: --measure asks Core ML on a Mac for times and placement: it goes with --backend coreml\n",
    )
    with pytest.raises(BackendError, match="nothing can be measured here: Core ML predicts only on macOS"):
        device.measure(judged_filter.package("fp32"), "ALL", {})


@pytest.mark.parametrize("what", ["no program", "refused"])
def test_what_core_ml_refuses_is_said(
    what: str, mac: None, judged_filter: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "no program":
        monkeypatch.setattr(Plan, "program", None)
    else:
        monkeypatch.setattr(
            Played, "get_compiled_model_path", lambda self: (_ for _ in ()).throw(RuntimeError("no"))
        )
    chunk = np.zeros((1, 1, 320), np.float32)
    with pytest.raises(BackendError, match=r"Core ML could not measure streaming_fir_fp32.mlpackage: "):
        device.measure(judged_filter.package("fp32"), "ALL", {"audio": chunk})
