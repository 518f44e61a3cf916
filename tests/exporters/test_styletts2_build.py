"""Exported packages of StyleTTS 2, small: gates, padding, the host loop, and planted defects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from replay import assert_replays
from scipy.io import wavfile
from support import Cli, digests

from coreproof import catalog
from coreproof.backends import Target, create
from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.convert import convert_stage
from coreproof.convert.export import export
from coreproof.convert.recipe import NUMPY, Stage
from coreproof.package.manifest import load_manifest
from coreproof.parity.comparison import compare_case, judge
from coreproof.parity.gates import load_gates
from coreproof.parity.metrics import METRICS
from coreproof.parity.suite import Case, Outcome
from coreproof.validate import Validation, run_case, validate
from coreproof_exporters.styletts2 import checkpoint as reader
from coreproof_exporters.styletts2 import pipeline, recipe, reference, synth, synthesizer
from coreproof_exporters.styletts2.symbols import tokenize
from coreproof_exporters.styletts2.synthesizer import LONG_CUT, Manner, Noise, Spoken, Synthesizer, frames_of
from coreproof_validation import styletts2 as suite
from coreproof_validation.styletts2_controls import CONTROLS

# Stages to export, and how many of their buckets, from the smallest on: those that the cases use.
BUCKETS = {
    "text": 3,
    "duration": 3,
    "diffusion_step": 3,
    "f0n_energy": 3,
    "decoder": 3,
    "style_encoder": 2,
    "predictor_encoder": 2,
}


def quiet(step: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("styletts2")
    synth.synth(made, "small", 0)
    return made


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Checkpoint:
    return reader.load(folder)


def stage_of(loaded: Checkpoint, name: str, variant: str = "fp32") -> Stage:
    return next(s for s in recipe.stages(loaded, variant) if s.name == name)


@pytest.fixture(scope="module")
def build(folder: Path, loaded: Checkpoint) -> Path:
    stages = {name: stage_of(loaded, name) for name in BUCKETS}
    pairs = [("fp32", replace(s, functions=s.functions[: BUCKETS[n]])) for n, s in stages.items()]
    export(recipe.RECIPE, folder, loaded, pairs, folder / "build", quiet)
    return folder / "build"


@pytest.fixture(scope="module")
def judged(build: Path) -> Validation:
    return validate(build, catalog.find("styletts2"))


@pytest.fixture(scope="module")
def official(judged: Validation) -> dict[str, np.ndarray]:
    return dict(judged.fixture.arrays)


def test_every_gate_passes(judged: Validation) -> None:
    wrong = [v.detail for p in judged.packages for v in p.judgement.verdicts if not v.passed]
    wrong += [problem for p in judged.packages for problem in p.judgement.problems]
    assert not wrong
    assert judged.passed
    assert len(judged.packages) == len(BUCKETS)


def test_buckets_share_their_weights(build: Path) -> None:
    for record in load_manifest(build).packages:
        assert record.contract.functions[0].name in ("b32", "b256")
        names = [(w.keys, w.transform, w.shape) for w in record.weights if w.keys]
        assert len(names) == len(set(names)), record.package  # nothing is stored twice


class Unshifted(Synthesizer):
    def shift(self, aligned: np.ndarray) -> np.ndarray:
        return aligned


class WrongHalf(Synthesizer):
    def prosodic(self, style: np.ndarray, ref_s: np.ndarray) -> np.ndarray:
        return ref_s[np.newaxis, :128]


class Swapped(Synthesizer):
    def speak(self, tokens: np.ndarray, ref_s: np.ndarray, noise: Noise, *more: object) -> Spoken:  # type: ignore[override]
        return super().speak(tokens, np.roll(ref_s, 128), noise)


class Repeating(Noise):
    """Gives the sampler the vector it began with, again and again."""

    def draw(self, *shape: int) -> np.ndarray:
        if shape == (1, 1, 256):
            super().draw(*shape)
            return self._first.reshape(shape)
        drawn = super().draw(*shape)
        if shape == (1, 256):
            self._first = drawn
        return drawn


def spoken(
    build: Path,
    official: dict[str, np.ndarray],
    index: int,
    kind: type[Synthesizer] = Synthesizer,
    noise: type[Noise] = Noise,
) -> Spoken:
    synthesizer = kind(build, "fp32")
    ref_s = official["ref_s"][reference.VOICES[index]]
    tokens = official[f"t{index}_tokens"][0]
    return synthesizer.speak(tokens, ref_s, noise(int(official["noise_seed"]) + index))


# dB of the waveform against upstream's in float64. Phases are sums of F0 over the whole text.
WHOLE_SNR = 60.0


def as_upstream(found: Spoken, official: dict[str, np.ndarray], index: int) -> float:
    """What must hold of text ``index`` whatever its phases, and the waveform's SNR in dB."""
    np.testing.assert_array_equal(found.durations, frames_of(official[f"t{index}_pred_dur_log"][0]))
    assert METRICS["snr_db"].fn(found.f0, official[f"t{index}_F0"][0]) > 95
    wave, expected = (a.astype(np.float64) for a in (found.waveform, official[f"t{index}_waveform"][0, 0]))
    assert METRICS["log_mel_correlation"].fn(wave, expected, 24_000) > 0.9997
    return float(METRICS["snr_db"].fn(wave, expected))


@pytest.mark.parametrize("index", [0, 1, 2])
def test_the_loop_speaks_as_upstream(build: Path, official: dict[str, np.ndarray], index: int) -> None:
    assert as_upstream(spoken(build, official, index), official, index) > WHOLE_SNR


@pytest.mark.parametrize("index", [0, 1, 2])
def test_the_rounding_of_f0_is_most_of_what_parts_the_loop_from_upstream(
    build: Path, official: dict[str, np.ndarray], index: int
) -> None:
    """With upstream's F0 in the source, and there alone, the waveform is nearer by far."""

    class Told(Synthesizer):
        def heard(self, f0: np.ndarray, drawn: np.ndarray) -> np.ndarray:
            return super().heard(official[f"t{index}_F0"][0], drawn)

    assert as_upstream(spoken(build, official, index, Told), official, index) > WHOLE_SNR + 10


@pytest.mark.parametrize(
    ("kind", "noise"),
    [(Unshifted, Noise), (WrongHalf, Noise), (Swapped, Noise), (Synthesizer, Repeating)],
)
def test_defects_of_the_loop_are_caught(
    build: Path, official: dict[str, np.ndarray], kind: type[Synthesizer], noise: type[Noise]
) -> None:
    """The shift dropped, the acoustic half into the duration stage, the halves swapped, fixed noise: by
    what the test above asks of text 0."""
    found, expected = spoken(build, official, 0, kind, noise), official["t0_waveform"][0, 0]
    if found.waveform.shape != expected.shape:
        return  # other durations are caught by equality
    assert METRICS["snr_db"].fn(found.waveform.astype(np.float64), expected.astype(np.float64)) < 40


@pytest.mark.parametrize("carry", [0.7, 0.0])
def test_the_long_form_is_upstreams(build: Path, official: dict[str, np.ndarray], carry: float) -> None:
    """Two sentences in one stream of noise, with guidance 2; without carrying the style over, the second
    is another."""
    synthesizer, manner = Synthesizer(build, "fp32"), Manner(scale=2.0, carry=carry)
    noise = Noise(int(official["noise_seed"]) + len(reference.TEXTS))
    previous = None
    for index, text in enumerate(reference.LONG):
        ids = tokenize(text).ids
        found = synthesizer.speak(ids, official["ref_s"][0], noise, manner, previous)
        previous, told = found.style, official[f"long{index}_style"][0]
        near = METRICS["snr_db"].fn(found.style.astype(np.float64), told.astype(np.float64))
        if index and not carry:
            assert near < 40
            return
        assert near > 105
        wave, expected = found.waveform[:-LONG_CUT], official[f"long{index}_waveform"]
        assert wave.shape == expected.shape
        assert METRICS["snr_db"].fn(wave.astype(np.float64), expected.astype(np.float64)) > WHOLE_SNR


def test_the_same_checkpoint_gives_the_same_bytes(build: Path, loaded: Checkpoint, tmp_path: Path) -> None:
    for name in ("text", "duration", "f0n_energy", "style_encoder"):
        stage = stage_of(loaded, name)
        package = f"{stage.package}.mlpackage"
        again = replace(stage, functions=stage.functions[: BUCKETS[name]])
        convert_stage(again, loaded, tmp_path / package, quiet)
        assert digests(tmp_path / package) == digests(build / package)


def test_a_voice_is_upstreams(build: Path, official: dict[str, np.ndarray]) -> None:
    synthesizer = Synthesizer(build, "fp32")
    for clip, ref_s in zip(reference.clips(), official["ref_s"], strict=True):
        np.testing.assert_allclose(synthesizer.voice(clip), ref_s, atol=1e-4)


def case_verdicts(package: Path, stage: Stage, case: Case, control: str) -> Iterator[bool]:
    """Whether the gates that name ``control`` pass on one case."""
    runner = create("mil")
    runner.load(Target(package, "fp32", case.function))
    outcome = Outcome(case, run_case(runner, case))
    function = next(f for f in stage.functions if f.name == case.function)
    outputs = {o.name: (tuple(o.shape), NUMPY[o.dtype]) for o in function.outputs}
    gates = load_gates(catalog.find("styletts2").gates)
    made = judge([compare_case(outcome, outputs)], suite.aggregates([outcome]), gates, stage.name, "fp32")
    for verdict in made.verdicts:
        if control in verdict.controls:
            yield verdict.passed


@pytest.mark.parametrize(
    ("control", "stage"),
    [
        ("unmasked", "text"),
        ("gate_order", "duration"),
        ("halves_swapped", "diffusion_step"),
        ("template_sigma", "diffusion_step"),
        ("unmasked", "f0n_energy"),
        ("unshifted", "f0n_energy"),
        ("other_style", "style_encoder"),
        ("unmasked", "style_encoder"),
    ],
)
def test_planted_defects_are_caught(
    loaded: Checkpoint, official: dict[str, np.ndarray], tmp_path: Path, control: str, stage: str
) -> None:
    planted = next(c.stage for c in CONTROLS if c.name == control)
    assert planted is not None
    whole = stage_of(loaded, stage)
    case = next(c for c in suite.cases(official) if c.stage == stage)
    one = tuple(f for f in whole.functions if f.name == case.function)
    good = replace(whole, functions=one, inputs=one[0].inputs, outputs=one[0].outputs)
    convert_stage(planted(good, loaded), loaded, tmp_path / "bad.mlpackage", quiet)
    verdicts = list(case_verdicts(tmp_path / "bad.mlpackage", good, case, control))
    assert verdicts
    assert not any(verdicts)


def test_the_loop_needs_neither_torch_nor_coremltools(
    build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"ipa": "hɛloʊ.", "reference": str(clip_file(tmp_path))}
    assert_replays(monkeypatch, tmp_path, build, (synthesizer, pipeline), 1.0, options)


def clip_file(folder: Path) -> Path:
    wavfile.write(folder / "clip.wav", 24_000, reference.clips()[0])
    return folder / "clip.wav"


def test_generate_speaks_phonemes_and_text(
    build: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = clip_file(tmp_path)
    (tmp_path / "scorer.py").write_text("def score(speech, clip, rate):\n    return 0.25\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    wave = tmp_path / "a.wav"
    common = ("--reference", clip, "-o", wave, "--option", "similarity=scorer:score")
    ended = cli("generate", build, "--ipa", "hɛloʊ☃.", *common)
    assert ended.status == 0, ended.err
    assert "☃ (U+2603)" in ended.out + ended.err
    assert "similarity 0.25" in ended.out + ended.err
    rate, samples = wavfile.read(wave)
    assert (rate, samples.dtype, (len(samples) + 50) % 600) == (24_000, np.int16, 0)
    assert np.abs(samples).max() > 1000
    program = tmp_path / "espeak-ng"
    program.write_text("#!/bin/sh\ncat\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    ended = cli("generate", build, "--text", "one. two.", *common)
    assert ended.status == 0, ended.err
    assert (len(wavfile.read(wave)[1]) + 200) % 600 == 0  # two sentences


def test_generate_refuses_bad_input(build: Path, cli: Cli, tmp_path: Path) -> None:
    clip = clip_file(tmp_path)
    wave = tmp_path / "a.wav"
    ended = cli("generate", build, "--ipa", "☃", "--reference", clip, "-o", wave)
    assert (ended.status, wave.exists()) == (2, False)
    assert "no phoneme" in ended.err
    ended = cli("generate", build, "--ipa", "a" * 600, "--reference", clip, "-o", wave)
    assert (ended.status, "at most 512" in ended.err) == (2, True)
    wavfile.write(clip, 24_000, reference.clips()[0][:8000])
    ended = cli("generate", build, "--ipa", "hi", "--reference", clip, "-o", wave)
    assert (ended.status, "expected at" in ended.err) == (2, True)
