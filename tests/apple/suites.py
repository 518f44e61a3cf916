"""Apple's own tests of coremltools, with coreproof's runtime in the place of Core ML.

    python tests/apple/suites.py [--slice I/N] [--workers N] [--suite NAME]... [--record]

Each case that does not pass stands in SUITE.txt beside this file, with a reason. Where that is not
the reason of Apple's own mark it begins with one of CATEGORIES. Exit 1 when any case comes out
otherwise or, of a whole suite, too few pass.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from coreproof.dropin import outcomes, results
from coreproof.dropin.results import Case

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build" / "apple"
OURS = "ours"
CATEGORIES = {
    OURS: "the runtime is wrong or lacks something",
    "Core ML compiler": "asserts what Core ML's compiler refuses",
    "undefined": "asserts a result that MIL's definition leaves open",
    "neuralnetwork backend": "predicts with a neural network, not with an ML program",
    "test data": "draws a number that has another answer in fp16",
    "package absent": "needs a package that is not installed",
    "upstream bug": "coremltools or torch fails",
}


@dataclass(frozen=True)
class Suite:
    """``size``: how many cases it has; ``least``: the percentage that has to pass of those that make a
    model."""

    name: str
    folder: str
    size: int
    least: float

    @property
    def expected(self) -> Path:
        return HERE / f"{self.name}.txt"

    @property
    def report(self) -> Path:
        return BUILD / f"{self.name}.json"


SUITES = (
    Suite("ops", "coremltools/converters/mil/mil/ops/tests", 10044, 99.0),
    Suite("torch", "coremltools/converters/mil/frontend/torch/test", 13135, 98.0),
)


def category(reason: str) -> str | None:
    """Which of CATEGORIES ``reason`` begins with."""
    return next((name for name in CATEGORIES if reason.startswith(name)), None)


def uncategorized(suite: Suite) -> list[str]:
    """The lines of ``suite.expected`` that say of a failure nothing one could count."""
    return [
        f"{suite.expected.name}: {node}: {outcome.reason}"
        for node, outcome in outcomes.read(suite.expected).items()
        if outcome.kind in ("failed", "error") and category(outcome.reason) is None
    ]


def run(suite: Suite, part: str | None, workers: int, record: bool) -> bool:
    """Run ``suite``; True when every case came out as expected. Its cases are then in ``suite.report``."""
    spec = find_spec("coremltools")
    if spec is None or spec.origin is None:
        raise SystemExit("coremltools is not installed")
    root = Path(spec.origin).parents[1]
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "--no-summary", "--disable-warnings"]
    command += [
        "-c",
        os.devnull,
        "--rootdir",
        str(root),
        "-p",
        "no:cacheprovider",
        "-p",
        "stand_ins",
        "-p",
        "round_trip",
    ]
    command += ["-n", str(workers), "--continue-on-collection-errors", "--coreproof", "--coreproof-tight"]
    command += [f"--coreproof-report={suite.report}", f"--coreproof-outcomes={suite.expected}"]
    command += [f"--coreproof-record={suite.expected}"] if record else []
    command += [f"--coreproof-slice={part}"] if part else []
    suite.report.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        own = {"PYMIL_TEST_TARGETS": "mlprogram", "OMP_NUM_THREADS": "1", "TMPDIR": temporary}
        own["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
        return subprocess.run([*command, suite.folder], cwd=root, env={**os.environ, **own}).returncode == 0


def shortcomings(suite: Suite, cases: Mapping[str, Case]) -> Iterator[str]:
    """What to say against a run of the whole ``suite``."""
    if len(cases) != suite.size:
        yield f"{suite.name}: {len(cases)} cases, expected {suite.size}"
    for node in sorted(outcomes.read(suite.expected).keys() - cases.keys()):
        yield f"{suite.expected.name}: no such case: {node}"
    if share(cases) < suite.least:
        yield f"{suite.name}: {share(cases):.2f} % passed, expected at least {suite.least} %"


def share(cases: Mapping[str, Case]) -> float:
    """The percentage that passed of the cases that made a model or failed before they could. What
    Apple's own marks skip or expect to fail is left out."""
    judged = [
        c for c in cases.values() if (c.models and c.outcome == "passed") or c.outcome in ("failed", "error")
    ]
    return 100 * sum(case.outcome == "passed" for case in judged) / max(1, len(judged))


def table(suites: Mapping[str, Mapping[str, Case]]) -> list[str]:
    """Lines: for every suite the number of its cases by outcome and by category."""
    rows: dict[str, list[str]] = {"": list(suites)}
    counts = {name: Counter(case.outcome for case in cases.values()) for name, cases in suites.items()}
    rows["collected"] = [str(len(cases)) for cases in suites.values()]
    rows["ran"] = [str(c.total() - c["skipped"]) for c in counts.values()]
    for kind in (outcomes.PASSED, *outcomes.KINDS):
        rows[kind] = [str(c[kind]) for c in counts.values()]
    for name in CATEGORIES:
        failed = [
            [c for c in cases.values() if c.outcome in ("failed", "error")] for cases in suites.values()
        ]
        rows[f"  {name}"] = [str(sum(category(c.reason) == name for c in group)) for group in failed]
    rows["made a model"] = [str(sum(c.models > 0 for c in cases.values())) for cases in suites.values()]
    rows["predicted"] = [str(sum(c.predictions > 0 for c in cases.values())) for cases in suites.values()]
    rows["passed of those that make a model"] = [f"{share(cases):.2f} %" for cases in suites.values()]
    for precision in results.TIGHT:
        outside, compared = zip(
            *(results.outside(cases, precision) for cases in suites.values()), strict=True
        )
        rows[f"comparisons in {precision}"] = [str(count) for count in compared]
        rows["  outside the tight tolerance, " + precision] = [str(count) for count in outside]
    width = max(map(len, rows))
    return [f"{name:{width}}" + "".join(f"{value:>10}" for value in values) for name, values in rows.items()]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--slice", metavar="I/N", help="one case in N of every test function, at least one")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--suite", action="append", choices=[suite.name for suite in SUITES])
    parser.add_argument("--record", action="store_true", help="rewrite the expected outcomes")
    options = parser.parse_args(arguments)
    BUILD.mkdir(parents=True, exist_ok=True)
    chosen = [suite for suite in SUITES if not options.suite or suite.name in options.suite]
    complaints: list[str] = []
    all_cases: dict[str, dict[str, Case]] = {}
    for suite in chosen:
        start = time.monotonic()
        if not run(suite, options.slice, options.workers, options.record):
            complaints.append(f"{suite.name}: some cases came out other than {suite.expected.name} says")
        if not suite.report.exists():
            raise SystemExit(f"{suite.name}: the run broke off")
        all_cases[suite.name] = cases = results.read(suite.report)
        complaints += uncategorized(suite)
        complaints += [] if options.slice else shortcomings(suite, cases)
        print(f"{suite.name}: {time.monotonic() - start:.0f} s", flush=True)
    print(*table(all_cases), *complaints, sep="\n")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
