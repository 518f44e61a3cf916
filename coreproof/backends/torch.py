"""The Stage's torch module, eager, in float32: what the conversion started from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from coreproof.backends.base import Target, require_given
from coreproof.convert.recipe import NUMPY, Stage
from coreproof.errors import BackendError


def absent() -> str | None:
    return None


class Runner:
    """A state is a copy of the module's buffers that the Stage names as states."""

    name = "torch"

    def __init__(self) -> None:
        self._module: Any = None
        self._stage: Stage | None = None

    def load(self, target: Target) -> None:
        if target.stage is None or target.checkpoint is None:
            raise BackendError("backend 'torch' runs the Stage's module: it needs --checkpoint")
        self._stage = target.stage
        self._module = target.stage.module(target.checkpoint).eval()

    def predict(
        self, inputs: Mapping[str, np.ndarray], state: dict[str, Any] | None = None
    ) -> dict[str, np.ndarray]:
        import torch

        stage = self._loaded()
        require_given(stage, inputs, state)
        arguments = []
        for spec in stage.inputs:
            tensor = torch.from_numpy(np.array(inputs[spec.name]))
            arguments.append(tensor.float() if tensor.is_floating_point() else tensor)
        buffers = dict(self._module.named_buffers())
        with torch.no_grad():
            for name, value in (state or {}).items():
                buffers[name].copy_(value)
            results = self._module(*arguments)
            for name in state or {}:
                state[name] = buffers[name].clone()  # type: ignore[index]
        results = results if isinstance(results, tuple) else (results,)
        return {o.name: r.numpy().astype(NUMPY[o.dtype]) for o, r in zip(stage.outputs, results, strict=True)}

    def make_state(self) -> dict[str, Any] | None:
        import torch

        states = self._loaded().states
        return {s.name: torch.zeros(s.shape) for s in states} or None

    def close(self) -> None:
        self._module = self._stage = None

    def _loaded(self) -> Stage:
        if self._stage is None:
            raise BackendError("backend 'torch' has no stage loaded; call load(target) first")
        return self._stage
