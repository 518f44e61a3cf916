"""Phonemes and a voice to 24 kHz speech with an exported build: the host's part, without torch or coremltools.

As upstream's ``inference``: text, sampler, blended style, durations, alignment, F0 and energy, source, vocoder.
Each stage runs in the smallest bucket that holds the input, under a mask, so the bucket changes nothing.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coreproof.backends import Backend, Target, create
from coreproof.convert.recipe import NUMPY, TensorSpec
from coreproof.errors import InputError, PackageError, UsageError
from coreproof.package.manifest import PackageRecord, load_manifest
from coreproof_exporters.styletts2 import reference_audio
from coreproof_exporters.styletts2.architecture import FRAME, HARMONICS
from coreproof_exporters.styletts2.harmonics import mixed, source
from coreproof_exporters.styletts2.recipe import FIXED_EMBEDDING, HOST_JSON
from coreproof_exporters.styletts2.sampler import STEPS, adpm2, dpm2

ALPHA, BETA, CARRY = 0.3, 0.7, 0.7  # upstream's defaults
SHORT_CUT, LONG_CUT = 50, 100  # samples at the end, a pulse of the model, in one sentence and in several
_HOST_LIMIT = 1 << 16


class Noise:
    """Standard normal float32 numbers by numpy's PCG64, in the order in which upstream draws its own."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(seed))

    def draw(self, *shape: int) -> np.ndarray:
        return self._generator.standard_normal(shape, np.float32)


class _Stage:
    """One stage's package; each bucket is a function of it, opened when it is first used."""

    def __init__(self, build: Path, record: PackageRecord, backend: str) -> None:
        self.name = record.stage
        self._target = (build / record.package, "fp32" if record.variant == "fp32" else "typed")
        self._backend = backend
        self._buckets = {_size(f.name, record): (f.name, f.inputs) for f in record.contract.functions}
        self._open: dict[int, Backend] = {}
        self.seconds: list[float] = []

    @property
    def buckets(self) -> Sequence[int]:
        return sorted(self._buckets)

    def bucket(self, length: int) -> int:
        """The smallest bucket that holds ``length``. Raises InputError when none does."""
        for size in self.buckets:
            if length <= size:
                return size
        raise InputError(f"{self.name}: {length} is more than the greatest bucket {self.buckets[-1]}")

    def __call__(self, length: int, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Run at the bucket for ``length``, with inputs padded by zeros to what it takes, and a mask."""
        size = self.bucket(length)
        function, specs = self._buckets[size]
        mask = (np.arange(size) < length).astype(np.float32)[np.newaxis]
        given = {s.name: _padded(mask if s.name == "mask" else inputs[s.name], s) for s in specs}
        if size not in self._open:
            runner = self._open[size] = create(self._backend)
            runner.load(Target(*self._target, function))
        start = time.perf_counter()
        found = self._open[size].predict(given)
        self.seconds.append(time.perf_counter() - start)
        return found


def _size(function: str, record: PackageRecord) -> int:
    if not function[1:].isdigit():
        raise PackageError(f"{record.package}: function {function!r} names no bucket, such as b256")
    return int(function[1:])


def _padded(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    dtype = NUMPY[spec.dtype]
    widths = [(0, most - n) for n, most in zip(array.shape, spec.shape, strict=True)]
    return np.pad(np.asarray(array, dtype), widths)


@dataclass(frozen=True, slots=True)
class Spoken:
    """``waveform`` float32 (600 T,), uncut; ``durations`` int (L,) in frames; ``f0`` in Hz and ``energy`` (2 T,);
    ``style`` (256,), blended, for the next sentence to carry on."""

    waveform: np.ndarray
    durations: np.ndarray
    f0: np.ndarray
    energy: np.ndarray
    style: np.ndarray


@dataclass(frozen=True, slots=True)
class Manner:
    """How to speak: weights of the sampled style against the reference's (``alpha`` of the acoustic half, ``beta``
    of the prosodic), sampler ``steps``, guidance ``scale``, ``sampler`` adpm2 (upstream's) or dpm2, and the
    weight ``carry`` of the last sentence's style."""

    alpha: float = ALPHA
    beta: float = BETA
    steps: int = STEPS
    scale: float = 1.0
    sampler: str = "adpm2"
    carry: float = CARRY

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "carry"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"{name} {getattr(self, name)}: expected 0 to 1")
        if not 2 <= self.steps <= 1000 or not math.isfinite(self.scale):
            raise InputError(f"steps {self.steps}, scale {self.scale}: expected 2 to 1000, and a number")
        if self.sampler not in ("adpm2", "dpm2"):
            raise UsageError(f"sampler {self.sampler!r}: choose adpm2 or dpm2")


class Synthesizer:
    """Speech from a build.

    ``variant``: which of the build's packages to run, ``fp32`` or ``fp16``. ``sourced``: the decoder with
    the source inside instead of the one that takes the host's.

    Raises UsageError when the build lacks a stage, PackageError for host files that do not fit.
    """

    def __init__(
        self, build: Path, variant: str = "fp32", *, backend: str = "mil", sourced: bool = False
    ) -> None:
        records = load_manifest(build).packages

        def stage(name: str) -> _Stage:
            for record in records:
                if record.stage == name and record.variant == variant:
                    return _Stage(build, record, backend)
            raise UsageError(f"{build} has no stage {name!r} of variant {variant!r}; export it")

        self._stage = stage
        self._sourced = sourced
        self._host = _Host(build)
        decoder = "decoder_sourced" if sourced else "decoder"
        names = ("text", "diffusion_step", "duration", "f0n_energy", decoder)
        self.text, self.step, self.duration, self.curves, self.decoder = map(stage, names)
        self._encoders: tuple[_Stage, ...] = ()

    @property
    def seconds(self) -> dict[str, list[float]]:
        """Seconds of each run of each stage."""
        stages = (self.text, self.step, self.duration, self.curves, self.decoder, *self._encoders)
        return {s.name: s.seconds for s in stages if s.seconds}

    def voice(self, wave: np.ndarray) -> np.ndarray:
        """``ref_s`` float32 (256,) of a clip, mono at 24 kHz; what lies 30 dB below its peak at either end is cut,
        and what is longer than 25.6 s. Raises InputError for a clip under 0.8 s."""
        return self.voice_of(reference_audio.mel(reference_audio.trimmed(wave)))

    def voice_of(self, mel: np.ndarray) -> np.ndarray:
        """``ref_s`` float32 (256,) of a normalised mel spectrogram (80, frames)."""
        self._encoders = self._encoders or tuple(map(self._stage, ("style_encoder", "predictor_encoder")))
        mel = reference_audio.shortened(mel)[np.newaxis, np.newaxis]
        return np.concatenate([encoder(mel.shape[3], mel=mel)["style"][0] for encoder in self._encoders])

    def speak(
        self,
        tokens: np.ndarray,
        ref_s: np.ndarray,
        noise: Noise,
        manner: Manner | None = None,
        previous: np.ndarray | None = None,
    ) -> Spoken:
        """One sentence: ``tokens`` int32 (L,) in the voice ``ref_s`` (256,); ``previous`` is the style of the
        sentence before it. Raises InputError for a text that no bucket holds."""
        manner = manner or Manner()
        length = len(tokens)
        text = {
            name: found[:, :length] if name == "bert_dur" else found[..., :length]
            for name, found in self.text(length, tokens=tokens[np.newaxis]).items()
        }
        sampled = self.sample(text["bert_dur"], ref_s, noise, manner)
        style = self.blend(sampled, ref_s, manner, previous)
        found = self.duration(length, d_en=text["d_en"], s=self.prosodic(style, ref_s))
        durations = frames_of(found["pred_dur_log"][0, :length])
        total = int(durations.sum())
        self.decoder.bucket(total)
        en = self.shift(np.repeat(found["d"][0, :length].T, durations, axis=1))[np.newaxis]
        asr = self.shift(np.repeat(text["t_en"][0], durations, axis=1))[np.newaxis]
        curves = self.curves(total, en=en, s=style[np.newaxis, 128:])
        f0, energy = (curves[name][:, : 2 * total] for name in ("F0", "N"))
        wave = self._decode(total, asr, f0, energy, style[np.newaxis, :128], noise)
        return Spoken(wave, durations, f0[0], energy[0], style)

    def sample(self, bert: np.ndarray, ref_s: np.ndarray, noise: Noise, manner: Manner) -> np.ndarray:
        """A style (256,) for the text features ``bert`` (1, L, W)."""
        length, fixed = bert.shape[1], self._host.fixed_embedding[np.newaxis, : bert.shape[1]]

        def once(x: np.ndarray, sigma: float, embedding: np.ndarray) -> np.ndarray:
            level = np.array([sigma], np.float32)
            found = self.step(length, x_noisy=x, sigma=level, embedding=embedding, features=ref_s[np.newaxis])
            return found["denoised"]

        def denoise(x: np.ndarray, sigma: float) -> np.ndarray:
            told = once(x, sigma, bert)
            if manner.scale == 1.0:
                return told
            # The scaling around the network is the same for both, so guidance may be applied outside it.
            untold = once(x, sigma, fixed)
            return untold + (told - untold) * np.float32(manner.scale)

        first = noise.draw(1, 256)[np.newaxis]
        if manner.sampler == "dpm2":
            return dpm2(denoise, first, manner.steps)[0, 0]
        return adpm2(denoise, first, lambda: noise.draw(1, 1, 256), manner.steps)[0, 0]

    def blend(
        self, sampled: np.ndarray, ref_s: np.ndarray, manner: Manner, previous: np.ndarray | None
    ) -> np.ndarray:
        """The style to speak in, acoustic half first."""
        if previous is not None:
            sampled = manner.carry * previous + (1 - manner.carry) * sampled
        weight = np.repeat([manner.alpha, manner.beta], 128).astype(np.float32)
        return weight * sampled + (1 - weight) * ref_s

    def prosodic(self, style: np.ndarray, ref_s: np.ndarray) -> np.ndarray:
        """What the duration stage takes, (1, 128): the blended prosodic half. A port that runs text and
        duration in one graph gives the reference's acoustic half instead."""
        return style[np.newaxis, 128:]

    def shift(self, aligned: np.ndarray) -> np.ndarray:
        """``aligned`` (C, T) one frame later, the first frame twice, as the HiFi-GAN decoder was trained."""
        return np.concatenate([aligned[:, :1], aligned[:, :-1]], axis=1)

    def heard(self, f0: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """The harmonic source (300 T2,) of F0 in Hz (T2,) and noise (300 T2, 9), summed up in float64.

        What F0 is off is summed too, and nine times over in harmonic 9: a mean error of 1e-5 Hz, half a unit
        in the last place of 200 Hz in float32, is 8 mrad there after 15 s. So the waveform of a long text
        lies as far from a float64 model's as F0 does, while everything else is exact to 100 dB and more.
        """
        return source(f0, drawn, self._host.weight, self._host.bias)

    def _decode(
        self,
        total: int,
        asr: np.ndarray,
        f0: np.ndarray,
        energy: np.ndarray,
        style: np.ndarray,
        noise: Noise,
    ) -> np.ndarray:
        drawn = noise.draw(1, FRAME * total, HARMONICS)[0]
        if self._sourced:
            more = {"source_noise": mixed(drawn, self._host.weight)[np.newaxis, np.newaxis]}
        else:
            more = {"har_source": self.heard(f0[0], drawn)[np.newaxis, np.newaxis]}
        found = self.decoder(total, asr=asr, F0_curve=f0, N=energy, s=style, **more)
        return found["waveform"][0, 0, : FRAME * total]


def frames_of(logits: np.ndarray) -> np.ndarray:
    """Durations in frames, int (L,), of logits (L, 50): the sum of their sigmoids, rounded half to even, at least
    one."""
    total = (1.0 / (1.0 + np.exp(-logits.astype(np.float64)))).sum(axis=1)
    durations: np.ndarray = np.maximum(np.round(total), 1).astype(np.int64)
    return durations


class _Host:
    """The host files of a build."""

    def __init__(self, build: Path) -> None:
        path, table = build / HOST_JSON, build / FIXED_EMBEDDING
        try:
            if path.stat().st_size > _HOST_LIMIT:
                raise PackageError(f"{path}: {path.stat().st_size} bytes; expected a short file")
            told = json.loads(path.read_bytes())
            self.weight = np.array(told["source_weight"], np.float64)
            self.bias = float(told["source_bias"])
            rows, width = told["fixed_embedding"]
            if self.weight.shape != (HARMONICS,) or type(rows) is not int or type(width) is not int:
                raise PackageError(f"{path}: not the host file of a StyleTTS 2 build")
            if table.stat().st_size != 4 * rows * width or rows < 1 or width < 1:
                raise PackageError(
                    f"{table}: {table.stat().st_size} bytes, expected float32 {rows} x {width}"
                )
            self.fixed_embedding = np.fromfile(table, "<f4").reshape(rows, width)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PackageError(
                f"{build}: {HOST_JSON} or {FIXED_EMBEDDING} cannot be read: {error}"
            ) from error
