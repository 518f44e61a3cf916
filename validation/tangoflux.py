"""The TangoFlux suite: each stage on the official inputs, and one loop of 25 steps through the transformer.

A stage's inputs are the official ones, so no stage is blamed for another's error. The transformer's steps
have 64 text rows and a mask where the official model had just the prompt's rows. In the loop it is
given what its own predictions led to. The chunked decoder's audio is joined as a host joins it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coreproof.audio.chunks import Chunk, chunks
from coreproof.audio.flow import FlowMatchEuler, guided
from coreproof.parity.metrics import METRICS
from coreproof.parity.suite import Arrays, Case, Heard, Outcome, Suite
from coreproof_exporters.tangoflux.architecture import CONTEXT_ROWS, SAMPLE_RATE
from coreproof_exporters.tangoflux.contract import CHUNK_ROWS, key_mask, overlap
from coreproof_validation.tangoflux_controls import CONTROLS

# As coreproof_exporters.tangoflux.reference has them; importing that would import the official code.
STEPS = 25
GUIDANCE = 4.5
JUDGED_STEPS = (0, 6, 12, 18, 24)
OTHER_STEP = 12
PUBLISHED_STEPS = (6, 18)

# Any VAE of these strides reaches as far.
_STRIDES = (8, 8, 4, 4, 2)


@dataclass(frozen=True, slots=True)
class Loop(Case):
    """The loop, with the official latents (25, S, 64) after each step."""

    latents: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Chunked(Case):
    """Chunks as steps, with what is kept of each and the official audio (2, samples) of the whole."""

    plan: tuple[Chunk, ...] = ()
    audio: np.ndarray | None = None


def cases(arrays: Arrays) -> Iterable[Case]:
    """``t0`` on of the text encoder, ``c0`` on of the conditioning, ``s00`` on and ``loop`` of the
    transformer, ``p06`` on of the published contract, ``whole`` and ``chunks`` of the decoders."""
    yield from _texts(arrays)
    yield from _conditions(arrays)
    yield from _steps(arrays)
    yield from _published(arrays)
    yield from _decodings(arrays)


def _texts(arrays: Arrays) -> Iterator[Case]:
    for index, hidden in enumerate(arrays["text_hidden"]):
        row = slice(index, index + 1)
        step = {name: arrays[name][row] for name in ("input_ids", "attention_mask")}
        yield Case(f"t{index}", "text_encoder", (step,), {"text_hidden": hidden[np.newaxis]})


def _conditions(arrays: Arrays) -> Iterator[Case]:
    for index, duration in enumerate(arrays["durations"]):
        rows = [0, index + 1]
        step = {
            "text_hidden": arrays["text_hidden"][rows],
            "attention_mask": arrays["attention_mask"][rows],
            "duration": duration[np.newaxis],
        }
        expected = {name: arrays[name][index] for name in ("pooled_projections", "encoder_hidden_states")}
        yield Case(f"c{index}", "conditioning", (step,), expected)


def _before(arrays: Arrays, step: int) -> np.ndarray:
    """Latents (2, S, 64), twice the same, as they enter a step."""
    latents = arrays["latents"][step - 1] if step else arrays["noise"][0]
    return np.stack([latents, latents])


def _condition(arrays: Arrays, index: int) -> dict[str, np.ndarray]:
    tokens = int(arrays["attention_mask"][index + 1].sum())
    return {
        **{name: arrays[name][index] for name in ("pooled_projections", "encoder_hidden_states")},
        "key_mask": key_mask(tokens, arrays["noise"].shape[1]),
    }


def _steps(arrays: Arrays) -> Iterator[Case]:
    times = arrays["timesteps"][:, np.newaxis]
    judged = [*((step, 0, f"s{step:02d}") for step in JUDGED_STEPS), (OTHER_STEP, 1, "other_prompt")]
    for (step, index, name), expected in zip(judged, arrays["noise_pred"], strict=True):
        given = {"hidden_states": _before(arrays, step), "timestep": times[step], **_condition(arrays, index)}
        yield Case(name, "transformer", (given,), {"noise_pred": expected})
    condition = _condition(arrays, 0)
    steps: list[Arrays] = [{"timestep": time, **condition} for time in times]
    steps[0] = {**steps[0], "hidden_states": _before(arrays, 0)}
    yield Loop("loop", "transformer", steps, {}, carry=_carry, latents=arrays["latents"])


def _carry(inputs: Arrays, outputs: Arrays) -> Arrays:
    """The latents after a step, for both halves."""
    schedule = FlowMatchEuler(STEPS)
    index = int(np.abs(schedule.timesteps - inputs["timestep"]).argmin())
    latents = schedule.step(index, inputs["hidden_states"][:1], guided(outputs["noise_pred"], GUIDANCE))
    return {"hidden_states": np.concatenate([latents, latents])}


def _published(arrays: Arrays) -> Iterator[Case]:
    rows = arrays["noise"].shape[1]
    positions = np.repeat(np.arange(rows, dtype=np.float32)[:, np.newaxis], 3, axis=1)
    for step, expected in zip(PUBLISHED_STEPS, arrays["published_noise_pred"], strict=True):
        given = {
            "hidden_states": _before(arrays, step),
            "timestep": arrays["timesteps"][step : step + 1],
            "pooled_projections": arrays["pooled_projections"][0],
            "encoder_hidden_states": arrays["encoder_hidden_states"][0],
            "txt_ids": np.zeros((2, CONTEXT_ROWS, 3), np.float32),
            "img_ids": np.stack([positions, positions]),
        }
        yield Case(f"p{step:02d}", "transformer_published_contract", (given,), {"noise_pred": expected})


def _decodings(arrays: Arrays) -> Iterator[Case]:
    latents, audio = arrays["latents"][-1:], arrays["audio"]
    yield Case("whole", "vae_decoder", ({"latents": latents},), {"audio": audio[np.newaxis]})
    rows = latents.shape[1]
    plan = tuple(chunks(rows, min(CHUNK_ROWS, rows), overlap({"vae_strides": _STRIDES})))
    steps = [{"latents": latents[:, chunk.start : chunk.stop]} for chunk in plan]
    yield Chunked("chunks", "vae_decoder_chunk", steps, {}, plan=plan, audio=audio)


def excitations(arrays: Arrays) -> Mapping[str, float]:
    """On the official results alone. |changed - plain| / |plain| of one step's prediction, L2:
    ``positions``, all zero; ``mask``, padding attended; ``token``, one of the prompt's replaced; ``timestep``,
    the next step's; ``guidance``, the conditional half against the other. ``duration``: of its token's row,
    for the two durations. ``text_stream_peak``: greatest magnitude in T5's stream. ``prompt_rows``: text rows
    that are padding in one case and none in another. ``audio_level``: root mean square."""
    step = arrays["noise_pred"][JUDGED_STEPS.index(OTHER_STEP)]
    changed = {
        "positions": "without_positions",
        "mask": "without_mask",
        "token": "other_token",
        "timestep": "other_timestep",
    }
    counts = arrays["attention_mask"].sum(axis=1)
    tokens = arrays["encoder_hidden_states"][:, 0, -1]
    return {
        **{name: _change(arrays[other], step) for name, other in changed.items()},
        "guidance": _change(step[1], step[0]),
        "duration": _change(tokens[1], tokens[0]),
        "text_stream_peak": float(arrays["text_stream_peak"]),
        "prompt_rows": float(np.abs(counts[2] - counts[1])),
        "audio_level": float(np.sqrt(np.mean(arrays["audio"].astype(np.float64) ** 2))),
    }


def _change(other: np.ndarray, plain: np.ndarray) -> float:
    return METRICS["relative_error"].fn(other, plain)


def aggregates(outcomes: Sequence[Outcome]) -> Mapping[str, float]:
    """Of the transformer's loop: ``step_correlation`` and ``step_snr_db``, the least of any step's latents,
    and ``snr_db_step_NN`` of each, the drift. Of the chunked decoder: ``joined_snr_db`` of the joined audio
    and ``joined_max_abs_error``, ``seam_max_abs_error`` within a row of a seam. Empty where an output
    is missing or of another shape."""
    for outcome in outcomes:
        if isinstance(outcome.case, Loop):
            return _drift(outcome, outcome.case)
        if isinstance(outcome.case, Chunked):
            return _joined(outcome, outcome.case)
    return {}


def _drift(outcome: Outcome, case: Loop) -> Mapping[str, float]:
    predicted, official = outcome.actual.get("noise_pred"), case.latents
    if predicted is None or official is None or predicted.shape[:1] + predicted.shape[2:] != official.shape:
        return {}
    schedule, latents, pairs = FlowMatchEuler(STEPS), case.steps[0]["hidden_states"][:1], []
    with np.errstate(invalid="ignore", over="ignore"):  # NaN stays NaN and fails
        for index, both in enumerate(predicted):
            latents = schedule.step(index, latents, guided(both, GUIDANCE))
            pairs.append((latents[0], official[index]))
    snr = [METRICS["snr_db"].fn(*pair) for pair in pairs]
    correlation = [METRICS["pearson_correlation"].fn(*pair) for pair in pairs]
    # numpy's min keeps a NaN, which no gate lets pass.
    return {
        "step_correlation": float(np.min(correlation)),
        "step_snr_db": float(np.min(snr)),
        **{f"snr_db_step_{index + 1:02d}": value for index, value in enumerate(snr)},
    }


def _joined(outcome: Outcome, case: Chunked) -> Mapping[str, float]:
    joined, official = _together(outcome, case), case.audio
    if joined is None or official is None:
        return {}
    hop = official.shape[1] // case.plan[-1].last
    seams = [hop * chunk.first for chunk in case.plan[1:]] or [0]
    near = np.concatenate([np.arange(max(seam - hop, 0), seam + hop) for seam in seams])
    return {
        "joined_snr_db": METRICS["snr_db"].fn(joined, official),
        "joined_max_abs_error": METRICS["max_abs_error"].fn(joined, official),
        "seam_max_abs_error": METRICS["max_abs_error"].fn(joined[:, near], official[:, near]),
    }


def _together(outcome: Outcome, case: Chunked) -> np.ndarray | None:
    """The chunks' audio as a host joins it (2, samples), None where it is missing or of another shape."""
    made, official = outcome.actual.get("audio"), case.audio
    if made is None or official is None:
        return None
    made = made.reshape(len(case.plan), official.shape[0], -1)  # a single chunk has no axis of steps
    hop = official.shape[1] // case.plan[-1].last
    kept = [
        audio[:, hop * (chunk.first - chunk.start) : hop * (chunk.last - chunk.start)]
        for audio, chunk in zip(made, case.plan, strict=True)
    ]
    joined = np.concatenate(kept, axis=1)
    return joined if joined.shape == official.shape else None


def heard(outcome: Outcome) -> Sequence[Heard]:
    """The audio of the decoders, that of the chunked one joined. Empty for other stages."""
    case, audio = outcome.case, outcome.actual.get("audio")
    if isinstance(case, Chunked):
        name, made, official = "joined audio", _together(outcome, case), case.audio
    else:
        name, made, official = "audio", audio, case.expected.get("audio")
    if made is None or official is None or made.shape != official.shape:
        return ()
    actual, expected = (sound.reshape(-1, sound.shape[-1]).T for sound in (made, official))
    return (Heard(name, actual, expected, SAMPLE_RATE),)


SUITE = Suite(
    model="tangoflux",
    cases=cases,
    excitations=excitations,
    aggregates=aggregates,
    controls=CONTROLS,
    heard=heard,
)
