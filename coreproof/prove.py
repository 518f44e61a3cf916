"""Do the gates bite? Plant each of the suite's defects and see that the gates that name it fail.

A defect goes into a copy of the exported package, or into its Stage, which is exported again. The
copy's manifest is made to match, so that it is the gates that must catch it and not a checksum.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from coreproof.catalog import ModelParts
from coreproof.convert.convert import Report, convert_stage
from coreproof.errors import JudgedBadError, UsageError
from coreproof.package.manifest import MANIFEST, Manifest, PackageRecord, digest_files, load_manifest
from coreproof.parity.gates import Gate, Verdict, load_gates
from coreproof.parity.suite import Control
from coreproof.validate import Validation, stage_of, validate


@dataclass(frozen=True, slots=True)
class Proof:
    """What one gate said of one planted defect in one package."""

    gate: str
    package: str
    control: str
    value: str
    bound: str
    caught: bool

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def prove(
    build: Path, parts: ModelParts, checkpoint: Path | None, fixture: Path | None, report: Report
) -> list[Proof]:
    """One proof for each (gate, control it names, package it applies to); ``checkpoint`` and
    ``fixture`` as :func:`coreproof.validate.validate` takes them.

    Raises UsageError when a control changes the Stage and no checkpoint is given to re-export
    from, JudgedBadError when the build does not pass before anything is planted.
    """
    sound = validate(build, parts, "mil", checkpoint, fixture, report)
    if not sound.passed:
        raise JudgedBadError(f"{build} does not pass as it is; run coreproof validate first")
    suite = parts.suite()
    used: dict[str, set[str | None]] = {}
    for case in suite.cases(sound.fixture.arrays):
        used.setdefault(case.stage, set()).add(case.function)
    gates = load_gates(parts.gates)
    manifest = load_manifest(build)
    shipping = [r for r in manifest.packages if r.variant not in gates.recorded]
    proofs = []
    for control in suite.controls:
        naming = [g for g in gates.gates if control.name in g.controls]
        records = [r for r in shipping if any(g.applies(r.stage, r.variant) for g in naming)]
        with tempfile.TemporaryDirectory(prefix="coreproof-control-") as scratch:
            copy = Path(scratch) / "build"
            for record in records:
                report(f"planting {control.name}", 0, 1)
                shutil.copytree(build, copy)
                _plant(control, copy, record, parts, checkpoint, used[record.stage], report)
                _sign(copy, manifest, record)
                judged = validate(copy, parts, "mil", checkpoint, fixture, report, explain=False)
                proofs.extend(_read(judged, control, record, naming))
                shutil.rmtree(copy)
    return proofs


def _plant(
    control: Control,
    copy: Path,
    record: PackageRecord,
    parts: ModelParts,
    checkpoint: Path | None,
    used: Collection[str | None],
    report: Report,
) -> None:
    """``used``: the functions that cases run; no other is exported again."""
    package = copy / record.package
    if control.package is not None and control.stage is None:
        control.package(package)
        return
    if control.stage is None or control.package is not None:
        raise UsageError(f"control {control.name!r} must change either the package or the Stage")
    if checkpoint is None:
        raise UsageError(f"control {control.name!r} changes the Stage: pass --checkpoint to export it again")
    loaded = parts.recipe().load(checkpoint)
    stage = stage_of(parts, loaded, record)
    if kept := tuple(f for f in stage.functions if f.name in used):
        stage = replace(stage, functions=kept, inputs=kept[0].inputs, outputs=kept[0].outputs)
    shutil.rmtree(package)
    convert_stage(control.stage(stage, loaded), loaded, package, report)


def _sign(copy: Path, manifest: Manifest, record: PackageRecord) -> None:
    """Make the copy's manifest tell the truth about its files, with only ``record``'s package."""
    for other in manifest.packages:
        if other is not record:
            shutil.rmtree(copy / other.package)
    files = [p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()]
    kept = sorted(f for f in files if f != MANIFEST and not f.startswith("receipt"))
    signed = replace(manifest, files=digest_files(copy, kept), packages=(record,))
    (copy / MANIFEST).write_bytes(signed.to_bytes())


def _read(judged: Validation, control: Control, record: PackageRecord, naming: Sequence[Gate]) -> list[Proof]:
    verdicts = judged.packages[0].judgement.verdicts
    mine = [v for v in verdicts if control.name in v.controls]
    assert len(mine) == sum(g.applies(record.stage, record.variant) for g in naming)
    return [_proof(v, control, record) for v in mine]


def _proof(verdict: Verdict, control: Control, record: PackageRecord) -> Proof:
    return Proof(
        gate=f"{verdict.name} {verdict.metric}" if verdict.metric else verdict.name,
        package=record.package,
        control=control.name,
        value="not measured" if verdict.value is None else f"{verdict.value:.4g}",
        bound=f"{verdict.side} {verdict.bound:.9g}",
        caught=not verdict.passed,
    )
