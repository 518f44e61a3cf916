"""Re-export a build and compare it with what is there, byte for byte."""

from __future__ import annotations

from pathlib import Path

from coreproof.catalog import ModelParts
from coreproof.convert.convert import Report
from coreproof.convert.export import export
from coreproof.errors import JudgedBadError, UsageError
from coreproof.package.manifest import Manifest, PackageRecord, check_files, checkpoint_digest, load_manifest
from coreproof.toolchain import toolchain


def verify(build: Path, parts: ModelParts, path: Path, scratch: Path, report: Report) -> Manifest:
    """Re-export ``build`` from the checkpoint at ``path`` into ``scratch`` and compare.

    Raises JudgedBadError naming the first file that differs, with the toolchain versions that
    differ when they may be the reason; UsageError when the checkpoint is another one.
    """
    manifest = load_manifest(build)
    check_files(build, manifest)
    recipe = parts.recipe()
    checkpoint = recipe.load(path)
    digest = checkpoint_digest(checkpoint.files)
    if digest != manifest.checkpoint.sha256:
        raise UsageError(
            f"{path} is checkpoint {digest[:12]}, the build is of {manifest.checkpoint.sha256[:12]}; "
            "pass the one it was exported from"
        )
    exported = {(p.variant, p.stage) for p in manifest.packages}
    pairs = [(v, s) for v in recipe.variants for s in recipe.stages(checkpoint, v) if (v, s.name) in exported]
    remade = export(recipe, path, checkpoint, pairs, scratch, report)
    old = {f.path: f for f in manifest.files}
    new = {f.path: f for f in remade.files}
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            raise JudgedBadError(f"{name} differs from its re-export{_why(manifest)}")
    for mine, theirs in zip(_records(manifest), _records(remade), strict=True):
        if mine != theirs:
            raise JudgedBadError(
                f"coreproof.json describes {mine.package} otherwise than its re-export{_why(manifest)}"
            )
    if manifest.to_bytes() != remade.to_bytes():
        raise JudgedBadError(f"coreproof.json differs from its re-export{_why(manifest)}")
    return manifest


def _records(manifest: Manifest) -> list[PackageRecord]:
    return sorted(manifest.packages, key=lambda p: p.package)


def _why(manifest: Manifest) -> str:
    here = toolchain()
    other = [
        f"{n} {v} (here {here.get(n)})" for n, v in sorted(manifest.toolchain.items()) if here.get(n) != v
    ]
    return f"; the build was made with {', '.join(other)}" if other else "; the toolchain is the same"
