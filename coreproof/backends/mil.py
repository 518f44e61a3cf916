"""The package through coreproof's own runtime, on any machine."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from coreproof.backends.base import Target
from coreproof.errors import BackendError
from coreproof.runtime.model import Model, load
from coreproof.runtime.state import State


def absent() -> str | None:
    return None


class Runner:
    name = "mil"

    def __init__(self) -> None:
        self._model: Model | None = None

    def load(self, target: Target) -> None:
        self._model = load(target.package, target.mode, target.function_name)

    def predict(self, inputs: Mapping[str, np.ndarray], state: State | None = None) -> dict[str, np.ndarray]:
        return self._loaded().predict(inputs, state)

    def make_state(self) -> State | None:
        model = self._loaded()
        return model.make_state() if model.contract.states else None

    def close(self) -> None:
        self._model = None

    def _loaded(self) -> Model:
        if self._model is None:
            raise BackendError("backend 'mil' has no package loaded; call load(target) first")
        return self._model
