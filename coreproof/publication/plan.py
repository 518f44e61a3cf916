"""What a publication holds, and what it changes in the repository it goes to."""

from __future__ import annotations

import difflib
import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coreproof.convert.checkpoint import FileDigest
from coreproof.errors import CoreproofError, UsageError
from coreproof.files import sha256_of
from coreproof.package.manifest import CARD, MANIFEST, SUMS, Manifest
from coreproof.publication.checksums import checksums, read_checksums
from coreproof.publication.client import explained, patiently

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile


@dataclass(frozen=True, slots=True)
class Item:
    """A file to publish: where it goes, what it is, and its bytes or the file that has them."""

    digest: FileDigest
    source: Path | bytes


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to one path: ``add``, ``replace``, ``keep`` or ``remove``. Sizes in bytes, None where
    there is no such file."""

    path: str
    action: str
    old_size: int | None
    new_size: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    """A publication before it happens. ``head``: the commit it is based on, None when the repository is
    to be made. ``private``: what the repository is now."""

    repo: str
    head: str | None
    private: bool
    public: bool
    items: tuple[Item, ...]
    changes: tuple[Change, ...]
    card_diff: str

    @property
    def to_send(self) -> tuple[Item, ...]:
        """The files that the commit adds or replaces."""
        changed = {c.path for c in self.changes if c.action in ("add", "replace")}
        return tuple(i for i in self.items if i.digest.path in changed)

    @property
    def to_remove(self) -> tuple[str, ...]:
        return tuple(c.path for c in self.changes if c.action == "remove")

    @property
    def empty(self) -> bool:
        """Whether the repository already is what the plan would make it."""
        return self.head is not None and not self.to_send and not self.to_remove and not self.opens

    @property
    def opens(self) -> bool:
        """Whether a repository that is private becomes public."""
        return self.public and self.private

    def to_json(self) -> dict[str, Any]:
        return {
            "repository": self.repo,
            "exists": self.head is not None,
            "head": self.head,
            "visibility": {
                "now": None if self.head is None else "private" if self.private else "public",
                "then": "public" if self.public else "private",
            },
            "changes": [
                {"path": c.path, "action": c.action, "old_size": c.old_size, "new_size": c.new_size}
                for c in self.changes
            ],
            "bytes": sum(i.digest.size for i in self.to_send),
            "sha256": {i.digest.path: i.digest.sha256 for i in self.items},
        }


def contents(build: Path, manifest: Manifest, receipts: Sequence[str], card: str) -> tuple[Item, ...]:
    """Everything a publication of ``build`` holds, in path order: what the manifest lists, the manifest,
    the receipts by their file names, the card, and the checksums of all of them."""
    items = [Item(file, build / file.path) for file in manifest.files]
    for name in (MANIFEST, *receipts):
        path = build / name
        items.append(Item(FileDigest(name, path.stat().st_size, sha256_of(path)), path))
    items.append(_made(CARD, card.encode()))
    items.append(_made(SUMS, checksums({i.digest.path: i.digest.sha256 for i in items})))
    return tuple(sorted(items, key=lambda item: item.digest.path))


def make_plan(api: HfApi, repo: str, items: Sequence[Item], public: bool) -> Plan:
    """Compare ``items`` with what the repository holds. Files of an earlier publication that are no
    longer part of it are removed; files that coreproof did not put there stay as they are.

    Raises UsageError when the repository is public and ``public`` was not asked for, HubError when the
    Hub cannot be asked.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    with explained(repo):
        try:
            info = patiently(lambda: api.model_info(repo))
        except RepositoryNotFoundError:
            added = tuple(Change(i.digest.path, "add", None, i.digest.size) for i in items)
            return Plan(repo, None, True, public, tuple(items), added, "")
        if not info.private and not public:
            raise UsageError(
                f"{repo} is public; pass --public to publish there, or choose another repository"
            )
        there = patiently(lambda: remote_files(api, repo, str(info.sha)))
        earlier, card = _earlier(api, repo, str(info.sha), there)
    changes = [_change(item, there.get(item.digest.path)) for item in items]
    stale = sorted((earlier & there.keys()) - {item.digest.path for item in items})
    changes += [Change(path, "remove", there[path].size, None) for path in stale]
    new_card = next(i.source for i in items if i.digest.path == CARD)
    assert isinstance(new_card, bytes)
    diff = difflib.unified_diff(
        card.splitlines(), new_card.decode().splitlines(), f"{CARD} there", f"{CARD} here", lineterm=""
    )
    return Plan(
        repo,
        str(info.sha),
        bool(info.private),
        public,
        tuple(items),
        tuple(sorted(changes, key=lambda c: c.path)),
        "\n".join(diff),
    )


def remote_files(api: HfApi, repo: str, revision: str) -> dict[str, RepoFile]:
    """Every file of a revision by its path."""
    from huggingface_hub.hf_api import RepoFile

    listed = api.list_repo_tree(repo, recursive=True, revision=revision)
    return {entry.path: entry for entry in listed if isinstance(entry, RepoFile)}


def is_there(item: Item, remote: RepoFile | None) -> bool:
    """Whether the repository holds these very bytes: by sha256 for a large file, by git's own hash of
    the content for another."""
    if remote is None or remote.size != item.digest.size:
        return False
    if remote.lfs is not None:
        return remote.lfs.sha256 == item.digest.sha256
    return remote.blob_id == _git_hash(item)


def _change(item: Item, remote: RepoFile | None) -> Change:
    action = "add" if remote is None else "keep" if is_there(item, remote) else "replace"
    return Change(item.digest.path, action, None if remote is None else remote.size, item.digest.size)


def _earlier(api: HfApi, repo: str, revision: str, there: Mapping[str, RepoFile]) -> tuple[set[str], str]:
    """The paths that an earlier publication put there, and its card."""
    with tempfile.TemporaryDirectory(prefix="coreproof-publish-") as folder:
        got = {
            name: Path(api.hf_hub_download(repo, name, revision=revision, cache_dir=folder))
            for name in (SUMS, CARD)
            if name in there
        }
        card = got[CARD].read_text(encoding="utf-8", errors="replace") if CARD in got else ""
        try:
            earlier = set(read_checksums(got[SUMS])) if SUMS in got else set()
        except CoreproofError:  # not a file that coreproof wrote
            earlier = set()
        return earlier, card


def _made(path: str, content: bytes) -> Item:
    return Item(FileDigest(path, len(content), hashlib.sha256(content).hexdigest()), content)


def _git_hash(item: Item) -> str:
    content = item.source if isinstance(item.source, bytes) else item.source.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
