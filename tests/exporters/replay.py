"""A loop run again where there is neither torch nor coremltools: a backend replays what ``mil`` gave in here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from support import WITHOUT_TORCH

from coreproof.backends import Target, create

CHILD = (
    WITHOUT_TORCH
    + """
import json
from importlib import import_module
from pathlib import Path
import numpy as np

build, calls, host, pipeline, seconds, options, samples = sys.argv[1:]
recorded = np.load(calls, allow_pickle=False)

class Replay:
    def load(self, target):
        self.place, self.call = f"{target.package.name}/{target.function_name}", 0

    def make_state(self):
        return None

    def predict(self, inputs, state=None):
        prefix = f"{self.place}/{self.call}/"
        self.call += 1
        found = {n.removeprefix(prefix): recorded[n] for n in recorded.files if n.startswith(prefix)}
        for name, array in inputs.items():
            np.testing.assert_array_equal(array, found[f"in/{name}"])
        return {n.removeprefix("out/"): a for n, a in found.items() if n.startswith("out/")}

import_module(host).create = lambda name: Replay()
sound = import_module(pipeline).generate(Path(build), float(seconds), "any", json.loads(options))
assert not set(BLOCKED) & {name.partition(".")[0] for name in sys.modules}
np.save(samples, sound.samples)
"""
)


class Recorder:
    """``mil``, whose inputs and outputs go into ``calls`` by package, function, call and name."""

    def __init__(self, calls: dict[str, np.ndarray]) -> None:
        self.runner, self.calls, self.call = create("mil"), calls, 0

    def load(self, target: Target) -> None:
        self.runner.load(target)
        self.place = f"{target.package.name}/{target.function_name}"

    def make_state(self) -> Any:
        return self.runner.make_state()

    def predict(self, inputs: Mapping[str, np.ndarray], state: Any = None) -> dict[str, np.ndarray]:
        outputs = self.runner.predict(inputs, state)
        for kind, arrays in (("in", inputs), ("out", outputs)):
            self.calls |= {f"{self.place}/{self.call}/{kind}/{n}": a.copy() for n, a in arrays.items()}
        self.call += 1
        return outputs


def assert_replays(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    build: Path,
    modules: tuple[ModuleType, ModuleType],
    seconds: float,
    options: Mapping[str, str],
) -> None:
    """The child gives the packages the same inputs and makes the same samples. ``modules``: the one that
    creates backends, and the pipeline."""
    host, pipeline = modules
    calls: dict[str, np.ndarray] = {}
    monkeypatch.setattr(host, "create", lambda _: Recorder(calls))
    sound = pipeline.generate(build, seconds, "any", options)
    np.savez(folder / "calls.npz", **calls)  # type: ignore[arg-type]
    names = (build, folder / "calls.npz", host.__name__, pipeline.__name__)
    arguments = [*map(str, names), str(seconds), json.dumps(options), str(folder / "samples.npy")]
    ended = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    np.testing.assert_array_equal(np.load(folder / "samples.npy"), sound.samples)
