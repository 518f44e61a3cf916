"""``SHA256SUMS``: every published file's sha256, in the form that ``sha256sum --check`` reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from coreproof.errors import PackageError
from coreproof.files import read_bytes
from coreproof.package.layout import MAX_ENTRIES, is_plain

MAX_CHECKSUM_BYTES = 4 << 20
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def checksums(digests: Mapping[str, str]) -> bytes:
    """The file's bytes for path -> sha256, sorted by path."""
    return "".join(f"{digest}  {path}\n" for path, digest in sorted(digests.items())).encode()


def read_checksums(path: Path) -> dict[str, str]:
    """Path -> sha256 of the checksum file ``path``.

    Raises PackageError for a line of another form, a path that leaves its folder, and one that is
    there twice.
    """
    try:
        lines = read_bytes(path, MAX_CHECKSUM_BYTES).decode().splitlines()
    except UnicodeDecodeError:
        raise PackageError(f"{path}: not text in UTF-8") from None
    digests: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        found = _LINE.fullmatch(line)
        if found is None or not is_plain(found[2]):
            raise PackageError(f"{path}: line {number} is not a sha256, two spaces and a plain relative path")
        if found[2] in digests or number > MAX_ENTRIES:
            raise PackageError(
                f"{path}: line {number}: {found[2]} is there twice, or it lists too many files"
            )
        digests[found[2]] = found[1]
    return digests
