"""Sound for the page's players: FLAC of 16 bits, as ``data:`` addresses."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np

from coreproof.parity.suite import Heard

LONGEST = 6.0  # seconds of one player
FULL = 0.98  # of full scale; room for the rounding to 16 bits
CHANNELS = 2
_RATES = (8000, 384_000)  # Hz that browsers play


@dataclass(frozen=True, slots=True)
class Clip:
    """One player. ``source``: a ``data:`` address, empty when there is nothing to play."""

    name: str
    source: str
    note: str


def clips(heard: Heard, budget: int) -> tuple[tuple[Clip, ...], str]:
    """Players of the reference, the candidate and their difference, and a sentence on what was done to the
    sound. ``budget``: characters that the three may take together; beyond it, and for a sample rate that
    browsers do not play, there are none.

    The first two share one gain, so that they can be compared by ear; the difference is raised to full
    scale, because at the size of a good port's error nobody would hear it.
    """
    rate = heard.sample_rate
    if not _RATES[0] <= rate <= _RATES[1]:
        return (), f"No players: browsers do not play {rate} Hz."
    count = min(len(heard.expected), int(LONGEST * rate))
    actual, expected = (a[:count, :CHANNELS].astype(np.float64) for a in (heard.actual, heard.expected))
    bad = int(np.size(actual) - np.count_nonzero(np.isfinite(actual)))
    actual, expected = (np.where(np.isfinite(a), a, 0.0) for a in (actual, expected))
    peak = max(_peak(actual), _peak(expected))
    gain = FULL / peak if peak > 1 else 1.0
    error = actual - expected
    raised = FULL / _peak(error) if _peak(error) else 1.0
    made = (
        Clip("reference", _flac(gain * expected, rate), ""),
        Clip("candidate", _flac(gain * actual, rate), ""),
        Clip("difference", _flac(raised * error, rate), _difference(error, raised)),
    )
    if sum(len(clip.source) for clip in made) > budget:
        return (), "No players: the page has no room left for them."
    return made, _sentence(heard, count, gain, bad)


def _difference(error: np.ndarray, raised: float) -> str:
    if not _peak(error):
        return "silence: no sample differs"
    return f"made {20 * np.log10(raised):.0f} dB louder" if raised >= 1 else (
        f"made {-20 * np.log10(raised):.0f} dB quieter"
    )  # fmt: skip


def _sentence(heard: Heard, count: int, gain: float, bad: int) -> str:
    total, rate = len(heard.expected), heard.sample_rate
    words = [f"{total / rate:.2f} s at {rate} Hz, FLAC of 16 bits; what was measured is the tensors."]
    if count < total:
        words.append(f"The players hold the first {count / rate:.2f} s.")
    if heard.expected.shape[1] > CHANNELS:
        words.append(f"They hold {CHANNELS} of {heard.expected.shape[1]} channels.")
    if gain < 1:
        words.append(f"Reference and candidate were both made {-20 * np.log10(gain):.1f} dB quieter to fit.")
    if bad:
        words.append(f"{bad} samples of the candidate are NaN or Inf and play as silence.")
    return " ".join(words)


def _peak(sound: np.ndarray) -> float:
    return float(np.abs(sound).max(initial=0.0))


def _flac(sound: np.ndarray, rate: int) -> str:
    import soundfile

    stream = io.BytesIO()
    samples = np.round(sound * 32767).astype(np.int16)
    soundfile.write(stream, samples, rate, format="FLAC", subtype="PCM_16")
    return f"data:audio/flac;base64,{base64.b64encode(stream.getvalue()).decode()}"
