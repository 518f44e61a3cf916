"""Facts and runs whose every name tries to be more than a name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from coreproof import catalog
from coreproof.backends.device import Measured
from coreproof.blame import Observation, Suspect
from coreproof.evidence.report.facts import Check, Facts, gather
from coreproof.evidence.report.rerun import CaseRun, PackageRun, Trace
from coreproof.parity.gates import Verdict
from coreproof.parity.suite import Heard

NAMES = (
    "<script>window.hacked=1</script>",
    '"><img src=x onerror="window.hacked=1">',
    "'-window.hacked=1-'",
    "</title><svg onload=window.hacked=1>",
    "{{ 7*7 }}{% raw %}",
    "`` ` | [x](javascript:window.hacked=1) @everyone",
    "]]>&lt;b&gt;&#60;/failure>",
    "pass \u202eLIAF\u2066 \u200b\x00\x1b[2J\ufffe",
    "a\nb | c\n\n# heading\n<!--",
    "x" * 5000,
)


def facts(build: Path, model: str) -> tuple[Facts, list[PackageRun]]:
    """Failing facts of the build with every name replaced, each package under another of NAMES."""
    honest = gather(build, catalog.find(model), "mil")
    first, names = honest.packages[0], iter(range(10**6))

    def name() -> str:
        return NAMES[next(names) % len(NAMES)]

    packages, runs = [], []
    for evil in NAMES:
        verdicts = (
            Verdict("output", evil, evil, "max", 1.0, 2.0, False, evil, evil, (evil, name())),
            Verdict("aggregate", evil, None, "min", 0.5, float("nan"), False, evil),
        )
        suspect = Suspect(evil, name(), evil, float("inf"), True, (evil, name()))
        record = replace(
            first.record,
            stage=evil,
            variant=evil,
            target=evil,
            compute_units=evil,
            precision=replace(first.record.precision, compute=evil, kept_fp32=(evil,), reason=evil),
            contract=replace(
                first.record.contract,
                inputs=tuple(replace(i, name=evil) for i in first.record.contract.inputs),
            ),
        )
        packages.append(
            replace(
                first,
                record=record,
                mode=evil,
                cases=(evil, name()),
                verdicts=verdicts,
                problems=(evil,),
                suspects=(suspect,),
                metrics={evil: {evil: (1.0, 2.0)}},
            )
        )
        runs.append(_run(evil, suspect, drawn=evil is NAMES[0]))
    manifest = replace(
        honest.manifest, model=NAMES[0], toolchain={n: n for n in NAMES}, packages=honest.manifest.packages
    )
    provenance = {"implementation": NAMES[1], "packages": {n: n for n in NAMES}}
    excitation = Verdict("excitation", NAMES[3], None, "min", 1.0, None, False, NAMES[3])
    machine = {"architecture": NAMES[2], "threads": 1}
    measured = tuple(Measured(n, n, n, n, 1.0, 2.0, 30, 1.0, 1.5, {n: 3}) for n in NAMES)
    bad = replace(
        honest, measured=measured, manifest=manifest, machine=machine, provenance=provenance, excitations=(excitation,),
        packages=tuple(packages), checks=(Check("it is honest", NAMES),),
    )  # fmt: skip
    return bad, runs


def _run(evil: str, suspect: Suspect, *, drawn: bool) -> PackageRun:
    """``drawn``: with something to draw, which takes its time and holds no name."""
    a = np.linspace(-1, 1, 32, dtype=np.float32)
    trace = Trace(evil, a + np.float32(1e-3 * drawn), a, 1, None)
    heard = (Heard(evil, a[:, None] * 0.9, a[:, None], 8000),) if drawn else ()
    curve = (Observation(suspect, 0.5),) * 3 if drawn else ()
    return PackageRun(evil, (CaseRun(evil, evil, (trace,), heard),), curve, evil, (evil,), evil)
