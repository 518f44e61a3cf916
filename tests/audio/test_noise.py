"""Gumbel noise by SplitMix64."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from coreproof.audio.noise import GumbelNoise, _mixed
from coreproof.errors import InputError


def test_the_generator_is_splitmix64() -> None:
    """The first outputs for seed 1234567, as the generator's public test vectors list them."""
    increment = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + i * increment) % 2**64 for i in range(1, 4)], np.uint64)
    assert _mixed(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_draws_are_one_stream() -> None:
    whole, parts = GumbelNoise(5), GumbelNoise(5)
    joined = np.concatenate([parts.draw(3).ravel(), parts.draw(2, 2).ravel()])
    np.testing.assert_array_equal(whole.draw(7), joined)
    assert joined.dtype == np.float32


def test_the_distribution_is_gumbel() -> None:
    assert stats.kstest(GumbelNoise(9).draw(50_000), stats.gumbel_r.cdf).pvalue > 0.01


def test_seed_zero_is_the_increment() -> None:
    np.testing.assert_array_equal(GumbelNoise(0).draw(4), GumbelNoise(0x9E3779B97F4A7C15).draw(4))


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_another_seed_is_refused(seed: int) -> None:
    with pytest.raises(InputError, match="expected 0 to 18446744073709551615"):
        GumbelNoise(seed)
