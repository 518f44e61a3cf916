"""Fetches a published build and checks every byte of it before it appears under its name.

Nothing that the repository says of itself is believed: paths must stay inside, the checksums must be
those of ``coreproof.json``, every file must have its sha256, and every receipt must be of these bytes.
That shows a publication to be whole. Only a digest from elsewhere shows it to be the right one.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from coreproof.atomic import atomic_directory, require_space
from coreproof.convert.checkpoint import FileDigest
from coreproof.convert.convert import Report
from coreproof.convert.export import is_replaceable
from coreproof.errors import JudgedBadError, UsageError
from coreproof.evidence.check import Receipt
from coreproof.evidence.proof import require_proof
from coreproof.files import sha256_of
from coreproof.package.layout import safe_join
from coreproof.package.manifest import (
    CARD,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    SUMS,
    Manifest,
    check_files,
    load_manifest,
)
from coreproof.publication.checksums import MAX_CHECKSUM_BYTES, read_checksums
from coreproof.publication.client import explained, patiently
from coreproof.publication.plan import Item, is_there, remote_files

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

_BESIDE_BYTES = 64 << 20  # the most that a card or a receipt may have


@dataclass(frozen=True, slots=True)
class Fetched:
    """A build that was fetched: the commit it is of, and the receipts that came with it."""

    folder: Path
    commit: str
    manifest: Manifest
    manifest_sha256: str
    receipts: Mapping[str, Receipt]


def fetch(
    api: HfApi, repo: str, revision: str, folder: Path, expected: str | None, report: Report
) -> Fetched:
    """Download ``revision`` (branch, tag or commit) of ``repo`` into ``folder``, which appears whole and
    checked or not at all; an earlier build there is replaced.

    ``expected`` is the sha256 that ``coreproof.json`` must have. Raises JudgedBadError for bytes that are
    not what they should be, PackageError for a malformed or hostile manifest or checksum file, HubError
    for what the Hub refuses.
    """
    with explained(repo):
        commit = str(patiently(lambda: api.model_info(repo, revision=revision)).sha)
        there = patiently(lambda: remote_files(api, repo, commit))
        with atomic_directory(folder, replace=is_replaceable) as new:
            source = _Source(api, repo, commit, there)
            source.copy(MANIFEST, new, None, MAX_MANIFEST_BYTES)
            digest = sha256_of(new / MANIFEST)
            if expected is not None and digest != expected.lower():
                raise JudgedBadError(
                    f"{repo} at {commit[:12]}: {MANIFEST} has sha256 {digest}, expected is {expected.lower()}; "
                    "this is not the publication that the digest was taken of"
                )
            manifest = load_manifest(new)
            source.copy(SUMS, new, None, MAX_CHECKSUM_BYTES)
            listed = _listed(new / SUMS, manifest, digest)
            sizes = {f.path: f.size for f in manifest.files}
            require_space(folder, sum(sizes.values()))
            _download(source, new, listed, sizes, report)
            report("checking", 0, 1)
            check_files(new, manifest)
            receipts = require_proof(new, manifest, None)
    return Fetched(folder, commit, manifest, digest, receipts)


def _listed(path: Path, manifest: Manifest, manifest_sha256: str) -> dict[str, str]:
    """Path -> sha256 of what is to be downloaded: what the manifest lists and what lies beside it."""
    listed = read_checksums(path)
    wanted = {MANIFEST: manifest_sha256, **{f.path: f.sha256 for f in manifest.files}}
    for name, digest in wanted.items():
        if listed.get(name) != digest:
            raise JudgedBadError(
                f"{path.name} says {listed.get(name, 'nothing')} of {name}, {MANIFEST} makes it {digest}"
            )
    for name in listed.keys() - wanted.keys():
        if name != CARD and not ("/" not in name and fnmatchcase(name, "receipt*.json")):
            raise JudgedBadError(f"{path.name} lists {name}, which {MANIFEST} does not know")
    return {name: digest for name, digest in sorted(listed.items()) if name != MANIFEST}


def _download(
    source: _Source, new: Path, listed: Mapping[str, str], sizes: Mapping[str, int], report: Report
) -> None:
    done, total = 0, sum(sizes.values())
    for name, digest in listed.items():
        report(f"fetching {name}", done, total)
        source.copy(name, new, digest, sizes.get(name, _BESIDE_BYTES), exact=name in sizes)
        done += sizes.get(name, 0)


@dataclass(frozen=True, slots=True)
class _Source:
    """One commit of a repository, downloaded through the client's cache, so that what has arrived when
    a fetch fails need not come again."""

    api: HfApi
    repo: str
    commit: str
    there: Mapping[str, RepoFile]

    def copy(self, name: str, folder: Path, digest: str | None, size: int, exact: bool = False) -> None:
        """Put the file ``name`` into ``folder``, with the sha256 ``digest`` if one is given, and of at most
        ``size`` bytes, or of exactly as many. What arrived damaged is downloaded once more."""
        remote = self.there.get(name)
        if remote is None:
            what = "it is not a coreproof publication, or not a whole one"
            raise JudgedBadError(f"{self._at} has no {name}; {what}")
        if remote.size > size or (exact and remote.size != size):
            most = "" if exact else "at most "
            raise JudgedBadError(f"{self._at}: {name} has {remote.size} bytes, expected are {most}{size}")
        target = safe_join(folder, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        for again in (False, True):
            cached = self._get(name, again)
            shutil.copyfile(cached, target)
            arrived = FileDigest(name, target.stat().st_size, sha256_of(target))
            if is_there(Item(arrived, target), remote):
                break
            _forget(cached)
        else:
            raise JudgedBadError(f"{self._at}: {name} arrived damaged, twice; nothing was kept, fetch again")
        if digest not in (None, arrived.sha256):
            raise JudgedBadError(f"{self._at}: {name} has sha256 {arrived.sha256}, {MANIFEST} says {digest}")

    @property
    def _at(self) -> str:
        return f"{self.repo} at {self.commit[:12]}"

    def _get(self, name: str, again: bool) -> Path:
        download = self.api.hf_hub_download
        return Path(patiently(lambda: download(self.repo, name, revision=self.commit, force_download=again)))


def _forget(cached: Path) -> None:
    """Remove a damaged file from the client's cache: the link, and the content it leads to."""
    for path in {cached.resolve(), cached}:
        path.unlink(missing_ok=True)


def check_digest(text: str) -> str:
    """``text`` if it is a sha256 in hexadecimal. Raises UsageError."""
    if len(text) != 64 or not set(text.lower()) <= set("0123456789abcdef"):
        raise UsageError(f"{text}: not a sha256, which has 64 hexadecimal digits")
    return text.lower()
