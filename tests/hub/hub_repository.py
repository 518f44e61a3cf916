"""What a Hub holds: repositories with commits of files, and the large files' storage."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

MAIN = "main"
REGULAR_LIMIT = 1 << 10  # bytes; above it a file is large. The real Hub's is larger, so are real weights


@dataclass(frozen=True)
class Stored:
    """A file of a commit: its bytes when git holds them, else its address in the storage."""

    size: int
    content: bytes | None
    sha256: str

    @property
    def blob_id(self) -> str:
        """What git calls the file: of a large one, its pointer."""
        data = self.content if self.content is not None else self.pointer
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def pointer(self) -> bytes:
        version = "https://git-lfs.github.com/spec/v1"
        return f"version {version}\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    def entry(self, path: str) -> dict[str, Any]:
        """As the Hub lists it."""
        listed: dict[str, Any] = {"type": "file", "path": path, "size": self.size, "oid": self.blob_id}
        if self.content is None:
            listed["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": len(self.pointer)}
        return listed


@dataclass
class Repository:
    """Commits by hash, each a whole listing, and the one that ``main`` names."""

    private: bool
    commits: dict[str, dict[str, Stored]] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        attributes = b"*.bin filter=lfs diff=lfs merge=lfs -text\n"
        self._add({".gitattributes": _stored(attributes)}, "initial commit")

    @property
    def head(self) -> str:
        return self.history[-1]

    def resolve(self, revision: str) -> str | None:
        if revision == MAIN:
            return self.head
        return revision if revision in self.commits else None

    def commit(self, lines: list[dict[str, Any]], storage: dict[str, bytes]) -> str:
        """Apply the operations of one commit, all of them or none. Raises Conflict and LookupError."""
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, self.head):
            raise Conflict("the branch has moved on")
        files = dict(self.commits[self.head])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = _stored(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                files[value["path"]] = Stored(len(storage[value["oid"]]), None, value["oid"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise LookupError(line["key"])
        return self._add(files, header["summary"])

    def _add(self, files: dict[str, Stored], summary: str) -> str:
        listing = json.dumps([summary, len(self.history), sorted((p, f.sha256) for p, f in files.items())])
        commit = hashlib.sha1(listing.encode()).hexdigest()
        self.commits[commit] = files
        self.history.append(commit)
        return commit


class Conflict(Exception):
    """A commit on a parent that is no longer the branch's head."""


def _stored(content: bytes) -> Stored:
    return Stored(len(content), content, hashlib.sha256(content).hexdigest())
