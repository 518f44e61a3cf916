"""One sound made with several values of an option: what each costs and how far from the last one it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coreproof.audio.sound import Report, Sound
from coreproof.errors import InputError
from coreproof.jsonio import json_number
from coreproof.parity.metrics import METRICS

COMPARED = ("snr_db", "pearson_correlation", "log_mel_correlation")
SEED = "seed"  # the setting that all sounds of a sweep share


@dataclass(frozen=True, slots=True)
class Row:
    """``seconds``: of all stages together. ``metrics``: COMPARED, of the samples against the last sound's.
    ``shared``: the seed in words, empty for a pipeline that names none."""

    value: str
    seconds: float
    metrics: Mapping[str, float]
    shared: str

    def to_json(self) -> dict[str, object]:
        numbers = {name: json_number(value) for name, value in self.metrics.items()}
        return {"value": self.value, "seconds": self.seconds, **numbers}


def sweep(
    make: Callable[[Mapping[str, str], Report], Sound],
    options: Mapping[str, str],
    name: str,
    values: Sequence[str],
    report: Report,
) -> list[Row]:
    """A row for each of ``values`` of the option ``name``. ``make(options, report)`` makes a sound; the seed
    that the first one names is every one's.

    Raises InputError when the sounds differ in length or rate, and what ``make`` raises.
    """
    sounds: list[Sound] = []
    chosen = dict(options)
    for value in values:
        sounds.append(make({**chosen, name: value}, report))
        if SEED in sounds[0].settings and name != SEED:
            chosen.setdefault(SEED, str(sounds[0].settings[SEED]))
    last = sounds[-1]
    if any(s.samples.shape != last.samples.shape or s.sample_rate != last.sample_rate for s in sounds):
        raise InputError(f"sounds of {name} {', '.join(values)} differ in length or rate; nothing to compare")
    shared = f"{SEED} {chosen[SEED]}" if SEED in chosen else ""
    return [
        Row(value, sum(map(sum, sound.seconds.values())), _against(sound, last), shared)
        for value, sound in zip(values, sounds, strict=True)
    ]


def _against(sound: Sound, last: Sound) -> dict[str, float]:
    one, other = (np.ascontiguousarray(s.samples.T) for s in (sound, last))
    return {name: METRICS[name].fn(one / 32768, other / 32768, last.sample_rate) for name in COMPARED}
