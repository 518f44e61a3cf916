"""The harmonic source on the host, in float64: what upstream's SineGen and SourceModuleHnNSF compute.

Upstream draws a phase for each overtone at the first sample; its resampling reads only samples 149 and 150 of
each block of 300, so that phase never reaches the output, and there is none here. Its remainder by one turn a
sample is an identity from 0 to 2,667 Hz; below 0, where F0 is unvoiced, it shifts the end of the frame before by
half a turn.
"""

from __future__ import annotations

import numpy as np

from coreproof.convert.checkpoint import Checkpoint
from coreproof.errors import InputError
from coreproof_exporters.styletts2.architecture import (
    F0_FRAME,
    HARMONICS,
    SAMPLE_RATE,
    SINE_AMPLITUDE,
    VOICED,
    VOICED_NOISE,
)

NOISE_PERIOD = SAMPLE_RATE  # samples of the noise inside the compatibility layout's decoder
_FIXED_SEED = 24_000
_PLACE = "decoder.generator.m_source.l_linear"


def turns(f0: np.ndarray) -> np.ndarray:
    """Phase in turns, float64 (samples, 9), of F0 in Hz (T2,), linear between the middles of its frames."""
    cycles = f0.astype(np.float64)[:, np.newaxis] * np.arange(1, HARMONICS + 1) / SAMPLE_RATE
    steps = F0_FRAME * np.mod(cycles, 1.0)
    sums = np.cumsum(steps, axis=0)
    first = np.concatenate([sums[:1], sums])
    slope = np.concatenate([np.zeros((1, HARMONICS)), steps[1:], np.zeros((1, HARMONICS))])
    places = (np.arange(F0_FRAME) + 0.5) / F0_FRAME
    spans = first[:, np.newaxis] + slope[:, np.newaxis] * places[:, np.newaxis]
    half = F0_FRAME // 2
    whole: np.ndarray = spans.reshape(-1, HARMONICS)[half:-half]
    return whole


def source(f0: np.ndarray, noise: np.ndarray, weight: np.ndarray, bias: float) -> np.ndarray:
    """The source float32 (300 T2,) of F0 in Hz (T2,), standard normal ``noise`` (300 T2, 9), and the
    ``weight`` (9,) and ``bias`` that merge the harmonics. Raises InputError for noise of another shape."""
    if f0.ndim != 1 or noise.shape != (F0_FRAME * len(f0), HARMONICS):
        raise InputError(
            f"noise {noise.shape} for F0 {f0.shape}; expected ({F0_FRAME} samples a frame, {HARMONICS})"
        )
    sines = np.sin(2 * np.pi * turns(f0)) * SINE_AMPLITUDE
    voiced = np.repeat(f0 > VOICED, F0_FRAME)[:, np.newaxis]
    level = np.where(voiced, VOICED_NOISE, SINE_AMPLITUDE / 3)
    merged = (sines * voiced + level * noise) @ weight.astype(np.float64) + bias
    heard: np.ndarray = np.tanh(merged).astype(np.float32)
    return heard


def mixed(noise: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Noise (samples, 9) summed with the harmonics' weights, float32 (samples,): the input of a decoder
    that has the source inside."""
    summed: np.ndarray = (noise.astype(np.float64) @ weight.astype(np.float64)).astype(np.float32)
    return summed


def fixed_noise() -> np.ndarray:
    """Noise of deviation 1, float64 (24000,), that a decoder without a noise input repeats: sums of twelve
    uniform integers, the same on every CPU."""
    generator = np.random.Generator(np.random.PCG64(_FIXED_SEED))
    uniform = generator.integers(0, 1 << 16, size=(12, NOISE_PERIOD), dtype=np.uint16)
    summed: np.ndarray = (uniform.sum(axis=0, dtype=np.int64) - 6 * ((1 << 16) - 1)) / (1 << 16)
    return summed


def weights_of(checkpoint: Checkpoint) -> tuple[np.ndarray, float]:
    """The weight float64 (9,) and bias that merge the harmonics."""
    weight = checkpoint.tensors[f"{_PLACE}.weight"].astype(np.float64).reshape(-1)
    return weight, float(checkpoint.tensors[f"{_PLACE}.bias"][0])
