"""The folder that an ``.mlpackage`` is: ``Manifest.json`` beside ``Data/``, which holds the items it lists.

Format: ``modelpackage/src/ModelPackage.cpp`` of coremltools. Every path is taken as hostile.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coreproof.errors import PackageError
from coreproof.jsonio import read_json

MANIFEST = "Manifest.json"
DATA = "Data"
AUTHOR = "com.apple.CoreML"
SPEC_PATH = f"{AUTHOR}/model.mlmodel"
WEIGHTS_PATH = f"{AUTHOR}/weights"
WEIGHT_FILE = "@model_path/weights/weight.bin"

MAX_ENTRIES = 10_000
_MAX_MANIFEST_BYTES = 1 << 20
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, AUTHOR)


@dataclass(frozen=True, slots=True)
class Item:
    """An entry of the manifest; ``path`` is relative to ``Data/``, with ``/``."""

    path: str
    name: str
    author: str
    description: str


@dataclass(frozen=True, slots=True)
class Layout:
    """A package folder whose manifest was read: its items by identifier, and the root model's file."""

    items: dict[str, Item]
    spec: Path


_ITEMS = {
    "spec": Item(SPEC_PATH, "model.mlmodel", AUTHOR, "CoreML Model Specification"),
    "weights": Item(WEIGHTS_PATH, "weights", AUTHOR, "CoreML Model Weights"),
}


def read_layout(package: Path) -> Layout:
    """Read and check the manifest of the folder ``package``.

    Raises PackageError for a missing or malformed manifest, a format version other than 1.0.0, a
    root that is not an item, and an item that is missing or lies outside ``Data/``.
    """
    path = package / MANIFEST
    if not path.exists():
        raise PackageError(f"{package}: not a Core ML package, it has no {MANIFEST}")
    content = read_json(path, _MAX_MANIFEST_BYTES)
    if not isinstance(content, dict) or not isinstance(content.get("itemInfoEntries"), dict):
        raise PackageError(f"{path}: itemInfoEntries is missing or no object")
    if content.get("fileFormatVersion") != "1.0.0":
        raise PackageError(
            f"{path}: fileFormatVersion is {content.get('fileFormatVersion')!r}, expected '1.0.0'"
        )
    items = {key: _item(path, key, entry) for key, entry in content["itemInfoEntries"].items()}
    root = content.get("rootModelIdentifier")
    if not isinstance(root, str) or root not in items:
        raise PackageError(f"{path}: rootModelIdentifier {root!r} is none of its items")
    paths = [item.path for item in items.values()]
    if len(set(paths)) != len(paths):
        raise PackageError(f"{path}: two items have the same path")
    for item in items.values():
        if not safe_join(package, f"{DATA}/{item.path}").exists():
            raise PackageError(f"{path}: item {item.path!r} does not exist")
    spec = safe_join(package, f"{DATA}/{items[root].path}")
    if not spec.is_file():
        raise PackageError(f"{path}: the root model {items[root].path!r} is not a file")
    return Layout(items, spec)


def canonical_manifest(*, weights: bool) -> bytes:
    """The manifest of a package with a spec and, if so asked, a weights folder.

    Identifiers are version 5 UUIDs of the items' paths, so equal packages have equal manifests. The
    text is laid out as coremltools does it, byte for byte, because coremltools rewrites the manifest
    of every package it opens.
    """
    items = [_ITEMS["spec"], *([_ITEMS["weights"]] if weights else [])]
    content = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {_identifier(item): asdict(item) for item in items},
        "rootModelIdentifier": _identifier(_ITEMS["spec"]),
    }
    return f"{json.dumps(content, indent=4, sort_keys=True)}\n".encode()


def is_plain(relative: str) -> bool:
    """Whether ``relative`` names something below a folder: parts joined by ``/``, none of them empty,
    ``.``, ``..`` or longer than file systems allow, without backslashes or control characters."""
    try:
        parts = os.fsencode(relative).split(b"/")
    except UnicodeEncodeError:
        return False
    fits = len(relative) <= 1024 and all(
        part not in (b"", b".", b"..") and len(part) <= 255 for part in parts
    )
    return fits and "\\" not in relative and not _CONTROL.search(relative)


def safe_join(folder: Path, relative: str) -> Path:
    """``folder / relative``, for a path that came from a file.

    Raises PackageError unless ``relative`` is plain and no link on the way leads anywhere else.
    """
    if not is_plain(relative):
        raise PackageError(f"{folder}: path {relative!r} is not a plain relative path")
    try:
        linked = Path(os.path.realpath(folder / relative)) != Path(os.path.realpath(folder)) / relative
    except (OSError, ValueError) as error:
        raise PackageError(f"{folder}: path {relative!r}: {error}") from None
    if linked:
        raise PackageError(
            f"{folder}: {relative!r} is reached through a link; copy with links resolved (cp -rL)"
        )
    return folder / relative


def list_files(folder: Path) -> tuple[str, ...]:
    """Every file under ``folder``, as sorted paths with ``/``.

    Raises PackageError for links, for what is neither file nor folder and for more than MAX_ENTRIES of both.
    """
    found: list[str] = []
    entered, folders = 0, [""]
    while folders:
        parent = folders.pop()
        for entry in _entries(folder / parent):
            entered += 1
            if entered > MAX_ENTRIES:
                raise PackageError(f"{folder}: more than {MAX_ENTRIES} files and folders")
            if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
                raise PackageError(f"{entry.path}: neither file nor folder; a package holds nothing else")
            if entry.is_dir():
                folders.append(f"{parent}{entry.name}/")
            else:
                found.append(f"{parent}{entry.name}")
    return tuple(sorted(found))


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise PackageError(f"{error.filename}: cannot be read: {error.strerror}") from None


def _item(manifest: Path, identifier: str, entry: Any) -> Item:
    keys = ("path", "name", "author", "description")
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in keys):
        raise PackageError(f"{manifest}: item {identifier!r} lacks one of the texts {', '.join(keys)}")
    return Item(*(entry[key] for key in keys))


def _identifier(item: Item) -> str:
    return str(uuid.uuid5(_NAMESPACE, item.path))
