"""Every backend on one build: what judges, what only agrees, and what is left out with its reason."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import Cli, Made

from coreproof.agreement import _apart
from coreproof.backends import available, coreml, default, torch
from coreproof.errors import BackendError


def everyone(cli: Cli, made: Made, fixture: Path, *options: object) -> tuple[int, dict[str, Any]]:
    command = ("validate", made.build, "--model", made.model, "--fixture", fixture, "-b", "all", "--json")
    ended = cli(*command, *options)
    return ended.status, json.loads(ended.out)


def test_each_pair_that_ran_is_compared(streaming_fir: Made, filter_reference: Path, cli: Cli) -> None:
    status, found = everyone(cli, streaming_fir, filter_reference, "-c", streaming_fir.checkpoint)
    assert (status, found["verdict"], found["verdicts"]) == (0, "pass", {"mil": "pass"})
    assert found["absent"] == {name: why for name, why in available().items() if why}
    ran = [
        n
        for n in available()
        if n not in found["absent"] and n not in {left[0] for left in found["left_out"]}
    ]
    assert {"mil", "torch"} <= set(ran)
    expected = {(a, b) for i, a in enumerate(ran) for b in ran[i + 1 :]}
    for package in ("streaming_fir_fp16.mlpackage", "streaming_fir_fp32.mlpackage"):
        own = [a for a in found["agreements"] if a["package"] == package]
        assert {(a["first"], a["second"]) for a in own} == expected
        assert all(a["output"] == "filtered" and a["metric"] == "snr_db" for a in own)
        with_ours = [a for a in own if a["first"] == "mil"]
        assert all(float(a["worst"]) > 60 and 0 <= a["max_abs_error"] < 5e-3 for a in with_ours)
        assert "fp16" not in package or all(a["max_abs_error"] > 1e-5 for a in with_ours)
    receipts = sorted(p.name for p in streaming_fir.build.glob("receipt*"))
    assert receipts == ["receipt-mil.json"]


def test_without_a_checkpoint_second_opinions_are_left_out_and_said_so(
    streaming_fir: Made, filter_reference: Path, cli: Cli
) -> None:
    status, found = everyone(cli, streaming_fir, filter_reference)
    assert (status, found["agreements"]) == (0, [])
    told = {left[0]: left[2] for left in found["left_out"]}
    assert told["torch"] == "backend 'torch' runs the Stage's module: it needs --checkpoint"
    text = cli(
        "validate",
        streaming_fir.build,
        "--model",
        streaming_fir.model,
        "--fixture",
        filter_reference,
        "-b",
        "all",
    ).out
    assert "torch: streaming_fir_fp16.mlpackage: backend 'torch' runs the Stage's module" in text
    assert "coreml: not here: Core ML predicts only on macOS" in text


def test_a_second_opinion_alone_makes_nothing_pass(
    streaming_fir: Made, filter_reference: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing runs packages, nothing was judged, however well the others agree."""
    monkeypatch.setattr("coreproof.agreement.PACKAGE_RUNNERS", ())
    status, found = everyone(cli, streaming_fir, filter_reference, "-c", streaming_fir.checkpoint)
    assert (status, found["verdict"], found["verdicts"]) == (1, "fail", {})
    assert found["agreements"]


def test_one_that_fails_is_left_out_with_its_reason(
    streaming_fir: Made, filter_reference: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise BackendError("out of sorts")

    monkeypatch.setattr(torch.Runner, "predict", refuse)
    status, found = everyone(cli, streaming_fir, filter_reference, "-c", streaming_fir.checkpoint)
    assert status == 0
    assert ["torch", "streaming_fir_fp16.mlpackage", "out of sorts"] in found["left_out"]
    assert not [a for a in found["agreements"] if "torch" in (a["first"], a["second"])]


def test_figures_of_a_pair() -> None:
    one = np.array([1.0, 2.0, 2.0], np.float32)
    metric, worst, far = _apart(one, one + np.float32(0.5))
    assert (metric, far) == ("snr_db", 0.5)
    assert worst == pytest.approx(10 * np.log10(float(((one + 0.5) ** 2).sum()) / 0.75))
    assert _apart(np.array([1, 2, 3]), np.array([1, 5, 4])) == ("token_mismatches", 2, 3)
    assert np.isnan(_apart(one, one * np.nan)[1])
    assert np.isnan(_apart(one, one[:2])[1])


def test_the_default_is_core_ml_on_a_mac_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default() == ("coreml" if sys.platform == "darwin" else "mil")
    monkeypatch.setattr(coreml, "absent", lambda: None)
    assert default() == "coreml"
