"""Types and small deeds that tests in several folders share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from coreproof.package.manifest import MANIFEST, Manifest, digest_files, load_manifest


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


Cli = Callable[..., Ended]
Variants = Mapping[str, Sequence[str]]
"""Stages to export, by variant."""
Export = Callable[[Variants], Path]
"""Exports them into a build of their own."""


@dataclass(frozen=True)
class Made:
    """A model on disk. ``model``: its name, or its recipe folder."""

    model: str
    checkpoint: Path
    build: Path

    def package(self, variant: str) -> Path:
        (path,) = self.build.glob(f"*_{variant}.mlpackage")
        return path

    def weights(self, variant: str) -> Path:
        return self.package(variant) / "Data/com.apple.CoreML/weights/weight.bin"


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file below ``folder``, hidden ones too."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def flip_bit(path: Path, position: int = -1) -> None:
    """Flip the lowest bit of one byte of a file, by default the last."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def sign(build: Path, **changes: object) -> Manifest:
    """Rewrite a build's manifest to tell the truth about its files, with other fields changed."""
    manifest = load_manifest(build)
    present = [name for name in digests(build) if name != MANIFEST and not name.startswith("receipt")]
    signed = replace(manifest, files=digest_files(build, present), **changes)  # type: ignore[arg-type]
    (build / MANIFEST).write_bytes(signed.to_bytes())
    return signed


# How a program in a child process begins that must do without torch, coremltools and official code.
WITHOUT_TORCH = """
import sys

BLOCKED = ("torch", "coremltools", "diffusers", "transformers", "tangoflux")

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
"""
