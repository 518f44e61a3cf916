"""What only a device can tell of a package: how long it takes, and where Core ML means to run each op.

By coremltools on a Mac: ``MLModel`` for the time, ``MLComputePlan`` for the placement. Nobody has run
this on a device for this repository; the tests play coremltools by a stand-in.
"""

from __future__ import annotations

import platform
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coreproof.backends.coreml import absent
from coreproof.convert.quiet import coremltools
from coreproof.errors import BackendError

_PREDICTIONS = 30
_KINDS = {
    "MLCPUComputeDevice": "cpu",
    "MLGPUComputeDevice": "gpu",
    "MLNeuralEngineComputeDevice": "neural_engine",
}


@dataclass(frozen=True, slots=True)
class Measured:
    """One package on one device. Times in ms, of ``predictions`` after a first one; ``placement`` counts
    the ops by the device that the compute plan prefers, ``unknown`` those of which it says nothing."""

    package: str
    device: str
    system: str
    compute_units: str
    load_ms: float
    first_ms: float
    predictions: int
    median_ms: float
    p90_ms: float
    placement: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    package: Path, compute_units: str, inputs: Mapping[str, np.ndarray], function_name: str | None = None
) -> Measured:
    """Load ``package`` for ``compute_units`` (a name of ``coremltools.ComputeUnit``), predict, and ask for
    its compute plan. Raises BackendError off a Mac and for what Core ML refuses."""
    if reason := absent():
        raise BackendError(f"nothing can be measured here: {reason}")
    ct = coremltools()
    units = getattr(ct.ComputeUnit, compute_units)
    try:
        start = time.perf_counter()
        model = ct.models.MLModel(str(package), compute_units=units, function_name=function_name)
        load = time.perf_counter() - start
        state = model.make_state() if model.get_spec().description.state else None
        times = [_timed(model, inputs, state) for _ in range(1 + _PREDICTIONS)]
        # A compiled path: given a package, the plan ends the process in coremltools 9.0.
        plan = ct.models.compute_plan.MLComputePlan.load_from_path(model.get_compiled_model_path(), units)
        placement = Counter(_places(plan, function_name or "main"))
    except (RuntimeError, ValueError) as error:
        raise BackendError(f"Core ML could not measure {package.name}: {error}") from None
    later = np.array(times[1:])
    return Measured(
        package.name,
        device_name(),
        f"macOS {platform.mac_ver()[0]}",
        compute_units,
        1e3 * load,
        times[0],
        _PREDICTIONS,
        float(np.median(later)),
        float(np.percentile(later, 90)),
        dict(sorted(placement.items())),
    )


def device_name() -> str:
    """The Mac's model and chip, as ``sysctl`` gives them; nothing that tells one from another of its kind."""
    names = ("hw.model", "machdep.cpu.brand_string")
    found = [
        subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False).stdout.strip()
        for name in names
    ]
    return ", ".join(filter(None, found)) or "unknown"


def _timed(model: Any, inputs: Mapping[str, np.ndarray], state: Any) -> float:
    start = time.perf_counter()
    model.predict(dict(inputs), state)
    return 1e3 * (time.perf_counter() - start)


def _places(plan: Any, function: str) -> Iterator[str]:
    program = plan.model_structure.program
    if program is None:
        raise ValueError("the compute plan has no ML program")
    yield from _block_places(plan, program.functions[function].block)


def _block_places(plan: Any, block: Any) -> Iterator[str]:
    for operation in block.operations:
        if operation.operator_name.rpartition(".")[2] != "const":  # names come as ios18.conv
            usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
            kind = type(usage.preferred_compute_device).__name__ if usage is not None else ""
            yield _KINDS.get(kind, "unknown")
        for inner in operation.blocks:
            yield from _block_places(plan, inner)
