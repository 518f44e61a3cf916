"""Measure arms against each other: fresh processes, taking turns, medians.

An arm is a command that does its work and prints one JSON object of numbers as its last line. The
harness adds the peak memory that the operating system reports for the finished process.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import IO

PEAK = "peak_bytes"
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024

Figures = dict[str, float]


class ArmError(Exception):
    """An arm that ended badly, or whose figures cannot be used."""


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison: an arm, and which of its figures to take (None: not compared)."""

    arm: str
    seconds: str
    memory: str | None = PEAK


@dataclass(frozen=True, slots=True)
class Comparison:
    name: str
    a: Side
    b: Side


@dataclass(frozen=True, slots=True)
class Ratio:
    """``value`` is the median of A's figures over the median of B's; ``low`` and ``high`` are the
    extremes of the ratios of the single pairs."""

    a: float
    b: float
    value: float
    low: float
    high: float


def run_arm(command: Sequence[str], threads: int) -> Figures:
    """Run ``command`` with ``threads`` threads for OpenMP, and return its figures with ``PEAK``.

    Raises ArmError with the arm's last words when it fails or prints no figures.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # else every process compiles our modules anew
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = subprocess.Popen(command, stdout=out, stderr=err, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        said, complained = _last_line(out), _last_line(err)
    if child.returncode:
        raise ArmError(complained or f"exit status {child.returncode}")
    try:
        figures = dict(json.loads(said))
    except (ValueError, TypeError):
        raise ArmError(f"printed {said!r}, expected a JSON object of figures") from None
    # Linux counts the memory of the process that a child was forked from into the child's peak.
    peak = usage.ru_maxrss * _MAXRSS_UNIT
    if peak <= peak_bytes():
        raise ArmError(
            f"its peak memory, {peak} bytes, cannot be told from that of the process that started it"
        )
    return {**figures, PEAK: peak}


def peak_bytes() -> int:
    """The largest resident size that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT


def _last_line(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode(errors="replace").strip().rpartition("\n")[2]


def measure(
    arms: Sequence[str], pairs: int, run: Callable[[str], Figures], report: Callable[[str, int, int], None]
) -> tuple[dict[str, list[Figures]], dict[str, str]]:
    """Every arm once, ``pairs`` times over: the figures of each, and why those that failed did.

    An arm that fails is not tried again. ``report(arm, done, total)`` is called before each run.
    """
    samples: dict[str, list[Figures]] = {arm: [] for arm in arms}
    failures: dict[str, str] = {}
    for turn in range(pairs):
        for index, arm in enumerate(arms):
            if arm in failures:
                continue
            report(arm, turn * len(arms) + index, pairs * len(arms))
            try:
                samples[arm].append(run(arm))
            except ArmError as error:
                failures[arm] = str(error)
                del samples[arm]
    return samples, failures


def ratios(comparison: Comparison, samples: Mapping[str, Sequence[Figures]]) -> tuple[Ratio, Ratio | None]:
    """The ratios A/B of time and, where both sides name a figure for it, of memory."""
    a, b = comparison.a, comparison.b
    seconds = ratio([s[a.seconds] for s in samples[a.arm]], [s[b.seconds] for s in samples[b.arm]])
    if a.memory is None or b.memory is None:
        return seconds, None
    return seconds, ratio([s[a.memory] for s in samples[a.arm]], [s[b.memory] for s in samples[b.arm]])


def ratio(a: Sequence[float], b: Sequence[float]) -> Ratio:
    """``a`` and ``b`` pairwise. Raises ValueError when their lengths differ or are 0."""
    pairs = [x / y for x, y in zip(a, b, strict=True)]
    return Ratio(median(a), median(b), median(a) / median(b), min(pairs), max(pairs))
