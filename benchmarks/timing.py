"""Times taken inside an arm's process."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from harness import peak_bytes

WARM_UP = 5
RUNS = 50

Predict = Callable[[], object]


def onnx_session(path: Path) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def predictions(
    open_model: Callable[[], Predict], warm_up: int = WARM_UP, runs: int = RUNS
) -> dict[str, float]:
    """Seconds to open a model, for its first and for a warm prediction (median), and the bytes by
    which opening it raised the peak memory of the process."""
    before, start = peak_bytes(), perf_counter()
    predict = open_model()
    opened, grown = perf_counter() - start, peak_bytes() - before
    first = seconds(predict)
    for _ in range(warm_up):
        predict()
    return {
        "open": opened,
        "open_bytes": grown,
        "first": first,
        "warm": median(seconds(predict) for _ in range(runs)),
    }


def conversion(folder: Path, convert: Callable[[], Any]) -> dict[str, float]:
    """Seconds that ``convert`` takes to make a coremltools model, with saving it in ``folder`` and flushing it
    to disk."""

    def work() -> None:
        convert().save(str(package))
        for path in (package, *package.rglob("*")):
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        package = Path(temporary) / "plain.mlpackage"
        return {"seconds": seconds(work)}


def seconds(work: Callable[[], object]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start
