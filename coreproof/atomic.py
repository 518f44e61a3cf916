"""Files and folders that appear whole or not at all, even when the process is killed.

A destination ``D`` is made inside a work folder beside it, ``.D.coreproof-XXXXXXXX``: the new content
under ``new/``, and for a moment the replaced content as ``old``. Its owner holds a lock on it, so a
work folder whose lock is free was left by a killed process; the next write to ``D`` puts an ``old``
back whose replacement never arrived, and removes the rest. Needs a POSIX system.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from coreproof.errors import CoreproofError

_SUFFIX = ".coreproof-"
# What only writing can cause; other OSErrors of the caller's own work are the caller's to explain.
_WRITE_FAILURES = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}


@contextmanager
def atomic_directory(final: Path, *, replace: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """A new folder of the same name as ``final`` that becomes ``final`` when the block succeeds.

    Every file and folder in it gets mode 0644 or 0755 and is flushed to disk before the rename.
    When the block raises, Control-C included, everything is removed and ``final`` is as before.
    An existing ``final`` is replaced when it is an empty folder or when ``replace(final)`` is true;
    parents are made as needed, and a ``final`` that is a link stands for what it points to.

    Raises CoreproofError when ``final`` may not be replaced, is no folder or cannot be written.
    """
    final = Path(os.path.realpath(final))
    with _explained(final):
        _check_replaceable(final, replace)
    with _work_folder(final) as work:
        new = work / "new" / final.name
        new.mkdir()
        yield new
        with _explained(final):
            _settle_tree(new)
            with _locked(final.parent):
                _check_replaceable(final, replace)
                if final.exists():
                    final.rename(work / "old")
                new.rename(final)
                _sync(final.parent)


@contextmanager
def atomic_file(final: Path) -> Iterator[Path]:
    """A path to write a file to, which becomes ``final`` when the block succeeds.

    As :func:`atomic_directory`, but an existing file is always replaced. Raises CoreproofError
    when ``final`` is a folder or cannot be written.
    """
    final = Path(os.path.realpath(final))
    if final.is_dir():
        raise CoreproofError(f"{final} is a folder, where a file is to be written; choose another path")
    with _work_folder(final) as work:
        new = work / "new" / final.name
        yield new
        with _explained(final):
            new.chmod(0o644)
            _sync(new)
            new.replace(final)
            _sync(final.parent)


def is_work_folder(path: Path) -> bool:
    """Whether ``path`` is named as the work folder of a write, under way or left by a killed process."""
    return path.name.startswith(".") and _SUFFIX in path.name


def require_space(path: Path, nbytes: int) -> None:
    """Check that the disk that holds ``path``, or will hold it, has ``nbytes`` bytes free.

    Raises CoreproofError naming both numbers.
    """
    folder = Path(os.path.realpath(path))
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise CoreproofError(
            f"{path}: needs {nbytes:,} bytes, the disk has {free:,} free; "
            "make room or choose another destination"
        )


def _check_replaceable(final: Path, replace: Callable[[Path], bool] | None) -> None:
    if not final.exists():
        return
    if not final.is_dir():
        raise CoreproofError(f"{final} is a file, where a folder is to be written; choose another path")
    if any(final.iterdir()) and not (replace is not None and replace(final)):
        raise CoreproofError(
            f"{final} exists and is not something to overwrite; remove it or choose another path"
        )


@contextmanager
def _work_folder(final: Path) -> Iterator[Path]:
    """The locked work folder of one write to ``final``; afterwards it is gone, whatever happened."""
    with _explained(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        with _locked(final.parent):
            _clear_leftovers(final)
            work = Path(tempfile.mkdtemp(prefix=f".{final.name}{_SUFFIX}", dir=final.parent))
            lock = os.open(work, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        with _explained(final, work):
            (work / "new").mkdir()
            yield work
    finally:
        _remove(work, final)
        os.close(lock)


def _clear_leftovers(final: Path) -> None:
    """Finish what killed writers of ``final`` left. The caller holds the lock on its parent."""
    prefix = f".{final.name}{_SUFFIX}"
    for work in sorted(p for p in final.parent.iterdir() if p.name.startswith(prefix) and not p.is_symlink()):
        lock = os.open(work, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            _remove(work, final)
        finally:
            os.close(lock)


def _remove(work: Path, final: Path) -> None:
    old = work / "old"
    if old.exists() and not final.exists():
        old.rename(final)
    shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold off other writers in ``folder`` for the moment of a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _explained(final: Path, work: Path | None = None) -> Iterator[None]:
    """Turn any failure into a CoreproofError about writing ``final``; with ``work``, only failures
    that are about that folder or that nothing but writing can cause."""
    try:
        yield
    except OSError as error:
        if work and error.errno not in _WRITE_FAILURES and not str(error.filename).startswith(str(work)):
            raise
        raise CoreproofError(f"{final}: cannot be written: {error.strerror or error}") from error


def _settle_tree(folder: Path) -> None:
    """Fixed permissions, and everything flushed to disk, children first."""
    for parent, folders, files in os.walk(folder, topdown=False):
        for path in (Path(parent, name) for name in (*folders, *files)):
            if path.is_symlink():
                raise CoreproofError(f"{path}: a link, where only files and folders are written")
        for path in (Path(parent, name) for name in files):
            path.chmod(0o644)
            _sync(path)
        Path(parent).chmod(0o755)
        _sync(Path(parent))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
