"""Gumbel noise that every host can make alike: SplitMix64, integers until the last step."""

from __future__ import annotations

import numpy as np

from coreproof.errors import InputError

_INCREMENT = 0x9E3779B97F4A7C15
_LEAST = 1e-7  # keeps the logarithm of zero out
_WORD = 1 << 64


class GumbelNoise:
    """A stream of standard Gumbel numbers, ``-ln(-ln u)``, u the upper 24 bits of a SplitMix64 draw.

    ``seed``: 0 to 2**64 - 1; 0 is replaced by the generator's increment. The logarithms are taken in
    float64 and rounded once. Sources: Steele, Lea and Flood 2014, "Fast splittable pseudorandom
    number generators", for the generator; Gumbel 1954 for the transform.

    Raises InputError for a seed out of range.
    """

    def __init__(self, seed: int) -> None:
        if not 0 <= seed < _WORD:
            raise InputError(f"seed {seed}: expected 0 to {_WORD - 1}")
        self._state = seed or _INCREMENT

    def draw(self, *shape: int) -> np.ndarray:
        """The next numbers, float32 of ``shape``, the last axis fastest."""
        count = int(np.prod(shape))
        with np.errstate(over="ignore"):
            steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_INCREMENT)
            bits = _mixed(steps + np.uint64(self._state))
        self._state = (self._state + count * _INCREMENT) % _WORD
        uniform = np.maximum((bits >> np.uint64(40)).astype(np.float64) / (1 << 24), _LEAST)
        gumbel: np.ndarray = -np.log(-np.log(uniform))
        return gumbel.astype(np.float32).reshape(shape)


def _mixed(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = z ^ (z >> np.uint64(31))
    return mixed
