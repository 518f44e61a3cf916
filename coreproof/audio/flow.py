"""Sampling a flow-matching model: the schedule, Euler's step, and guidance. Everything in float32."""

from __future__ import annotations

import numpy as np

from coreproof.errors import InputError

_TRAINED_STEPS = np.float32(1000)
_MOST_STEPS = 10_000


class FlowMatchEuler:
    """Noise at sigma 1 to data at sigma 0 in ``steps`` even steps along the predicted velocity.

    ``sigmas`` float32 [steps + 1], from 1 to 0; ``timesteps`` float32 [steps], what a model is given:
    sigma, after the way to 1000 sigma and back, each rounded to float32. Source: diffusers'
    ``FlowMatchEulerDiscreteScheduler`` with its defaults (shift 1, 1000 training steps), given
    ``numpy.linspace(1, 1 / steps, steps)``.

    Raises InputError for a number of steps that is not between 1 and 10,000.
    """

    def __init__(self, steps: int) -> None:
        if not 1 <= steps <= _MOST_STEPS:
            raise InputError(f"{steps} steps; expected 1 to {_MOST_STEPS}")
        sigmas = np.linspace(1.0, 1.0 / steps, steps).astype(np.float32)
        self.sigmas = np.append(sigmas, np.float32(0))
        self.timesteps = sigmas * _TRAINED_STEPS / _TRAINED_STEPS

    def __len__(self) -> int:
        return len(self.timesteps)

    def step(self, index: int, sample: np.ndarray, velocity: np.ndarray) -> np.ndarray:
        """``sample``, float32, one step on: plus ``velocity``, noise less data, times the change of sigma."""
        moved: np.ndarray = sample + (self.sigmas[index + 1] - self.sigmas[index]) * velocity
        return moved.astype(np.float32, copy=False)


def guided(both: np.ndarray, scale: float) -> np.ndarray:
    """Classifier-free guidance, u + scale (c - u), of ``both`` (2, ...), [unconditional, conditional];
    keeps the first axis with length 1. Source: Ho and Salimans 2022, in the form diffusers uses."""
    unconditional, conditional = both[:1], both[1:]
    combined: np.ndarray = unconditional + np.float32(scale) * (conditional - unconditional)
    return combined
