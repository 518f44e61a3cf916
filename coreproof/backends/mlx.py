"""A Stage's own MLX program, in float32: a second opinion on other kernels, beside the gates' reference.

A recipe writes such a program for the stages where it is quick enough (``Stage.mlx``). MLX runs on
Apple silicon's GPU, and on the CPU elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from coreproof.backends.base import Target, require_given
from coreproof.convert.recipe import NUMPY, Stage
from coreproof.errors import BackendError, InputError


def absent() -> str | None:
    try:
        import mlx.core  # noqa: F401
    except ImportError as error:
        return f"MLX cannot be imported ({error}); pip install 'coreproof[mlx]'"
    return None


class Runner:
    """A state is a dict of MLX arrays by the names of the Stage's states, float32."""

    name = "mlx"

    def __init__(self) -> None:
        self._program: Any = None
        self._stage: Stage | None = None

    def load(self, target: Target) -> None:
        if target.stage is None or target.checkpoint is None:
            raise BackendError("backend 'mlx' runs the Stage's MLX program: it needs --checkpoint")
        if target.stage.mlx is None:
            raise BackendError(f"stage {target.stage.name!r} has no MLX program; leave it out of the build")
        self._stage = target.stage
        self._program = target.stage.mlx(target.checkpoint)

    def predict(
        self, inputs: Mapping[str, np.ndarray], state: dict[str, Any] | None = None
    ) -> dict[str, np.ndarray]:
        import mlx.core as mx

        stage = self._loaded()
        require_given(stage, inputs, state)
        given = {}
        for spec in stage.inputs:
            array = np.asarray(inputs[spec.name])
            if array.shape != spec.shape:
                raise InputError(f"input {spec.name!r} has shape {array.shape}, expected {spec.shape}")
            given[spec.name] = mx.array(array.astype(np.int32 if spec.dtype == "int32" else np.float32))
        made, after = self._program(given, dict(state or {}))
        mx.eval(made, after)
        if state is not None:
            state.update(after)
        return {o.name: np.array(made[o.name]).astype(NUMPY[o.dtype]) for o in stage.outputs}

    def make_state(self) -> dict[str, Any] | None:
        import mlx.core as mx

        return {s.name: mx.zeros(s.shape) for s in self._loaded().states} or None

    def close(self) -> None:
        self._program = self._stage = None

    def _loaded(self) -> Stage:
        if self._stage is None:
            raise BackendError("backend 'mlx' has no stage loaded; call load(target) first")
        return self._stage
