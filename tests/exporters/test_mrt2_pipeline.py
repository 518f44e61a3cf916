"""The host loop of Magenta RealTime 2 on a small build, against the official tokens and audio."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from replay import assert_replays
from scipy.io import wavfile
from support import Cli

from coreproof.audio import stft
from coreproof.audio.noise import GumbelNoise
from coreproof.audio.rvq import embed
from coreproof.audio.stft import InverseStft
from coreproof.errors import InputError, PackageError, UsageError
from coreproof.package.manifest import load_manifest
from coreproof.parity.metrics import METRICS
from coreproof_exporters.mrt2 import decoding, guidance, host, pipeline
from coreproof_exporters.mrt2.architecture import STFT_STEP
from coreproof_exporters.mrt2.pipeline import Generator

Arrays = Mapping[str, np.ndarray]
FP32 = {"precision": "fp32"}


@pytest.fixture
def build(mrt2_build: Path) -> Path:
    return mrt2_build


@pytest.fixture
def official(mrt2_official: Arrays) -> Arrays:
    return mrt2_official


def snr(actual: np.ndarray, expected: np.ndarray) -> float:
    return METRICS["snr_db"].fn(actual, expected)


def played(
    build: Path, official: Arrays, frames: int, precision: str, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    levels = official["codes"].shape[1]
    codes = (official["depth_logits"].shape[-1] - 6) // levels
    shared = GumbelNoise(int(official["noise_seed"]))
    generator = Generator(
        build,
        precision,
        temperature=float(official["temperature"]),
        noise=lambda: shared.draw(levels, codes),
        **options,
    )
    drawn, heard = [], []
    for which in official["frame_conditioning"][:frames]:
        source = generator.encode(official["conditioning_tokens"][which : which + 1])
        for one, audio in generator.frames(source, 1):
            drawn.append(one)
            heard.append(audio)
    return np.array(drawn), np.concatenate([*heard, generator.rest()])


@pytest.mark.parametrize("ring", [False, True], ids=["chronological", "ring"])
@pytest.mark.parametrize("decoder", list(decoding.DECODERS))
def test_the_loop_has_the_official_tokens_and_audio(
    build: Path, official: Arrays, decoder: str, ring: bool
) -> None:
    codes, audio = played(build, official, 60, "fp32", decoder=decoder, ring=ring)
    np.testing.assert_array_equal(codes, official["codes"][:60])
    assert official["margins"][:60].min() > 1e-4  # no tie was decided by chance
    assert len(audio) == 59 * 1920
    expected = official["audio"]
    assert snr(audio[: len(expected)], expected) >= 100


def rows(build: Path, stage: str, embeddings: np.ndarray, context: int | None = None) -> np.ndarray:
    graph = host.Graph(build, host.find_record(build, load_manifest(build), stage, "fp32"), "mil")
    timings = host.Timings()
    stream: decoding.Rows
    if context is None:
        stream = decoding.StreamingRows(graph, timings)
    else:
        stream = decoding.ContextRows(graph, timings, context)
    made = [stream.push(one) for one in np.split(embeddings, len(embeddings))]
    return np.concatenate([*made, stream.finish()])


def drawn_embeddings(build: Path, frames: int) -> np.ndarray:
    books = host.host_array(build, "rvq_codebooks")
    codes = np.random.default_rng(5).integers(0, books.shape[1], (frames, books.shape[0]))
    return embed(codes, books)


# One short chunk; a chunk exactly; one more frame; chunks and what is left of one.
@pytest.mark.parametrize("frames", [1, 3, 25, 26, 36, 70])
def test_chunks_with_14_frames_of_context_are_the_streamed_rows(build: Path, frames: int) -> None:
    embeddings = drawn_embeddings(build, frames)
    streamed = rows(build, decoding.DECODERS["streaming"], embeddings)
    chunked = rows(build, decoding.DECODERS["context"], embeddings, 14)
    assert len(streamed) == len(chunked) == 4 * frames - 4
    if frames > 1:
        assert float(np.abs(chunked - streamed).max() / np.abs(streamed).max()) <= 1e-4


@pytest.mark.parametrize("context", [1, 8])
def test_chunks_with_less_context_are_caught(build: Path, official: Arrays, context: int) -> None:
    """One frame, as a published host once had, only makes up for the lookahead."""
    embeddings = drawn_embeddings(build, 60)
    streamed = rows(build, decoding.DECODERS["streaming"], embeddings)
    chunked = rows(build, decoding.DECODERS["context"], embeddings, context)
    assert len(chunked) == len(streamed)
    np.testing.assert_allclose(chunked[:96], streamed[:96], atol=1e-4 * float(np.abs(streamed).max()))
    assert snr(chunked, streamed) < 60


def test_a_plain_hann_window_is_caught(
    build: Path, official: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = official["decoder_stft"]
    assert snr(InverseStft(STFT_STEP, 2)(made), official["audio"]) >= 100
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(960) / 960)
    monkeypatch.setattr(stft, "dual_window", lambda _: hann)
    assert snr(InverseStft(STFT_STEP, 2)(made), official["audio"]) < 20


def test_a_late_feedback_is_another_piece(build: Path, official: Arrays) -> None:
    """One frame late, the second frame starts from the start row again."""
    generator = Generator(build, "fp32", temperature=0.0)
    source = generator.encode(official["conditioning_tokens"][:1])
    on_time = [codes for codes, _ in generator.frames(source, 3)]
    late = Generator(build, "fp32", temperature=0.0)
    start = late._given
    drawn = []
    for _ in range(3):
        previous = late._given
        drawn += [codes for codes, _ in late.frames(source, 1)]
        late._given = start if len(drawn) == 1 else previous
    np.testing.assert_array_equal(drawn[0], on_time[0])
    assert not np.array_equal(drawn[1], on_time[1])


def test_the_loop_needs_neither_torch_nor_coremltools(
    build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_replays(monkeypatch, tmp_path, build, (host, pipeline), 0.12, FP32)


def test_generate_writes_what_is_asked(build: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "style.npy", np.array([3, 1, 4], np.int32))
    options = {**FP32, "seed": "3", "conditioning": str(tmp_path / "style.npy")}
    sound = pipeline.generate(build, 0.12, "mil", options)
    assert sound.samples.shape == (3 * 1920, 2)
    assert (sound.samples.dtype, sound.sample_rate, sound.budget) == (np.int16, 48_000, 0.04)
    assert {name: len(runs) for name, runs in sound.seconds.items()} == dict.fromkeys(
        ("temporal", "depth", "decoder", "host"), 4
    )
    # Every second of a frame is some stage's.
    assert sum(map(sum, sound.seconds.values())) == pytest.approx(sum(sound.frames))
    assert sound.settings["seed"] == 3
    again = pipeline.generate(build, 0.12, "mil", options)
    np.testing.assert_array_equal(again.samples, sound.samples)
    other = pipeline.generate(build, 0.12, "mil", {**options, "seed": "4"})
    assert not np.array_equal(other.samples, sound.samples)


def test_the_command_writes_a_wav_and_says_what_it_took(build: Path, tmp_path: Path, cli: Cli) -> None:
    wav = tmp_path / "out.wav"
    arguments = ("generate", build, "-o", wav, "--seconds", "0.2", "--option", "precision=fp32")
    said = cli(*arguments)
    assert said.status == 0, said.err
    assert "of the 40 ms that it lasts" in said.out
    assert "seed 1" in said.out
    rate, samples = wavfile.read(wav)
    assert (rate, samples.shape) == (48_000, (5 * 1920, 2))
    assert np.abs(samples).max() > 100
    measured = json.loads(cli(*arguments, "--json").out)
    assert measured["budget_ms"] == 40
    assert len(measured["frames_ms"]) == 6
    assert set(measured["stages"]) == {"temporal", "depth", "decoder", "host"}
    assert measured["settings"]["noise"] == "SplitMix64"


@pytest.mark.parametrize("change", [{"decoder": "context"}, {"ring": "yes"}], ids=["decoder", "ring"])
def test_another_way_there_is_the_same_music(build: Path, change: dict[str, str]) -> None:
    options = {**FP32, "temperature": "0"}
    one = pipeline.generate(build, 1.2, "mil", options)
    other = pipeline.generate(build, 1.2, "mil", {**options, **change})
    assert one.samples.shape == other.samples.shape == (30 * 1920, 2)
    assert np.abs(one.samples.astype(int) - other.samples).max() <= 1  # a rounding apart


def test_shared_noise_takes_the_place_of_the_seeded(build: Path, tmp_path: Path) -> None:
    """The seed's own numbers, given as a file, are the same piece."""
    seeded = pipeline.generate(build, 0.12, "mil", {**FP32, "seed": "9"})
    spec = Generator(build, "fp32")._rollout.inputs["gumbel_noise"]
    np.save(tmp_path / "noise.npy", GumbelNoise(9).draw(5, *spec.shape))
    shared = pipeline.generate(build, 0.12, "mil", {**FP32, "noise": str(tmp_path / "noise.npy")})
    np.testing.assert_array_equal(shared.samples, seeded.samples)
    assert "seed" not in shared.settings


@pytest.mark.parametrize(
    "given",
    [np.zeros((3, 12, 64), np.float32), np.zeros((4, 12, 64)), np.full((4, 12, 64), np.nan, np.float32)],
    ids=["too few", "float64", "nan"],
)
def test_noise_that_does_not_fit_is_refused(build: Path, tmp_path: Path, given: np.ndarray) -> None:
    np.save(tmp_path / "noise.npy", given)
    with pytest.raises(InputError, match=r"noise\.npy"):
        pipeline.generate(build, 0.12, "mil", {**FP32, "noise": str(tmp_path / "noise.npy")})


@pytest.mark.parametrize(
    "options",
    [
        {"speed": "1"},
        {"precision": "int8"},
        {"seed": "one"},
        {"seed": "1.5"},
        {"stateful": "maybe"},
        {"decoder": "none"},
        {"temperature": "hot"},
    ],
)
def test_another_option_is_refused(build: Path, options: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="option"):
        pipeline.generate(build, 0.1, "mil", options)


def test_a_ring_of_states_is_refused(build: Path) -> None:
    with pytest.raises(UsageError, match="leave out ring or stateful"):
        Generator(build, "fp16", ring=True, stateful=True)


def vector(build: Path) -> np.ndarray:
    return Generator(build, "fp32").conditioned(None)


def test_a_vector_is_read_from_numpy_and_from_raw_bytes(build: Path, tmp_path: Path) -> None:
    generator = Generator(build, "fp32")
    given = generator.conditioned(None)
    assert given.shape == (1, 1, 32)
    np.save(tmp_path / "v.npy", given)
    (tmp_path / "v.bin").write_bytes(given.astype("<f4").tobytes())
    for name in ("v.npy", "v.bin"):
        np.testing.assert_array_equal(generator.conditioned(tmp_path / name), given)


def test_style_codes_are_read_from_json_and_masked_beyond(build: Path, tmp_path: Path) -> None:
    generator = Generator(build, "fp32")
    (tmp_path / "style.json").write_text("[3, 1, 4]")
    np.save(tmp_path / "style.npy", np.array([3, 1, 4, *[-1] * 9]))
    expected = generator.encode(guidance.conditioning_tokens([3, 1, 4], 12))
    for name in ("style.json", "style.npy"):
        np.testing.assert_array_equal(generator.conditioned(tmp_path / name), expected)
    stronger = generator.conditioned(tmp_path / "style.json", {"style": 5.0})
    tokens = guidance.conditioning_tokens([3, 1, 4], 12, strengths={"style": 5.0, "notes": 1.0, "drums": 1.0})
    np.testing.assert_array_equal(stronger, generator.encode(tokens))
    assert not np.array_equal(stronger, expected)


def test_strengths_of_the_command_are_strengths(build: Path) -> None:
    with pytest.raises(InputError, match="give the strength, not its token"):
        pipeline.generate(build, 0.1, "mil", {**FP32, "cfg_style": "20"})


def test_strengths_beside_a_file_that_fixes_them_are_refused(build: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", vector(build))
    with pytest.raises(UsageError, match="fixes the guidance already"):
        options = {**FP32, "conditioning": str(tmp_path / "v.npy"), "cfg_drums": "2"}
        pipeline.generate(build, 0.1, "mil", options)


CONTROLS = [*[-1] * 128, -1, 20, 10, 2]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (np.zeros(13, np.int32), "expected up to 12 style codes"),
        (np.zeros(31, np.float32), "a vector of 31; this build's source_encoded has 32"),
        (np.full(32, np.nan, np.float32), "NaN"),
        (np.zeros(2, bool), "expected up to 12"),
        # Ids that count on: 48 codes a level, 55 rows a level.
        (np.arange(12) * 48 + 3, "style code 51 at level 1: expected 0 to 47"),
        (np.arange(12) * 55 + 3, "style code 58 at level 1"),
        (np.array([-2]), "style code -2 at level 0"),
        (np.array([*[0] * 12, *CONTROLS[:-1], 9]), "guidance_drums tokens 9 to 9; expected -1 to 8"),
        (np.array([*[0] * 12, 4, *CONTROLS[1:]]), "piano_roll tokens -1 to 4"),
    ],
)
def test_a_conditioning_that_does_not_fit_is_refused(
    build: Path, tmp_path: Path, given: np.ndarray, says: str
) -> None:
    np.save(tmp_path / "given.npy", given)
    with pytest.raises(InputError, match=says):
        pipeline.generate(build, 0.1, "mil", {**FP32, "conditioning": str(tmp_path / "given.npy")})


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.bin", b"\0" * 127), ("a.json", b'{"a": 1}'), ("a.json", b"[1.5]"), ("a.json", b"["), ("b.npy", b"")],
)
def test_a_conditioning_file_that_is_none_is_refused(
    build: Path, tmp_path: Path, name: str, data: bytes
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=name):
        Generator(build, "fp32").conditioned(tmp_path / name)
    with pytest.raises(InputError, match="absent"):
        Generator(build, "fp32").conditioned(tmp_path / f"absent{name}")


def test_a_temperature_below_zero_is_refused(build: Path) -> None:
    with pytest.raises(InputError, match="expected 0 or more"):
        Generator(build, temperature=-1.0)


def test_a_stage_that_was_not_exported_is_named(build: Path) -> None:
    with pytest.raises(UsageError, match="no stage 'depth_rollout' of variant 'fp16'"):
        Generator(build, "fp16")


def test_host_files_hold_the_codebooks_and_the_start(build: Path, mrt2_folder: Path) -> None:
    from coreproof_exporters.mrt2 import checkpoint

    tensors = checkpoint.load(mrt2_folder).tensors
    np.testing.assert_array_equal(host.host_array(build, "rvq_codebooks"), tensors["codebooks"])
    np.testing.assert_array_equal(host.host_array(build, "temporal_start"), tensors["start"])


@pytest.mark.parametrize("text", ['{"shape": [2, 2]}', '{"shape": [-3, -1]}', "{}", "[", '{"shape": 3}'])
def test_a_host_file_that_does_not_fit_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.bin").write_bytes(np.zeros(3, "<f4").tobytes())
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(PackageError, match=r"a\.bin"):
        host.host_array(tmp_path, "a")


def test_output_gain_and_rounding_are_the_official_ones() -> None:
    audio = np.array([[0.0, 1.0], [-2.0, 4.0], [-4.0, 3e-5]], np.float32)
    np.testing.assert_array_equal(pipeline.to_int16(audio), [[0, 16383], [-32768, 32767], [-32768, 0]])


@pytest.mark.parametrize(
    ("channel", "strength", "token"),
    [
        ("style", 3.0, 20),
        ("notes", 1.0, 10),
        ("drums", 1.0, 2),
        ("style", -1.0, 0),
        ("style", 7.0, 40),
        ("drums", 7.0, 8),
    ],
)
def test_guidance_strengths_have_units(channel: str, strength: float, token: int) -> None:
    assert guidance.guidance_token(channel, strength) == token


@pytest.mark.parametrize("strength", [20.0, -1.5, float("nan")])
def test_a_token_given_for_a_strength_is_refused(strength: float) -> None:
    with pytest.raises(InputError, match="give the strength, not its token"):
        guidance.guidance_token("style", strength)


def invalid() -> Iterator[dict[str, object]]:
    yield {"style": [0] * 13}
    yield {"style": [-2]}
    yield {"style": [], "piano_roll": [0] * 127}
    yield {"style": [], "piano_roll": [4] * 128}
    yield {"style": [], "drums": 2}
    yield {"style": [], "strengths": {"style": 1.0}}


@pytest.mark.parametrize("arguments", list(invalid()))
def test_other_controls_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(InputError):
        guidance.conditioning_tokens(levels=12, **arguments)  # type: ignore[arg-type]


def test_control_tokens_are_laid_out_as_published() -> None:
    tokens = guidance.conditioning_tokens([5, 6], 12, drums=1)
    assert tokens.shape == (1, 144)
    assert tokens[0, :3].tolist() == [5, 6, -1]
    assert tokens[0, 12:].tolist() == [*[-1] * 128, 1, 20, 10, 2]
