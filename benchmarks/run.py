"""Export, opening and prediction against the alternatives, as ratios."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from arms import NEEDS
from graphs import GRAPHS
from harness import PEAK, Comparison, Figures, Ratio, Side, measure, ratios, run_arm
from mrt2_arms import STAGES
from timing import RUNS

from coreproof.cli.console import err, out, print_json, progress, size, table


def _graph(name: str) -> tuple[Comparison, ...]:
    """The comparisons of a graph of ``graphs.py``."""
    fp32, typed, eager, onnx = (
        Side(f"{name} {way}", "warm") for way in ("mil fp32", "mil typed", "torch eager", "onnxruntime")
    )
    pairs = ((fp32, eager), (fp32, onnx), (typed, fp32), (typed, eager))
    return tuple(Comparison(name, a, b) for a, b in pairs)


COMPARISONS = (
    Comparison("export", Side("coreproof", "seconds"), Side("ct.convert", "seconds")),
    Comparison("dit export", Side("dit coreproof", "seconds"), Side("dit ct.convert", "seconds")),
    Comparison("runtime", Side("mil fp32", "warm"), Side("torch eager", "warm")),
    Comparison("runtime", Side("mil fp32", "warm"), Side("onnxruntime", "warm")),
    Comparison("runtime", Side("mil typed", "warm"), Side("torch eager", "warm")),
    Comparison("runtime", Side("mil typed", "warm"), Side("onnxruntime", "warm")),
    Comparison("open", Side("mil fp32", "open", "open_bytes"), Side("torch eager", "open", "open_bytes")),
    Comparison("open", Side("mil typed", "open", "open_bytes"), Side("torch eager", "open", "open_bytes")),
    Comparison("first", Side("mil fp32", "first", None), Side("mil fp32", "warm", None)),
    Comparison("first", Side("mil typed", "first", None), Side("mil typed", "warm", None)),
    Comparison("first", Side("torch eager", "first", None), Side("torch eager", "warm", None)),
    Comparison("dit", Side("dit mil typed", "warm"), Side("dit torch eager", "warm")),
    Comparison("dit", Side("dit mil typed", "first", None), Side("dit mil typed", "warm", None)),
    Comparison("dit", Side("dit read once", "seconds", None), Side("dit mil typed", "warm", None)),
    *(
        Comparison(
            f"mrt2 {stage}",
            Side(f"mrt2 {stage} coreproof", "seconds"),
            Side(f"mrt2 {stage} ct.convert", "seconds"),
        )
        for stage in STAGES
    ),
    Comparison("mrt2 step", Side("mrt2 mil fp32", "warm"), Side("mrt2 torch eager", "warm")),
    Comparison("mrt2 step", Side("mrt2 mil typed", "warm"), Side("mrt2 torch eager", "warm")),
    Comparison("flux export", Side("flux coreproof", "seconds"), Side("flux ct.convert", "seconds")),
    Comparison("flux", Side("flux mil fp32", "warm"), Side("flux diffusers", "warm")),
    *(comparison for name in GRAPHS for comparison in _graph(name)),
)
NOTE = f"""
A/B of the medians; min..max are of the single pairs of processes.
export   MiniLM's checkpoint on disk to one fp16 package flushed to disk, with tracing
dit      a transformer of 24 blocks and 516 M parameters (dit.py): the same; a prediction against the
         torch module's, the first against a warm one, and reading its 1 GB of weights against one
mrt2     Magenta RealTime 2 at full size: the export of a stage; a step of the temporal carry graph
flux     TangoFlux's transformer at full size: exported to fp16; one step, the fp32 package against diffusers
runtime  MiniLM: a warm prediction of 1 x 128 tokens (median of {RUNS} in a process)
open     opening, with torch already imported; memory: what it adds to the peak
first    the first prediction of a process against its warm ones
others   a warm prediction of the graph of that name in graphs.py
A busy machine shows in the spread; threads that wait for each other suffer most.
"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = sorted({c.name for c in COMPARISONS})
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(names)}; all by default")
    parser.add_argument("--pairs", type=int, default=5, help="processes for each arm, at least 3 (default 5)")
    parser.add_argument("--threads", type=int, default=2, help="threads in every arm (default 2)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    given = parser.parse_args()
    if unknown := set(given.names) - set(names):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; choose {', '.join(names)}")
    if given.pairs < 3 or given.threads < 1:
        parser.error("--pairs must be at least 3 and --threads at least 1")
    return given


def main() -> int:
    given = arguments()
    chosen = [c for c in COMPARISONS if not given.names or c.name in given.names]
    arms = list(dict.fromkeys(side.arm for c in chosen for side in (c.a, c.b)))
    preparations = dict.fromkeys(NEEDS[arm] for arm in arms if arm in NEEDS)
    with tempfile.TemporaryDirectory(prefix="coreproof-bench-") as folder, progress() as report:
        run = partial(_run, Path(folder), given.threads)
        made, failures = measure(["machine", *preparations], 1, run, report)
        samples, broken = measure([a for a in arms if NEEDS.get(a) not in failures], given.pairs, run, report)
    failures |= broken
    machine = {
        key: value for sample in made.get("machine", ()) for key, value in sample.items() if key != PEAK
    }
    results = [(c, *ratios(c, samples)) for c in chosen if {c.a.arm, c.b.arm} <= samples.keys()]
    if given.json:
        print_json(
            {
                "machine": machine,
                "pairs": given.pairs,
                "results": [_as_json(*result) for result in results],
                "samples": samples,
                "failures": failures,
            }
        )
    else:
        _print(results, samples, machine)
    for arm, reason in failures.items():
        err.print(f"{arm} failed: {reason}", style="red", markup=False)
    return 1 if failures else 0


def _run(folder: Path, threads: int, arm: str) -> Figures:
    script = Path(__file__).with_name("arms.py")
    return run_arm([sys.executable, str(script), arm, str(folder)], threads)


def _as_json(comparison: Comparison, seconds: Ratio, memory: Ratio | None) -> dict[str, Any]:
    return {**asdict(comparison), "time": asdict(seconds), "memory": memory and asdict(memory)}


def _print(
    results: Sequence[tuple[Comparison, Ratio, Ratio | None]],
    samples: Mapping[str, Sequence[Figures]],
    machine: Mapping[str, Any],
) -> None:
    rows = [(c.name, *_sides(c), *_cells(seconds), *_cells(memory)) for c, seconds, memory in results]
    table(("", "A", "B", "time A/B>", "min..max>", "memory A/B>", "min..max>"), rows)
    out.print(f"\n{NOTE.strip()}\n")
    table(("arm", "processes>", "medians"), [(arm, len(s), _medians(s)) for arm, s in samples.items()])
    out.print("\n" + ", ".join(f"{key} {value}" for key, value in machine.items()))


def _sides(comparison: Comparison) -> tuple[str, str]:
    a, b = comparison.a, comparison.b
    return a.arm, f"itself, {b.seconds}" if a.arm == b.arm else b.arm


def _cells(ratio: Ratio | None) -> tuple[str, str]:
    return (f"{ratio.value:.2f}", f"{ratio.low:.2f}..{ratio.high:.2f}") if ratio else ("", "")


def _medians(samples: Sequence[Figures]) -> str:
    medians = {key: median(sample[key] for sample in samples) for key in samples[0]}
    return ", ".join(
        f"{key.removesuffix('_bytes')} {_quantity(key, value)}" for key, value in medians.items()
    )


def _quantity(key: str, value: float) -> str:
    if key.endswith("_bytes"):
        return size(int(value))
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.1f} ms"


if __name__ == "__main__":
    sys.exit(main())
