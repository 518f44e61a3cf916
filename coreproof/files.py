"""Reading files that anyone may have made: regular files only, of bounded size."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from coreproof.errors import PackageError


def is_directory(path: Path) -> bool:
    """Whether ``path`` is a folder. Raises PackageError when it does not exist or cannot be reached."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError) as error:
        raise PackageError(f"{path}: cannot be opened: {_cause(error)}") from None


def open_regular(path: Path) -> int:
    """A read-only descriptor of the regular file ``path``; the caller closes it.

    A pipe or device is refused instead of waited for. Raises PackageError.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise PackageError(f"{path}: cannot be read: {_cause(error)}") from None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise PackageError(f"{path}: not a regular file")


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """The whole of a regular file of at most ``max_bytes`` bytes.

    The limit holds for what is read, whatever size the file claims. Raises PackageError.
    """
    with os.fdopen(open_regular(path), "rb") as stream:
        try:
            size = os.fstat(stream.fileno()).st_size
            data = stream.read(max_bytes + 1) if size <= max_bytes else None
        except OSError as error:
            raise PackageError(f"{path}: cannot be read: {_cause(error)}") from None
    if data is None or len(data) > max_bytes:
        raise PackageError(f"{path}: larger than the {max_bytes} bytes allowed for such a file")
    return data


def sha256_of(path: Path) -> str:
    """sha256 of a regular file, read in chunks. Raises PackageError."""
    with os.fdopen(open_regular(path), "rb") as stream:
        try:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise PackageError(f"{path}: cannot be read: {_cause(error)}") from None


def _cause(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
