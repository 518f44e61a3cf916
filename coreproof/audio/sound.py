"""What a model's pipeline hands back: sound, and how long each stage took."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

Report = Callable[[str, int, int], None]  # what is being done, how much of it is done, of how much


def quiet(step: str, done: int, total: int) -> None:
    """A Report that goes nowhere."""


@dataclass(frozen=True, slots=True)
class Sound:
    """``samples``: int16 (samples, channels) at ``sample_rate`` Hz. ``seconds``: for each stage the
    seconds of each of its runs. ``budget``: seconds that all stages together may take a frame to keep up
    with the sound, None for a model that does not stream. ``frames``: the seconds of each whole frame.
    ``settings``: what makes the sound again, such as the seed; JSON values."""

    samples: np.ndarray
    sample_rate: int
    seconds: Mapping[str, Sequence[float]]
    budget: float | None = None
    frames: Sequence[float] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
