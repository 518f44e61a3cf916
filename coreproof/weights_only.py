"""Every stored weight of a build against its checkpoint, with numpy alone and nothing converted.

``coreproof.json`` names for each weight the checkpoint keys and the transform that made it. Here the
transform is done again, a piece at a time, and compared with the stored bytes; every entry of a
weight file must be a weight that the program uses and the manifest lists, and every other byte zero.
The graph itself, and what constants it holds, only a re-export can check.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from coreproof.catalog import ModelParts
from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.origins import CONSTANT
from coreproof.convert.retrace import Retrace
from coreproof.errors import JudgedBadError, PackageError
from coreproof.explain import Finding, unequal_files
from coreproof.mil.types import TensorType
from coreproof.mil.weights import weights
from coreproof.package.layout import DATA
from coreproof.package.layout import MANIFEST as LAYOUT
from coreproof.package.manifest import (
    Manifest,
    PackageRecord,
    WeightRecord,
    check_files,
    checkpoint_digest,
    load_manifest,
)
from coreproof.package.reader import Package, open_package, relative_name

Report = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Explained:
    """The weights of one package. ``bytes`` are those of its weight files, ``constants`` the weights
    that no checkpoint key made: the Stage declares them, and nothing here shows their values right."""

    package: str
    weights: int
    bytes: int
    constants: tuple[str, ...]
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "package": self.package,
            "weights": self.weights,
            "bytes": self.bytes,
            "constants": list(self.constants),
        }


@dataclass(frozen=True, slots=True)
class WeightsOnly:
    """A build's weights, held to a checkpoint. ``findings`` are those of the build as a whole."""

    manifest: Manifest
    packages: tuple[Explained, ...]
    own: tuple[Finding, ...] = ()

    @property
    def findings(self) -> tuple[Finding, ...]:
        return self.own + tuple(f for p in self.packages for f in p.findings)

    @property
    def passed(self) -> bool:
        return bool(self.packages) and not self.findings

    def to_json(self) -> dict[str, Any]:
        return {
            "verdict": "pass" if self.passed else "fail",
            "checked": ["files", "weights"],
            "packages": [p.to_json() for p in self.packages],
            "findings": [f.to_json() for f in self.findings],
        }


def verify_weights(build: Path, parts: ModelParts, path: Path, report: Report) -> WeightsOnly:
    """Compare every weight of the build with the checkpoint at ``path``. Needs neither torch nor
    coremltools' converter, and memory for a few pieces of a weight.

    Raises PackageError for a manifest or package that is malformed.
    """
    manifest = load_manifest(build)
    try:
        check_files(build, manifest)
    except JudgedBadError as error:
        own = Finding("files", str(build), str(error).removeprefix(f"{build}: "))
        return WeightsOnly(manifest, (), (own,))
    recipe = parts.recipe()
    checkpoint = recipe.load(path)
    if checkpoint_digest(checkpoint.files) != manifest.checkpoint.sha256:
        files = manifest.checkpoint.files, checkpoint.files
        return WeightsOnly(manifest, (), tuple(unequal_files("checkpoint", *files, "the build", "here")))
    explained = []
    known = (*recipe.variants, *recipe.on_request)
    for record in manifest.packages:
        stages = recipe.stages(checkpoint, record.variant) if record.variant in known else ()
        patterns = next((s.constants for s in stages if s.name == record.stage), ())
        explained.append(_Package(build, manifest, record, checkpoint, patterns).explain(report))
    return WeightsOnly(manifest, tuple(explained))


class _Package:
    def __init__(
        self,
        build: Path,
        manifest: Manifest,
        record: PackageRecord,
        checkpoint: Checkpoint,
        patterns: tuple[str, ...],
    ) -> None:
        self.record = record
        self.patterns = patterns
        self.retrace = Retrace(checkpoint)
        self.package: Package = open_package(build / record.package)
        self.files = {
            f.path.removeprefix(f"{record.package}/"): f.size for f in manifest.package_files(record.package)
        }
        self.blobs = {(relative_name(b.file), b.offset): (n, b) for n, b in weights(self.package.program)}

    def explain(self, report: Report) -> Explained:
        folder = self.package.weights.folder.relative_to(self.package.path).as_posix()
        stored = sorted({file for file, _ in self.blobs})
        findings = [*self._files(folder, stored), *self._places(stored)]
        constants = []
        for index, weight in enumerate(self.record.weights):
            report(f"{self.record.package}: {weight.name}", index, len(self.record.weights))
            declared = self._declared(weight)
            findings.extend(declared)
            if declared or (weight.file, weight.offset) not in self.blobs:
                continue
            if weight.keys or weight.transform != CONSTANT:
                findings.extend([*self._weight(weight)] or self._digest(weight))
            elif any(fnmatchcase(weight.name, p) for p in self.patterns):
                constants.append(weight.name)
                findings.extend(self._digest(weight))
            else:
                findings.append(
                    self._bad(weight, "is called a constant of the stage, which declares none such")
                )
        sizes = sum(self.files.get(f"{folder}/{file}", 0) for file in stored)
        return Explained(
            self.record.package, len(self.record.weights), sizes, tuple(constants), tuple(findings)
        )

    def _files(self, folder: str, stored: list[str]) -> Iterator[Finding]:
        """Whether the package holds files that are neither its program nor its weights."""
        spec = next(iter(self.files.keys() & {f"{DATA}/com.apple.CoreML/model.mlmodel"}), "")
        known = {LAYOUT, spec, *(f"{folder}/{file}" for file in stored)}
        for path in sorted(self.files.keys() - known):
            yield Finding("file", f"{self.record.package}/{path}", "is neither the program nor its weights")

    def _places(self, stored: list[str]) -> Iterator[Finding]:
        """Whether file, program and manifest have the same weights at the same places."""
        listed = {(w.file, w.offset): w for w in self.record.weights}
        if len(listed) != len(self.record.weights):
            yield Finding("weight", self.record.package, "the manifest lists two weights at one place")
        entries = {}
        for file in stored:
            try:
                for offset, entry in self.package.weights.file(f"@model_path/{file}").walk():
                    entries[file, offset] = entry
            except PackageError as error:
                yield Finding("file", self.record.package, str(error))
        for place in sorted(entries.keys() | self.blobs.keys() | listed.keys()):
            lacking = [
                who
                for who, places in (
                    ("the weight file", entries),
                    ("the program", self.blobs),
                    ("coreproof.json", listed),
                )
                if place not in places
            ]
            if lacking:
                yield Finding(
                    "weight",
                    self.record.package,
                    f"{place[0]} offset {place[1]}: {' and '.join(lacking)} {'has' if len(lacking) == 1 else 'have'} "
                    "no weight there",
                )

    def _declared(self, weight: WeightRecord) -> list[Finding]:
        """Whether the program declares the weight as the manifest does."""
        name, blob = self.blobs.get((weight.file, weight.offset), (weight.name, None))
        if blob is None:
            return []  # told already
        entry, type_ = self.package.weights.entry(blob), blob.type
        assert isinstance(type_, TensorType)
        shape = tuple(d for d in type_.shape or () if d is not None)
        own = (name, str(type_.dtype), shape, entry.nbytes)
        said = (weight.name, weight.dtype, weight.shape, weight.size)
        if own != said:
            return [
                self._bad(
                    weight, f"is {said} in the manifest (name, dtype, shape, bytes), {own} in the package"
                )
            ]
        return []

    def _digest(self, weight: WeightRecord) -> list[Finding]:
        """Whether the manifest knows the stored bytes."""
        _, blob = self.blobs[weight.file, weight.offset]
        digest = self.package.weights.file(blob.file).digest(self.package.weights.entry(blob)).hex()
        if digest == weight.sha256:
            return []
        return [self._bad(weight, f"has sha256 {digest[:12]}, coreproof.json says {weight.sha256[:12]}")]

    def _weight(self, weight: WeightRecord) -> Iterator[Finding]:
        _, blob = self.blobs[weight.file, weight.offset]
        found = self.retrace.compare(self.package, blob, weight.keys, weight.transform)
        made = f"{weight.transform!r} of {', '.join(weight.keys)}"
        if found is None:
            yield self._bad(
                weight, f"no tensor of the checkpoint is {', '.join(weight.keys)} with {weight.transform!r}"
            )
        elif found.differing is None:
            yield self._bad(weight, f"is not {made}")
        elif found.differing:
            elements = f"{found.differing} of {math.prod(weight.shape)} elements"
            words = f"{elements} are not {made}; max abs {found.max_abs:.4g}"
            yield self._bad(weight, words, found.max_abs)
        elif found.keys != set(weight.keys):
            missing = ", ".join(sorted(set(weight.keys) - found.keys))
            yield self._bad(weight, f"comes from {', '.join(sorted(found.keys))}, and not from {missing}")

    def _bad(self, weight: WeightRecord, what: str, size: float | None = None) -> Finding:
        return Finding("weight", self.record.package, f"{weight.name}: {what}", size)
