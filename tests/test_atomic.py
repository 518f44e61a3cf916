"""Writes that appear whole or not at all."""

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from coreproof.atomic import atomic_directory, atomic_file, is_work_folder, require_space
from coreproof.errors import CoreproofError


def _names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def _yes(_: Path) -> bool:
    return True


def test_directory_appears_with_fixed_permissions(tmp_path: Path):
    final = tmp_path / "parents" / "made" / "out"
    umask = os.umask(0o077)
    try:
        with atomic_directory(final) as new:
            assert not final.exists() and new.name == "out"
            (new / "sub").mkdir()
            (new / "sub" / "a").write_text("a")
            (new / "sub" / "a").chmod(0o755)
    finally:
        os.umask(umask)
    modes = {
        p.relative_to(final).as_posix(): stat.S_IMODE(p.stat().st_mode) for p in [final, *final.rglob("*")]
    }
    assert modes == {".": 0o755, "sub": 0o755, "sub/a": 0o644}
    assert _names(final.parent) == ["out"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_everything_as_before(tmp_path: Path, error: type[BaseException]):
    final = tmp_path / "out"
    final.mkdir()
    (final / "old").write_text("old")
    with pytest.raises(error), atomic_directory(final, replace=_yes) as new:
        (new / "half").write_text("half")
        raise error
    with pytest.raises(error), atomic_file(final / "old") as new:
        new.write_text("half")
        raise error
    assert _names(tmp_path) == ["out"] and _names(final) == ["old"]
    assert (final / "old").read_text() == "old"


def test_replacement(tmp_path: Path):
    final = tmp_path / "out"
    final.mkdir()
    with atomic_directory(final) as new:  # an empty folder may always be replaced
        (new / "first").touch()
    with pytest.raises(CoreproofError, match="not something to overwrite"), atomic_directory(final):
        pytest.fail("the block must not run")
    with (
        pytest.raises(CoreproofError, match="not something"),
        atomic_directory(final, replace=lambda old: old != final),
    ):
        pytest.fail("the block must not run")
    with atomic_directory(final, replace=lambda old: (old / "first").exists()) as new:
        (new / "second").touch()
    assert _names(final) == ["second"] and _names(tmp_path) == ["out"]


def test_what_appears_meanwhile_is_not_overwritten(tmp_path: Path):
    final = tmp_path / "out"
    with pytest.raises(CoreproofError, match="not something to overwrite"), atomic_directory(final) as new:
        (new / "mine").touch()
        final.mkdir()
        (final / "theirs").touch()
    assert _names(final) == ["theirs"] and _names(tmp_path) == ["out"]


def test_failed_rename_restores_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    final = tmp_path / "out"
    final.mkdir()
    (final / "old").touch()
    rename = Path.rename

    def failing(source: Path, target: Path) -> Path:
        if source.parent.name == "new":
            raise OSError(errno.EIO, "Input/output error", str(source))
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(CoreproofError, match="Input/output error"), atomic_directory(final, replace=_yes):
        pass
    assert _names(final) == ["old"] and _names(tmp_path) == ["out"]


def test_wrong_kinds(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(CoreproofError, match="is a file"), atomic_directory(tmp_path / "file", replace=_yes):
        pytest.fail("the block must not run")
    with pytest.raises(CoreproofError, match="is a folder"), atomic_file(tmp_path):
        pytest.fail("the block must not run")
    with pytest.raises(CoreproofError, match="cannot be written"), atomic_file(tmp_path / "file" / "below"):
        pytest.fail("the block must not run")
    with pytest.raises(CoreproofError, match="a link"), atomic_directory(tmp_path / "out") as new:
        (new / "link").symlink_to(tmp_path)
    assert _names(tmp_path) == ["file"]


def test_a_link_stands_for_its_target(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with atomic_directory(tmp_path / "link") as new:
        (new / "a").touch()
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "a").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_full_disk_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int):
    def full(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    final = tmp_path / "out"
    with (
        pytest.raises(CoreproofError, match=f"{final}: cannot be written: {os.strerror(code)}"),
        atomic_directory(final),
    ):
        pass
    with pytest.raises(CoreproofError, match=os.strerror(code)), atomic_file(final) as new:
        new.touch()
    with pytest.raises(CoreproofError, match=os.strerror(code)), atomic_file(final):
        raise OSError(code, os.strerror(code))
    assert _names(tmp_path) == []


def test_everything_is_flushed_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    flushed: list[tuple[int, bool]] = []
    final, fsync = tmp_path / "out", os.fsync

    def recording(descriptor: int) -> None:
        fsync(descriptor)
        flushed.append((os.fstat(descriptor).st_ino, final.exists()))

    monkeypatch.setattr(os, "fsync", recording)
    with atomic_directory(final) as new:
        (new / "sub").mkdir()
        (new / "sub" / "a").touch()
        (new / "b").touch()
    assert {inode for inode, renamed in flushed if not renamed} == {
        p.stat().st_ino for p in (final, final / "sub", final / "sub" / "a", final / "b")
    }
    assert flushed[-1] == (tmp_path.stat().st_ino, True)


def test_errors_of_the_callers_reading_are_not_relabelled(tmp_path: Path):
    with pytest.raises(FileNotFoundError), atomic_directory(tmp_path / "out"):
        (tmp_path / "absent").read_bytes()


_KILLED = """
import os, signal, sys
from pathlib import Path
from coreproof.atomic import atomic_directory
final, moment = Path(sys.argv[1]), sys.argv[2]
if moment == "between the renames":
    rename = Path.rename
    def dying(source, target):
        if source.parent.name == "new":
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(source, target)
    Path.rename = dying
with atomic_directory(final, replace=lambda old: True) as new:
    (new / "half").write_text("half")
    if moment == "while writing":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["while writing", "between the renames"])
def test_killed_writer(tmp_path: Path, moment: str):
    final = tmp_path / "out"
    with atomic_directory(final) as new:
        (new / "old").write_text("old")
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(final), moment], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (final / "half").exists()
    leftovers = [p for p in tmp_path.iterdir() if is_work_folder(p)]
    assert len(leftovers) == 1 and not is_work_folder(final)
    with pytest.raises(RuntimeError), atomic_directory(final, replace=_yes):
        assert (final / "old").read_text() == "old"
        raise RuntimeError
    assert _names(tmp_path) == ["out"] and _names(final) == ["old"]
    with atomic_directory(final, replace=_yes) as new:
        (new / "next").touch()
    assert _names(tmp_path) == ["out"] and _names(final) == ["next"]


def test_a_living_writer_is_left_alone(tmp_path: Path):
    final = tmp_path / "out"
    with atomic_file(final) as slow:
        slow.write_text("slow")
        with atomic_file(final) as quick:
            quick.write_text("quick")
        assert final.read_text() == "quick" and slow.read_text() == "slow"
    assert final.read_text() == "slow" and _names(tmp_path) == ["out"]


def test_require_space(tmp_path: Path):
    require_space(tmp_path / "not" / "there", 1)
    with pytest.raises(
        CoreproofError, match=r"needs 1,000,000,000,000,000,000 bytes, the disk has [\d,]+ free"
    ):
        require_space(tmp_path, 10**18)
