"""The package through Apple's Core ML, on a Mac, by coremltools."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from coreproof.backends.base import Target
from coreproof.convert.quiet import coremltools
from coreproof.errors import BackendError


def absent() -> str | None:
    if sys.platform != "darwin":
        return f"Core ML predicts only on macOS, this is {sys.platform}"
    return None


class Runner:
    """``compute_units`` is the Stage's when it is known, else ALL. Numbers are the device's own,
    so the numeric mode of a target is not used."""

    name = "coreml"

    def __init__(self) -> None:
        self._model: Any = None

    def load(self, target: Target) -> None:
        ct = coremltools()
        units = target.stage.compute_units if target.stage else "ALL"
        try:
            self._model = ct.models.MLModel(
                str(target.package),
                compute_units=getattr(ct.ComputeUnit, units),
                function_name=target.function_name,
            )
        except RuntimeError as error:
            raise BackendError(f"Core ML could not load {target.package.name}: {error}") from None

    def predict(self, inputs: Mapping[str, np.ndarray], state: Any = None) -> dict[str, np.ndarray]:
        try:
            return dict(self._loaded().predict(dict(inputs), state))
        except RuntimeError as error:
            raise BackendError(f"Core ML could not predict: {error}") from None

    def make_state(self) -> Any:
        model = self._loaded()
        return model.make_state() if model.get_spec().description.state else None

    def close(self) -> None:
        self._model = None

    def _loaded(self) -> Any:
        if self._model is None:
            raise BackendError("backend 'coreml' has no package loaded; call load(target) first")
        return self._model
