"""The StyleTTS 2 suite: every stage on upstream's own tensors, and the defects its gates must catch.

A stage's inputs are upstream's, so no stage is blamed for another's error. Expected values were computed
without padding; the packages run padded, each text in another bucket, and only what is real is compared.
The compatibility layout's stages have no masks, so their expected values take padding for data.

Stages are judged one by one because a waveform at the end of all of them says less: phases are sums of F0, so
its rounding to float32 parts two good ones after some seconds. tests/exporters/test_styletts2_build.py runs the
whole, holds it to upstream, and shows that nothing but this parts them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from coreproof.parity.metrics import METRICS
from coreproof.parity.suite import Arrays, Case, Outcome, Suite
from coreproof_exporters.styletts2.architecture import (
    FRAME,
    FRAME_BUCKETS,
    HARMONICS,
    MEL_BUCKETS,
    SAMPLE_RATE,
    TEXT_BUCKETS,
    VOICED,
)
from coreproof_exporters.styletts2.harmonics import mixed
from coreproof_exporters.styletts2.recipe import function_name
from coreproof_exporters.styletts2.reference import UNMASKED, VOICES
from coreproof_exporters.styletts2.synthesizer import Noise, frames_of
from coreproof_validation.styletts2_controls import CONTROLS

Part = tuple[slice, ...]

EDGE = 12_000  # samples at either end of an unmasked waveform that are compared
_LEAST_HZ, _MOST_HZ = 80.0, 350.0


def cases(arrays: Arrays) -> Iterable[Case]:
    """``t0`` to ``t2`` of each stage, the three texts; ``step`` with the evaluation; ``v0``, ``v1``, the clips."""
    for index in range(len(VOICES)):
        yield from _text(arrays, index)
        yield from _frames(arrays, index)
    yield from _voices(arrays)
    yield from _unmasked(arrays)


def _bucket(buckets: Sequence[int], length: int) -> int:
    return next(size for size in buckets if length <= size)


def _wide(array: np.ndarray, axis: int, size: int) -> np.ndarray:
    """``array`` with zeros up to ``size`` on ``axis``."""
    widths = [(0, size - n if i == axis % array.ndim else 0) for i, n in enumerate(array.shape)]
    return np.pad(array, widths)


def _mask(length: int, size: int) -> np.ndarray:
    return (np.arange(size) < length).astype(np.float32)[np.newaxis]


def _upto(length: int, axis: int, rank: int = 3) -> Part:
    """The first ``length`` on ``axis``."""
    return tuple(slice(length) if i == axis else slice(None) for i in range(rank))


def _text(arrays: Arrays, index: int) -> Iterator[Case]:
    def of(name: str) -> np.ndarray:
        return arrays[f"t{index}_{name}"]

    tokens = of("tokens")
    length = tokens.shape[1]
    size = _bucket(TEXT_BUCKETS, length)
    common = {"function": function_name(size)}
    mask = _mask(length, size)
    rows, columns = _upto(length, 1), _upto(length, 2)
    yield Case(
        f"t{index}",
        "text",
        ({"tokens": _wide(tokens, 1, size), "mask": mask},),
        {name: of(name) for name in ("t_en", "bert_dur", "d_en")},
        parts={"t_en": columns, "d_en": columns, "bert_dur": rows},
        **common,
    )
    yield Case(
        f"t{index}",
        "duration",
        ({"d_en": _wide(of("d_en"), 2, size), "s": of("s"), "mask": mask},),
        {name: of(name) for name in ("d", "pred_dur_log")},
        parts={"d": rows, "pred_dur_log": rows},
        **common,
    )
    embedding = _wide(of("bert_dur"), 1, size)
    features = arrays["ref_s"][VOICES[index]][np.newaxis]
    for step, sigma in enumerate(of("step_sigma")):
        given = {
            "x_noisy": of("step_x")[step : step + 1],
            "sigma": np.array([sigma], np.float32),
            "embedding": embedding,
            "features": features,
            "mask": mask,
        }
        denoised = of("step_denoised")[step : step + 1]
        yield Case(f"t{index}s{step}", "diffusion_step", (given,), {"denoised": denoised}, **common)


def _frames(arrays: Arrays, index: int) -> Iterator[Case]:
    def of(name: str) -> np.ndarray:
        return arrays[f"t{index}_{name}"]

    length = of("en").shape[2]
    size = _bucket(FRAME_BUCKETS[index:], length)
    mask, function = _mask(length, size), function_name(size)
    curves = _upto(2 * length, 1, 2)
    yield Case(
        f"t{index}",
        "f0n_energy",
        ({"en": _wide(of("en"), 2, size), "s": of("s"), "mask": mask},),
        {"F0": of("F0"), "N": of("N")},
        function=function,
        parts={"F0": curves, "N": curves},
    )
    given = {
        "asr": _wide(of("asr"), 2, size),
        "F0_curve": _wide(of("F0"), 1, 2 * size),
        "N": _wide(of("N"), 1, 2 * size),
        "s": of("ref"),
        "mask": mask,
    }
    sources = [("decoder_sourced", "source_noise", _noise(arrays, index, length))]
    if f"t{index}_har_source" in arrays:
        sources.append(("decoder", "har_source", of("har_source")))
    for stage, name, source in sources:
        yield Case(
            f"t{index}",
            stage,
            ({**given, name: _wide(source, 2, FRAME * size)},),
            {"waveform": of("waveform")},
            SAMPLE_RATE,
            function=function,
            parts={"waveform": _upto(FRAME * length, 2)},
        )


def _noise(arrays: Arrays, index: int, length: int) -> np.ndarray:
    """The source's noise of text ``index``, mixed: what upstream drew behind the sampler's draws."""
    noise = Noise(int(arrays["noise_seed"]) + index)
    noise.draw(1, 256)
    for _ in range(len(arrays[f"t{index}_step_sigma"]) // 2):
        noise.draw(1, 1, 256)
    drawn = noise.draw(1, FRAME * length, HARMONICS)[0]
    return mixed(drawn, arrays["source_weight"])[np.newaxis, np.newaxis]


def _voices(arrays: Arrays) -> Iterator[Case]:
    for index, ref_s in enumerate(arrays["ref_s"]):
        mel = arrays[f"v{index}_mel"]
        length = mel.shape[3]
        size = _bucket(MEL_BUCKETS, length)
        given = {"mel": _wide(mel, 3, size), "mask": _mask(length, size)}
        for part, half in (("style_encoder", ref_s[:128]), ("predictor_encoder", ref_s[128:])):
            expected = {"style": half[np.newaxis]}
            yield Case(f"v{index}", part, (given,), expected, function=function_name(size))


def _unmasked(arrays: Arrays) -> Iterator[Case]:
    for name, index, size in UNMASKED:
        found = {
            key.removeprefix(f"unmasked_{name}{size}_"): value
            for key, value in arrays.items()
            if key.startswith(f"unmasked_{name}{size}_")
        }
        if name == "text":
            yield _unmasked_text(arrays, index, size, found)
        elif name == "step":
            yield from _unmasked_steps(arrays, index, size, found)
        else:
            yield from _unmasked_frames(arrays, index, size, found)


def _unmasked_text(arrays: Arrays, index: int, size: int, found: Arrays) -> Case:
    every = size // found["d"].shape[1]
    along = {"t_en": 2, "d_en": 2}
    return Case(
        f"t{index}",
        f"text_predictor_{size}",
        (
            {
                "tokens": _wide(arrays[f"t{index}_tokens"], 1, size),
                "style": arrays["ref_s"][VOICES[index]][np.newaxis, :128],
            },
        ),
        found,
        parts={
            name: tuple(slice(None, None, every if i == along.get(name, 1) else None) for i in range(3))
            for name in found
        },
    )


def _unmasked_steps(arrays: Arrays, index: int, size: int, found: Arrays) -> Iterator[Case]:
    for step, sigma in enumerate(arrays[f"t{index}_step_sigma"]):
        given = {
            "x_noisy": arrays[f"t{index}_step_x"][step : step + 1],
            "sigma": np.array([sigma], np.float32),
            "embedding": _wide(arrays[f"t{index}_bert_dur"], 1, size),
            "features": arrays["ref_s"][VOICES[index]][np.newaxis],
        }
        expected = {"denoised": found["denoised"][step : step + 1]}
        yield Case(f"t{index}s{step}", f"diffusion_step_{size}", (given,), expected)


def _unmasked_frames(arrays: Arrays, index: int, size: int, found: Arrays) -> Iterator[Case]:
    def wide(name: str, axis: int, length: int) -> np.ndarray:
        return _wide(arrays[f"t{index}_{name}"], axis, length)

    every = 2 * size // found["F0"].shape[1]
    part: Part = (slice(None), slice(None, None, every))
    yield Case(
        f"t{index}at{size}",
        "f0n_energy_unmasked",
        ({"en": wide("en", 2, size), "s": arrays[f"t{index}_s"]},),
        {"F0": found["F0"], "N": found["N"]},
        function=function_name(size),
        parts={"F0": part, "N": part},
    )
    given = {
        "asr": wide("asr", 2, size),
        "F0_curve": wide("F0", 1, 2 * size),
        "N": wide("N", 1, 2 * size),
        "s": arrays[f"t{index}_ref"],
    }
    for end, where in (("head", slice(EDGE)), ("tail", slice(-EDGE, None))):
        yield Case(
            f"t{index}{end}",
            f"decoder_{size}",
            (given,),
            {"waveform": found[end]},
            SAMPLE_RATE,
            parts={"waveform": (slice(None), slice(None), where)},
        )


def excitations(arrays: Arrays) -> Mapping[str, float]:
    """On upstream's results alone, over the three texts. ``voiced`` and ``unvoiced``: shares of frames;
    ``f0_in_range``: share of voiced frames from 80 to 350 Hz; ``f0_spread_hz``: their deviation;
    ``durations``: how many different ones; ``short_durations``: share of tokens of at most 12 frames;
    ``frame_buckets`` and ``text_buckets``: how many the texts use; ``clips_apart``: |difference| of the clips'
    styles over their size; ``level``: root mean square of the waveforms; ``unclipped``: share of samples below 0.95."""
    texts = range(len(VOICES))
    f0 = np.concatenate([arrays[f"t{i}_F0"][0] for i in texts])
    spoken = f0[f0 > VOICED]
    durations = np.concatenate([frames_of(arrays[f"t{i}_pred_dur_log"][0]) for i in texts])
    waves = np.concatenate([arrays[f"t{i}_waveform"].ravel() for i in texts])
    first, second = arrays["ref_s"]
    frames = {_bucket(FRAME_BUCKETS[i:], arrays[f"t{i}_en"].shape[2]) for i in texts}
    tokens = {_bucket(TEXT_BUCKETS, arrays[f"t{i}_tokens"].shape[1]) for i in texts}
    return {
        "voiced": len(spoken) / len(f0),
        "unvoiced": 1 - len(spoken) / len(f0),
        "f0_in_range": float(np.mean((spoken >= _LEAST_HZ) & (spoken <= _MOST_HZ))) if len(spoken) else 0.0,
        "f0_spread_hz": float(spoken.std()) if len(spoken) else 0.0,
        "durations": float(len(np.unique(durations))),
        "short_durations": float(np.mean(durations <= 12)),
        "frame_buckets": float(len(frames)),
        "text_buckets": float(len(tokens)),
        "clips_apart": float(np.linalg.norm(first - second) / np.linalg.norm(first)),
        "level": float(np.sqrt(np.mean(waves.astype(np.float64) ** 2))),
        "unclipped": float(np.mean(np.abs(waves) < 0.95)),
    }


def aggregates(outcomes: Sequence[Outcome]) -> Mapping[str, float]:
    """By stage. Durations: ``duration_mismatches``, tokens whose rounded duration differs. F0:
    ``f0_correlation`` where both are voiced, and ``voicing_agreement``, the share of frames alike.
    Empty where an output is missing or of another shape."""
    stage = outcomes[0].case.stage
    if stage == "duration" or stage.startswith("text_predictor"):
        pairs = _pairs(outcomes, "pred_dur_log")
        return {} if pairs is None else {"duration_mismatches": sum(_mismatches(a, e) for a, e in pairs)}
    if stage.startswith("f0n_energy"):
        pairs = _pairs(outcomes, "F0")
        return {} if pairs is None else _pitch(pairs)
    return {}


def _pairs(outcomes: Sequence[Outcome], name: str) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """What was computed and expected of ``name``, case by case."""
    found = []
    for outcome in outcomes:
        actual, expected = outcome.actual.get(name), outcome.case.expected[name]
        actual = None if actual is None else actual[outcome.case.parts.get(name, ())]
        if actual is None or actual.shape != expected.shape:
            return None
        found.append((actual, expected))
    return found


def _mismatches(actual: np.ndarray, expected: np.ndarray) -> float:
    if not np.isfinite(actual).all():
        return float("nan")
    return float(np.count_nonzero(frames_of(actual[0]) != frames_of(expected[0])))


def _pitch(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Mapping[str, float]:
    actual, expected = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
    both = (actual > VOICED) & (expected > VOICED)
    alike = float(np.mean((actual > VOICED) == (expected > VOICED)))
    if not both.any() or not np.isfinite(actual).all():
        return {"f0_correlation": float("nan"), "voicing_agreement": float("nan")}
    correlation = METRICS["pearson_correlation"].fn(
        actual[both].astype(np.float64), expected[both].astype(np.float64)
    )
    return {"f0_correlation": correlation, "voicing_agreement": alike}


SUITE = Suite(
    model="styletts2", cases=cases, excitations=excitations, aggregates=aggregates, controls=CONTROLS
)
