"""Is a build what its checkpoint exports to? Export again, compare every file, explain a difference."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coreproof.catalog import ModelParts
from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.convert import Report
from coreproof.convert.export import export
from coreproof.errors import JudgedBadError, UsageError
from coreproof.evidence.check import check_receipt, find_receipts
from coreproof.explain import Finding, explain, unequal_files
from coreproof.package.manifest import MANIFEST, Manifest, check_files, checkpoint_digest, load_manifest
from coreproof.parity.gates import load_gates

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Verification:
    """What was checked, in words, and every difference found, from coarse to fine."""

    manifest: Manifest
    checked: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        return bool(self.checked) and not self.findings

    def to_json(self) -> dict[str, Any]:
        return {
            "verdict": "pass" if self.passed else "fail",
            "files": len(self.manifest.files),
            "checked": list(self.checked),
            "findings": [finding.to_json() for finding in self.findings],
        }


def verify(build: Path, parts: ModelParts, path: Path, scratch: Path, report: Report) -> Verification:
    """Check what ``build`` says of itself, then export it again from the checkpoint at ``path`` into
    ``scratch`` and compare.

    A checkpoint other than the build's is a finding, and nothing is exported from it. Raises
    PackageError for a manifest, receipt or folder that cannot be read.
    """
    known = verify_itself(build, parts)
    manifest = known.manifest
    recipe = parts.recipe()
    checkpoint = recipe.load(path)
    others = tuple(_another_checkpoint(manifest, checkpoint, path))
    if others:
        return replace(known, findings=known.findings + others)
    exported = {(p.variant, p.stage) for p in manifest.packages}
    pairs = [
        (v, s)
        for v in (*recipe.variants, *recipe.on_request)
        for s in recipe.stages(checkpoint, v)
        if (v, s.name) in exported
    ]
    remade = export(recipe, path, checkpoint, pairs, scratch, report)
    found = explain(build, manifest, scratch, remade)
    return Verification(manifest, (*known.checked, "re-export"), known.findings + found)


def verify_itself(build: Path, parts: ModelParts) -> Verification:
    """Hold the files of ``build`` to its manifest, and its receipts to both. This cannot catch who
    rewrote all of them together. Raises PackageError as :func:`verify`."""
    manifest = load_manifest(build)
    findings = []
    try:
        check_files(build, manifest)
    except JudgedBadError as error:
        findings.append(Finding("files", str(build), str(error).removeprefix(f"{build}: ")))
    paths = find_receipts(build)
    gates = load_gates(parts.gates) if paths else None
    for path in paths:
        assert gates is not None
        try:
            check_receipt(path, manifest, gates)
        except JudgedBadError as error:
            findings.append(Finding("receipt", path.name, str(error).removeprefix(f"{path}: ")))
    return Verification(manifest, ("files", "receipts") if paths else ("files",), tuple(findings))


def verify_pin(build: Path, expected: str) -> Verification:
    """Hold ``build`` to the sha256 of its ``coreproof.json``, known from somewhere else, and its files
    to that manifest. Needs no checkpoint.

    Raises UsageError for what is no sha256, PackageError as :func:`verify`.
    """
    if not _SHA256.fullmatch(expected):
        raise UsageError(f"--expect {expected}: give the 64 hexadecimal digits of sha256sum {MANIFEST}")
    manifest = load_manifest(build)
    stored = (build / MANIFEST).read_bytes()
    findings = []
    found = hashlib.sha256(stored).hexdigest()
    if found != expected:
        findings.append(Finding("pin", MANIFEST, f"has sha256 {found}, expected {expected}"))
    if stored != manifest.to_bytes():
        findings.append(Finding("pin", MANIFEST, "is not in its canonical form; coreproof never wrote it"))
    return Verification(manifest, ("pin",), tuple(findings))


def merged(first: Verification, second: Verification) -> Verification:
    """Two checks of one build as one."""
    return Verification(first.manifest, first.checked + second.checked, first.findings + second.findings)


def _another_checkpoint(manifest: Manifest, checkpoint: Checkpoint, path: Path) -> Iterator[Finding]:
    digest = checkpoint_digest(checkpoint.files)
    if digest == manifest.checkpoint.sha256:
        return
    yield Finding(
        "checkpoint",
        str(path),
        f"is checkpoint {digest[:12]}, the build says {manifest.checkpoint.sha256[:12]}; nothing was exported "
        "from it. Pass the one that the build was exported from",
    )
    yield from unequal_files("checkpoint", manifest.checkpoint.files, checkpoint.files, "the build", "here")
