"""A reference clip to the mel spectrogram that the style encoders take: upstream's ``compute_style``."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from coreproof.errors import InputError
from coreproof_exporters.styletts2.architecture import LEAST_MEL, MEL_BANDS, MEL_BUCKETS, SAMPLE_RATE

HOP, WINDOW, FFT = 300, 1200, 2048
_BANK_RATE = 16_000  # upstream leaves the mel transform's rate at its default, so its bands end at 8 kHz
_MEAN, _SPREAD = -4.0, 4.0
_TRIM_DB, _TRIM_FRAME, _TRIM_HOP = 30.0, 2048, 512
MOST_SECONDS = 600.0


def read_clip(path: Path) -> np.ndarray:
    """The WAV file ``path`` as mono float64 at 24 kHz. Channels are averaged; another rate is resampled by a
    polyphase filter. Raises InputError for a file that is none, is silent, or lasts over ten minutes."""
    from scipy import signal
    from scipy.io import wavfile

    try:
        rate, samples = wavfile.read(path)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as a WAV file: {error}") from error
    if samples.size == 0 or not 1000 <= rate <= 768_000 or len(samples) > MOST_SECONDS * rate:
        raise InputError(
            f"{path}: {len(samples)} samples at {rate} Hz; expected up to {MOST_SECONDS:g} s of sound"
        )
    if samples.dtype == np.uint8:
        wave = (samples.astype(np.float64) - 128) / 128
    elif samples.dtype.kind == "i":
        wave = samples.astype(np.float64) / -float(np.iinfo(samples.dtype).min)
    else:
        wave = samples.astype(np.float64)
    wave = wave if wave.ndim == 1 else wave.mean(axis=1)
    if not np.isfinite(wave).all() or not wave.any():
        raise InputError(f"{path}: silent, or not finite")
    common = np.gcd(rate, SAMPLE_RATE)
    if rate == SAMPLE_RATE:
        return wave
    resampled: np.ndarray = signal.resample_poly(wave, SAMPLE_RATE // common, rate // common)
    return resampled


def trimmed(wave: np.ndarray) -> np.ndarray:
    """``wave`` without what lies 30 dB below its loudest frame at either end: ``librosa.effects.trim``, whose
    frames of 2048 samples are centred, with zeros outside."""
    padded = np.pad(wave, _TRIM_FRAME // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _TRIM_FRAME)[::_TRIM_HOP]
    power = np.mean(frames**2, axis=1)
    loud = np.flatnonzero(10 * np.log10(np.maximum(power, 1e-10) / max(power.max(), 1e-10)) > -_TRIM_DB)
    if not len(loud):
        return wave[:0]
    return wave[loud[0] * _TRIM_HOP : min(len(wave), (loud[-1] + 1) * _TRIM_HOP)]


def mel(wave: np.ndarray) -> np.ndarray:
    """The normalised log-mel spectrogram, float32 (80, frames), of mono ``wave`` at 24 kHz, computed in float64.

    ``torchaudio.transforms.MelSpectrogram(n_mels=80, n_fft=2048, win_length=1200, hop_length=300)``, whose
    triangles end at 8 kHz, then ``(ln(1e-5 + mel) + 4) / 4``. Raises InputError for a clip under 65 frames.
    """
    frames = 1 + len(wave) // HOP
    if frames < LEAST_MEL:
        raise InputError(
            f"the reference clip lasts {len(wave) / SAMPLE_RATE:.2f} s without the silence at its ends; expected at "
            f"least {(LEAST_MEL - 1) * HOP / SAMPLE_RATE:.2f} s, better 3 s and more"
        )
    padded = np.pad(wave.astype(np.float64), FFT // 2, mode="reflect")
    window = np.zeros(FFT)
    start = (FFT - WINDOW) // 2
    window[start : start + WINDOW] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    cut = np.lib.stride_tricks.sliding_window_view(padded, FFT)[::HOP][:frames]
    power = np.abs(np.fft.rfft(cut * window, axis=1)) ** 2
    levels: np.ndarray = (np.log(1e-5 + _bank() @ power.T) - _MEAN) / _SPREAD
    return levels.astype(np.float32)


def shortened(spectrogram: np.ndarray) -> np.ndarray:
    """What of (80, frames) the greatest bucket holds, 25.6 s: the beginning."""
    return spectrogram[:, : MEL_BUCKETS[-1]]


@lru_cache(maxsize=1)
def _bank() -> np.ndarray:
    """HTK mel triangles without normalisation, float64 (80, 1025). The bins are taken to end at 8 kHz."""
    top = 2595.0 * np.log10(1.0 + _BANK_RATE / 2 / 700.0)
    corners = 700.0 * (10.0 ** (np.linspace(0.0, top, MEL_BANDS + 2) / 2595.0) - 1.0)
    bins = np.linspace(0.0, _BANK_RATE // 2, FFT // 2 + 1)
    low, peak, high = (corners[i : i + MEL_BANDS, None] for i in range(3))
    bank: np.ndarray = np.maximum(0.0, np.minimum((bins - low) / (peak - low), (high - bins) / (high - peak)))
    return bank
