"""Judge a build: run every package on the suite's cases and hold the results to the gates.

Fails closed. A build without packages, a package without cases, a missing output, another dtype
than the contract's, a fixture of another checkpoint: each is a failing verdict or an error, never
a pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import platformdirs

from coreproof.backends import Backend, Target, create
from coreproof.blame import Suspect, blame
from coreproof.catalog import ModelParts
from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.convert import Report
from coreproof.convert.recipe import NUMPY, Stage
from coreproof.errors import FixtureError, JudgedBadError
from coreproof.files import sha256_of
from coreproof.package.manifest import (
    MANIFEST,
    Manifest,
    PackageRecord,
    check_files,
    checkpoint_digest,
    load_manifest,
)
from coreproof.package.reader import open_package
from coreproof.parity.comparison import CaseComparison, Judgement, compare_case, judge, judge_excitations
from coreproof.parity.fixture import Fixture, find, load, save
from coreproof.parity.gates import Gates, Verdict, load_gates
from coreproof.parity.suite import Arrays, Case, Outcome, Suite


@dataclass(frozen=True, slots=True)
class PackageResult:
    """One package, judged. ``mode`` is None where the backend has no numeric modes. ``judged_as``: the
    variant whose gates judged it, None for its own; then it is on record and fails no build. ``suspects``:
    the worst ops on the case that fails, when our runtime ran it. ``ops``: how many of each type compute;
    ``peer_ops``: how many another exporter's package of this stage has, where that is known."""

    record: PackageRecord
    mode: str | None
    comparisons: tuple[CaseComparison, ...]
    aggregates: Mapping[str, float]
    judgement: Judgement
    suspects: tuple[Suspect, ...] = ()
    judged_as: str | None = None
    ops: Mapping[str, int] = field(default_factory=dict)
    peer_ops: int | None = None


@dataclass(frozen=True, slots=True)
class Validation:
    """A build, judged by one backend. ``judged``: sha256 of the ``manifest``'s file, of the ``gates``
    file and of the ``suite``'s sources."""

    manifest: Manifest
    fixture: Fixture
    backend: str
    excitations: tuple[Verdict, ...]
    packages: tuple[PackageResult, ...]
    judged: Mapping[str, str]

    @property
    def shipping(self) -> tuple[PackageResult, ...]:
        """The packages whose failing fails the build."""
        return tuple(p for p in self.packages if p.judged_as is None)

    @property
    def passed(self) -> bool:
        return (
            bool(self.shipping)
            and all(v.passed for v in self.excitations)
            and all(p.judgement.passed for p in self.shipping)
        )


def cached_fixtures(model: str) -> Path:
    """Where references computed on this machine are kept."""
    return Path(platformdirs.user_cache_dir("coreproof")) / "fixtures" / model


def validate(
    build: Path,
    parts: ModelParts,
    backend: str = "mil",
    checkpoint: Path | None = None,
    fixture: Path | None = None,
    report: Report = lambda step, done, total: None,
    *,
    explain: bool = True,
) -> Validation:
    """Judge the build folder ``build``.

    ``checkpoint`` is needed when no fixture of this checkpoint is recorded, and by backends that
    run the Stage's module. ``fixture`` names one folder to use instead of searching. ``explain``: look
    for the ops to blame where a package fails, which takes two more runs of it.

    Raises JudgedBadError for files that are not the manifest's, GateError for a bad gate file,
    FixtureError when there is no reference of this very checkpoint.
    """
    ready = prepare(build, parts, checkpoint, fixture, report)
    verdicts = tuple(judge_excitations(ready.suite.excitations(ready.reference.arrays), ready.gates))
    results = [_package(build, r, backend, parts, ready, report, explain) for r in ready.manifest.packages]
    return Validation(
        ready.manifest, ready.reference, backend, verdicts, tuple(results), what_judges(build, parts)
    )


@dataclass(frozen=True, slots=True)
class Ready:
    """What every backend is given alike. ``checkpoint`` is None where none was named."""

    manifest: Manifest
    suite: Suite
    checkpoint: Checkpoint | None
    reference: Fixture
    cases: tuple[Case, ...]
    gates: Gates


def prepare(
    build: Path, parts: ModelParts, checkpoint: Path | None, fixture: Path | None, report: Report
) -> Ready:
    """Read and check all that :func:`validate` runs and judges with. Raises as it does."""
    manifest = load_manifest(build)
    check_files(build, manifest)
    suite = parts.suite()
    loaded = _checkpoint(parts, checkpoint, manifest)
    reference = _fixture(parts, manifest, checkpoint, fixture, report)
    cases = tuple(suite.cases(reference.arrays))
    gates = load_gates(
        parts.gates,
        controls=[c.name for c in suite.controls],
        stages={c.stage for c in cases} | suite.optional,
        variants=(*parts.recipe().variants, *parts.recipe().on_request),
    )
    return Ready(manifest, suite, loaded, reference, cases, gates)


def what_judges(build: Path, parts: ModelParts) -> dict[str, str]:
    """sha256 of what a verdict on ``build`` depends on, the bytes of its packages apart: see
    :class:`Validation`."""
    return {
        "manifest": sha256_of(build / MANIFEST),
        "gates": sha256_of(parts.gates),
        "suite": parts.suite_digest(),
    }


def _checkpoint(parts: ModelParts, path: Path | None, manifest: Manifest) -> Checkpoint | None:
    if path is None:
        return None
    loaded = parts.recipe().load(path)
    digest = checkpoint_digest(loaded.files)
    if digest != manifest.checkpoint.sha256:
        raise FixtureError(
            f"{path} is not the checkpoint of this build: its sha256 is {digest[:12]}, "
            f"the manifest's {manifest.checkpoint.sha256[:12]}"
        )
    return loaded


def _fixture(
    parts: ModelParts, manifest: Manifest, checkpoint: Path | None, given: Path | None, report: Report
) -> Fixture:
    digest = manifest.checkpoint.sha256
    if given is not None:
        return load(given, manifest.model, digest)
    cache = cached_fixtures(manifest.model)
    found = find((*parts.fixtures, cache), manifest.model, digest)
    if found is not None:
        return found
    if checkpoint is None:
        raise FixtureError(
            f"no reference for checkpoint {digest[:12]} of {manifest.model}; pass --checkpoint, or run "
            f"coreproof reference {parts.argument} --checkpoint CHECKPOINT -o {parts.fixtures[0]}"
        )
    report("running the official implementation", 0, 1)
    return load(
        save(parts.compute_reference()(checkpoint), manifest.model, digest, cache), manifest.model, digest
    )


def _package(
    build: Path,
    record: PackageRecord,
    backend: str,
    parts: ModelParts,
    ready: Ready,
    report: Report,
    explain: bool = True,
) -> PackageResult:
    checkpoint, suite, cases, gates = ready.checkpoint, ready.suite, ready.cases, ready.gates
    judged_as = gates.recorded.get(record.variant)
    mode = gates.modes.get(judged_as or record.variant) if backend == "mil" else None
    if backend == "mil" and mode is None:
        raise JudgedBadError(f"{parts.gates}: [modes] has no numeric mode for variant {record.variant!r}")
    stage = stage_of(parts, checkpoint, record) if checkpoint else None
    outcomes: list[Outcome] = []
    comparisons: list[CaseComparison] = []
    own = [c for c in cases if c.stage == record.stage]
    halves = {i.name for i in record.contract.inputs if i.dtype == "fp16"}
    for function in dict.fromkeys(case.function for case in own):
        specs = record.contract.outputs_of(function)
        outputs = {o.name: (tuple(o.shape), NUMPY[o.dtype]) for o in specs}
        runner = create(backend)
        at = stage.at(function) if stage else None
        runner.load(Target(build / record.package, mode or "typed", function, at, checkpoint))
        for case in (c for c in own if c.function == function):
            report(record.package, len(outcomes), len(own))
            outcome = Outcome(case, run_case(runner, case, halves))
            outcomes.append(outcome)
            comparisons.append(compare_case(outcome, outputs))
        runner.close()
    aggregates = suite.aggregates(outcomes) if outcomes else {}
    judgement = judge(comparisons, aggregates, gates, record.stage, judged_as or record.variant)
    suspects = _suspects(build / record.package, own, judgement, mode, halves) if explain else ()
    ops, peer_ops = _ops(build / record.package), parts.recipe().peer_ops.get(record.stage)
    return PackageResult(
        record, mode, tuple(comparisons), aggregates, judgement, suspects, judged_as, ops, peer_ops
    )


def _ops(package: Path) -> Mapping[str, int]:
    """How many ops of each type compute something: all but constants."""
    functions = open_package(package).program.functions.values()
    types = Counter(o.type for f in functions for o in f.block.walk())
    return {name: types[name] for name in sorted(types) if name != "const"}


def stage_of(parts: ModelParts, checkpoint: Checkpoint, record: PackageRecord) -> Stage:
    """The Stage that ``record``'s package was exported from."""
    stages = parts.recipe().stages(checkpoint, record.variant)
    return next(s for s in stages if s.name == record.stage)


def _suspects(
    package: Path, cases: Sequence[Case], judgement: Judgement, mode: str | None, halves: Collection[str]
) -> tuple[Suspect, ...]:
    """The five worst ops on the case that a failing verdict names, the first case when none does."""
    # The steps of a case that carries have inputs only once their predecessors have run.
    known = [c for c in cases if c.carry is None]
    if judgement.passed or mode is None or not known:
        return ()
    named = {v.case for v in judgement.verdicts if not v.passed}
    case = next((c for c in known if c.id in named), known[0])
    steps = [_halved(step, halves) for step in case.steps]
    return tuple(blame(package, steps, mode, case.function)[:5])


def _halved(inputs: Arrays, halves: Collection[str]) -> Arrays:
    return {name: a.astype(np.float16) if name in halves else a for name, a in inputs.items()}


def run_case(runner: Backend, case: Case, halves: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Run the case's steps on one state; several compared ones are stacked along a new first axis.

    ``halves``: inputs that this package takes as float16 and cases, shared by all variants, may give
    as float32.
    """
    state = runner.make_state()
    steps: list[dict[str, np.ndarray]] = []
    carried: Arrays = {}
    for own in case.steps:
        inputs = _halved({**own, **carried}, halves)
        steps.append(runner.predict(inputs, state))
        carried = case.carry(inputs, steps[-1]) if case.carry else {}
    compared = steps[case.warmup :]
    if len(compared) == 1:
        return compared[0]
    return {name: np.stack([s[name] for s in compared]) for name in compared[0]}
