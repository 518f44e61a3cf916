"""Spoiled files for every reader of data that anyone may have made.

    python tests/fuzz/fuzz.py [TARGET]... [--count N] [--seed N] [--at INDEX]

Each mutant is read in a forked process with a limit on memory and time. A reader may refuse it with a
CoreproofError, or take it; a model that is taken is also checked, inspected, compared, compiled and
run. Anything else is a finding: another exception, a crash, a hang, memory that ran out, a weight read
from outside its file. Mutant INDEX of a target is the same in every run with the same seed. Exit 1
when there are findings.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS)] if str(TESTS) not in sys.path else []

import torch  # noqa: E402
from forked import Verdict, run  # noqa: E402
from targets import TARGETS  # noqa: E402

from coreproof.cli.console import err, out, progress, table  # noqa: E402
from coreproof.convert.quiet import bars_into, coremltools  # noqa: E402

COUNTS = {"spec": 20_000, "text": 20_000, "weights": 20_000, "manifest": 20_000}
OTHERS = 4000


def signature(finding: str) -> str:
    """What findings of one cause share: no numbers, no quoted values."""
    return re.sub(r"'.*|\d+(?! in |:)", "", finding.partition(": '")[0])


def fuzz(names: list[str], count: int | None, seed: int, at: int | None) -> list[tuple[str, Verdict]]:
    """Run the targets and print what became of their mutants; the findings."""
    torch.set_num_threads(1)
    coremltools()
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    rows, found = [], []
    with tempfile.TemporaryDirectory() as folder, progress() as report:
        for name in names:
            own = Path(folder, name)
            own.mkdir()
            with bars_into(report):
                judge = TARGETS[name].judge(own, seed)
            wanted = 1 if at is not None else count or COUNTS.get(name, OTHERS)
            started, outcomes = time.monotonic(), Counter[str]()
            for verdict in run(judge, wanted, at or 0):
                outcomes[verdict.outcome] += 1
                report(name, verdict.index, wanted)
                if verdict.finding:
                    found.append((name, verdict))
            seconds = time.monotonic() - started
            ended = ", ".join(f"{n} {outcome}" for outcome, n in sorted(outcomes.items()))
            rows.append(
                (name, sum(outcomes.values()), ended, sum(n == name for n, _ in found), f"{seconds:.0f} s")
            )
    table(("target", "mutants>", "outcomes", "findings>", "time>"), rows)
    return found


def show(found: list[tuple[str, Verdict]]) -> None:
    """Findings by cause, each with the first mutant that shows it."""
    causes: dict[tuple[str, str], list[Verdict]] = {}
    for name, verdict in found:
        causes.setdefault((name, signature(verdict.finding)), []).append(verdict)
    for (name, _), verdicts in sorted(causes.items(), key=lambda c: -len(c[1])):
        out.print(
            f"{name} --at {verdicts[0].index} ({len(verdicts)} mutants): {verdicts[0].finding}",
            soft_wrap=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all by default"
    )
    parser.add_argument("--count", type=int, help="mutants a target (default 20,000 or 4,000)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutants (default 0)")
    parser.add_argument("--at", type=int, help="only the mutant of this number")
    given = parser.parse_args()
    if unknown := set(given.targets) - set(TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}; choose {', '.join(TARGETS)}")
    started = time.monotonic()
    found = fuzz(given.targets or list(TARGETS), given.count, given.seed, given.at)
    show(found)
    err.print(f"{len(found)} findings in {time.monotonic() - started:.0f} s")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
