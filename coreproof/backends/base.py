"""What a backend is: one way to run a stage's package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.recipe import Stage
from coreproof.errors import InputError


@dataclass(frozen=True, slots=True)
class Target:
    """What to run. ``mode`` is the numeric mode of the ``mil`` backend. ``stage`` and
    ``checkpoint`` are what backends need that run the Stage's module instead of its package."""

    package: Path
    mode: str = "typed"
    function_name: str | None = None
    stage: Stage | None = None
    checkpoint: Checkpoint | None = None


class Backend(Protocol):
    """Runs one target at a time: ``load``, then ``predict`` as often as wanted, then ``close``."""

    name: str

    def load(self, target: Target) -> None:
        """Open ``target``. Raises BackendError or a PackageError."""

    def predict(self, inputs: Mapping[str, np.ndarray], state: Any = None) -> dict[str, np.ndarray]:
        """One prediction: arrays by feature name, outputs in the contract's dtypes."""

    def make_state(self) -> Any:
        """Fresh state for one stream, None for a stateless target."""

    def close(self) -> None:
        """Drop the target."""


def require_given(stage: Stage, inputs: Mapping[str, np.ndarray], state: object) -> None:
    """Raise InputError when an input of ``stage`` is missing, or ``state`` is where the stage has states."""
    missing = [s.name for s in stage.inputs if s.name not in inputs]
    if missing:
        raise InputError(f"missing input {missing[0]!r}; stage {stage.name!r} takes it")
    if stage.states and state is None:
        raise InputError(f"stage {stage.name!r} is stateful: pass state=make_state()")
