"""Style samplers on the host: upstream's stochastic one, and the one of a published Core ML port."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np

SIGMA_MIN, SIGMA_MAX, RHO = 1e-4, 3.0, 9.0  # upstream's inference
STEPS = 5

Denoise = Callable[[np.ndarray, float], np.ndarray]
Draw = Callable[[], np.ndarray]


def karras(steps: int) -> np.ndarray:
    """Noise levels from 3 to 1e-4, float32 (steps,): Karras et al. 2022, arXiv:2206.00364, equation 5."""
    high, low = SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO)
    levels: np.ndarray = ((high + np.arange(steps) / (steps - 1) * (low - high)) ** RHO).astype(np.float32)
    return levels


def adpm2(denoise: Denoise, noise: np.ndarray, draw: Draw, steps: int = STEPS) -> np.ndarray:
    """Upstream's ``ADPM2Sampler`` with rho 1: two evaluations and one draw in each of ``steps - 1`` rounds.

    ``noise`` and each draw are standard normal (1, 1, 256); ``denoise(x, sigma)`` gives the denoised x.
    """
    levels = [float(level) for level in karras(steps)]
    x = levels[0] * noise
    for sigma, following in pairwise(levels):
        up = math.sqrt(following**2 * (sigma**2 - following**2) / sigma**2)
        down = math.sqrt(following**2 - up**2)
        middle = (sigma + down) / 2
        slope = (x - denoise(x, sigma)) / sigma
        half = x + slope * (middle - sigma)
        slope = (half - denoise(half, middle)) / middle
        x = x + slope * (down - sigma) + draw() * up
    return x


def dpm2(denoise: Denoise, noise: np.ndarray, steps: int = STEPS) -> np.ndarray:
    """The sampler of FluidInference's driver: deterministic, with the geometric mean of two levels as the
    middle, and a last step to zero: 2 (steps - 1) + 1 evaluations. It draws other styles than upstream."""
    levels = [float(level) for level in karras(steps)]
    x = levels[0] * noise
    for sigma, following in pairwise(levels):
        middle = math.sqrt(sigma * following)
        slope = (x - denoise(x, sigma)) / sigma
        half = x + slope * (middle - sigma)
        x = x + (half - denoise(half, middle)) / middle * (following - sigma)
    return denoise(x, levels[-1])
