"""A sweep over an option, on sounds made here."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from coreproof.audio.sound import Report, Sound, quiet
from coreproof.audio.sweep import sweep
from coreproof.errors import InputError

RATE = 8000


def tone(options: Mapping[str, str], _: Report) -> Sound:
    """A tone with noise of the seed, the less the more steps."""
    seed = int(options.get("seed", "7"))
    noise = np.random.default_rng(seed).standard_normal((RATE, 2)) / int(options["steps"])
    wave = np.sin(np.arange(RATE) / 9)[:, np.newaxis] + noise
    samples = (6000 * wave).astype(np.int16)
    return Sound(samples, RATE, {"a": [0.5, 0.25], "b": [1.0]}, settings={"seed": seed})


def test_rows_tell_time_and_distance_from_the_last() -> None:
    rows = sweep(tone, {}, "steps", ["2", "8", "32"], quiet)
    assert [row.value for row in rows] == ["2", "8", "32"]
    assert [row.seconds for row in rows] == [1.75] * 3
    snr = [row.metrics["snr_db"] for row in rows]
    assert snr[0] < snr[1] < 30
    assert np.isinf(snr[2])
    assert rows[0].shared == "seed 7"
    assert rows[2].to_json()["pearson_correlation"] == pytest.approx(1.0)


def test_the_first_sound_s_seed_is_every_one_s() -> None:
    seen = []

    def make(options: Mapping[str, str], report: Report) -> Sound:
        seen.append(options.get("seed"))
        return tone(options, report)

    sweep(make, {}, "steps", ["2", "3", "4"], quiet)
    assert seen == [None, "7", "7"]


def test_sounds_of_other_lengths_are_refused() -> None:
    def make(options: Mapping[str, str], _: Report) -> Sound:
        return Sound(np.zeros((int(options["steps"]), 2), np.int16), RATE, {})

    with pytest.raises(InputError, match="differ in length"):
        sweep(make, {}, "steps", ["2", "3"], quiet)
