"""``coreproof.json``: what a build folder holds and what it was made from.

Canonical JSON (:func:`coreproof.jsonio.canonical`), every key present, no other key allowed:

    schema       "coreproof.manifest/1"
    model        the recipe's name
    checkpoint   {kind: published | synthetic | other, seed: int or null, unused: {key: reason},
                  files: [{path, size, sha256}], sha256: see :func:`checkpoint_digest`}
    toolchain    {name: version} of what shaped the bytes
    files        [{path, size, sha256}] of everything in the folder except this file, receipt*.json and
                 what publishing adds: README.md and SHA256SUMS
    packages     [{package: folder name, stage, variant, target, compute_units,
                   contract: {inputs, outputs, states, each [{name, shape, dtype}], and functions,
                     [{name, inputs, outputs}] of a multifunction package, the first the default},
                   precision: {compute, kept_fp32: [op name], reason},
                   compression: null or {kind, bits, group_size: int or null, threshold, left: [name]},
                   weights: [{name, dtype, shape, file, offset, size, sha256, keys, transform}]}]

Paths are relative, with ``/``, and lists of files are sorted by path. A weight's ``offset`` is that of its
entry's header in ``file``; ``size`` and ``sha256`` are those of its stored bytes; ``transform`` says how the
tensors under ``keys`` became them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from coreproof.atomic import is_work_folder
from coreproof.convert.checkpoint import FileDigest
from coreproof.convert.recipe import FunctionSpec, TensorSpec
from coreproof.errors import JudgedBadError, PackageError
from coreproof.files import open_regular
from coreproof.jsonio import canonical, decode, read_json
from coreproof.package.layout import is_plain, list_files, safe_join

MANIFEST = "coreproof.json"
CARD = "README.md"
SUMS = "SHA256SUMS"
SCHEMA = "coreproof.manifest/1"
KINDS = ("published", "synthetic", "other")

MAX_MANIFEST_BYTES = 64 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """The checkpoint of a build. ``seed`` is given for synthetic ones only; ``unused`` names the keys
    knowingly left out, with the reason."""

    files: tuple[FileDigest, ...]
    sha256: str
    kind: str
    seed: int | None
    unused: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ContractRecord:
    """The Stage's contract: names, shapes and dtypes (fp16, fp32, int32). ``inputs`` and ``outputs`` are
    the default function's where there are ``functions``."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[TensorSpec, ...]
    functions: tuple[FunctionSpec, ...] = ()

    def outputs_of(self, function: str | None) -> tuple[TensorSpec, ...]:
        """The outputs of ``function``; None stands for the default. Raises PackageError."""
        return self._of(function).outputs

    def inputs_of(self, function: str | None) -> tuple[TensorSpec, ...]:
        """The inputs of ``function``; None stands for the default. Raises PackageError."""
        return self._of(function).inputs

    def _of(self, function: str | None) -> FunctionSpec:
        if function is None:
            return FunctionSpec("", self.inputs, self.outputs)
        for spec in self.functions:
            if spec.name == function:
                return spec
        raise PackageError(
            f"no function {function!r}; the package has {', '.join(f.name for f in self.functions) or 'one'}"
        )


@dataclass(frozen=True, slots=True)
class PrecisionRecord:
    """``kept_fp32``: names of the ops that compute in fp32 in an fp16 package, and ``reason`` why."""

    compute: str
    kept_fp32: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class CompressionRecord:
    """The Stage's compression. ``left``: weights of more elements than ``threshold`` that it did not fit,
    such as one whose channels ``group_size`` does not divide."""

    kind: str
    bits: int
    group_size: int | None
    threshold: int
    left: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WeightRecord:
    """One entry of a weight file, and the checkpoint keys and transform that made it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    size: int
    sha256: str
    keys: tuple[str, ...]
    transform: str


@dataclass(frozen=True, slots=True)
class PackageRecord:
    """One package: ``package`` is its folder's name in the build."""

    package: str
    stage: str
    variant: str
    contract: ContractRecord
    precision: PrecisionRecord
    compression: CompressionRecord | None
    target: str
    compute_units: str
    weights: tuple[WeightRecord, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of ``coreproof.json``."""

    model: str
    checkpoint: CheckpointRecord
    toolchain: Mapping[str, str]
    files: tuple[FileDigest, ...]
    packages: tuple[PackageRecord, ...]

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON values."""
        return {"schema": SCHEMA, **dataclasses.asdict(self)}

    def to_bytes(self) -> bytes:
        """The manifest as the bytes of its file."""
        return canonical(self.to_json())

    def package_files(self, package: str) -> tuple[FileDigest, ...]:
        """The files of the package folder ``package``, by their paths in the build."""
        return tuple(f for f in self.files if f.path.startswith(f"{package}/"))

    def package_digest(self, package: str) -> str:
        """One sha256 for a whole package: as :func:`checkpoint_digest`, of paths inside its folder."""
        files = self.package_files(package)
        return checkpoint_digest(
            dataclasses.replace(f, path=f.path.removeprefix(f"{package}/")) for f in files
        )


def load_manifest(build: Path) -> Manifest:
    """Read ``coreproof.json`` of the folder ``build``.

    Raises PackageError when it is missing, malformed, of another schema, or contradicts itself.
    """
    path = build / MANIFEST
    if not path.exists():
        raise PackageError(f"{build}: not a coreproof build, it has no {MANIFEST}")
    content = read_json(path, MAX_MANIFEST_BYTES)
    if not isinstance(content, dict) or content.pop("schema", None) != SCHEMA:
        raise PackageError(f"{path}: not a {SCHEMA} file")
    manifest: Manifest = decode(Manifest, content, str(path))
    _check_record(manifest, path)
    return manifest


def digest_files(folder: Path, paths: Iterable[str]) -> tuple[FileDigest, ...]:
    """Size and sha256 of files in ``folder``, sorted by path.

    Raises PackageError for a path that leaves the folder or is not a regular file.
    """
    return tuple(_digest_file(folder, path) for path in sorted(paths))


def checkpoint_digest(files: Iterable[FileDigest]) -> str:
    """One sha256 for several files: that of the lines ``sha256sum`` prints for them, sorted by path.

    In a folder that holds nothing else: ``find * -type f | LC_ALL=C sort | xargs sha256sum | sha256sum``.
    """
    lines = (f"{f.sha256}  {f.path}\n" for f in sorted(files, key=lambda f: f.path))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_files(build: Path, manifest: Manifest) -> None:
    """Compare the folder ``build`` with ``manifest.files``.

    Raises JudgedBadError naming the first file, in path order, that is missing, not listed, or of
    another size or sha256; PackageError for links and special files.
    """
    listed = {f.path: f for f in manifest.files}
    found = {path for path in list_files(build) if not is_unlisted(path)}
    for path in sorted(found | listed.keys()):
        if path not in found:
            raise JudgedBadError(f"{build}: {path} is missing")
        if path not in listed:
            raise JudgedBadError(f"{build}: {path} is not listed in {MANIFEST}")
        size = (build / path).stat().st_size
        if size != listed[path].size:
            raise JudgedBadError(f"{build}: {path} has {size} bytes, {MANIFEST} says {listed[path].size}")
        digest = _digest_file(build, path).sha256
        if digest != listed[path].sha256:
            raise JudgedBadError(
                f"{build}: {path} has sha256 {digest}, {MANIFEST} says {listed[path].sha256}"
            )


def _digest_file(folder: Path, path: str) -> FileDigest:
    with os.fdopen(open_regular(safe_join(folder, path)), "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileDigest(path, stream.tell(), digest)


def is_unlisted(path: str) -> bool:
    """Whether a file of a build folder is no part of the build: this manifest, receipts, the card and
    checksums it was published with, and what a write under way or a killed one keeps there."""
    first, slash, _ = path.partition("/")
    return is_work_folder(Path(first)) or (
        not slash and (path in (MANIFEST, CARD, SUMS) or fnmatchcase(path, "receipt*.json"))
    )


def _check_record(manifest: Manifest, path: Path) -> None:
    """What the types do not say: paths stay inside, digests are digests, names are unique."""
    checkpoint = manifest.checkpoint
    _check_file_list(manifest.files, f"{path}.files")
    _check_file_list(checkpoint.files, f"{path}.checkpoint.files")
    if checkpoint.sha256 != checkpoint_digest(checkpoint.files):
        raise PackageError(f"{path}: checkpoint.sha256 is not the digest of checkpoint.files")
    if checkpoint.kind not in KINDS or (checkpoint.kind == "synthetic") != (checkpoint.seed is not None):
        raise PackageError(f"{path}: a checkpoint of kind {checkpoint.kind!r} with seed {checkpoint.seed}")
    unlisted = next((f.path for f in manifest.files if is_unlisted(f.path)), None)
    if unlisted:
        raise PackageError(f"{path}: files lists {unlisted}, which is no part of a build")
    folders = {f.path.partition("/")[0] for f in manifest.files if "/" in f.path}
    for record in manifest.packages:
        if record.package not in folders:
            raise PackageError(f"{path}: package {record.package!r} is listed twice or has no files")
        folders.remove(record.package)


def _check_file_list(files: tuple[FileDigest, ...], where: str) -> None:
    paths = [f.path for f in files]
    if paths != sorted(set(paths)):
        raise PackageError(f"{where}: paths are not sorted, or one is there twice")
    for file in files:
        if not is_plain(file.path):
            raise PackageError(f"{where}: path {file.path!r} is not a plain relative path")
        if file.size < 0 or not _SHA256.fullmatch(file.sha256):
            raise PackageError(f"{where}: {file.path} has size {file.size} and sha256 {file.sha256!r}")
