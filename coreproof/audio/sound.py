"""What a model's pipeline hands back: sound, and how long each stage took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Sound:
    """``samples``: int16 (samples, channels) at ``sample_rate`` Hz. ``seconds``: for each stage the
    seconds of each of its runs. ``budget``: seconds that all stages together may take a run to keep up
    with the sound, None for a model that does not stream."""

    samples: np.ndarray
    sample_rate: int
    seconds: Mapping[str, Sequence[float]]
    budget: float | None = None
