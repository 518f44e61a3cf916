"""The STFT and its streaming inverse: against scipy's own dual window, and a signal that must come back."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import ShortTimeFFT
from scipy.signal.windows import hann

from coreproof.audio import stft as module
from coreproof.audio.stft import InverseStft, dual_window, stft
from coreproof.errors import InputError

STEP = 480


def test_the_window_is_the_canonical_dual() -> None:
    window = hann(2 * STEP, sym=False)
    theirs = ShortTimeFFT(window, STEP, fs=48_000).dual_win
    np.testing.assert_allclose(dual_window(STEP), theirs, atol=1e-12)
    assert dual_window(STEP).max() == pytest.approx(1.2071, abs=1e-4)


def rows_of(signal: np.ndarray) -> np.ndarray:
    """(n, 480, 2 * channels): Hann frames at hop 480, without the Nyquist bin."""
    frames = np.lib.stride_tricks.sliding_window_view(signal, 2 * STEP, axis=0)[::STEP]  # (n, channels, 960)
    spectra = np.fft.rfft(frames * hann(2 * STEP, sym=False), axis=-1)[..., :-1].transpose(0, 2, 1)
    return np.stack([spectra.real, spectra.imag], axis=-1).reshape(len(frames), STEP, -1).astype(np.float32)


@pytest.fixture
def tones() -> np.ndarray:
    time = np.arange(STEP * 20) / 48_000
    return np.stack([np.sin(2 * np.pi * 440 * time), np.cos(2 * np.pi * 1000 * time)], axis=1)


def snr_db(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(20 * np.log10(np.linalg.norm(expected) / np.linalg.norm(actual - expected)))


def test_a_signal_comes_back_in_chunks(tones: np.ndarray) -> None:
    rows, inverse = rows_of(tones), InverseStft(STEP, 2)
    audio = np.concatenate([inverse(part) for part in (rows[:1], rows[1:8], rows[8:8], rows[8:])])
    assert audio.shape == (len(rows) * STEP, 2)
    assert audio.dtype == np.float32
    # The first hop has no frame before it to add.
    assert snr_db(audio[STEP:], tones[STEP : len(audio)]) > 100


def test_plain_hann_does_not_give_it_back(tones: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "dual_window", lambda step: hann(2 * step, sym=False))
    audio = InverseStft(STEP, 2)(rows_of(tones))
    assert snr_db(audio[STEP:], tones[STEP : len(audio)]) < 15


@pytest.mark.parametrize("shape", [(3, 480, 2), (3, 481, 4), (480, 4)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"expected \(n, 480, 4\)"):
        InverseStft(STEP, 2)(np.zeros(shape, np.float32))


def test_the_inverse_gives_the_signal_back() -> None:
    """From the second hop on, where two frames overlap; tones have nothing at the Nyquist bin."""
    time = np.arange(20 * STEP)
    audio = np.stack([np.sin(time * 0.06), np.cos(time * 0.13) * 0.5], axis=1).astype(np.float32)
    again = InverseStft(STEP, 2)(stft(audio, STEP))
    assert again.shape == audio.shape
    np.testing.assert_allclose(again[STEP:-STEP], audio[STEP:-STEP], atol=2e-6)


def test_an_unfinished_hop_goes_on_in_silence() -> None:
    audio = np.ones((STEP + 3, 1), np.float32)
    rows = stft(audio, STEP)
    assert rows.shape == (2, STEP, 2)
    filled = np.concatenate([audio, np.zeros((STEP - 3, 1), np.float32)])
    np.testing.assert_array_equal(rows, stft(filled, STEP))
    with pytest.raises(InputError, match=r"expected \(samples, channels\)"):
        stft(audio[:, 0], STEP)
