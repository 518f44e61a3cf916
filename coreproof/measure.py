"""Every package of a build on this device, on the first case of its stage; the lines go into its receipts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from coreproof.backends.device import Measured, measure
from coreproof.catalog import ModelParts
from coreproof.convert.convert import Report
from coreproof.errors import JudgedBadError
from coreproof.evidence.check import check_receipt, find_receipts
from coreproof.evidence.receipt import add_measured
from coreproof.validate import prepare


def measure_build(
    build: Path, parts: ModelParts, checkpoint: Path | None, fixture: Path | None, report: Report
) -> tuple[Measured, ...]:
    """Measure the packages of ``build`` and write the lines into each of its receipts that is of these bytes.

    Raises BackendError off a Mac, JudgedBadError for a package without a case or a receipt that is not of
    the build, and as :func:`coreproof.validate.validate`.
    """
    ready = prepare(build, parts, checkpoint, fixture, report)
    lines = []
    for index, record in enumerate(ready.manifest.packages):
        report(f"measuring {record.package}", index, len(ready.manifest.packages))
        case = next((c for c in ready.cases if c.stage == record.stage and c.carry is None), None)
        if case is None:
            raise JudgedBadError(f"{record.package}: no case has inputs to measure it with")
        halves = {i.name for i in record.contract.inputs if i.dtype == "fp16"}
        inputs = {n: a.astype(np.float16) if n in halves else a for n, a in case.steps[0].items()}
        lines.append(measure(build / record.package, record.compute_units, inputs))
    for path in find_receipts(build):
        check_receipt(path, ready.manifest, ready.gates)
        add_measured(path, [line.to_json() for line in lines])
    return tuple(lines)
