"""Upstream's released sources: fetched once, checked, unpacked, patched.

pip and the package index must be reachable the first time; what is fetched lies in ``build/patches``.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
from pathlib import Path

from filelock import FileLock

REPOSITORY = Path(__file__).parents[2]
CACHE = REPOSITORY / "build" / "patches"
REQUIREMENTS = Path(__file__).parent / "requirements.txt"

# sha256 of the sdist that the index serves: what a diff is said to apply to.
SDISTS = {
    ("diffusers", "0.30.0"): "57acd59cab035f62bde1108fc4c93e76e6988a5b3f8ae9f06051146c1cecb2aa",
    ("diffusers", "0.30.1"): "6a0b035bc18f7eecbdfd641a391ecca8c13affe7c158fc2b2d16f3375ce05399",
    ("diffusers", "0.30.2"): "641875f78f36bdfa4b9af752b124d1fd6d431eadd5547fe0a3f354ae0af2636c",
    ("diffusers", "0.30.3"): "67c5eb25d5b50bf0742624ef43fe0f6d1e1604f64aad3e8558469cbe89ecf72f",
    ("diffusers", "0.42.1"): "ce855ab670c8cd1c7a61be8f12fbc68c081bca8ec5e747273946d8d6c2aff23b",
    ("styletts2", "0.1.3"): "d8e59a1a4d3146c324125910a74a118f911602667c36f116603cbffee69a9dd0",
    ("styletts2", "0.1.4"): "68d5b9dd671ae95ff2e1ec27ce0434c6814eb66e8fca0039155dd9a6e9a370aa",
    ("styletts2", "0.1.5"): "7ec4d7b586c2d1b26cefc43ee806b6d3afebe0bd6d006615ff571613c345a5c5",
    ("styletts2", "0.1.6"): "c343e8235355a707bd6833103ff895acb40e86fd19791e9294b520ae22f2ad04",
}


def unpack(name: str, version: str, folder: Path) -> Path:
    """The sdist's tree, below ``folder``."""
    with tarfile.open(_sdist(name, version)) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"{name}-{version}"


def apply(diff: Path | str, tree: Path, *, whole: bool = True) -> None:
    """``patch -p1`` with a diff, a file's or its text, in ``tree``. Every hunk must fit without fuzz, and
    those of a whole diff at the line they name."""
    text = diff if isinstance(diff, str) else diff.read_text()
    done = subprocess.run(
        ["patch", "-p1", "--fuzz=0", "--forward", "--no-backup-if-mismatch"],
        cwd=tree,
        input=text,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (whole and "offset" in done.stdout), done.stdout


def layer(*requirements: str) -> Path:
    """A folder to put before site-packages: those pinned packages, without what they require."""
    pins = [line for line in REQUIREMENTS.read_text().split() if line.partition("==")[0] in requirements]
    assert len(pins) == len(requirements), f"{REQUIREMENTS} lacks some of {requirements}"
    folder = CACHE / "layers" / hashlib.sha256(" ".join(sorted(pins)).encode()).hexdigest()[:16]
    with _locked():
        if not (folder / ".done").exists():
            _pip("install", "--no-deps", "--upgrade", "--target", str(folder), *pins)
            (folder / ".done").touch()
    return folder


def _sdist(name: str, version: str) -> Path:
    path = CACHE / "sdists" / f"{name}-{version}.tar.gz"
    with _locked():
        if not path.exists():
            _pip("download", "--no-deps", "--no-binary", name, "-d", str(path.parent), f"{name}=={version}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    assert found == SDISTS[name, version], f"{path} has sha256 {found}; remove it to fetch it again"
    return path


def _locked() -> FileLock:
    CACHE.mkdir(parents=True, exist_ok=True)
    return FileLock(CACHE / ".lock")


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
