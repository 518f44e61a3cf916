"""The short-time Fourier transform of a waveform, and its inverse for a stream."""

from __future__ import annotations

import numpy as np

from coreproof.errors import InputError


def periodic_hann(step: int) -> np.ndarray:
    """The analysis window of ``2 * step`` samples, float64: 0 first, 1 in the middle, never 0 last."""
    window: np.ndarray = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(2 * step) / (2 * step))
    return window


def dual_window(step: int) -> np.ndarray:
    """The synthesis window that undoes a periodic Hann analysis window of ``2 * step`` samples at hop
    ``step``: w / (w**2 + w**2 a hop away), float64 [2 * step].

    With plain Hann instead, overlap-add does not give the signal back. Source: Griffin and Lim 1984,
    "Signal estimation from modified short-time Fourier transform", equation 6.
    """
    window = periodic_hann(step)
    dual: np.ndarray = window / (window**2 + np.roll(window, step) ** 2)
    return dual


def stft(audio: np.ndarray, step: int) -> np.ndarray:
    """Spectra float32 (n, step, 2 * channels) of ``audio`` (samples, channels) at half overlap, the real
    and then the imaginary part of each channel in the last axis; the Nyquist bin is left out.

    Row i covers the samples from i * step on, 2 * step of them, and n = samples / step, rounded up: the
    waveform goes on in silence. Computed in float64. Raises InputError for another number of axes.
    """
    if audio.ndim != 2:
        raise InputError(f"audio of shape {audio.shape}; expected (samples, channels)")
    count = -(-len(audio) // step)
    padded = np.zeros(((count + 1) * step, audio.shape[1]))
    padded[: len(audio)] = audio
    halves = padded.reshape(count + 1, step, -1)
    frames = np.concatenate([halves[:-1], halves[1:]], axis=1) * periodic_hann(step)[:, np.newaxis]
    spectra = np.fft.rfft(frames, axis=1)[:, :step]  # (n, step, channels)
    parts = np.stack([spectra.real, spectra.imag], axis=-1)
    return parts.reshape(count, step, 2 * audio.shape[1]).astype(np.float32)


class InverseStft:
    """Overlap-add of a stream of spectra at half overlap, with one hop of memory a channel.

    ``step``: hop in samples; frames and transforms are twice that long. The Nyquist bin, which the
    spectra lack, counts as zero, and so does the imaginary part of bin 0.
    """

    def __init__(self, step: int, channels: int) -> None:
        self._window = dual_window(step)[:, np.newaxis]
        self._tail = np.zeros((step, channels))
        self.step = step
        self.channels = channels

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Audio float32 (n * step, channels) of ``rows`` (n, step, 2 * channels), the real and then the
        imaginary part of each channel in the last axis. Computed in float64.

        Raises InputError for another shape.
        """
        if rows.ndim != 3 or rows.shape[1:] != (self.step, 2 * self.channels):
            raise InputError(
                f"spectra of shape {rows.shape}; expected (n, {self.step}, {2 * self.channels}): bins without "
                "Nyquist, then real and imaginary part of each channel"
            )
        spectra = rows[..., 0::2].astype(np.float64) + 1j * rows[..., 1::2]
        frames = np.fft.irfft(spectra, 2 * self.step, axis=1) * self._window  # irfft pads the Nyquist bin
        begun = np.concatenate([self._tail[np.newaxis], frames[:, self.step :]])
        audio = frames[:, : self.step] + begun[:-1]
        self._tail = begun[-1]
        return audio.reshape(-1, self.channels).astype(np.float32)
