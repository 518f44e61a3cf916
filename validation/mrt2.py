"""The Magenta RealTime 2 suite: one stream through every graph, and the defects its gates must catch.

A stage's inputs are the official ones, so no stage is blamed for another's error. The temporal graphs
run 130 frames on their own memory; the rollout draws each frame from the official temporal output with
the official noise; the decoders decode the official embeddings.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coreproof.audio.noise import GumbelNoise
from coreproof.audio.stft import InverseStft
from coreproof.parity.metrics import METRICS
from coreproof.parity.suite import Arrays, Case, Heard, Outcome, Suite
from coreproof_exporters.mrt2.architecture import (
    LOOKAHEAD_ROWS,
    ROWS_PER_FRAME,
    SAMPLE_RATE,
    SIZES,
    STFT_STEP,
    Config,
)
from coreproof_exporters.mrt2.contract import burst_bias, cache_shape, carried, stems
from coreproof_exporters.mrt2.recipe import BURSTS, CHUNKS
from coreproof_validation.mrt2_controls import CONTROLS

# Below this distance of the two best scores a frame is a tie: which of them wins is chance.
TIE = 1e-4
# Frames of the drift curve, counted from 1: the first, and around each wrap of the window.
LISTED = (1, 21, 42, 62, 83, 105, 128)


@dataclass(frozen=True, slots=True)
class Decoding(Case):
    """A case of a decoder, with what the official inverse STFT made of the same rows."""

    audio: np.ndarray | None = None


def cases(arrays: Arrays) -> Iterable[Case]:
    """The stream ``stream`` of each temporal graph, ``c00`` on of the conditioning encoder, ``f000`` on
    of the depth graphs, and ``chunk`` or ``stream`` of the decoders."""
    config = dict(zip(sorted(SIZES["full"]), arrays["dimensions"].tolist(), strict=True))
    yield from _conditioning(arrays)
    yield from _temporal(arrays, config)
    yield from _depth(arrays, config)
    yield from _decoders(arrays, config)
    yield from _analysis(arrays)


def _conditioning(arrays: Arrays) -> Iterator[Case]:
    for index, (tokens, encoded) in enumerate(
        zip(arrays["conditioning_tokens"], arrays["source_encoded_float64"], strict=True)
    ):
        step = {"conditioning_tokens": tokens[np.newaxis]}
        yield Case(
            f"c{index:02d}",
            "conditioning_encoder",
            (step,),
            {"source_encoded": encoded[np.newaxis, np.newaxis]},
        )


def _temporal(arrays: Arrays, config: Config) -> Iterator[Case]:
    sources = arrays["source_encoded"][arrays["frame_conditioning"]]
    expected = {"temporal_outputs": arrays["temporal_outputs"][:, np.newaxis, np.newaxis]}
    plain = [
        {"temporal_inputs": x[np.newaxis, np.newaxis], "source_encoded": source[np.newaxis, np.newaxis]}
        for x, source in zip(arrays["temporal_inputs"], sources, strict=True)
    ]
    shown = [{**step, "cache_valid_bias": burst_bias(seen, 1)} for seen, step in enumerate(plain)]
    empty = {f"{stem}_in": np.zeros(cache_shape(config), np.float32) for stem in stems(config)}
    yield Case("stream", "temporal_carry", [{**shown[0], **empty}, *shown[1:]], expected, carry=_carry_caches)
    yield Case("stream_states", "temporal_stateful", shown, expected)
    yield Case("stream_published", "temporal_published_contract", plain, expected)
    for frames in BURSTS:
        yield _burst(arrays, sources, frames)


def _burst(arrays: Arrays, sources: np.ndarray, frames: int) -> Case:
    """The stream in calls of ``frames`` frames, as many as are whole."""
    starts = range(0, len(sources) - frames + 1, frames)
    inputs, outputs = arrays["temporal_inputs"], arrays["temporal_outputs"]
    steps = [
        {
            "temporal_inputs": inputs[np.newaxis, start : start + frames],
            "source_encoded": sources[np.newaxis, start : start + frames],
            "cache_valid_bias": burst_bias(start, frames),
        }
        for start in starts
    ]
    expected = np.stack([outputs[np.newaxis, start : start + frames] for start in starts])
    return Case(f"stream_bursts_{frames}", f"temporal_burst_{frames}", steps, {"temporal_outputs": expected})


def _carry_caches(inputs: Arrays, outputs: Arrays) -> Arrays:
    """Each cache one frame on: without its oldest, with the update last."""
    return {
        name: np.concatenate([cache[:, 1:], outputs[f"{name.removesuffix('_in')}_updates"]], axis=1)
        for name, cache in inputs.items()
        if name.endswith("_cache_in")
    }


def _depth(arrays: Arrays, config: Config) -> Iterator[Case]:
    for index, (given, logits) in enumerate(zip(arrays["depth_inputs"], arrays["depth_logits"], strict=True)):
        yield Case(
            f"l{index:02d}",
            "depth_logits",
            ({"depth_inputs": given[np.newaxis]},),
            {"depth_logits": logits[np.newaxis]},
        )
    frames = arrays["temporal_outputs"]
    noise = GumbelNoise(int(arrays["noise_seed"])).draw(len(frames), config["levels"], config["codes"])
    inverse = np.float32(1) / np.atleast_1d(arrays["temperature"])
    for index in _decided(arrays):
        step = {
            "temporal_frame": frames[index][np.newaxis, np.newaxis],
            "gumbel_noise": noise[index],
            "inverse_temperature": inverse,
        }
        expected = {
            "sampled_codes": arrays["codes"][index],
            "temporal_feedback": arrays["temporal_feedback"][index][np.newaxis],
        }
        yield Case(f"f{index:03d}", "depth_rollout", (step,), expected)


def _decided(arrays: Arrays) -> list[int]:
    """The frames none of whose levels is a tie."""
    return np.flatnonzero(arrays["margins"].min(axis=1) >= TIE).tolist()


def _decoders(arrays: Arrays, config: Config) -> Iterator[Case]:
    embeddings, rows, audio = (arrays[name] for name in ("decoder_embeddings", "decoder_stft", "audio"))
    for frames in CHUNKS:
        count = ROWS_PER_FRAME * frames - LOOKAHEAD_ROWS
        step = {"decoder_embeddings": embeddings[np.newaxis, :frames]}
        expected = {"decoder_stft": rows[np.newaxis, :count]}
        part = audio[: count * STFT_STEP]
        yield Decoding(
            "chunk" + str(frames), f"spectrostream_decoder_{frames}", (step,), expected, audio=part
        )
    steps = [{"decoder_embeddings": embeddings[np.newaxis, i : i + 1]} for i in range(len(embeddings))]
    silence = {f"{name}_in": np.zeros(shape, np.float32) for name, shape in carried(config).items()}
    yield Decoding(
        "stream_rows",
        "spectrostream_decoder_streaming",
        [{**steps[0], **silence}, *steps[1:]],
        {"decoder_stft": rows.reshape(-1, 1, ROWS_PER_FRAME, *rows.shape[1:])},
        carry=_carry_rows,
        warmup=1,  # the first frame brings only the rows of the lookahead
        audio=audio,
    )


def _carry_rows(_: Arrays, outputs: Arrays) -> Arrays:
    return {
        f"{name.removesuffix('_out')}_in": array for name, array in outputs.items() if name.endswith("_out")
    }


def _analysis(arrays: Arrays) -> Iterator[Case]:
    """None for a checkpoint without the codec's encoder."""
    if "encoder_embeddings" in arrays:
        step = {"encoder_stft": arrays["decoder_stft"][np.newaxis]}
        expected = {"encoder_embeddings": arrays["encoder_embeddings"][np.newaxis]}
        yield Case("rows", "spectrostream_encoder", (step,), expected)


def excitations(arrays: Arrays) -> Mapping[str, float]:
    """On the official results alone. ``history``, ``source``: |without - with| / |with| of the temporal
    outputs, L2, with no past frame and with other controls. ``input_peak``: greatest temporal input.
    ``logit_spread``: deviation of a level's own logits. ``decided_frames``: frames without a tie.
    ``codes_used``: share of a level's codes that some frame drew."""
    outputs = arrays["temporal_outputs"].astype(np.float64)
    codes, logits = arrays["codes"], arrays["depth_logits"]
    count = (logits.shape[-1] - 6) // codes.shape[1]
    own = [logits[:, level, 6 + count * level :][:, :count] for level in range(codes.shape[1])]
    return {
        "history": _change(arrays["temporal_outputs_without_history"], outputs),
        "source": _change(arrays["temporal_outputs_other_source"], outputs),
        "input_peak": float(np.abs(arrays["temporal_inputs"]).max()),
        "logit_spread": float(np.mean([level.std() for level in own])),
        "decided_frames": float(len(_decided(arrays))),
        "codes_drawn": float(np.mean([len(np.unique(level)) for level in codes.T])),
    }


def _change(other: np.ndarray, outputs: np.ndarray) -> float:
    # The first frame has no history to lose.
    return float(np.linalg.norm(other[1:] - outputs[1:]) / np.linalg.norm(outputs[1:]))


def aggregates(outcomes: Sequence[Outcome]) -> Mapping[str, float]:
    """By stage. Temporal graphs: ``frame_correlation`` and ``frame_snr_db``, the least of any frame, and
    ``snr_db_frame_N`` of some, the drift curve. Rollout: ``token_flips``, the share of codes that
    differ. Decoders: ``audio_snr_db`` after the host's inverse STFT, against the official audio.
    Empty where an output is missing or of another shape."""
    stage = outcomes[0].case.stage
    if stage.startswith("temporal_"):
        return _drift(outcomes[0])
    if stage == "depth_rollout":
        return _flips(outcomes)
    return _audio(outcomes[0]) if stage.startswith("spectrostream_decoder_") else {}


def _drift(outcome: Outcome) -> Mapping[str, float]:
    actual, expected = outcome.actual.get("temporal_outputs"), outcome.case.expected["temporal_outputs"]
    if actual is None or actual.shape != expected.shape:
        return {}
    width = expected.shape[-1]
    pairs = list(zip(actual.reshape(-1, width), expected.reshape(-1, width), strict=True))
    snr = [METRICS["snr_db"].fn(a, e) for a, e in pairs]
    correlation = [METRICS["pearson_correlation"].fn(a, e) for a, e in pairs]
    # numpy's min keeps a NaN, which no gate lets pass.
    return {
        "frame_correlation": float(np.min(correlation)),
        "frame_snr_db": float(np.min(snr)),
        **{f"snr_db_frame_{frame}": snr[frame - 1] for frame in LISTED if frame <= len(snr)},
    }


def _flips(outcomes: Sequence[Outcome]) -> Mapping[str, float]:
    pairs = [(o.actual.get("sampled_codes"), o.case.expected["sampled_codes"]) for o in outcomes]
    if any(a is None or a.shape != e.shape for a, e in pairs):
        return {}
    return {"token_flips": float(np.mean([a != e for a, e in pairs]))}


def _audio(outcome: Outcome) -> Mapping[str, float]:
    sounds = heard(outcome)
    return {"audio_snr_db": METRICS["snr_db"].fn(sounds[0].actual, sounds[0].expected)} if sounds else {}


def heard(outcome: Outcome) -> Sequence[Heard]:
    """What a decoder's rows sound like after the host's inverse STFT, beside the official audio. Empty
    for other stages, and where the rows are missing or of another shape."""
    rows, audio = outcome.actual.get("decoder_stft"), getattr(outcome.case, "audio", None)
    if rows is None or audio is None or rows.shape != outcome.case.expected["decoder_stft"].shape:
        return ()
    with np.errstate(invalid="ignore"):  # NaN stays NaN and fails
        sound = InverseStft(STFT_STEP, audio.shape[1])(rows.reshape(-1, *rows.shape[-2:]))
    return (Heard("audio after the host's inverse STFT", sound, audio, SAMPLE_RATE),)


SUITE = Suite(
    model="mrt2",
    cases=cases,
    excitations=excitations,
    aggregates=aggregates,
    controls=CONTROLS,
    heard=heard,
    optional=frozenset({"spectrostream_encoder"}),
)
