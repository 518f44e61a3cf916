"""TangoFlux's host loop on an exported build: the official latents and audio, the commands, bad input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile
from support import WITHOUT_TORCH, Cli

from coreproof.errors import InputError, PackageError, UsageError
from coreproof.parity.metrics import METRICS
from coreproof_exporters.tangoflux import pipeline
from coreproof_exporters.tangoflux.pipeline import TextToAudio

PROMPT = "rain with distant thunder"
Arrays = Mapping[str, np.ndarray]


def host(build: Path, **settings: object) -> TextToAudio:
    return TextToAudio(build, **{"precision": "fp32", **settings})  # type: ignore[arg-type]


def test_the_loop_has_the_official_latents_and_audio(
    tangoflux_build: Path, tangoflux_official: Arrays
) -> None:
    """From the prompt on: tokens, both texts, pooled vector, duration, 25 steps, chunks."""
    done: list[tuple[str, int, int]] = []
    runs = host(tangoflux_build, report=lambda *step: done.append(step))
    made = runs.make(PROMPT, 10.0, 0, noise=tangoflux_official["noise"])
    assert made.tokens == tangoflux_official["attention_mask"][1].sum()
    snr = METRICS["snr_db"].fn
    for mine, official in zip(made.latents, tangoflux_official["latents"], strict=True):
        assert snr(mine, official) >= 100
    assert made.audio.shape == (441_000, 2)
    assert snr(made.audio.T, tangoflux_official["audio"][:, :441_000]) >= 90
    assert [step for step in done if step[0] == "transformer"] == [("transformer", i, 25) for i in range(25)]
    assert {stage: len(seconds) for stage, seconds in runs.seconds.items()} == {
        "text_encoder": 2,
        "conditioning": 1,
        "transformer": 25,
        "vae_decoder_chunk": 3,
    }


def test_fp16_follows_the_official_latents(tangoflux_build: Path, tangoflux_official: Arrays) -> None:
    made = host(tangoflux_build, precision="fp16").make(PROMPT, 10.0, 0, noise=tangoflux_official["noise"])
    correlation = METRICS["pearson_correlation"].fn
    pairs = zip(made.latents, tangoflux_official["latents"], strict=True)
    assert min(correlation(*pair) for pair in pairs) >= 0.999


def test_chunks_sound_as_the_whole(tangoflux_build: Path) -> None:
    chunked = host(tangoflux_build).make(PROMPT, 9.0, 3, steps=2)
    whole = host(tangoflux_build, whole=True).make(PROMPT, 9.0, 3, steps=2)
    np.testing.assert_array_equal(chunked.latents, whole.latents)
    assert np.abs(chunked.audio - whole.audio).max() <= 1e-5


def test_a_short_sound_decodes_no_more_than_it_needs(tangoflux_build: Path) -> None:
    runs = host(tangoflux_build)
    made = runs.make(PROMPT, 1.0, 3, steps=1)
    assert made.audio.shape == (44_100, 2)
    assert len(runs.seconds["vae_decoder_chunk"]) == 1
    longer = host(tangoflux_build)._decode(made.latents, 10**9)
    np.testing.assert_array_equal(longer[:44_100], made.audio)


def test_duration_conditions_and_does_not_only_crop(tangoflux_build: Path) -> None:
    one, other = (host(tangoflux_build).make(PROMPT, s, 3, steps=1).latents for s in (2.0, 20.0))
    assert METRICS["relative_error"].fn(one, other) > 1e-2


def test_the_seed_decides(tangoflux_build: Path) -> None:
    options = {"prompt": PROMPT, "steps": "1", "precision": "fp32"}
    first = pipeline.generate(tangoflux_build, 0.5, "mil", {**options, "seed": "5"})
    again = pipeline.generate(tangoflux_build, 0.5, "mil", {**options, "seed": "5"})
    drawn = pipeline.generate(tangoflux_build, 0.5, "mil", options)
    np.testing.assert_array_equal(first.samples, again.samples)
    assert not np.array_equal(first.samples, drawn.samples)
    repeated = {**options, "seed": str(drawn.settings["seed"])}
    np.testing.assert_array_equal(
        pipeline.generate(tangoflux_build, 0.5, "mil", repeated).samples, drawn.samples
    )


def test_generate_writes_a_wav_and_says_what_it_did(tangoflux_build: Path, tmp_path: Path, cli: Cli) -> None:
    wav = tmp_path / "out.wav"
    ended = cli("generate", tangoflux_build, "--prompt", PROMPT, "--seconds", "10", "-o", wav)
    assert ended.status == 0, ended.err
    rate, samples = wavfile.read(wav)
    assert (rate, samples.shape, samples.dtype) == (44_100, (441_000, 2), np.int16)
    assert samples.std() > 100
    for said in ("steps 25", "guidance 4.5", "seed ", PROMPT, "10.00 s at 44100 Hz"):
        assert said in ended.out


def test_generate_tells_a_script_its_settings(tangoflux_build: Path, tmp_path: Path, cli: Cli) -> None:
    arguments = ("--option", "steps=2", "--option", "seed=9", "--seconds", "30", "--json")
    ended = cli("generate", tangoflux_build, "--prompt", PROMPT, *arguments, "-o", tmp_path / "o.wav")
    found = json.loads(ended.out)
    assert found["settings"] == {
        "prompt": PROMPT,
        "tokens": 16,
        "precision": "fp16",
        "steps": 2,
        "guidance": 4.5,
        "seed": 9,
        "clipped_samples": 0,
        "missing_samples": 30 * 44_100 - 217 * 2048,
    }
    assert found["samples"] == 217 * 2048
    assert found["stages"]["transformer"]["runs"] == 2


def test_a_sweep_tables_steps_against_time_and_distance(tangoflux_build: Path, cli: Cli) -> None:
    arguments = ("steps=2,8,16", "--prompt", PROMPT, "--seconds", "2", "--json")
    ended = cli("sweep", tangoflux_build, *arguments)
    assert ended.status == 0, ended.err
    found = json.loads(ended.out)
    assert (found["option"], found["against"]) == ("steps", "16")
    rows = found["rows"]
    assert [row["value"] for row in rows] == ["2", "8", "16"]
    assert rows[0]["snr_db"] < rows[1]["snr_db"]
    assert rows[2]["pearson_correlation"] == pytest.approx(1.0)
    assert all(row["seconds"] > 0 for row in rows)


@pytest.mark.parametrize("values", ["steps", "steps=5", "=1,2"])
def test_a_sweep_of_nothing_is_refused(tangoflux_build: Path, cli: Cli, values: str) -> None:
    ended = cli("sweep", tangoflux_build, values, "--prompt", PROMPT)
    assert ended.status == 2
    assert "write NAME=VALUE,VALUE" in ended.err


WITHOUT = (
    WITHOUT_TORCH
    + """
from pathlib import Path

import numpy as np

from coreproof.package.manifest import load_manifest
from coreproof_exporters.tangoflux.pipeline import TextToAudio

build = Path(sys.argv[1])
contracts = {build / r.package: r.contract for r in load_manifest(build).packages}

class Numpy:
    name = "numpy"

    def load(self, target):
        self.contract = contracts[target.package]

    def predict(self, inputs, state=None):
        for spec in self.contract.inputs:
            assert inputs[spec.name].shape == spec.shape, spec.name
        return {o.name: np.full(o.shape, 0.25, np.float32) for o in self.contract.outputs}

    def make_state(self):
        return None

    def close(self):
        pass

made = TextToAudio(build, backend=Numpy).make("rain", 2.0, 1, steps=3)
assert made.audio.shape == (88200, 2)
assert not set(BLOCKED) & {name.partition(".")[0] for name in sys.modules}
print("done")
"""
)


def test_the_loop_needs_neither_torch_nor_diffusers(tangoflux_build: Path) -> None:
    command = [sys.executable, "-c", WITHOUT, str(tangoflux_build)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "done", done.stderr


@pytest.mark.parametrize("seconds", [0.0, -1.0, 30.01, float("nan")])
def test_a_duration_out_of_range_is_refused(tangoflux_build: Path, seconds: float) -> None:
    with pytest.raises(InputError, match="expected more than 0 and at most 30"):
        host(tangoflux_build).make(PROMPT, seconds, 0)


def test_a_prompt_of_more_than_64_tokens_is_refused_and_nothing_is_lost(
    tangoflux_build: Path, tmp_path: Path, cli: Cli
) -> None:
    wav = tmp_path / "out.wav"
    wav.write_bytes(b"kept")
    ended = cli("generate", tangoflux_build, "--prompt", "thunder " * 40, "-o", wav)
    assert ended.status == 2
    assert "tokens, its end included; expected at most 64: shorten it" in ended.err
    assert wav.read_bytes() == b"kept"


def test_64_tokens_are_accepted(tangoflux_build: Path) -> None:
    runs = host(tangoflux_build)
    prompt = "a " * 63
    assert len(runs.tokens(prompt)) == 64
    assert runs.make(prompt, 1.0, 0, steps=1).tokens == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs a prompt"),
        ({"prompt": "a", "speed": "1"}, "no option speed"),
        ({"prompt": "a", "steps": "-1"}, "expected an integer"),
        ({"prompt": "a", "seed": "1.5"}, "expected an integer"),
        ({"prompt": "a", "guidance": "high"}, "expected a number"),
        ({"prompt": "a", "precision": "int8"}, "choose fp16 or fp32"),
        ({"prompt": "a", "decoder": "half"}, "choose chunked or whole"),
    ],
)
def test_another_option_is_refused(tangoflux_build: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pipeline.generate(tangoflux_build, 1.0, "mil", options)


@pytest.mark.parametrize(
    "settings", [{"steps": 0}, {"guidance": float("inf")}, {"noise": np.zeros((1, 3, 64), np.float32)}]
)
def test_settings_that_do_not_fit_are_refused(tangoflux_build: Path, settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match="expected"):
        host(tangoflux_build).make(PROMPT, 1.0, 0, **settings)  # type: ignore[arg-type]


@pytest.fixture
def bare(tangoflux_build: Path, tmp_path: Path) -> Path:
    """A build without its packages, to change."""
    for name in ("coreproof.json", "tokenizer.json", "tangoflux.json"):
        shutil.copy(tangoflux_build / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("name", ["tokenizer.json", "tangoflux.json"])
def test_a_missing_host_file_is_named(bare: Path, name: str) -> None:
    (bare / name).unlink()
    with pytest.raises(PackageError, match=f"{name} is missing"):
        TextToAudio(bare)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer.json", "{}"),
        ("tangoflux.json", "{}"),
        ("tangoflux.json", '{"schema": "coreproof.tangoflux/1", "hop": -1}'),
    ],
)
def test_a_host_file_that_does_not_fit_is_refused(bare: Path, name: str, text: str) -> None:
    (bare / name).write_text(text)
    with pytest.raises(PackageError, match=name):
        TextToAudio(bare)


def test_a_stage_that_was_not_exported_is_named(bare: Path) -> None:
    with pytest.raises(UsageError, match="no stage 'text_encoder' of variant 'int8'"):
        TextToAudio(bare, "int8")


def test_full_scale_is_clipped_and_counted() -> None:
    samples, clipped = pipeline.to_int16(np.array([[0.5, -1.0], [1.5, -7.0]], np.float32))
    np.testing.assert_array_equal(samples, [[16384, -32767], [32767, -32767]])
    assert clipped == 2
    with pytest.raises(InputError, match="NaN"):
        pipeline.to_int16(np.array([[np.nan, 0.0]], np.float32))
