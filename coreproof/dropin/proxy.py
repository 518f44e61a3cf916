"""The module ``coremltools.libcoremlpython`` over coreproof's runtime.

Names, signatures and error types are those of coremltools 9.0, ``coremlpython/CoreMLPython.mm``:
everything that goes wrong is a RuntimeError. What only Apple's framework knows (compute plans,
placement, devices, timing) raises one that says so.
"""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import numpy as np

from coreproof.dropin.coercion import to_caller, to_features, to_state, widened
from coreproof.dropin.compiled import compile_package, from_memory, is_compiled, spec_of
from coreproof.errors import CoreproofError
from coreproof.mil.contract import Feature
from coreproof.package.reader import open_package
from coreproof.runtime.model import Model, load
from coreproof.runtime.state import State

NAME = "coremltools.libcoremlpython"
NEWEST_SPECIFICATION = 10  # iOS 26, the newest that coremltools 9.0 writes


class _MLModelAssetProxy:
    """A compiled model; a temporary one is deleted with this object."""

    def __init__(self, path: str, *, temporary: bool = False) -> None:
        self.path = path
        if temporary:
            weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)


class _State:
    """What coremltools' ``MLState`` wraps."""

    def __init__(self, state: State, features: tuple[Feature, ...]) -> None:
        self.state = state
        self.features = features

    def read_state(self, name: str) -> np.ndarray:
        """A copy of the buffer, float32 where it is float16. Raises RuntimeError for an unknown name."""
        with _runtime_errors():
            return widened(self.state.read_state(name))

    def write_state(self, name: str, value: Any) -> None:
        """Replace the buffer. Raises RuntimeError for an unknown name, what is no array of rank 1 or
        more, a dtype the bridge cannot convert (float16 is one) and another shape."""
        array = to_state(name, value)
        with _runtime_errors(), np.errstate(over="ignore", invalid="ignore"):
            self.state.write_state(name, array)


class _MLModelProxy:
    """A loaded model. ``mode`` is the numeric mode of the models loaded from then on."""

    mode = "typed"

    def __init__(
        self,
        path: str,
        compute_units: str,
        function_name: str,
        optimization_hints: Mapping[str, str],
        asset: _MLModelAssetProxy | None = None,
    ) -> None:
        self._path = path if asset is None else asset.path
        self._asset = asset
        with _runtime_errors("" if is_compiled(self._path) else "Error compiling model: "):
            self._model: Model = load(spec_of(self._path), self.mode, function_name or None)

    def predict(self, inputs: Mapping[str, Any], state: _State | None = None) -> dict[str, Any]:
        """One prediction. Raises RuntimeError for inputs or a state that do not fit, and for an op
        that failed."""
        contract = self._model.contract
        self._check_state(state)
        features = to_features(inputs, contract.inputs)
        with _runtime_errors("Unable to compute the prediction using ML Program: "):
            outputs = self._model.predict(features, state.state if state else None)
        return {f.name: to_caller(outputs[f.name], f) for f in contract.outputs}

    def batchPredict(self, batch: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The predictions for each of ``batch``, in order. Raises as :meth:`predict`, first for inputs
        of any element that do not fit."""
        for inputs in batch:
            to_features(inputs, self._model.contract.inputs)
        return [self.predict(inputs) for inputs in batch]

    def newState(self) -> _State:
        """Fresh buffers, all zero."""
        return _State(self._model.make_state(), self._model.contract.states)

    def get_compiled_model_path(self) -> str:
        """Where the compiled model lies: the path it was loaded from, or a folder that is deleted with
        this object."""
        if not is_compiled(self._path):
            with _runtime_errors():
                compiled = compile_package(Path(self._path))
            self._asset = _MLModelAssetProxy(str(compiled), temporary=True)
            self._path = self._asset.path
        return self._path

    def get_load_duration_in_nano_seconds(self) -> NoReturn:
        _absent("load durations")

    def get_last_predict_duration_in_nano_seconds(self) -> NoReturn:
        _absent("prediction durations")

    @staticmethod
    def maximum_supported_specification_version() -> int:
        return NEWEST_SPECIFICATION

    @staticmethod
    def auto_set_specification_version(spec: bytes) -> NoReturn:
        _absent("the oldest specification version that a model can do with")

    @staticmethod
    def compileModel(path: str) -> str:
        """Compile the package or specification at ``path`` into a temporary folder, and return that."""
        with _runtime_errors():
            return str(compile_package(Path(path)))

    @staticmethod
    def create_model_asset_from_path(path: str) -> Any:
        """coremltools' ``MLModelAsset`` of the compiled model at ``path``."""
        with _runtime_errors():
            open_package(spec_of(path))
        return _asset(_MLModelAssetProxy(path))

    @staticmethod
    def create_model_asset_from_memory(spec: bytes, blobs: Mapping[str, bytes]) -> Any:
        """coremltools' ``MLModelAsset`` of a specification and its weight files by path."""
        with _runtime_errors():
            compiled = from_memory(spec, blobs)
        return _asset(_MLModelAssetProxy(str(compiled), temporary=True))

    @staticmethod
    def get_model_structure(path: str) -> NoReturn:
        _absent("model structures")

    @staticmethod
    def get_compute_plan(path: str, compute_units: str) -> NoReturn:
        _absent("compute plans")

    @staticmethod
    def get_available_compute_devices() -> NoReturn:
        _absent("compute devices")

    @staticmethod
    def get_all_compute_devices() -> NoReturn:
        _absent("compute devices")

    def _check_state(self, state: _State | None) -> None:
        if state is not None and not isinstance(state, _State):
            raise TypeError(f"state is a {type(state).__name__}, expected what make_state() returned")
        held = {f.name: f.shape for f in state.features} if state else {}
        for feature in self._model.contract.states:
            if held.get(feature.name) != feature.shape:
                raise RuntimeError(
                    f"The input feature for {feature.name} must be an MLState, but it was not: pass "
                    f"state=model.make_state() of a model with a state {feature.name!r} of shape {feature.shape_text}"
                )


# Classes that exist so that coremltools and what imports from it load; nothing can be made of them.
_UNAVAILABLE = {
    "_MLCPUComputeDeviceProxy": "compute devices",
    "_MLGPUComputeDeviceProxy": "compute devices",
    "_MLNeuralEngineComputeDeviceProxy": "compute devices",
    "_MLComputePlanProxy": "compute plans",
    "_MLModelStructureProgramOperationProxy": "model structures",
    "_MLModelStructureNeuralNetworkLayerProxy": "model structures",
}


def native_module() -> ModuleType:
    """A new ``coremltools.libcoremlpython``, with every class that the native one has."""
    module = ModuleType(NAME, "Core ML's Python bridge, played by coreproof.")
    for cls in (_MLModelProxy, _MLModelAssetProxy, _State):
        setattr(module, cls.__name__, cls)
    for name, what in _UNAVAILABLE.items():
        setattr(module, name, type(name, (), {"__init__": _refusal(what)}))
    return module


def _refusal(what: str) -> Callable[..., NoReturn]:
    def refuse(self: object, *arguments: object, **named: object) -> NoReturn:
        _absent(what)

    return refuse


def _absent(what: str) -> NoReturn:
    raise RuntimeError(
        f"{what} come from Apple's Core ML framework and hardware, which this machine lacks: coreproof runs the "
        "program's mathematics and knows nothing of devices; use a Mac"
    )


def _asset(proxy: _MLModelAssetProxy) -> Any:
    from coremltools.models.model import MLModelAsset

    return MLModelAsset(proxy)


@contextmanager
def _runtime_errors(prefix: str = "") -> Iterator[None]:
    """Inside the block coreproof's errors become RuntimeErrors, the only ones the bridge raises."""
    try:
        yield
    except CoreproofError as error:
        raise RuntimeError(f"{prefix}{error}") from error
