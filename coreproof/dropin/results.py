"""What a run did, case by case, and how its predictions fared at the tight tolerance."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from coreproof.atomic import atomic_file
from coreproof.dropin.outcomes import PASSED

TIGHT = {"fp16": (2**-9, 2**-9), "fp32": (2**-19, 2**-19)}
"""By precision the absolute tolerance and the one relative to the expected value: two units in the last
place in fp16, sixteen in fp32, and the same of 1 for what cancels out. coremltools itself asks for
(0.5, 0.05) and (1e-4, 1e-5)."""
_LISTED = 10


@dataclass(slots=True)
class Case:
    """``outcome`` and ``reason`` as in the expected-outcome file, the last three as in
    :class:`coreproof.dropin.watch.Seen`."""

    outcome: str = PASSED
    reason: str = ""
    seconds: float = 0.0
    models: int = 0
    predictions: int = 0
    compared: dict[str, list[float]] = field(default_factory=dict)

    @property
    def worst(self) -> float:
        """Its largest error in units of the tight tolerance."""
        return max((ratio for ratios in self.compared.values() for ratio in ratios), default=0.0)


Cases = Mapping[str, Case]


def write(path: Path, cases: Cases) -> None:
    """Write ``cases`` to ``path`` as JSON, one case a line, sorted by node id, whole or not at all."""
    lines = [f"{json.dumps(node)}: {json.dumps(asdict(case))}" for node, case in sorted(cases.items())]
    with atomic_file(path) as new:
        new.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def read(path: Path) -> dict[str, Case]:
    """The cases of a file made by :func:`write`."""
    content: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return {node: Case(**fields) for node, fields in content.items()}


def outside(cases: Cases, precision: str) -> tuple[int, int]:
    """How many comparisons are outside the tight tolerance, and how many there are."""
    ratios = [ratio for case in cases.values() for ratio in case.compared.get(precision, ())]
    return sum(ratio > 1 for ratio in ratios), len(ratios)


def closeness(cases: Cases) -> Iterator[str]:
    """Lines: for each precision how many comparisons are outside its tight tolerance, then the test
    functions that have such, the worst first."""
    for precision, (absolute, relative) in TIGHT.items():
        missed, compared = outside(cases, precision)
        share = f" ({missed / compared:.2%})" if compared else ""
        yield (
            f"{precision}: {missed} of {compared} comparisons{share} are further off than "
            f"{absolute:.2g} + {relative:.2g} x |expected|"
        )
    functions: dict[str, list[float]] = {}
    for node, case in cases.items():
        if case.compared:
            functions.setdefault(node.partition("[")[0], []).append(case.worst)
    worst = sorted(functions.items(), key=lambda item: (-max(item[1]), item[0]))
    for function, ratios in worst[:_LISTED]:
        if max(ratios) > 1:
            missed = sum(ratio > 1 for ratio in ratios)
            yield f"  {max(ratios):10.3g} x, {missed:4} of {len(ratios):4} cases  {function}"
