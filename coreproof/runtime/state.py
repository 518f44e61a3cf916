"""State buffers of a stateful model (iOS 18): what ``read_state`` and ``write_state`` act on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from coreproof.errors import InputError
from coreproof.mil.contract import Feature


class Slot:
    """One buffer: a tensor in its container dtype that ops replace and never write into."""

    __slots__ = ("value",)

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value


class State:
    """The buffers of one stream of predictions, zero at first, as coremltools' ``MLState``."""

    def __init__(self, features: tuple[Feature, ...], device: torch.device) -> None:
        self._features: Mapping[str, Feature] = {f.name: f for f in features}
        self._slots = {f.name: Slot(torch.zeros(f.shape, device=device)) for f in features}

    def slot(self, name: str) -> Slot:
        """The live buffer ``name``, for the engine."""
        return self._slots[self._known(name)]

    def read_state(self, name: str) -> np.ndarray:
        """A copy of buffer ``name`` in the dtype the contract declares. Raises InputError."""
        feature = self._features[self._known(name)]
        return self._slots[name].value.cpu().numpy().astype(feature.dtype)

    def write_state(self, name: str, value: np.ndarray) -> None:
        """Replace buffer ``name``, rounding to the declared dtype once. Raises InputError for an
        unknown name, another shape or what is not real numbers."""
        feature = self._features[self._known(name)]
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise InputError(f"state {name!r}: dtype {array.dtype}, expected {feature.dtype}")
        if array.shape != feature.shape:
            raise InputError(f"state {name!r}: shape {list(array.shape)}, expected {list(feature.shape)}")
        slot = self._slots[name]
        with np.errstate(over="ignore"):
            rounded = array.astype(feature.dtype)
        slot.value = torch.from_numpy(rounded.astype(np.float32)).to(slot.value.device)

    def _known(self, name: str) -> str:
        if name not in self._slots:
            raise InputError(f"no state {name!r}; the model has {', '.join(self._slots) or 'none'}")
        return name
