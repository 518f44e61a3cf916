"""A recipe and a checkpoint to a build folder: packages, side files and ``coreproof.json``."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from coreproof.atomic import atomic_directory
from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.compression import record
from coreproof.convert.convert import Report, convert_stage
from coreproof.convert.origins import weight_records
from coreproof.convert.recipe import Recipe, Stage, StateSpec, TensorSpec
from coreproof.errors import UsageError
from coreproof.mil.program import Operation
from coreproof.mil.types import DType, TensorType
from coreproof.package.manifest import (
    MANIFEST,
    CheckpointRecord,
    ContractRecord,
    Manifest,
    PackageRecord,
    PrecisionRecord,
    checkpoint_digest,
    digest_files,
)
from coreproof.package.reader import Package
from coreproof.toolchain import toolchain


def select(
    recipe: Recipe, checkpoint: Checkpoint, variants: Sequence[str], stages: Sequence[str]
) -> list[tuple[str, Stage]]:
    """(variant, Stage) pairs to export, in the recipe's order. No stages given means all, no variants
    all but those on request.

    Raises UsageError for a name the recipe does not have.
    """
    known = (*recipe.variants, *recipe.on_request)
    for variant in variants:
        if variant not in known:
            raise UsageError(f"{recipe.name} has no variant {variant!r}; it has {', '.join(known)}")
    wanted = [v for v in known if v in (variants or recipe.variants)]
    pairs = [(v, s) for v in wanted for s in recipe.stages(checkpoint, v)]
    names = {s.name for _, s in pairs}
    for stage in stages:
        if stage not in names:
            raise UsageError(f"{recipe.name} has no stage {stage!r}; it has {', '.join(sorted(names))}")
    return [(v, s) for v, s in pairs if not stages or s.name in stages]


def export(
    recipe: Recipe,
    path: Path,
    checkpoint: Checkpoint,
    pairs: Sequence[tuple[str, Stage]],
    build: Path,
    report: Report,
) -> Manifest:
    """Export ``pairs`` into the folder ``build``, which appears whole or not at all.

    An earlier build there is replaced; any other non-empty folder is refused (UsageError). The
    same checkpoint, Stages and toolchain give the same bytes in every file.
    """
    if build.exists() and not is_replaceable(build):
        raise UsageError(
            f"{build} exists and is not a coreproof build (no {MANIFEST}); choose another folder"
        )
    with atomic_directory(build, replace=is_replaceable) as folder:
        records = [_one(variant, stage, checkpoint, folder, report) for variant, stage in pairs]
        source = path if path.is_dir() else path.parent
        for name in recipe.side_files:
            shutil.copyfile(source / name, folder / name)
        for name, content in (recipe.host_files(checkpoint) if recipe.host_files else {}).items():
            (folder / name).write_bytes(content)
        files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        manifest = Manifest(
            model=recipe.name,
            checkpoint=CheckpointRecord(
                files=tuple(checkpoint.files),
                sha256=checkpoint_digest(checkpoint.files),
                kind=checkpoint.kind,
                seed=checkpoint.seed,
                unused=dict(checkpoint.unused),
            ),
            toolchain=toolchain(),
            files=digest_files(folder, files),
            packages=tuple(records),
        )
        (folder / MANIFEST).write_bytes(manifest.to_bytes())
    return manifest


def is_replaceable(build: Path) -> bool:
    """Whether ``build`` is an earlier build or an empty folder."""
    return build.is_dir() and ((build / MANIFEST).is_file() or not any(build.iterdir()))


def _one(variant: str, stage: Stage, checkpoint: Checkpoint, folder: Path, report: Report) -> PackageRecord:
    package = convert_stage(
        stage,
        checkpoint,
        folder / f"{stage.package}.mlpackage",
        lambda step, done, total: report(f"{stage.package}: {step}", done, total),
    )
    return PackageRecord(
        package=f"{stage.package}.mlpackage",
        stage=stage.name,
        variant=variant,
        contract=ContractRecord(stage.inputs, stage.outputs, _as_tensors(stage.states), stage.functions),
        precision=PrecisionRecord(
            stage.precision.compute, _kept_fp32(stage, package), stage.precision.reason
        ),
        compression=record(stage, package),
        target=stage.target,
        compute_units=stage.compute_units,
        weights=weight_records(stage, checkpoint, package),
    )


def _as_tensors(states: Sequence[StateSpec]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(s.name, s.shape, s.dtype) for s in states)


def _kept_fp32(stage: Stage, package: Package) -> tuple[str, ...]:
    """Names of the ops that compute in fp32 inside an fp16 package, as the program shows."""
    if stage.precision.compute != "fp16":
        return ()
    operations = [o for f in package.program.functions.values() for o in f.block.walk()]
    kept = (o.name for o in operations if o.type not in ("const", "cast") and _is_fp32(o))
    return tuple(dict.fromkeys(kept))


def _is_fp32(operation: Operation) -> bool:
    return any(isinstance(o.type, TensorType) and o.type.dtype is DType.FP32 for o in operation.outputs)
