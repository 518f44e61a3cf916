"""The flow-matching schedule against diffusers' own, and guidance by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from coreproof.audio.flow import FlowMatchEuler, guided
from coreproof.errors import InputError


@pytest.mark.parametrize("steps", [1, 3, 10, 15, 25, 50])
def test_schedule_and_steps_are_those_of_diffusers(steps: int) -> None:
    official = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    official.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps))
    schedule = FlowMatchEuler(steps)
    assert len(schedule) == steps
    np.testing.assert_array_equal(schedule.sigmas, official.sigmas.numpy())
    generator = np.random.default_rng(steps)
    sample = generator.standard_normal((1, 7, 3), np.float32)
    expected = torch.from_numpy(sample)
    for index, time in enumerate(official.timesteps):
        velocity = generator.standard_normal(sample.shape, np.float32)
        assert schedule.timesteps[index] == (time / 1000).item()
        sample = schedule.step(index, sample, velocity)
        expected = official.step(torch.from_numpy(velocity), time, expected).prev_sample
        np.testing.assert_array_equal(sample, expected.numpy())
    assert sample.dtype == np.float32


@pytest.mark.parametrize("steps", [0, -1, 10_001])
def test_another_number_of_steps_is_refused(steps: int) -> None:
    with pytest.raises(InputError, match="expected 1 to"):
        FlowMatchEuler(steps)


def test_guidance_starts_from_the_unconditional_half() -> None:
    both = np.array([[[1.0, 2.0]], [[3.0, -2.0]]], np.float32)
    np.testing.assert_array_equal(guided(both, 4.5), [[[10.0, -16.0]]])
    np.testing.assert_array_equal(guided(both, 1.0), both[1:])
    np.testing.assert_array_equal(guided(both, 0.0), both[:1])
