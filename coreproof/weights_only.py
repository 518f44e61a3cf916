"""Every stored weight of a build against its checkpoint, with numpy alone and nothing converted.

``coreproof.json`` names for each weight the checkpoint keys and the transform that made it. Here the
transform is done again, a piece at a time, and compared with the stored bytes; every entry of a
weight file must be a weight that the program uses and the manifest lists, and every other byte zero.
The graph itself, and what constants it holds, only a re-export can check.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from coreproof.catalog import ModelParts
from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.large import pieces, release
from coreproof.convert.origins import CONSTANT, NEAREST, NEAREST_NONZERO, nearest_nonzero
from coreproof.errors import JudgedBadError, PackageError
from coreproof.explain import Finding, unequal_files
from coreproof.mil.program import Blob
from coreproof.mil.types import DType, TensorType
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

_PIECE = 1 << 20  # elements
_TRANSPOSED = re.compile(r"transposed \[(\d+(?:, \d+)*)\]")

Array = np.ndarray[Any, Any]
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
    for record in manifest.packages:
        stages = recipe.stages(checkpoint, record.variant) if record.variant in recipe.variants else ()
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
        self.checkpoint = checkpoint
        self.patterns = patterns
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
                findings.extend(self._weight(weight))
            elif any(fnmatchcase(weight.name, p) for p in self.patterns):
                constants.append(weight.name)
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
        if type_.dtype.numpy_name is None:
            return [self._bad(weight, f"holds {type_}, whose origin numpy alone cannot show yet")]
        return []

    def _weight(self, weight: WeightRecord) -> Iterator[Finding]:
        _, blob = self.blobs[weight.file, weight.offset]
        candidates = list(self._candidates(weight))
        if not candidates:
            yield self._bad(
                weight, f"no tensor of the checkpoint is {', '.join(weight.keys)} with {weight.transform!r}"
            )
            return
        distances = {name: self._distance(blob, name, steps) for name, steps in candidates}
        equal = [name for name, (differing, _) in distances.items() if not differing]
        covered = {k for name in equal for k in self.checkpoint.origins[name].keys}
        if not equal:
            differing, largest = next(iter(distances.values()))
            made = f"{weight.transform!r} of {', '.join(weight.keys)}"
            words = f"{differing} of {math.prod(weight.shape)} elements are not {made}; max abs {largest:.4g}"
            yield self._bad(weight, words, largest)
        elif covered != set(weight.keys):
            missing = ", ".join(sorted(set(weight.keys) - covered))
            yield self._bad(weight, f"comes from {', '.join(sorted(covered))}, and not from {missing}")

    def _candidates(self, weight: WeightRecord) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Tensors that may have made ``weight``, each with the steps that are left to do."""
        found = [
            (name, steps)
            for name, origin in self.checkpoint.origins.items()
            if origin.keys
            and set(origin.keys) <= set(weight.keys)
            and (steps := _rest(weight.transform, origin.transform)) is not None
        ]
        yield from found
        # Tensors that are equal share one weight, under the transform of the first of them.
        covered = {k for name, _ in found for k in self.checkpoint.origins[name].keys}
        for name, origin in self.checkpoint.origins.items():
            if found and set(origin.keys) <= set(weight.keys) and not set(origin.keys) <= covered:
                yield name, found[0][1]

    def _distance(self, blob: Blob, name: str, steps: tuple[str, ...]) -> tuple[int, float]:
        """How many elements of the stored weight are not what the tensor gives, and by how much."""
        assert isinstance(blob.type, TensorType)
        size = blob.type.size or 0
        tensor = self.checkpoint.tensors[name]
        turned, roundings = _turned(tensor, steps)
        unrounded = blob.type.dtype is DType.FP16 and not roundings
        if turned is None or turned.size != size or unrounded:
            return size, float("nan")
        stored = self.package.weights.array(blob).reshape(-1)
        start, differing, largest = 0, 0, 0.0
        for piece in _blocks(turned):
            for rounding in roundings:
                piece = rounding(piece)
            mine = stored[start : start + piece.size]
            expected = piece.astype(mine.dtype, copy=False)
            if not np.array_equal(mine.view(np.uint8), np.ascontiguousarray(expected).view(np.uint8)):
                unequal = np.frombuffer(mine.tobytes(), mine.dtype) != expected
                unequal |= np.signbit(mine) != np.signbit(expected)
                far = np.abs(mine.astype(np.float64) - expected.astype(np.float64))[unequal]
                differing += max(int(unequal.sum()), 1)
                largest = float(np.max(far, initial=largest))
            start += piece.size
        self.package.weights.release(blob)
        if tensor.flags.c_contiguous:
            release(tensor)
        return differing, largest

    def _bad(self, weight: WeightRecord, what: str, size: float | None = None) -> Finding:
        return Finding("weight", self.record.package, f"{weight.name}: {what}", size)


def _rest(transform: str, origin: str) -> tuple[str, ...] | None:
    """The steps of ``transform`` behind those of a tensor's origin; None when it has other ones."""
    if transform == origin:
        return ()
    if origin != "identity" and not transform.startswith(f"{origin}; "):
        return None
    rest = transform if origin == "identity" else transform.removeprefix(f"{origin}; ")
    steps = tuple(rest.split("; "))
    known = all(step in _ROUNDINGS or _TRANSPOSED.fullmatch(step) for step in steps)
    return steps if known else None


_ROUNDINGS: Mapping[str, Callable[[Array], Array]] = {
    NEAREST: lambda piece: _half(piece),
    NEAREST_NONZERO: lambda piece: nearest_nonzero(piece, _half),
}


def _half(piece: Array) -> Array:
    with np.errstate(over="ignore"):
        return piece.astype(np.float16)


def _turned(tensor: Array, steps: tuple[str, ...]) -> tuple[Array | None, list[Callable[[Array], Array]]]:
    """A view of ``tensor`` with its axes in the order that ``steps`` ask for, None when it has no such
    axes, and the roundings among them."""
    roundings = []
    for step in steps:
        if found := _TRANSPOSED.fullmatch(step):
            order = [int(axis) for axis in found[1].split(", ")]
            if sorted(order) != list(range(tensor.ndim)):
                return None, []
            tensor = tensor.transpose(order)
        else:
            roundings.append(_ROUNDINGS[step])
    return tensor, roundings


def _blocks(array: Array) -> Iterator[Array]:
    """``array`` in C order as flat pieces of at most _PIECE elements, whatever its strides."""
    if array.flags.c_contiguous:
        yield from pieces(array)
    elif array.size <= _PIECE:
        yield np.ascontiguousarray(array).reshape(-1)
    else:
        rows = max(1, _PIECE // max(1, array[0].size))
        for start in range(0, len(array), rows):
            yield from _blocks(array[start] if rows == 1 else array[start : start + rows])
