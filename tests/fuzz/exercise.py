"""All that is done with an opened model: checked, inspected, compared, compiled, run."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import numpy as np
from forked import Finding, objection

from coreproof.diff import diff
from coreproof.errors import CoreproofError
from coreproof.inspect import inspect
from coreproof.jsonio import canonical
from coreproof.mil.contract import Contract
from coreproof.mil.weights import weights
from coreproof.package.blob import WeightFile
from coreproof.package.reader import Package, open_package
from coreproof.runtime.bounds import limited
from coreproof.runtime.codegen import MODES
from coreproof.runtime.model import Model

LARGEST_INPUT = 1 << 20  # elements
LARGEST_VALUE = 1 << 24  # elements, far less than there is memory for
LOOP_SECONDS = 0.2


class Endless(BaseException):
    """A loop of the program that goes on; programs may."""


def exercise(path: Path, original: Path, rng: Random) -> str:
    """Open ``path`` and do all that can be done with it: how far that came. Raises CoreproofError when it
    cannot be opened, Finding when a weight is read from outside its file."""
    package = open_package(path)
    package.check()
    read_weights(package)
    allow(lambda: canonical(inspect(path)))
    allow(lambda: canonical(diff(path, original).to_json()))
    allow(package.files)
    functions = package.program.functions
    name = rng.choice((None, *functions))
    loops = any(o.type == "while_loop" for f in functions.values() for o in f.block.walk())
    with limited(LARGEST_VALUE):
        model = allow(lambda: Model(package, rng.choice(MODES), name))
        if model is None:
            return "opened"
        return "predicted" if allow(lambda: predict(model, rng, loops)) else "compiled"


def allow(deed: Callable[[], Any]) -> Any:
    """What ``deed`` gives; None when it is refused, in words that are looked at."""
    try:
        return deed()
    except CoreproofError as error:
        if wrong := objection(error):
            raise Finding(wrong) from error
        return None


def read_weights(package: Package) -> None:
    """Read every weight; Finding unless it is what the file holds at the place that its entry names."""
    for name, blob in weights(package.program):
        entry = package.weights.entry(blob)
        file: WeightFile = package.weights.file(blob.file)
        array = package.weights.array(blob)
        content = file.path.read_bytes()
        place = content[entry.data_offset : entry.data_offset + entry.nbytes]
        if array.tobytes() != place or array.nbytes != entry.nbytes or b"".join(file.chunks(entry)) != place:
            raise Finding(f"weight {name!r} is not what its file holds")
        package.weights.release(blob)


def predict(model: Model, rng: Random, loops: bool) -> bool:
    """Two predictions of random inputs; whether there were any."""
    inputs = random_inputs(model.contract, rng)
    if inputs is None:
        return False
    state = model.make_state() if model.contract.states else None
    if loops:
        signal.signal(signal.SIGVTALRM, _stop)
        signal.setitimer(signal.ITIMER_VIRTUAL, LOOP_SECONDS)
    try:
        for _ in range(2):
            model.predict(inputs, state)
    except Endless:
        return False
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return True


def random_inputs(contract: Contract, rng: Random) -> dict[str, np.ndarray] | None:
    """Numbers for every input, None when they would be too many."""
    inputs = {}
    for feature in contract.inputs:
        shape = feature.shape or tuple(low for low, _ in feature.ranges)
        if feature.dtype is None or np.prod(shape, dtype=object) > LARGEST_INPUT:
            return None
        if rng.random() < 0.9 or not feature.optional:
            numbers = np.random.default_rng(len(inputs)).standard_normal(shape) * rng.choice((1, 3, 1e6))
            with np.errstate(all="ignore"):
                inputs[feature.name] = numbers.astype(feature.dtype)
    return inputs


def _stop(number: int, frame: FrameType | None) -> None:
    raise Endless
