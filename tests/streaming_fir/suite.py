"""Cases, excitation and planted defects of the streaming filter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.recipe import Stage
from coreproof.parity.defects import plant_nan
from coreproof.parity.suite import Arrays, Case, Control, Suite

RATE = 16000


def cases(arrays: Arrays) -> Iterable[Case]:
    steps = [{"audio": chunk.reshape(1, 1, -1)} for chunk in arrays["audio"].reshape(-1, 320)]
    yield Case("noise", "filter", steps, {"filtered": arrays["filtered"].reshape(len(steps), 1, 1, -1)}, RATE)


def excitations(arrays: Arrays) -> Mapping[str, float]:
    whole, without = arrays["filtered"].astype(np.float64), arrays["without_history"]
    return {"history": float(np.linalg.norm(whole - without) / np.linalg.norm(whole))}


def forget(stage: Stage, _: Checkpoint) -> Stage:
    from .modules import Forgetful, build

    return replace(stage, module=partial(build, kind=Forgetful))


SUITE = Suite(
    "streaming_fir",
    cases,
    excitations,
    controls=(
        Control("forgetful", "the state is cleared after every chunk", stage=forget),
        Control("nan_weight", "one tap is NaN", package=partial(plant_nan, weight="taps*")),
    ),
)
