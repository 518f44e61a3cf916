"""A prompt and a duration to 44.1 kHz stereo with an exported build: the host's part, without torch,
diffusers or coremltools.

Two texts through ``text_encoder``, both with the duration through ``conditioning``, noise through
``transformer`` step after step, and the latents through ``vae_decoder_chunk``. Each package is dropped
before the next is opened. Follows ``TangoFluxInference.generate`` of tangoflux 0.1.0.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from coreproof.audio.chunks import chunks
from coreproof.audio.flow import FlowMatchEuler, guided
from coreproof.audio.sound import Report, Sound, quiet
from coreproof.backends import Backend, Target, create
from coreproof.convert.recipe import NUMPY
from coreproof.errors import InputError, PackageError, UsageError
from coreproof.jsonio import read_json
from coreproof.package.manifest import PackageRecord, load_manifest
from coreproof_exporters.tangoflux.contract import HOST_FILE, HOST_SCHEMA, key_mask

TOKENIZER = "tokenizer.json"
DEFAULT_STEPS = 25
DEFAULT_GUIDANCE = 4.5

_SEEDS = 1 << 32
_JSON_LIMIT = 1 << 16  # bytes
_LIMITS = {"hop": 1 << 20, "max_duration": 1 << 16, "overlap_rows": 1 << 16, "sample_rate": 1 << 20}

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Made:
    """``audio``: float32 (samples, 2), full scale 1. ``latents``: float32 (steps, rows, channels) after each
    step. ``tokens``: how many the prompt has, its end included."""

    audio: np.ndarray
    latents: np.ndarray
    tokens: int


@dataclass
class TextToAudio:
    """A build and how to run it.

    ``precision``: which of the build's packages, ``fp16`` or ``fp32``. ``backend``: a name that
    :func:`coreproof.backends.create` knows, or what makes a Backend. ``whole``: decode all latents in one
    call instead of in chunks. ``report(step, done, total)`` is called as the work goes on. ``seconds``
    collects the seconds of each run of each stage.

    Raises UsageError when the build lacks a stage, PackageError for host files that do not fit.
    """

    build: Path
    precision: str = "fp16"
    backend: str | Callable[[], Backend] = "mil"
    whole: bool = False
    report: Report = quiet
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._records = load_manifest(self.build).packages
        self.host = host_facts(self.build / HOST_FILE)
        self._tokenizer = tokenizer(self.build / TOKENIZER)
        decoder = "vae_decoder" if self.whole else "vae_decoder_chunk"
        for stage in ("text_encoder", "conditioning", "transformer", decoder):
            self._record(stage)
        self._shape = _inputs(self._record("transformer"))["hidden_states"].shape  # (2, rows, channels)
        self._text_rows = _inputs(self._record("text_encoder"))["input_ids"].shape[1]

    def make(
        self,
        prompt: str,
        duration: float,
        seed: int,
        *,
        steps: int = DEFAULT_STEPS,
        guidance: float = DEFAULT_GUIDANCE,
        noise: np.ndarray | None = None,
    ) -> Made:
        """``duration`` seconds of ``prompt``. ``noise``, float32 (1, rows, channels), takes the place of
        what ``seed`` draws.

        Raises InputError for a prompt of more than 64 tokens, a duration that is not above 0 and at most
        the model's longest, a guidance that is no number, or noise of another shape.
        """
        longest = self.host["max_duration"]
        if not 0 < duration <= longest:
            raise InputError(f"duration {duration} s: expected more than 0 and at most {longest}")
        if not math.isfinite(guidance):
            raise InputError(f"guidance {guidance}: expected a number")
        schedule = FlowMatchEuler(steps)
        tokens = self.tokens(prompt)
        condition = self._condition(tokens, duration)
        latents = self._sample(schedule, condition, guidance, self._noise(seed) if noise is None else noise)
        samples = int(duration * self.host["sample_rate"])  # as upstream crops
        return Made(self._decode(latents[-1:], samples), latents, len(tokens))

    def tokens(self, prompt: str) -> list[int]:
        """The ids of ``prompt``, its end included. Raises InputError when they are more than the contract's."""
        ids: list[int] = self._tokenizer.encode(prompt).ids
        if len(ids) > self._text_rows:
            raise InputError(
                f"the prompt has {len(ids)} tokens, its end included; expected at most {self._text_rows}: shorten it"
            )
        return ids

    def _noise(self, seed: int) -> np.ndarray:
        generator = np.random.Generator(np.random.PCG64(seed))
        return generator.standard_normal((1, *self._shape[1:]), np.float32)

    def _condition(self, tokens: list[int], duration: float) -> Arrays:
        """What the transformer takes beside latents and timestep: [unconditional, conditional]."""
        texts = (self._tokenizer.encode("").ids, tokens)
        ids, mask = (np.zeros((2, self._text_rows), np.int32) for _ in range(2))
        for row, text in enumerate(texts):
            ids[row, : len(text)], mask[row, : len(text)] = text, 1
        with self._opened("text_encoder") as encode:
            hidden = [
                encode(input_ids=ids[row : row + 1], attention_mask=mask[row : row + 1])["text_hidden"]
                for row in range(2)
            ]
        with self._opened("conditioning") as condition:
            made = condition(
                text_hidden=np.concatenate(hidden), attention_mask=mask, duration=np.array([duration])
            )
        return {**made, "key_mask": key_mask(len(tokens), self._shape[1])}

    def _sample(
        self, schedule: FlowMatchEuler, condition: Arrays, guidance: float, noise: np.ndarray
    ) -> np.ndarray:
        latents = noise.astype(np.float32)
        if latents.shape != (1, *self._shape[1:]):
            raise InputError(f"noise of shape {noise.shape}; expected {(1, *self._shape[1:])}")
        after = []
        with self._opened("transformer") as transform:
            for index in range(len(schedule)):
                self.report("transformer", index, len(schedule))
                timestep = schedule.timesteps[index : index + 1]
                both = np.concatenate([latents, latents])
                made = transform(hidden_states=both, timestep=timestep, **condition)["noise_pred"]
                latents = schedule.step(index, latents, guided(made, guidance))
                after.append(latents)
        return np.concatenate(after)

    def _decode(self, latents: np.ndarray, samples: int) -> np.ndarray:
        """``latents`` (1, rows, channels) -> the first ``samples``, or all there are, float32 (samples, 2)."""
        stage, hop, rows = (
            "vae_decoder" if self.whole else "vae_decoder_chunk",
            self.host["hop"],
            latents.shape[1],
        )
        size = _inputs(self._record(stage))["latents"].shape[1]
        plan = list(chunks(rows, size, self.host["overlap_rows"], -(-samples // hop)))
        parts = []
        with self._opened(stage) as decode:
            for index, chunk in enumerate(plan):
                self.report(stage, index, len(plan))
                audio = decode(latents=latents[:, chunk.start : chunk.stop])["audio"][0]
                if audio.shape[1] != hop * size:
                    raise PackageError(
                        f"{HOST_FILE}: hop {hop}; {stage} makes {audio.shape[1]} of {size} rows"
                    )
                parts.append(audio[:, hop * (chunk.first - chunk.start) : hop * (chunk.last - chunk.start)])
        return np.concatenate(parts, axis=1)[:, :samples].T

    @contextmanager
    def _opened(self, stage: str) -> Iterator[Callable[..., Arrays]]:
        """``stage``'s package, to be called with its inputs, timed, and dropped at the end."""
        record, runner = (
            self._record(stage),
            create(self.backend) if isinstance(self.backend, str) else self.backend(),
        )
        dtypes = {name: NUMPY[spec.dtype] for name, spec in _inputs(record).items()}
        runner.load(Target(self.build / record.package, "fp32" if self.precision == "fp32" else "typed"))

        def call(**inputs: np.ndarray) -> Arrays:
            start = time.perf_counter()
            made = runner.predict({n: np.asarray(a, dtypes[n]) for n, a in inputs.items()})
            self.seconds.setdefault(stage, []).append(time.perf_counter() - start)
            return made

        try:
            yield call
        finally:
            runner.close()

    def _record(self, stage: str) -> PackageRecord:
        for record in self._records:
            if record.stage == stage and record.variant == self.precision:
                return record
        raise UsageError(
            f"{self.build} has no stage {stage!r} of variant {self.precision!r}; export it, or give the other "
            "precision"
        )


def _inputs(record: PackageRecord) -> dict[str, Any]:
    return {spec.name: spec for spec in record.contract.inputs}


def host_facts(path: Path) -> dict[str, int]:
    """The integers of ``tangoflux.json``. Raises PackageError."""
    if not path.is_file():
        raise PackageError(f"{path} is missing; export the build again")
    found = read_json(path, max_bytes=_JSON_LIMIT)
    if not isinstance(found, dict) or found.get("schema") != HOST_SCHEMA:
        raise PackageError(f"{path}: expected schema {HOST_SCHEMA!r}")
    for key, most in _LIMITS.items():
        if type(found.get(key)) is not int or not 0 < found[key] <= most:
            raise PackageError(f"{path}: {key} is {found.get(key)!r}; expected an integer of 1 to {most}")
    return {key: found[key] for key in _LIMITS}


def tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a build, without padding and truncation. Raises PackageError."""
    if not path.is_file():
        raise PackageError(f"{path} is missing; export the build again")
    try:
        found = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise PackageError(f"{path} is no tokenizer of the tokenizers library: {error}") from error
    found.no_padding()
    found.no_truncation()
    return found


def generate(
    build: Path, seconds: float, backend: str, options: Mapping[str, str], report: Report = quiet
) -> Sound:
    """``seconds`` of sound from ``build``.

    Options: ``prompt``, which must be there; ``precision`` (fp16 or fp32), ``steps`` (25), ``guidance``
    (4.5), ``seed`` (drawn, and named in the result's settings, when left out) and ``decoder`` (chunked or whole).

    Raises UsageError for an option that does not exist or fit, and as :class:`TextToAudio`.
    """
    known = {"prompt", "precision", "steps", "guidance", "seed", "decoder"}
    if unknown := set(options) - known:
        raise UsageError(
            f"tangoflux has no option {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}"
        )
    if "prompt" not in options:
        raise UsageError("tangoflux needs a prompt: pass --prompt TEXT")
    steps, seed = (_integer(options, name, default) for name, default in _integers())
    guidance = _number(options, "guidance", DEFAULT_GUIDANCE)
    whole = _choice(options, "decoder", ("chunked", "whole")) == "whole"
    precision = _choice(options, "precision", ("fp16", "fp32"))
    host = TextToAudio(build, precision, backend, whole, report)
    made = host.make(options["prompt"], seconds, seed, steps=steps, guidance=guidance)
    samples, clipped = to_int16(made.audio)
    asked = int(seconds * host.host["sample_rate"])
    settings: dict[str, object] = {
        "prompt": options["prompt"],
        "tokens": made.tokens,
        "precision": precision,
        "steps": steps,
        "guidance": guidance,
        "seed": seed,
        "clipped_samples": clipped,
        "missing_samples": asked - len(samples),  # of what was asked for, when the model's longest is less
    }
    return Sound(samples, host.host["sample_rate"], host.seconds, settings=settings)


def _integers() -> tuple[tuple[str, int], ...]:
    return ("steps", DEFAULT_STEPS), ("seed", secrets.randbelow(_SEEDS))


def _integer(options: Mapping[str, str], name: str, default: int) -> int:
    value = options.get(name, str(default))
    if not value.isascii() or not value.isdigit():
        raise UsageError(f"option {name}={value}: expected an integer, 0 or more")
    return int(value)


def _choice(options: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str:
    value = options.get(name, choices[0])
    if value not in choices:
        raise UsageError(f"option {name}={value}: choose {' or '.join(choices)}")
    return value


def _number(options: Mapping[str, str], name: str, default: float) -> float:
    try:
        return float(options.get(name, default))
    except ValueError:
        raise UsageError(f"option {name}={options[name]}: expected a number") from None


def to_int16(audio: np.ndarray) -> tuple[np.ndarray, int]:
    """Samples (n, 2) as int16, and how many were beyond full scale. Upstream does not clip; a file must.

    Raises InputError when a sample is not finite.
    """
    if not np.isfinite(audio).all():
        raise InputError("the audio has NaN or infinity; nothing is written")
    clipped = int((np.abs(audio) > 1.0).sum())
    return np.round(32767.0 * np.clip(audio.astype(np.float64), -1.0, 1.0)).astype(np.int16), clipped
