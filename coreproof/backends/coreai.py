"""The Stage's torch module through Apple's Core AI: a second opinion on the graph, on Linux too.

``coreai-torch`` converts what ``torch.export`` makes of the module, and the runtime in ``coreai-core``
runs that: another converter and another interpreter than ours, both of Apple's, both beta. It reads no
Core ML package, so it says nothing of one; its two conversions of one module are not the same bytes,
so nothing of it is kept.
"""

from __future__ import annotations

import asyncio
import io
import os
import tempfile
import warnings
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from coreproof.backends.base import Target, require_given
from coreproof.convert.recipe import NUMPY, Stage
from coreproof.errors import BackendError
from coreproof.toolchain import installed


def absent() -> str | None:
    missing = [name for name in ("coreai-core", "coreai-torch") if installed(name) is None]
    if missing or find_spec("coreai") is None or find_spec("coreai_torch") is None:
        return f"Apple's {' and '.join(missing) or 'coreai'} (beta) is not installed: pip install 'coreproof[coreai]'"
    return None


class Runner:
    """A state is one array for each buffer that the Stage names as a state."""

    name = "coreai"

    def __init__(self) -> None:
        self._stage: Stage | None = None
        self._function: Any = None
        self._executable: Any = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def load(self, target: Target) -> None:
        if target.stage is None or target.checkpoint is None:
            raise BackendError("backend 'coreai' converts the Stage's module: it needs --checkpoint")
        self.close()
        module = target.stage.module(target.checkpoint).eval()
        self._folder = tempfile.TemporaryDirectory(prefix="coreproof-coreai-")
        self._loop = asyncio.new_event_loop()
        try:
            with _quiet():
                asset = _program(target.stage, module).save_asset(Path(self._folder.name, "stage.aimodel"))
                self._executable = asset.executable()
                self._function = self._wait(self._executable.__aenter__()).load_function("main")
        except Exception as error:  # either library raises what it likes
            self.close()
            reason = str(error).strip().partition("\n")[0]
            raise BackendError(
                f"Core AI could not take stage {target.stage.name!r}: {type(error).__name__}: {reason}"
            ) from error
        self._stage = target.stage

    def predict(
        self, inputs: Mapping[str, np.ndarray], state: dict[str, Any] | None = None
    ) -> dict[str, np.ndarray]:
        stage = self._loaded()
        from coreai.runtime import NDArray

        require_given(stage, inputs, state)
        given = {s.name: NDArray(_as_module_takes(inputs[s.name])) for s in stage.inputs}
        try:
            found = self._wait(self._function(given, state or {}))
        except RuntimeError as error:
            raise BackendError(f"Core AI could not predict: {error}") from None
        return {o.name: np.array(found[o.name].numpy()).astype(NUMPY[o.dtype]) for o in stage.outputs}

    def make_state(self) -> dict[str, Any] | None:
        states = self._loaded().states
        from coreai.runtime import NDArray

        return {s.name: NDArray(np.zeros(s.shape, np.float32)) for s in states} or None

    def close(self) -> None:
        self._stage = self._function = None
        if self._executable is not None:
            self._wait(self._executable.__aexit__(None, None, None))
            self._executable = None
        if self._loop is not None:
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()
            self._loop = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        assert self._loop is not None
        return self._loop.run_until_complete(work)

    def _loaded(self) -> Stage:
        if self._stage is None:
            raise BackendError("backend 'coreai' has no stage loaded; call load(target) first")
        return self._stage


def _program(stage: Stage, module: Any) -> Any:
    """Core AI's program of a torch module, with the Stage's names."""
    import torch
    from coreai_torch import TorchConverter, get_decomp_table
    from torch._decomp import get_decompositions

    zeros = tuple(
        torch.zeros(i.shape, dtype=torch.int32 if i.dtype == "int32" else torch.float32) for i in stage.inputs
    )
    table = {**get_decompositions([torch.ops.aten.elu]), **get_decomp_table()}  # 0.4.3 lowers no elu
    with torch.no_grad():
        exported = torch.export.export(module, zeros).run_decompositions(table)
    changed = set(exported.graph_signature.buffers_to_mutate.values())
    kept = [b for b in exported.graph_signature.inputs_to_buffers.values() if b in changed]
    if sorted(kept) != sorted(s.name for s in stage.states):
        raise BackendError(
            f"the module changes the buffers {kept}, the Stage names {[s.name for s in stage.states]}"
        )
    converter = TorchConverter(mode=TorchConverter.Mode.RELEASE).add_exported_program(
        exported,
        input_names=[i.name for i in stage.inputs],
        output_names=[o.name for o in stage.outputs],
        state_names=kept,
    )
    return converter.to_coreai()


def _as_module_takes(array: np.ndarray) -> np.ndarray:
    """Contiguous, and float32 where it is floating: as the torch module is converted."""
    return np.ascontiguousarray(array, np.float32 if array.dtype.kind == "f" else array.dtype)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars that the converter prints, and what the runtime writes to descriptor 2 on its own."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
