"""``coreproof generate``, on a pipeline that stands in for a model's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import typer
from scipy.io import wavfile
from support import Made
from typer.testing import CliRunner

from coreproof import catalog
from coreproof.audio.sound import Report, Sound
from coreproof.cli.generate import generate, timings
from coreproof.errors import UsageError

app = typer.Typer()
app.command()(generate)

RAMP = np.arange(48, dtype=np.int16).reshape(24, 2)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, str, dict[str, str]]]:
    calls: list[tuple[float, str, dict[str, str]]] = []

    def made(_: Path, seconds: float, backend: str, options: Mapping[str, str], report: Report) -> Sound:
        calls.append((seconds, backend, dict(options)))
        stages = {"temporal": [9.0, 0.01, 0.03], "depth": [0.002]}
        return Sound(RAMP, 8000, stages, budget=0.04, frames=[9.0, 0.012, 0.032, 0.05], settings={"seed": 7})

    monkeypatch.setattr(catalog.ModelParts, "generate", lambda self: made)
    return calls


def test_sound_is_written_and_timed(
    shared_minilm: Made, tmp_path: Path, asked: list[tuple[float, str, dict[str, str]]]
) -> None:
    wav = tmp_path / "out.wav"
    arguments = [str(shared_minilm.build), "-o", str(wav), "--seconds", "2", "--option", "a=b=c"]
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 0, ended.output
    assert asked == [(2.0, "mil", {"a": "b=c"})]
    rate, samples = wavfile.read(wav)
    assert rate == 8000
    np.testing.assert_array_equal(samples, RAMP)
    assert "32.0 ms (median)" in ended.output
    assert "of the 40 ms that it lasts; 2 of 4 took longer" in " ".join(ended.output.split())
    assert "seed 7" in ended.output


def test_json_names_every_stage(
    shared_minilm: Made, tmp_path: Path, asked: list[tuple[float, str, dict[str, str]]]
) -> None:
    ended = CliRunner().invoke(app, [str(shared_minilm.build), "-o", str(tmp_path / "o.wav"), "--json"])
    measured = json.loads(ended.stdout)
    assert measured["stages"]["temporal"]["median_ms"] == pytest.approx(20.0)
    assert measured["stages"]["depth"]["ms_per_frame"] == pytest.approx(0.5)  # one run in four frames
    assert measured["frame"]["worst_ms"] == pytest.approx(50.0)
    assert measured["frames_ms"] == pytest.approx([9000, 12, 32, 50])
    assert measured["settings"] == {"seed": 7}


def test_the_first_run_does_not_count() -> None:
    sound = Sound(RAMP, 8000, {"a": [5.0, 0.001], "b": [0.004]})
    assert timings(sound)["a"]["median_ms"] == pytest.approx(1.0)
    assert timings(sound)["b"]["median_ms"] == pytest.approx(4.0)


def test_an_option_without_a_value_is_refused(shared_minilm: Made, tmp_path: Path) -> None:
    arguments = [str(shared_minilm.build), "-o", str(tmp_path / "o.wav"), "--option", "seed"]
    ended = CliRunner().invoke(app, arguments)
    assert isinstance(ended.exception, UsageError)


def test_a_model_without_a_pipeline_that_makes_sound_is_named(shared_minilm: Made, tmp_path: Path) -> None:
    ended = CliRunner().invoke(app, [str(shared_minilm.build), "-o", str(tmp_path / "o.wav")])
    assert isinstance(ended.exception, UsageError)
    assert "minilm makes no sound" in str(ended.exception)
