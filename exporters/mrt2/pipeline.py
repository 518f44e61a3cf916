"""Controls to 48 kHz stereo with an exported build, frame by frame: the host's part, without torch or
coremltools.

A frame: ``source_encoded`` and the last frame's feedback through the temporal graph, 12 codes from the
rollout with the host's noise, their codebook rows summed, four STFT rows from the streaming decoder,
1,920 samples from the inverse STFT.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from coreproof.arrays import read_npy
from coreproof.audio.noise import GumbelNoise
from coreproof.audio.rvq import embed
from coreproof.audio.sound import Sound
from coreproof.audio.stft import InverseStft
from coreproof.backends import Backend, Target, create
from coreproof.convert.recipe import NUMPY, TensorSpec
from coreproof.errors import InputError, PackageError, UsageError
from coreproof.package.manifest import PackageRecord, load_manifest
from coreproof_exporters.mrt2.architecture import (
    CONTROL_CHANNELS,
    FRAME_SECONDS,
    LOOKAHEAD_ROWS,
    SAMPLE_RATE,
    STFT_STEP,
    WINDOW,
)
from coreproof_exporters.mrt2.contract import HIDDEN_SCORE
from coreproof_exporters.mrt2.guidance import conditioning_tokens

CHANNELS = 2
DEFAULT_TEMPERATURE = 1.3
_LEAST_TEMPERATURE = 0.05
_GAIN = 0.5  # the official output gain, against clipping
_JSON_LIMIT = 1 << 16


@dataclass
class Timings:
    """Seconds of each frame in each stage."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def run(self, stage: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = call()
        self.seconds.setdefault(stage, []).append(time.perf_counter() - start)
        return result


class _Graph:
    """One package on a backend of its own, with what it hands to its next call."""

    def __init__(self, build: Path, record: PackageRecord, backend: str, mode: str) -> None:
        self.inputs = {i.name: i for i in record.contract.inputs}
        self.outputs = {o.name: o for o in record.contract.outputs}
        self._runner: Backend = create(backend)
        self._runner.load(Target(build / record.package, mode))
        self._state = self._runner.make_state()

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        given = {n: np.asarray(a, NUMPY[self.inputs[n].dtype]) for n, a in inputs.items()}
        return self._runner.predict(given, self._state)

    def zeros(self, suffix: str) -> dict[str, np.ndarray]:
        return {n: _zeros(i) for n, i in self.inputs.items() if n.endswith(suffix)}


def _zeros(spec: TensorSpec) -> np.ndarray:
    return np.zeros(spec.shape, NUMPY[spec.dtype])


class Window:
    """Which of the 41 cached frames hold something: the bias row of the temporal graphs.

    ``ring``: a new frame takes the oldest one's place; otherwise it goes last and all move on. The
    order of the frames cannot matter, since nothing in the model knows positions; only the order of
    the sums does.
    """

    def __init__(self, spec: TensorSpec, *, ring: bool = False) -> None:
        self.bias = _zeros(spec)
        self.bias[..., 1 : 1 + WINDOW] = HIDDEN_SCORE
        self.ring = ring
        self._seen = 0

    @property
    def slot(self) -> int:
        """Where a ring puts the next frame."""
        return self._seen % WINDOW

    def advance(self) -> None:
        first = 1 + self.slot if self.ring else max(1, WINDOW - self._seen)
        self.bias[..., first] = 0.0
        self._seen += 1


class Caches:
    """The carry graph's keys and values, (1, 41, H, W) each."""

    def __init__(self, empty: dict[str, np.ndarray], window: Window) -> None:
        self.tensors = empty
        self._window = window

    def append(self, outputs: dict[str, np.ndarray]) -> None:
        """Take this frame's updates in, before the window advances."""
        for name, cache in self.tensors.items():
            update = outputs[f"{name.removesuffix('_in')}_updates"]
            if self._window.ring:
                cache[:, self._window.slot] = update[:, 0]
            else:
                self.tensors[name] = np.concatenate([cache[:, 1:], update], axis=1)


class Generator:
    """One stream of music from a build.

    ``precision``: which of the build's packages to run, ``fp16`` or ``fp32``. ``stateful``: the temporal
    graph with states instead of the one whose caches are carried here. ``ring``: see :class:`Caches`.
    ``seed``: of the noise; ``temperature`` 0 takes the greatest logit. ``noise``: float32 [12, codes] a
    call, in place of the seeded one.

    Raises UsageError when the build lacks a stage, PackageError for host files that do not fit,
    InputError for a temperature that is negative or no number.
    """

    def __init__(
        self,
        build: Path,
        precision: str = "fp16",
        *,
        backend: str = "mil",
        stateful: bool = False,
        ring: bool = False,
        seed: int = 1,
        temperature: float = DEFAULT_TEMPERATURE,
        noise: Callable[[], np.ndarray] | None = None,
    ) -> None:
        if not (math.isfinite(temperature) and temperature >= 0):
            raise InputError(f"temperature {temperature}: expected 0 or more")
        records = load_manifest(build).packages

        def graph(stage: str, of: str = precision) -> _Graph:
            record = _record(build, records, stage, of)
            return _Graph(build, record, backend, "fp32" if of == "fp32" else "typed")

        self.timings = Timings()
        self._encoder = graph("conditioning_encoder", "fp32")
        self._temporal = graph("temporal_stateful" if stateful else "temporal_carry")
        self._rollout = graph("depth_rollout")
        self._decoder = graph("spectrostream_decoder_streaming")
        self._window = Window(self._temporal.inputs["cache_valid_bias"], ring=ring and not stateful)
        self._caches = Caches(self._temporal.zeros("_in"), self._window)  # none, where they are states
        self._rows = self._decoder.zeros("_in")
        self._books = host_array(build, "rvq_codebooks")
        self._given = host_array(build, "temporal_start")[np.newaxis, np.newaxis]
        self._inverse = 1.0 / max(_LEAST_TEMPERATURE, temperature)
        self._istft = InverseStft(STFT_STEP, CHANNELS)
        shape = self._rollout.inputs["gumbel_noise"].shape
        seeded = GumbelNoise(seed)
        self._noise = noise or (lambda: np.zeros(shape) if temperature == 0 else seeded.draw(*shape))
        self._lookahead = LOOKAHEAD_ROWS
        self.levels = shape[0]

    def encode(self, tokens: np.ndarray) -> np.ndarray:
        """``source_encoded`` (1, 1, S) of control tokens int32 (1, 144)."""
        return self._encoder(conditioning_tokens=tokens)["source_encoded"]

    def conditioned(self, path: Path | None) -> np.ndarray:
        """``source_encoded`` from a ``.npy`` file: integers are style codes or control tokens, floats the
        vector itself. Raises InputError for another size."""
        given = read_npy(path).reshape(-1) if path else np.zeros(0, np.int32)
        if given.dtype.kind == "f":
            return given.reshape(1, 1, -1).astype(np.float32)
        if given.dtype.kind not in "iu" or self.levels < given.size != self.levels + CONTROL_CHANNELS:
            raise InputError(
                f"{path}: {given.dtype} of {given.size}; expected up to {self.levels} style codes, "
                f"{self.levels + CONTROL_CHANNELS} control tokens, or a float vector"
            )
        if given.size > self.levels:
            return self.encode(given[np.newaxis].astype(np.int32))
        return self.encode(conditioning_tokens(given.tolist(), self.levels))

    def frames(self, source: np.ndarray, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The next ``count`` frames under ``source`` (1, 1, S): codes int32 (12,) and audio float32
        (samples, 2), before the output gain. The stream's first frame has no audio yet, for the decoder
        looks one frame ahead. Raises InputError for a source of another width."""
        wanted = self._temporal.inputs["source_encoded"].shape
        if source.shape != wanted:
            raise InputError(f"source_encoded has shape {source.shape}, expected {wanted}; see encode()")
        for _ in range(count):
            codes = self._draw(source)
            yield codes, self._decode(codes)

    def _draw(self, source: np.ndarray) -> np.ndarray:
        moved = self.timings.run(
            "temporal",
            lambda: self._temporal(
                temporal_inputs=self._given,
                source_encoded=source,
                cache_valid_bias=self._window.bias,
                **self._caches.tensors,
            ),
        )
        self._caches.append(moved)
        self._window.advance()
        drawn = self.timings.run(
            "depth",
            lambda: self._rollout(
                temporal_frame=moved["temporal_outputs"],
                gumbel_noise=self._noise(),
                inverse_temperature=np.array([self._inverse]),
            ),
        )
        self._given = drawn["temporal_feedback"][np.newaxis]
        return drawn["sampled_codes"]

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        embedding = embed(codes[np.newaxis], self._books)[np.newaxis]
        made = self.timings.run("decoder", lambda: self._decoder(decoder_embeddings=embedding, **self._rows))
        self._rows = {f"{n.removesuffix('_out')}_in": a for n, a in made.items() if n.endswith("_out")}
        rows = made["decoder_stft"][0, self._lookahead :]
        self._lookahead = 0
        return self.timings.run("host", lambda: self._istft(rows))


def generate(build: Path, seconds: float, backend: str, options: Mapping[str, str]) -> Sound:
    """``seconds`` of music from ``build``, on every stage's own timing.

    Options: ``precision`` (fp16 or fp32), ``stateful`` and ``ring`` (yes or no), ``seed``, ``temperature``,
    and ``conditioning``, a ``.npy`` file with up to 12 style codes, 144 control tokens, or a
    ``source_encoded`` vector. Without it every control is masked and guidance at its defaults.

    Raises UsageError for an option that does not exist or fit, InputError for a conditioning of
    another width, and as :class:`Generator`.
    """
    known = {"precision", "stateful", "ring", "seed", "temperature", "conditioning"}
    if unknown := set(options) - known:
        raise UsageError(
            f"mrt2 has no option {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}"
        )
    generator = Generator(
        build,
        _choice(options, "precision", ("fp16", "fp32")),
        backend=backend,
        stateful=_choice(options, "stateful", ("no", "yes")) == "yes",
        ring=_choice(options, "ring", ("no", "yes")) == "yes",
        seed=int(_number(options, "seed", 1)),
        temperature=_number(options, "temperature", DEFAULT_TEMPERATURE),
    )
    source = generator.conditioned(Path(options["conditioning"]) if "conditioning" in options else None)
    count = max(1, round(seconds / FRAME_SECONDS))
    # One frame more, because the decoder looks one frame ahead.
    audio = np.concatenate([heard for _, heard in generator.frames(source, count + 1)])
    return Sound(to_int16(audio), SAMPLE_RATE, generator.timings.seconds, FRAME_SECONDS)


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


def to_int16(audio: np.ndarray) -> np.ndarray:
    """Samples as the official system writes them: half the level, clipped, rounded, int16."""
    level = np.clip(_GAIN * audio.astype(np.float64), -1.0, 1.0)
    return np.round(32767.5 * level - 0.5).astype(np.int16)


def host_array(build: Path, name: str) -> np.ndarray:
    """The float32 array in ``name.bin``, shaped as ``name.json`` says. Raises PackageError."""
    data, contract = build / f"{name}.bin", build / f"{name}.json"
    try:
        if contract.stat().st_size > _JSON_LIMIT:
            raise PackageError(f"{contract}: {contract.stat().st_size} bytes; expected a short contract")
        shape = json.loads(contract.read_bytes())["shape"]
        size = data.stat().st_size
        if not all(type(n) is int and n > 0 for n in shape) or size != 4 * math.prod(shape):
            raise PackageError(f"{data}: {size} bytes; {contract.name} asks for float32 {shape}")
        array: np.ndarray = np.fromfile(data, "<f4").reshape(shape)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PackageError(f"{build}: {name}.bin with {name}.json cannot be read: {error}") from error
    return array


def _record(build: Path, records: tuple[PackageRecord, ...], stage: str, variant: str) -> PackageRecord:
    for record in records:
        if record.stage == stage and record.variant == variant:
            return record
    raise UsageError(
        f"{build} has no stage {stage!r} of variant {variant!r}; export it, or give the other precision"
    )
