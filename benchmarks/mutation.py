"""Whether the tests of the runtime's ops notice small faults planted in them.

Each fault is planted in memory in one family's module of coreproof/runtime/ops and judged by that
family's tests, in a process forked from one that has torch, coremltools and pytest loaded. (mutmut
leaves decorated functions out, and every op is one; cosmic-ray starts Python anew for each fault.)
What survives for a good reason is listed with it in mutation_survivors.toml.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mutants import Mutant, mutants
from planted import SURVIVED, Verdict, run_tests, warm_up

from coreproof.cli.console import err, out, print_json, progress, table

ROOT = Path(__file__).resolve().parent.parent
OPS = ROOT / "coreproof" / "runtime" / "ops"
TESTS = ROOT / "tests" / "runtime" / "ops"
REASONS = Path(__file__).with_name("mutation_survivors.toml")
BAR = 0.85


@dataclass(frozen=True, slots=True)
class Result:
    mutant: Mutant
    verdict: Verdict
    reason: str | None


def families() -> dict[str, str]:
    """The source of every family's module, by its name."""
    return {p.stem: p.read_text(encoding="utf-8") for p in sorted(OPS.glob("*.py")) if p.stem != "__init__"}


def tests_of(family: str) -> list[str]:
    """The test files that judge a family: its own, then those that are of no family."""
    files = sorted(str(p) for p in TESTS.glob("test_*.py"))
    own = {f: [p for p in files if Path(p).name.startswith(f"test_{f}")] for f in families()}
    return [*own[family], *(p for p in files if not any(p in theirs for theirs in own.values()))]


def sample(modules: dict[str, list[Mutant]], count: int, seed: int) -> list[Mutant]:
    """``count`` mutants (0: all), at least one of every family that has any, in the order of the source."""
    draw = random.Random(seed)
    chosen = [draw.choice(found) for found in modules.values() if found]
    rest = [m for found in modules.values() for m in found if m not in chosen]
    wanted = len(rest) if count == 0 else min(len(rest), max(0, count - len(chosen)))
    return sorted([*chosen, *draw.sample(rest, wanted)], key=lambda m: (m.family, m.index))


Key = tuple[str, str, str, str, int]


def reasons(path: Path) -> dict[Key, str]:
    """Why a mutant may survive, by what :func:`_key` makes of it."""
    listed: dict[Key, str] = {}
    for entry in tomllib.loads(path.read_text(encoding="utf-8")).get("reason", []):
        for family, code, before, after, *nth in entry["mutants"]:
            listed[family, code, before, after, nth[0] if nth else 0] = entry["why"]
    return listed


def outdated(listed: Iterable[Key], known: Iterable[Mutant]) -> list[str]:
    """What is listed of code that is no longer there."""
    return [" | ".join(map(str, key)) for key in sorted(set(listed) - {_key(m) for m in known})]


def _key(mutant: Mutant) -> Key:
    """The same however lines are moved."""
    return mutant.family, mutant.code, mutant.before, mutant.after, mutant.nth


def judge(
    chosen: Sequence[Mutant],
    sources: dict[str, str],
    listed: dict[Key, str],
    report: Callable[[str, int, int], None],
) -> list[Result]:
    """Run each mutant's tests; first, without a fault, those of every family, which must pass."""
    limits: dict[str, float] = {}
    names = sorted({m.family for m in chosen})
    for place, family in enumerate(names):
        report(f"{family} as it is", place, len(names) + len(chosen))
        started = time.monotonic()
        if run_tests(tests_of(family), 600.0) != SURVIVED:
            raise RuntimeError(f"the tests of {family} fail without a fault: {' '.join(tests_of(family))}")
        limits[family] = 5 * (time.monotonic() - started) + 10
    results = []
    for place, mutant in enumerate(chosen):
        report(f"{mutant.family} line {mutant.line}", len(names) + place, len(names) + len(chosen))
        planted = (f"coreproof.runtime.ops.{mutant.family}", sources[mutant.family], mutant.index)
        verdict = run_tests(tests_of(mutant.family), limits[mutant.family], planted)
        results.append(Result(mutant, verdict, listed.get(_key(mutant))))
    return results


def as_json(results: Sequence[Result], seed: int, seconds: float) -> dict[str, Any]:
    verdicts = {f: Counter(r.verdict for r in results if r.mutant.family == f) for f in _families(results)}
    alive = [r for r in results if r.verdict == SURVIVED]
    return {
        "seed": seed,
        "mutants": len(results),
        "killed": len(results) - len(alive),
        "share": _share(results),
        "seconds": round(seconds, 1),
        "families": verdicts,
        "survivors": [{**asdict(r.mutant), "reason": r.reason} for r in alive],
    }


def _families(results: Iterable[Result]) -> list[str]:
    return sorted({r.mutant.family for r in results})


def _share(results: Sequence[Result]) -> float:
    return sum(r.verdict != SURVIVED for r in results) / len(results)


def show(results: Sequence[Result], seconds: float) -> None:
    rows = []
    for family in [*_families(results), "total"]:
        mine = [r for r in results if family in (r.mutant.family, "total")]
        alive = [r for r in mine if r.verdict == SURVIVED]
        explained = sum(r.reason is not None for r in alive)
        rows.append((family, len(mine), len(mine) - len(alive), len(alive), explained, f"{_share(mine):.1%}"))
    table(("family", "mutants>", "killed>", "survived>", "with reason>", "share>"), rows)
    for r in (r for r in results if r.verdict == SURVIVED):
        m = r.mutant
        out.print(f"coreproof/runtime/ops/{m.family}.py:{m.line}: {m.before} -> {m.after}")
        out.print(f"    {m.code}\n    {r.reason or 'NO REASON LISTED'}")
    out.print(f"{seconds:.0f} s, {seconds / len(results):.2f} s a mutant")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "families", nargs="*", metavar="FAMILY", help="modules of runtime/ops; all by default"
    )
    parser.add_argument("--count", type=int, default=400, help="mutants to draw, 0 for all (default 400)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    given = parser.parse_args()
    if unknown := set(given.families) - set(families()):
        parser.error(f"no family {', '.join(sorted(unknown))}; choose {', '.join(families())}")
    return given


def main() -> int:
    given = arguments()
    sources = families()
    modules = {f: mutants(f, source) for f, source in sources.items()}
    listed = reasons(REASONS)
    asked = {f: found for f, found in modules.items() if not given.families or f in given.families}
    chosen = sample(asked, given.count, given.seed)
    started = time.monotonic()
    warm_up()
    with progress() as report:
        results = judge(chosen, sources, listed, report)
    seconds = time.monotonic() - started
    if given.json:
        print_json(as_json(results, given.seed, seconds))
    else:
        show(results, seconds)
    for gone in outdated(listed, (m for found in modules.values() for m in found)):
        err.print(f"{REASONS.name} lists a mutant that does not exist: {gone}")
    unexplained = sum(r.verdict == SURVIVED and r.reason is None for r in results)
    if unexplained:
        err.print(f"{unexplained} mutants survive without a reason in {REASONS.name}")
    return int(_share(results) < BAR or unexplained > 0)


if __name__ == "__main__":
    sys.exit(main())
