"""What the host loop drives and keeps: the graphs of a build on a backend, their caches, side files."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from coreproof.backends import Backend, Target, create
from coreproof.convert.recipe import NUMPY, TensorSpec
from coreproof.errors import PackageError, UsageError
from coreproof.package.manifest import Manifest, PackageRecord
from coreproof_exporters.mrt2.architecture import STYLE, TOKEN_SHIFT, WINDOW
from coreproof_exporters.mrt2.contract import HIDDEN_SCORE

_JSON_LIMIT = 1 << 16
HOST = "host"  # the stage that every second of a frame outside the graphs belongs to


@dataclass
class Timings:
    """Seconds of each run of each stage, and of each whole frame."""

    stages: dict[str, list[float]] = field(default_factory=dict)
    frames: list[float] = field(default_factory=list)
    _inside: float = 0.0

    def run(self, stage: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = call()
        elapsed = time.perf_counter() - start
        self.stages.setdefault(stage, []).append(elapsed)
        self._inside += elapsed
        return result

    def frame(self, call: Callable[[], Any]) -> Any:
        """``call``, one whole frame; what of it no stage took is the host's."""
        self._inside = 0.0
        start = time.perf_counter()
        result = call()
        elapsed = time.perf_counter() - start
        self.frames.append(elapsed)
        self.stages.setdefault(HOST, []).append(elapsed - self._inside)
        return result


class Graph:
    """One package on a backend of its own. Inputs are cast to the contract's dtypes."""

    def __init__(self, build: Path, record: PackageRecord, backend: str) -> None:
        self.inputs = {i.name: i for i in record.contract.inputs}
        self.outputs = {o.name: o for o in record.contract.outputs}
        self._runner: Backend = create(backend)
        mode = "fp32" if record.precision.compute == "fp32" else "typed"
        self._runner.load(Target(build / record.package, mode))
        self._state = self._runner.make_state()

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        given = {n: np.asarray(a, NUMPY[self.inputs[n].dtype]) for n, a in inputs.items()}
        return self._runner.predict(given, self._state)

    def zeros(self, suffix: str) -> dict[str, np.ndarray]:
        return {n: _zeros(i) for n, i in self.inputs.items() if n.endswith(suffix)}


def _zeros(spec: TensorSpec) -> np.ndarray:
    return np.zeros(spec.shape, NUMPY[spec.dtype])


class Window:
    """Which of the 41 cached frames hold something, the newest being the last: the bias row of the temporal
    graphs."""

    def __init__(self, spec: TensorSpec) -> None:
        self.bias = _zeros(spec)
        self.bias[..., 1 : 1 + WINDOW] = HIDDEN_SCORE
        self._seen = 0

    def advance(self) -> None:
        self.bias[..., max(1, WINDOW - self._seen)] = 0.0
        self._seen += 1


class Caches:
    """The carry graph's keys and values, (1, 41, H, W) each, chronological.

    ``ring``: none is moved on. Each lies in a ring of two turns; a frame is written once in each, and what
    the graph is given is the 41 rows that end with the second. A ring of one turn, whose rows the graph
    sees in another order, is not the same thing in fp16: though nothing in the model knows positions, sums
    in another order round otherwise now and then, and of 130 frames of the small synthetic model some
    came out at 53 dB to those of chronological caches, where fp16 itself is 41 dB from exact.
    """

    def __init__(self, empty: dict[str, np.ndarray], *, ring: bool = False) -> None:
        self.tensors = empty
        self._rings = {name: np.concatenate([a, a], axis=1) for name, a in empty.items()} if ring else {}
        self._slot = 0

    def append(self, outputs: dict[str, np.ndarray]) -> None:
        """Take this frame's updates in."""
        first, second = self._slot, self._slot + WINDOW
        for name, cache in self.tensors.items():
            update = outputs[f"{name.removesuffix('_in')}_updates"]
            if (ring := self._rings.get(name)) is not None:
                ring[:, first] = ring[:, second] = update[:, 0]
                self.tensors[name] = ring[:, first + 1 : second + 1]
            else:
                self.tensors[name] = np.concatenate([cache[:, 1:], update], axis=1)
        self._slot = (first + 1) % WINDOW


def find_record(build: Path, manifest: Manifest, stage: str, variant: str) -> PackageRecord:
    """The package of ``stage`` in ``variant``. Raises UsageError when the build has none."""
    for record in manifest.packages:
        if record.stage == stage and record.variant == variant:
            return record
    raise UsageError(
        f"{build} has no stage {stage!r} of variant {variant!r}; export it, or give the other precision"
    )


def style_codes(record: PackageRecord, levels: int) -> int:
    """How many codes a style level has: from the rows of the conditioning encoder's table, of which each
    level has 7 more. Raises PackageError when the manifest names no such table."""
    rows = [w.shape[0] for w in record.weights if any(key.startswith(STYLE) for key in w.keys) and w.shape]
    codes = max(rows, default=0) // levels - TOKEN_SHIFT
    if codes < 1 or levels * (codes + TOKEN_SHIFT) not in rows:
        raise PackageError(f"{record.package}: the manifest names no style table of {levels} levels")
    return codes


def host_array(build: Path, name: str) -> np.ndarray:
    """The float32 array in ``name.bin``, shaped as ``name.json`` says. Raises PackageError."""
    data, contract = build / f"{name}.bin", build / f"{name}.json"
    try:
        if contract.stat().st_size > _JSON_LIMIT:
            raise PackageError(f"{contract}: {contract.stat().st_size} bytes; expected a short contract")
        shape = json.loads(contract.read_bytes())["shape"]
        size = data.stat().st_size
        if not all(type(n) is int and n > 0 for n in shape) or size != 4 * math.prod(shape):
            raise PackageError(f"{data}: {size} bytes; {contract.name} asks for float32 {shape}")
        array: np.ndarray = np.fromfile(data, "<f4").reshape(shape)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PackageError(f"{build}: {name}.bin with {name}.json cannot be read: {error}") from error
    return array
