"""Controls to 48 kHz stereo with an exported build, frame by frame: the host's part, without torch or
coremltools.

A frame: ``source_encoded`` and the last frame's feedback through the temporal graph, 12 codes from the
rollout with the host's noise, their codebook rows summed, STFT rows from a decoder, 1,920 samples from
the inverse STFT.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from coreproof.arrays import read_npy
from coreproof.audio.noise import GumbelNoise
from coreproof.audio.rvq import embed
from coreproof.audio.sound import Report, Sound, quiet
from coreproof.audio.stft import InverseStft
from coreproof.errors import InputError, UsageError
from coreproof.package.manifest import load_manifest
from coreproof_exporters.mrt2 import prompt
from coreproof_exporters.mrt2.architecture import FRAME_SECONDS, SAMPLE_RATE, STFT_STEP
from coreproof_exporters.mrt2.decoding import DECODERS, ContextRows, Rows, StreamingRows
from coreproof_exporters.mrt2.guidance import GUIDANCE
from coreproof_exporters.mrt2.host import (
    Caches,
    Graph,
    Timings,
    Window,
    find_record,
    host_array,
    style_codes,
)
from coreproof_exporters.mrt2.musiccoca import FILES, MusicCoCa, read_prompts

CHANNELS = 2
DEFAULT_TEMPERATURE = 1.3
_LEAST_TEMPERATURE = 0.05
_GAIN = 0.5  # the official output gain, against clipping

Number = TypeVar("Number", int, float)
Noise = Callable[[], np.ndarray]


class Generator:
    """One stream of music from a build.

    ``precision``: which of the build's packages to run, ``fp16`` or ``fp32``. ``stateful``: the temporal
    graph with states instead of the one whose caches are carried here. ``ring``: see
    :class:`~coreproof_exporters.mrt2.host.Caches`. ``decoder``: ``streaming`` or ``context``, which
    repeats 14 frames a chunk. ``seed``: of the noise; ``temperature`` 0 takes the greatest logit.
    ``noise``: float32 [12, codes] a call, in place of the seeded one.

    Raises UsageError when the build lacks a stage or the choices exclude each other, PackageError for
    host files that do not fit, InputError for a temperature that is negative or no number.
    """

    def __init__(
        self,
        build: Path,
        precision: str = "fp16",
        *,
        backend: str = "mil",
        stateful: bool = False,
        ring: bool = False,
        decoder: str = "streaming",
        seed: int = 1,
        temperature: float = DEFAULT_TEMPERATURE,
        noise: Noise | None = None,
    ) -> None:
        if not (math.isfinite(temperature) and temperature >= 0):
            raise InputError(f"temperature {temperature}: expected 0 or more")
        if ring and stateful:
            raise UsageError("ring: a graph with states keeps its own caches; leave out ring or stateful")
        manifest = load_manifest(build)

        def graph(stage: str, variant: str = precision) -> Graph:
            return Graph(build, find_record(build, manifest, stage, variant), backend)

        self.timings = Timings()
        self._encoder = graph("conditioning_encoder", "fp32")
        self._temporal = graph("temporal_stateful" if stateful else "temporal_carry")
        self._rollout = graph("depth_rollout")
        kind = ContextRows if decoder == "context" else StreamingRows
        self._rows: Rows = kind(graph(DECODERS[decoder]), self.timings)
        self._window = Window(self._temporal.inputs["cache_valid_bias"])
        self._caches = Caches(self._temporal.zeros("_in"), ring=ring)  # none, where they are states
        self._books = host_array(build, "rvq_codebooks")
        self._given = host_array(build, "temporal_start")[np.newaxis, np.newaxis]
        self._inverse = 1.0 / max(_LEAST_TEMPERATURE, temperature)
        self._istft = InverseStft(STFT_STEP, CHANNELS)
        shape = self._rollout.inputs["gumbel_noise"].shape
        seeded = GumbelNoise(seed)
        self._noise = noise or (lambda: np.zeros(shape) if temperature == 0 else seeded.draw(*shape))
        self.levels = shape[0]
        record = find_record(build, manifest, "conditioning_encoder", "fp32")
        self.style_codes = style_codes(record, self.levels)

    def encode(self, tokens: np.ndarray) -> np.ndarray:
        """``source_encoded`` (1, 1, S) of control tokens int32 (1, 144)."""
        return self._encoder(conditioning_tokens=tokens)["source_encoded"]

    def conditioned(
        self, wanted: Path | Sequence[int] | None, strengths: Mapping[str, float] | None = None
    ) -> np.ndarray:
        """``source_encoded`` from style codes or a file, or with every control masked: see
        :func:`coreproof_exporters.mrt2.prompt.source`."""
        shape = self._temporal.inputs["source_encoded"].shape
        return prompt.source(wanted, self.encode, shape, self.levels, self.style_codes, strengths)

    def frames(self, source: np.ndarray, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The next ``count`` frames under ``source`` (1, 1, S): codes int32 (12,) and audio float32
        (samples, 2), before the output gain. The audio comes later than the codes: one frame with the
        streaming decoder, which looks one frame ahead, up to a chunk with the other.

        Raises InputError for a source of another width."""
        wanted = self._temporal.inputs["source_encoded"].shape
        if source.shape != wanted:
            raise InputError(f"source_encoded has shape {source.shape}, expected {wanted}; see encode()")
        for _ in range(count):
            yield self.timings.frame(lambda: self._frame(source))

    def rest(self) -> np.ndarray:
        """The audio float32 (samples, 2) that the stream's end makes certain: all but its last frame."""
        return self._istft(self._rows.finish())

    def _frame(self, source: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        codes = self._draw(source)
        embedding = embed(codes[np.newaxis], self._books)
        return codes, self._istft(self._rows.push(embedding))

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
        noise = self._noise()
        drawn = self.timings.run(
            "depth",
            lambda: self._rollout(
                temporal_frame=moved["temporal_outputs"],
                gumbel_noise=noise,
                inverse_temperature=np.array([self._inverse]),
            ),
        )
        self._given = drawn["temporal_feedback"][np.newaxis]
        codes: np.ndarray = drawn["sampled_codes"]
        return codes


OPTIONS = {
    "precision": "fp16 or fp32",
    "stateful": "yes or no: the temporal graph with states",
    "ring": "yes or no: carried caches as a ring",
    "decoder": "streaming or context",
    "seed": "of the noise",
    "temperature": "0 or more",
    "noise": "a .npy file of float32 [frames, 12, codes] in place of the seeded noise",
    "conditioning": "a .npy, .json or .bin file: style codes, control tokens, or a source_encoded vector",
    "prompt": "text, with musiccoca",
    "prompts": "a .json file of texts and weights, with musiccoca",
    "musiccoca": f"the folder with {', '.join(FILES)}",
    "mapper": "yes or no: the prompt's embedding moved to where audio lies",
    "mapper_seed": "of the mapper's noise",
    **{f"cfg_{channel}": f"guidance strength of {channel}, -1 to 7" for channel in GUIDANCE},
}


def generate(
    build: Path, seconds: float, backend: str, options: Mapping[str, str], report: Report = quiet
) -> Sound:
    """``seconds`` of music from ``build``, with every stage's own timing. ``options``: see :data:`OPTIONS`;
    without a conditioning every control is masked and guidance at its defaults.

    Raises UsageError for an option that does not exist or fit, InputError for a conditioning or noise
    that does not fit, and as :class:`Generator`.
    """
    if unknown := set(options) - set(OPTIONS):
        known = "".join(f"\n  {name}: {what}" for name, what in OPTIONS.items())
        raise UsageError(f"mrt2 has no option {', '.join(sorted(unknown))}; it has{known}")
    # One frame more, because the decoder looks one frame ahead.
    count = max(1, round(seconds / FRAME_SECONDS)) + 1
    seed = _number(options, "seed", 1, int)
    settings = {
        "precision": _choice(options, "precision", ("fp16", "fp32")),
        "stateful": _choice(options, "stateful", ("no", "yes")) == "yes",
        "ring": _choice(options, "ring", ("no", "yes")) == "yes",
        "decoder": _choice(options, "decoder", tuple(DECODERS)),
        "temperature": _number(options, "temperature", DEFAULT_TEMPERATURE, float),
    }
    shared = read_noise(Path(options["noise"]), count) if "noise" in options else None
    noise = shared.__next__ if shared else None
    generator = Generator(build, backend=backend, seed=seed, noise=noise, **settings)  # type: ignore[arg-type]
    strengths = {c: _number(options, f"cfg_{c}", 0.0, float) for c in GUIDANCE if f"cfg_{c}" in options}
    source = generator.conditioned(_wanted(options, generator.levels), strengths or None)
    heard = [audio for _, audio in generator.frames(source, count)]
    audio = np.concatenate([*heard, generator.rest()])
    origin = {"noise": options["noise"]} if shared else {"noise": "SplitMix64", "seed": seed}
    return Sound(
        to_int16(audio),
        SAMPLE_RATE,
        generator.timings.stages,
        FRAME_SECONDS,
        generator.timings.frames,
        {**settings, **origin},
    )


def _wanted(options: Mapping[str, str], levels: int) -> Path | list[int] | None:
    """The conditioning file, the style codes of the prompt, or None for neither."""
    ways = [name for name in ("conditioning", "prompt", "prompts") if name in options]
    if len(ways) > 1:
        raise UsageError(f"options {' and '.join(ways)}: choose one of them")
    if not {"prompt", "prompts"} & set(ways):
        if extra := {"musiccoca", "mapper", "mapper_seed"} & set(options):
            raise UsageError(f"option {', '.join(sorted(extra))}: only with prompt or prompts")
        return Path(options["conditioning"]) if ways else None
    if "musiccoca" not in options:
        raise UsageError("a prompt needs option musiccoca, the folder with " + ", ".join(FILES))
    model = MusicCoCa(Path(options["musiccoca"]), levels)
    texts = read_prompts(Path(options["prompts"])) if "prompts" in ways else {options["prompt"]: 1.0}
    mapper = _choice(options, "mapper", ("no", "yes")) == "yes"
    seed = _number(options, "mapper_seed", 0, int)
    return model.codes(model.blend(texts, mapper=mapper, seed=seed))


def read_noise(path: Path, frames: int) -> Iterator[np.ndarray]:
    """The first ``frames`` frames' noise, float32 [levels, codes] each, of a ``.npy`` file: what another
    implementation drew, so that both draw the same tokens. Raises InputError when the file is not
    float32 [frames or more, levels, codes], or not finite."""
    given = read_npy(path)
    if given.dtype != np.float32 or given.ndim != 3 or len(given) < frames:
        raise InputError(
            f"{path}: {given.dtype} {given.shape}; expected float32 ({frames} or more, levels, codes)"
        )
    if not np.isfinite(given[:frames]).all():
        raise InputError(f"{path}: the noise holds NaN or infinity")
    return iter(given[:frames])


def _choice(options: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str:
    value = options.get(name, choices[0])
    if value not in choices:
        raise UsageError(f"option {name}={value}: choose {' or '.join(choices)}")
    return value


def _number(options: Mapping[str, str], name: str, default: Number, kind: type[Number]) -> Number:
    if name not in options:
        return default
    try:
        return kind(options[name])
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise UsageError(f"option {name}={options[name]}: expected {what}") from None


def to_int16(audio: np.ndarray) -> np.ndarray:
    """Samples as the official system writes them: half the level, clipped, rounded, int16."""
    level = np.clip(_GAIN * audio.astype(np.float64), -1.0, 1.0)
    return np.round(32767.5 * level - 0.5).astype(np.int16)
