"""The spectra that the audio metrics compare.

``|STFT|`` has a periodic Hann window of 1024 samples and a hop of 256, the analysis of HiFi-GAN
(Kong et al. 2020, arXiv:2010.05646), by ``scipy.signal.ShortTimeFFT`` with
``scale_to="magnitude"``: a sine of amplitude A reads A/2 at its bin. The last axis is time; every
other axis (batch, channels) holds further signals. Every window that touches the signal counts, with
zeros outside it; a signal shorter than a window is padded with zeros up to one. Magnitudes below
1e-7, about -140 dB of full scale, read as 1e-7, so that digital silence equals rounding noise.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import signal

WINDOW = 1024
HOP = 256
FLOOR = 1e-7
MELS = 80


def log_magnitude_db(x: np.ndarray, sample_rate: int) -> np.ndarray:
    """``20 log10 max(|STFT|, 1e-7)`` of float64 ``x`` (..., samples), in dB: (..., 513, frames)."""
    levels: np.ndarray = 20.0 * np.log10(np.maximum(_magnitude(x, sample_rate), FLOOR))
    return levels


def log_mel(x: np.ndarray, sample_rate: int) -> np.ndarray:
    """``ln max(M |STFT|, 1e-7)`` of float64 ``x`` (..., samples), M being
    ``mel_filterbank(sample_rate)``: (..., bands, frames)."""
    mel = mel_filterbank(sample_rate) @ _magnitude(x, sample_rate)
    levels: np.ndarray = np.log(np.maximum(mel, FLOOR))
    return levels


@lru_cache(maxsize=8)
def mel_filterbank(sample_rate: int) -> np.ndarray:
    """Weights of the mel bands over the bins of the STFT: float64, read-only, (bands, 513).

    80 triangles of height 1, linear in Hz, with corners evenly spaced from 0 to ``sample_rate / 2``
    on the mel scale of the HTK Book, section 5.4: ``2595 log10(1 + f / 700)``; the defaults of
    ``torchaudio.functional.melscale_fbanks``. At high rates the lowest triangles can fall between two
    bins; such bands are left out, since they read the floor in any signal.
    """
    top = 2595.0 * np.log10(1.0 + sample_rate / 2 / 700.0)
    corners = 700.0 * (10.0 ** (np.linspace(0.0, top, MELS + 2) / 2595.0) - 1.0)
    bins = np.fft.rfftfreq(WINDOW, 1.0 / sample_rate)
    low, peak, high = (corners[i : i + MELS, None] for i in range(3))
    bank: np.ndarray = np.maximum(0.0, np.minimum((bins - low) / (peak - low), (high - bins) / (high - peak)))
    bank = bank[bank.any(axis=1)]
    bank.flags.writeable = False
    return bank


def _magnitude(x: np.ndarray, sample_rate: int) -> np.ndarray:
    x = np.atleast_1d(x)
    missing = max(0, WINDOW - x.shape[-1])
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
    window = signal.windows.hann(WINDOW, sym=False)
    stft = signal.ShortTimeFFT(window, HOP, sample_rate, scale_to="magnitude")
    magnitude: np.ndarray = np.abs(stft.stft(padded))
    return magnitude
