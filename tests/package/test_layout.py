"""The package folder and its manifest, against coremltools' own reader of both."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from coreproof.errors import PackageError
from coreproof.package.layout import canonical_manifest, is_plain, list_files, read_layout, safe_join

_SPEC = "com.apple.CoreML/model.mlmodel"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "a.mlpackage"
    (folder / "Data/com.apple.CoreML/weights").mkdir(parents=True)
    (folder / "Data" / _SPEC).write_bytes(b"spec")
    (folder / "Data/com.apple.CoreML/weights/weight.bin").write_bytes(b"weights")
    (folder / "Manifest.json").write_bytes(canonical_manifest(weights=True))
    return folder


def _edit(package: Path, change: Callable[[dict], None]) -> None:
    path = package / "Manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _root(content: dict) -> dict:
    return content["itemInfoEntries"][content["rootModelIdentifier"]]


def test_canonical_manifest_bytes():
    assert canonical_manifest(weights=False) == (
        b'{\n    "fileFormatVersion": "1.0.0",\n    "itemInfoEntries": {\n'
        b'        "16448e9b-6878-583c-8c71-8777387f7964": {\n'
        b'            "author": "com.apple.CoreML",\n'
        b'            "description": "CoreML Model Specification",\n'
        b'            "name": "model.mlmodel",\n'
        b'            "path": "com.apple.CoreML/model.mlmodel"\n        }\n    },\n'
        b'    "rootModelIdentifier": "16448e9b-6878-583c-8c71-8777387f7964"\n}\n'
    )


@pytest.mark.parametrize("weights", [True, False])
def test_coremltools_reads_ours(package: Path, weights: bool):
    from coremltools.libmodelpackage import ModelPackage

    if not weights:
        shutil.rmtree(package / "Data/com.apple.CoreML/weights")
    (package / "Manifest.json").write_bytes(canonical_manifest(weights=weights))
    theirs = ModelPackage(str(package))
    assert ModelPackage.isValid(str(package))
    assert theirs.getRootModel().path() == str(package / "Data" / _SPEC)
    found = theirs.findItemByNameAuthor("weights", "com.apple.CoreML")
    assert (found is not None) == weights
    assert read_layout(package).spec == package / "Data" / _SPEC


@pytest.mark.parametrize("weights", [True, False])
def test_coremltools_rewrites_ours_unchanged(package: Path, weights: bool):
    """Opening a package makes coremltools write its manifest anew."""
    from coremltools.libmodelpackage import ModelPackage

    content = canonical_manifest(weights=weights)
    (package / "Manifest.json").write_bytes(b" " + content)
    ModelPackage(str(package))
    assert (package / "Manifest.json").read_bytes() == content


def test_reads_theirs(sample_package: Path):
    from coremltools.libmodelpackage import ModelPackage

    layout = read_layout(sample_package)
    root = ModelPackage(str(sample_package)).getRootModel()
    assert str(layout.spec) == root.path()
    assert layout.items[root.identifier()].description == root.description()


_HOSTILE_PATHS = [
    "../outside", "com.apple.CoreML/../../../outside", "/etc/passwd", "..", "", ".", "a//b", "a/./b",
    "com.apple.CoreML\\model.mlmodel", "..\\outside", "model\0.mlmodel", "a\nb", "com.apple.CoreML/",
    "x" * 256, "é" * 128, "a/" * 600 + "a", "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("path", _HOSTILE_PATHS)
def test_hostile_item_paths(package: Path, path: str):
    (package.parent / "outside").write_bytes(b"spec")
    _edit(package, lambda content: _root(content).update(path=path))
    with pytest.raises(PackageError, match=r"not a plain relative path|surrogates not allowed"):
        read_layout(package)
    assert not is_plain(path)


@pytest.mark.parametrize("link", ["Data", "Data/com.apple.CoreML", f"Data/{_SPEC}"])
def test_links_out_of_the_package(package: Path, link: str):
    (package / link).rename(package.parent / "moved")
    (package / link).symlink_to(package.parent / "moved")
    with pytest.raises(PackageError, match="link"):
        read_layout(package)
    with pytest.raises(PackageError, match="neither file nor folder"):
        list_files(package)


def test_a_package_may_itself_be_a_link(package: Path):
    link = package.parent / "link.mlpackage"
    link.symlink_to(package)
    assert read_layout(link).spec == link / "Data" / _SPEC


def _two_with_one_path(content: dict) -> None:
    content["itemInfoEntries"]["again"] = dict(_root(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("rootModelIdentifier"), "rootModelIdentifier None is none of its items"),
        (lambda c: c.update(rootModelIdentifier="other"), "'other' is none of its items"),
        (lambda c: c.update(rootModelIdentifier=[]), r"\[\] is none of its items"),
        (lambda c: c.pop("itemInfoEntries"), "itemInfoEntries is missing"),
        (lambda c: c.update(itemInfoEntries=[]), "itemInfoEntries is missing or no object"),
        (lambda c: c.update(fileFormatVersion="2.0.0"), "fileFormatVersion is '2.0.0', expected '1.0.0'"),
        (lambda c: c.pop("fileFormatVersion"), "fileFormatVersion is None"),
        (lambda c: _root(c).pop("author"), "lacks one of the texts"),
        (lambda c: _root(c).update(path=7), "lacks one of the texts"),
        (lambda c: _root(c).update(path="com.apple.CoreML/absent"), "does not exist"),
        (_two_with_one_path, "two items have the same path"),
    ],
)
def test_bad_manifests(package: Path, change: Callable[[dict], None], message: str):
    _edit(package, change)
    with pytest.raises(PackageError, match=message):
        read_layout(package)


def test_root_must_be_a_file(package: Path):
    (package / "Data" / _SPEC).unlink()
    (package / "Data" / _SPEC).mkdir()
    with pytest.raises(PackageError, match="is not a file"):
        read_layout(package)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"rootModelIdentifier": "a", "rootModelIdentifier": "b"}', "appears twice"),
        (b'{"itemInfoEntries": {"a": {}, "a": {}}}', "key 'a' appears twice"),
        (b"[]", "itemInfoEntries is missing"),
        (b" " * ((1 << 20) + 1), "larger than the 1048576 bytes"),
        (b"", "not the JSON"),
    ],
    ids=["two roots", "two items", "array", "huge", "empty"],
)
def test_bad_json(package: Path, content: bytes, message: str):
    (package / "Manifest.json").write_bytes(content)
    with pytest.raises(PackageError, match=message):
        read_layout(package)


def test_safe_join(tmp_path: Path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "up").symlink_to("..")
    assert safe_join(tmp_path, "inner/new") == tmp_path / "inner/new"
    assert safe_join(tmp_path, "..a/b..") == tmp_path / "..a/b.."
    with pytest.raises(PackageError, match="link"):
        safe_join(tmp_path, "up/x")


def test_list_files(package: Path):
    (package / "Zebra").touch()
    (package / "Data/empty").mkdir()
    assert list_files(package) == (
        "Data/com.apple.CoreML/model.mlmodel",
        "Data/com.apple.CoreML/weights/weight.bin",
        "Manifest.json",
        "Zebra",
    )
    os.mkfifo(package / "pipe")
    with pytest.raises(PackageError, match="pipe: neither file nor folder"):
        list_files(package)
