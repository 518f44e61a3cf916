"""A build by every backend that is here: verdicts of those that run packages, and how far any two agree.

Second opinions (the Stage's module by torch, Core AI or MLX) see no package, so they judge none: they
say where a difference begins. Two converters and three interpreters that agree on a graph are hard to
explain by a fault of ours.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from coreproof.backends import PACKAGE_RUNNERS, Target, available, create
from coreproof.catalog import ModelParts
from coreproof.convert.convert import Report
from coreproof.errors import BackendError, CoreproofError
from coreproof.jsonio import json_number
from coreproof.package.manifest import PackageRecord
from coreproof.parity.metrics import METRICS
from coreproof.parity.suite import Arrays, Case
from coreproof.validate import Validation, prepare, run_case, stage_of, validate


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two backends are apart on one output of a package: the worst of ``cases``. ``metric`` is
    ``snr_db`` (the second one taken as the reference), for tokens ``token_mismatches``."""

    package: str
    first: str
    second: str
    output: str
    cases: int
    metric: str
    worst: float
    max_abs_error: float

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "worst": json_number(self.worst),
            "max_abs_error": json_number(self.max_abs_error),
        }


@dataclass(frozen=True, slots=True)
class Everyone:
    """``absent``: why a backend ran nothing. ``left_out``: (backend, package, why) of what one could not
    run, though it ran others."""

    validations: tuple[Validation, ...]
    agreements: tuple[Agreement, ...]
    absent: Mapping[str, str]
    left_out: tuple[tuple[str, str, str], ...]

    @property
    def passed(self) -> bool:
        """Whether packages were judged, and none of the judges found one wanting."""
        return bool(self.validations) and all(v.passed for v in self.validations)

    def to_json(self) -> dict[str, Any]:
        return {
            "verdict": "pass" if self.passed else "fail",
            "verdicts": {v.backend: "pass" if v.passed else "fail" for v in self.validations},
            "agreements": [a.to_json() for a in self.agreements],
            "absent": dict(self.absent),
            "left_out": [list(left) for left in self.left_out],
        }


def by_everyone(
    build: Path, parts: ModelParts, checkpoint: Path | None, fixture: Path | None, report: Report
) -> Everyone:
    """Judge ``build`` by every backend here that runs packages, and run all others on the same cases.

    Those need the ``checkpoint``. Raises as :func:`coreproof.validate.validate`.
    """
    absent = {name: reason for name, reason in available().items() if reason}
    judges = [name for name in PACKAGE_RUNNERS if name not in absent]
    validations = tuple(validate(build, parts, name, checkpoint, fixture, report) for name in judges)
    ready = prepare(build, parts, checkpoint, fixture, report)
    agreements: list[Agreement] = []
    left_out: list[tuple[str, str, str]] = []
    for record in ready.manifest.packages:
        cases = [c for c in ready.cases if c.stage == record.stage]
        stage = stage_of(parts, ready.checkpoint, record) if ready.checkpoint else None
        mode = next(
            (p.mode for v in validations for p in v.packages if p.record == record and p.mode), "typed"
        )
        target = Target(build / record.package, mode, None, stage, ready.checkpoint)
        with tempfile.TemporaryDirectory(prefix="coreproof-agree-") as name:
            ran = []
            for backend in (n for n in available() if n not in absent):
                report(f"{record.package}: {backend}", 0, 1)
                try:
                    _run(backend, target, record, cases, Path(name))
                except BackendError as error:
                    left_out.append((backend, record.package, str(error)))
                else:
                    ran.append(backend)
            for pair in combinations(ran, 2):
                agreements += _agreement(record.package, pair, len(cases), Path(name))
    return Everyone(validations, tuple(agreements), absent, tuple(left_out))


def _run(backend: str, target: Target, record: PackageRecord, cases: list[Case], folder: Path) -> None:
    """Keep what ``backend`` computes of each case in ``folder``, one file a case."""
    runner = create(backend)
    halves = {i.name for i in record.contract.inputs if i.dtype == "fp16"}
    try:
        runner.load(target)
        for index, case in enumerate(cases):
            np.savez(folder / f"{backend}-{index}.npz", allow_pickle=False, **run_case(runner, case, halves))
    except CoreproofError as error:
        raise BackendError(str(error)) from error
    finally:
        runner.close()


def _agreement(package: str, pair: tuple[str, str], cases: int, folder: Path) -> Iterator[Agreement]:
    found: dict[str, list[tuple[str, float, float]]] = {}
    for index in range(cases):
        one, other = (_load(folder / f"{name}-{index}.npz") for name in pair)
        for output in sorted(one.keys() & other.keys()):
            found.setdefault(output, []).append(_apart(one[output], other[output]))
    for output, figures in found.items():
        metric = figures[0][0]
        worst = (max if metric == "token_mismatches" else min)(f[1] for f in figures)
        nan = next((f[1] for f in figures if f[1] != f[1]), None)
        largest = max(f[2] for f in figures)
        yield Agreement(package, *pair, output, cases, metric, worst if nan is None else nan, largest)


def _apart(one: np.ndarray, other: np.ndarray) -> tuple[str, float, float]:
    if one.shape != other.shape:
        return "snr_db", float("nan"), float("nan")
    tokens = one.dtype.kind in "biu" and other.dtype.kind in "biu"
    metric = "token_mismatches" if tokens else "snr_db"
    return metric, METRICS[metric].fn(one, other), METRICS["max_abs_error"].fn(one, other)


def _load(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as content:
        return {name: content[name] for name in content.files}
