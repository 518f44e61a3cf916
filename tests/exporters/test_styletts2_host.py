"""StyleTTS 2's host part against what upstream computed: symbols, sampler, source, mel, and bad inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from coreproof.errors import InputError, UsageError
from coreproof.parity.metrics import METRICS
from coreproof_exporters.styletts2 import harmonics, pipeline, reference, reference_audio, sampler, symbols
from coreproof_exporters.styletts2.architecture import F0_FRAME, HARMONICS, SAMPLE_RATE
from coreproof_exporters.styletts2.source import Phase, Source
from coreproof_exporters.styletts2.synthesizer import Manner, Noise, frames_of

(FIXTURE,) = (Path(__file__).parents[2] / "fixtures" / "styletts2").iterdir()
HOST_BIAS = 0.02  # of the synthetic checkpoint's source


@pytest.fixture(scope="module")
def official() -> dict[str, np.ndarray]:
    with np.load(FIXTURE / "reference.npz", allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def drawn(official: dict[str, np.ndarray], index: int) -> np.ndarray:
    """The source's noise of a text, behind the sampler's draws."""
    noise = Noise(int(official["noise_seed"]) + index)
    noise.draw(1, 256)
    for _ in range(4):
        noise.draw(1, 1, 256)
    return noise.draw(1, F0_FRAME * official[f"t{index}_F0"].shape[1], HARMONICS)[0]


ANCHORS = {
    "$": 0, ";": 1, '"': 11, "«": 12, "»": 13, "“": 14, "”": 15, " ": 16, "A": 17, "z": 68, "ɑ": 69,
    "ˈ": 156, "ˌ": 157, "ː": 158, "\u0329": 175, "'": 176, "ᵻ": 177,
}  # fmt: skip


def test_the_symbol_table_is_upstreams() -> None:
    assert {symbol: symbols.TABLE[symbol] for symbol in ANCHORS} == ANCHORS


def test_tokens_are_upstreams(official: dict[str, np.ndarray]) -> None:
    assert len(symbols.TABLE) == 177
    for index, text in enumerate(reference.TEXTS):
        np.testing.assert_array_equal(symbols.tokenize(text).ids[np.newaxis], official[f"t{index}_tokens"])


def test_unknown_symbols_are_dropped_and_named() -> None:
    found = symbols.tokenize("a4b☃4")
    assert (found.ids.tolist(), found.dropped) == ([0, 43, 44], ("4", "☃"))


@pytest.mark.parametrize("ipa", ["☃☃", "   ", "4 5", ""])
def test_text_without_a_known_phoneme_is_refused(ipa: str) -> None:
    with pytest.raises(InputError, match="no phoneme of the model's 177 symbols"):
        symbols.tokenize(ipa)


def test_text_over_512_tokens_is_refused() -> None:
    assert len(symbols.tokenize("a" * 511).ids) == 512
    with pytest.raises(InputError, match="513 tokens with the start, at most 512"):
        symbols.tokenize("a" * 512)


def test_long_text_is_cut_behind_sentences() -> None:
    text = "One. Two 3.5 and 'three!' Four?  "
    assert symbols.sentences(text) == ["One.", "Two 3.5 and 'three!'", "Four?"]


def test_noise_levels_are_upstreams(official: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(sampler.karras(5), [3, 0.557915, 0.0703622, 0.00475782, 0.0001], rtol=2e-6)
    np.testing.assert_allclose(official["t0_step_sigma"][::2], sampler.karras(5)[:4], rtol=1e-6)


def test_the_sampler_asks_what_upstreams_asks(official: dict[str, np.ndarray]) -> None:
    for index in range(3):
        noise = Noise(int(official["noise_seed"]) + index)
        asked: list[tuple[np.ndarray, float]] = []

        def denoise(x: np.ndarray, sigma: float, index: int = index, asked: list = asked) -> np.ndarray:  # type: ignore[type-arg]
            asked.append((x, sigma))
            return official[f"t{index}_step_denoised"][len(asked) - 1][np.newaxis]

        first = noise.draw(1, 256)[np.newaxis]
        sampler.adpm2(denoise, first, lambda noise=noise: noise.draw(1, 1, 256))
        np.testing.assert_allclose([sigma for _, sigma in asked], official[f"t{index}_step_sigma"], rtol=1e-5)
        x = np.concatenate([x for x, _ in asked])
        np.testing.assert_allclose(x, official[f"t{index}_step_x"], atol=1e-5)


def test_a_fixed_noise_vector_is_another_style(official: dict[str, np.ndarray]) -> None:
    """The planted defect: a sampler that draws the same vector each time."""
    noise = Noise(int(official["noise_seed"]))
    first = noise.draw(1, 256)[np.newaxis]
    asked: list[np.ndarray] = []

    def denoise(x: np.ndarray, sigma: float) -> np.ndarray:
        asked.append(x)
        return official["t0_step_denoised"][len(asked) - 1][np.newaxis]

    sampler.adpm2(denoise, first, lambda: first)
    wrong = METRICS["snr_db"].fn(np.concatenate(asked)[2:], official["t0_step_x"][2:])
    assert wrong < 20


def test_the_shipped_drivers_sampler_has_nine_evaluations() -> None:
    levels: list[float] = []

    def denoise(x: np.ndarray, sigma: float) -> np.ndarray:
        levels.append(sigma)
        return x * 0

    found = sampler.dpm2(denoise, np.ones((1, 1, 256), np.float32))
    assert len(levels) == 9
    assert not found.any()
    np.testing.assert_allclose(levels[1], np.sqrt(levels[0] * levels[2]))


def test_durations_are_upstreams(official: dict[str, np.ndarray]) -> None:
    for index in range(3):
        frames = frames_of(official[f"t{index}_pred_dur_log"][0])
        assert frames.sum() == official[f"t{index}_en"].shape[2]
        total = (1 / (1 + np.exp(-official[f"t{index}_pred_dur_log"][0].astype(np.float64)))).sum(axis=1)
        assert np.abs(total % 1 - 0.5).min() > 1e-3  # no rounding is decided by chance


def test_the_source_is_upstreams(official: dict[str, np.ndarray]) -> None:
    weight = official["source_weight"]
    for index in range(2):
        f0, noise = official[f"t{index}_F0"][0], drawn(official, index)
        assert (f0 < 0).any()  # where upstream's remainder by one turn matters
        found = harmonics.source(f0, noise, weight, HOST_BIAS)
        np.testing.assert_allclose(found, official[f"t{index}_har_source"][0, 0], atol=1e-4)


def test_the_source_inside_a_graph_is_upstreams(official: dict[str, np.ndarray]) -> None:
    module = Source()
    weight = official["source_weight"]
    module.l_linear.weight.data = torch.from_numpy(weight[np.newaxis]).float()
    module.l_linear.bias.data = torch.tensor([HOST_BIAS])
    f0 = official["t1_F0"]
    frames = f0.shape[1]
    more = -frames % 64
    noise = harmonics.mixed(drawn(official, 1), weight)
    with torch.no_grad():
        found = module(
            torch.from_numpy(np.pad(f0, ((0, 0), (0, more)))),
            torch.from_numpy(np.pad(noise, (0, F0_FRAME * more)))[None, None],
        ).numpy()[0, 0, : F0_FRAME * frames]
    np.testing.assert_allclose(found, official["t1_har_source"][0, 0], atol=2e-4)


def radians_off(found: np.ndarray, expected: np.ndarray) -> float:
    """The greatest phase error at harmonic 9, of turns (samples, 9)."""
    off = (found - expected)[:, -1]
    return float(2 * np.pi * np.abs(off - np.round(off)).max())


@pytest.mark.parametrize("speech", ["steady", "gliding", "random"])
def test_phases_hold_over_a_hundred_seconds(speech: str) -> None:
    frames = np.arange(100 * SAMPLE_RATE // F0_FRAME // 64 * 64)
    f0 = {
        "steady": np.full(len(frames), 211.37),
        "gliding": 215 + 135 * np.sin(frames / 37),
        "random": np.random.default_rng(0).uniform(80, 350, len(frames)),
    }[speech].astype(np.float32)
    found = Phase()(torch.from_numpy(f0[np.newaxis])).numpy()[0].T.astype(np.float64)
    assert radians_off(found, harmonics.turns(f0)) <= 0.01  # the bar is 0.05


def test_a_level_check_passes_a_broken_source_that_correlation_catches() -> None:
    """The running sum in fp16: as loud as the right source, and another signal."""
    f0 = np.repeat(np.random.default_rng(1).uniform(120, 240, 64), 8).astype(np.float32)  # 6.4 s
    right = np.sin(2 * np.pi * harmonics.turns(f0))
    steps = np.mod(f0[:, None] * np.arange(1, 10) / 80, 1.0).astype(np.float16)
    sums = np.zeros_like(steps)
    total = np.zeros(HARMONICS, np.float16)
    for index, step in enumerate(steps):
        total = (total + step).astype(np.float16)
        sums[index] = np.mod(total, np.float16(1))
    broken_steps = np.diff(sums.astype(np.float64), axis=0, prepend=0)
    exact_steps = f0[:, None] * np.arange(1, 10) / 80
    jumps = broken_steps - np.mod(exact_steps, 1.0)  # what rounding did to each frame
    wrong = np.sin(2 * np.pi * (harmonics.turns(f0) + np.repeat(np.cumsum(jumps, axis=0), F0_FRAME, axis=0)))
    merged = (right.sum(axis=1), wrong.sum(axis=1))
    ratio = METRICS["rms_ratio"].fn(merged[1], merged[0])
    assert 0.95 < ratio < 1.05  # a check of the level sees nothing
    assert METRICS["cosine"].fn(merged[1], merged[0]) < 0.9  # the gates ask for 0.9999
    assert METRICS["snr_db"].fn(merged[1], merged[0]) < 10


def test_mel_spectrograms_are_upstreams(official: dict[str, np.ndarray]) -> None:
    for index, clip in enumerate(reference.clips()):
        np.testing.assert_allclose(reference_audio.mel(clip), official[f"v{index}_mel"][0, 0], atol=1e-4)


def test_silence_at_the_ends_is_trimmed() -> None:
    loud = np.sin(np.arange(24_000) / 10)
    wave = np.concatenate([np.zeros(10_000), loud, 1e-3 * loud])
    kept = reference_audio.trimmed(wave)
    assert 24_000 <= len(kept) <= 24_000 + 2 * 2048


def test_stereo_at_another_rate_becomes_mono_at_24_khz(tmp_path: Path) -> None:
    time = np.arange(2 * 44_100) / 44_100
    tone = np.sin(2 * np.pi * 440 * time)
    stereo = np.stack([tone, 0.5 * tone], axis=1)
    wavfile.write(tmp_path / "a.wav", 44_100, np.round(stereo * 32767).astype(np.int16))
    wave = reference_audio.read_clip(tmp_path / "a.wav")
    assert wave.shape == (48_000,)
    expected = 0.75 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 24_000)
    np.testing.assert_allclose(wave[500:-500], expected[500:-500], atol=2e-3)


@pytest.mark.parametrize(
    ("samples", "message"),
    [(np.zeros(24_000, np.int16), "silent"), (np.zeros(0, np.int16), "0 samples")],
)
def test_a_clip_without_sound_is_refused(tmp_path: Path, samples: np.ndarray, message: str) -> None:
    wavfile.write(tmp_path / "a.wav", 24_000, samples)
    with pytest.raises(InputError, match=message):
        reference_audio.read_clip(tmp_path / "a.wav")


def test_a_file_that_is_no_wav_and_a_short_clip_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFFnot at all")
    with pytest.raises(InputError, match="cannot be read as a WAV file"):
        reference_audio.read_clip(tmp_path / "a.wav")
    with pytest.raises(InputError, match=r"lasts 0.50 s .* at least 0.80 s"):
        reference_audio.mel(np.ones(12_000))


@pytest.mark.parametrize(
    ("named", "error"),
    [
        ({"alpha": 1.5}, InputError),
        ({"carry": float("nan")}, InputError),
        ({"steps": 1}, InputError),
        ({"scale": float("inf")}, InputError),
        ({"sampler": "euler"}, UsageError),
    ],
)
def test_a_manner_out_of_range_is_refused(named: dict[str, float], error: type[Exception]) -> None:
    with pytest.raises(error):
        Manner(**named)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tune": "x"}, "no option tune"),
        ({}, "either text or ipa"),
        ({"text": "a", "ipa": "b"}, "either text or ipa"),
        ({"ipa": "hi", "seed": "-1"}, "whole number"),
        ({"ipa": "hi", "alpha": "much"}, "expected a number"),
        ({"ipa": "hi", "similarity": "nowhere"}, "module:function"),
        ({"ipa": "hi", "similarity": "nowhere:at_all"}, "cannot be imported"),
    ],
)
def test_generate_refuses_what_does_not_fit(options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pipeline.generate(Path("nowhere"), 1.0, "mil", options)


def test_text_needs_espeak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="espeak-ng, which is not installed"):
        symbols.phonemize("hello")


def test_text_goes_through_espeak_and_keeps_its_marks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the program, which is no requirement of the tests: it spells words in capitals."""
    program = tmp_path / "espeak-ng"
    program.write_text("#!/bin/sh\ntr a-z A-Z\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert symbols.phonemize("one two,  three; four!") == "ONE TWO, THREE; FOUR!"
