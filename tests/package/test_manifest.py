"""``coreproof.json``: its bytes, and what it refuses."""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from coreproof.atomic import atomic_file
from coreproof.convert.checkpoint import FileDigest
from coreproof.convert.recipe import TensorSpec
from coreproof.errors import JudgedBadError, PackageError
from coreproof.package.manifest import (
    CheckpointRecord,
    CompressionRecord,
    ContractRecord,
    Manifest,
    PackageRecord,
    PrecisionRecord,
    WeightRecord,
    check_files,
    checkpoint_digest,
    digest_files,
    load_manifest,
)

_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # sha256 of "abc", FIPS 180-2
_EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
_FILES = {"toy.mlpackage/Data/weights": b"abc", "toy.mlpackage/Manifest.json": b"", "tokens.txt": b"abc"}
_LITERAL = b"""\
{
 "checkpoint": {
  "files": [
   {
    "path": "model.safetensors",
    "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    "size": 3
   }
  ],
  "kind": "synthetic",
  "seed": 7,
  "sha256": "d65584139eab05bdab90a670c0b1041ed255f2bb1fbac2637ce95fd25262899c",
  "unused": {
   "pooler.weight": "not part of the embedding"
  }
 },
 "files": [
  {
   "path": "tokens.txt",
   "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
   "size": 3
  },
  {
   "path": "toy.mlpackage/Data/weights",
   "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
   "size": 3
  },
  {
   "path": "toy.mlpackage/Manifest.json",
   "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
   "size": 0
  }
 ],
 "model": "toy",
 "packages": [
  {
   "compression": {
    "bits": 4,
    "group_size": 16,
    "kind": "palette",
    "left": [
     "table"
    ],
    "threshold": 2048
   },
   "compute_units": "CPU_AND_NE",
   "contract": {
    "functions": [],
    "inputs": [
     {
      "dtype": "fp32",
      "name": "audio",
      "shape": [
       1,
       64
      ]
     }
    ],
    "outputs": [],
    "states": []
   },
   "package": "toy.mlpackage",
   "precision": {
    "compute": "fp16",
    "kept_fp32": [
     "norm_1"
    ],
    "reason": "its variance overflows"
   },
   "stage": "encoder",
   "target": "iOS18",
   "variant": "fp16",
   "weights": [
    {
     "dtype": "fp16",
     "file": "weights/weight.bin",
     "keys": [
      "linear.weight"
     ],
     "name": "weight_0",
     "offset": 64,
     "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
     "shape": [
      2,
      2
     ],
     "size": 8,
     "transform": "identity"
    }
   ]
  }
 ],
 "schema": "coreproof.manifest/1",
 "toolchain": {
  "torch": "2.13.0"
 }
}
"""


@pytest.fixture
def manifest() -> Manifest:
    weight = WeightRecord(
        "weight_0", "fp16", (2, 2), "weights/weight.bin", 64, 8, _ABC, ("linear.weight",), "identity"
    )
    package = PackageRecord(
        package="toy.mlpackage",
        stage="encoder",
        variant="fp16",
        contract=ContractRecord((TensorSpec("audio", (1, 64), "fp32"),), (), ()),
        precision=PrecisionRecord("fp16", ("norm_1",), "its variance overflows"),
        compression=CompressionRecord("palette", 4, 16, 2048, ("table",)),
        target="iOS18",
        compute_units="CPU_AND_NE",
        weights=(weight,),
    )
    source = FileDigest("model.safetensors", 3, _ABC)
    lines = f"{_ABC}  model.safetensors\n"
    return Manifest(
        model="toy",
        checkpoint=CheckpointRecord(
            files=(source,),
            sha256=hashlib.sha256(lines.encode()).hexdigest(),
            kind="synthetic",
            seed=7,
            unused={"pooler.weight": "not part of the embedding"},
        ),
        toolchain={"torch": "2.13.0"},
        files=(
            FileDigest("tokens.txt", 3, _ABC),
            FileDigest("toy.mlpackage/Data/weights", 3, _ABC),
            FileDigest("toy.mlpackage/Manifest.json", 0, _EMPTY),
        ),
        packages=(package,),
    )


@pytest.fixture
def build(tmp_path: Path) -> Path:
    """A build folder as ``_LITERAL`` describes it."""
    for name, content in _FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "coreproof.json").write_bytes(_LITERAL)
    return tmp_path


def test_literal_bytes(manifest: Manifest):
    assert manifest.to_bytes() == _LITERAL


def test_reads_what_it_writes(build: Path, manifest: Manifest):
    assert load_manifest(build) == manifest
    check_files(build, manifest)


def test_digests_are_those_of_sha256sum(build: Path, manifest: Manifest):
    (build / "coreproof.json").unlink()
    listing = "find * -type f | LC_ALL=C sort | xargs sha256sum | sha256sum"
    folders = {build: checkpoint_digest(manifest.files)}
    folders[build / "toy.mlpackage"] = manifest.package_digest("toy.mlpackage")
    for folder, digest in folders.items():
        done = subprocess.run(listing, shell=True, cwd=folder, capture_output=True, text=True, check=True)
        assert done.stdout.split()[0] == digest
    assert checkpoint_digest(reversed(manifest.files)) == folders[build]
    assert digest_files(build, reversed(_FILES)) == manifest.files


def test_package_files(manifest: Manifest):
    assert [f.path for f in manifest.package_files("toy.mlpackage")] == [f.path for f in manifest.files[1:]]
    assert manifest.package_files("toy") == ()


def _swap(content: dict) -> None:
    content["files"].reverse()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(schema="coreproof.manifest/2"), "not a coreproof.manifest/1 file"),
        (lambda c: c.pop("schema"), "not a coreproof.manifest/1 file"),
        (lambda c: c.update(extra=1), "expected exactly"),
        (lambda c: c.pop("model"), "expected exactly"),
        (lambda c: c.update(model=3), r"model: is a int, expected str"),
        (lambda c: c["packages"][0].update(extra=1), r"packages\[0\]: has the keys"),
        (lambda c: c["packages"][0]["weights"][0].update(offset=True), r"weights\[0\]\.offset: is a bool"),
        (lambda c: c["packages"][0]["weights"][0].update(shape="12"), r"shape: is a str, expected list"),
        (lambda c: c["packages"][0]["weights"][0].update(size=1.0), "is a float, expected int"),
        (lambda c: c["toolchain"].update(torch=None), r"toolchain\.torch: is a NoneType"),
        (lambda c: c["checkpoint"].update(unused=[]), "unused: is a list, expected dict"),
        (lambda c: c["checkpoint"].update(seed="7"), "seed: is a str, expected int"),
        (lambda c: c["checkpoint"].update(seed=None), "kind 'synthetic' with seed None"),
        (lambda c: c["checkpoint"].update(kind="published"), "kind 'published' with seed 7"),
        (lambda c: c["checkpoint"].update(kind="real", seed=None), "kind 'real'"),
        (lambda c: c["checkpoint"].update(sha256=_ABC), "is not the digest of checkpoint.files"),
        (lambda c: c["files"][0].update(path="../tokens.txt"), r"not sorted|not a plain relative path"),
        (lambda c: c["files"][0].update(path="/etc/passwd"), "not a plain relative path"),
        (lambda c: c["files"][0].update(path="a\nb"), "not a plain relative path"),
        (lambda c: c["files"][0].update(size=-1), "has size -1"),
        (lambda c: c["files"][0].update(sha256=_ABC.upper()), "and sha256 'BA78"),
        (lambda c: c["files"][0].update(path="coreproof.json"), "lists coreproof.json"),
        (lambda c: c["files"][0].update(path="receipt-mil.json"), "lists receipt-mil.json"),
        (_swap, "not sorted"),
        (lambda c: c["files"].append(c["files"][-1]), "one is there twice"),
        (lambda c: c["packages"].append(c["packages"][0]), "is listed twice"),
        (lambda c: c["packages"][0].update(package="toy.mlpackage/Data"), "has no files"),
        (lambda c: c["packages"][0].update(package=".."), "has no files"),
    ],
)
def test_refuses(build: Path, change: Callable[[dict], None], message: str):
    content = json.loads(_LITERAL)
    change(content)
    (build / "coreproof.json").write_text(json.dumps(content))
    with pytest.raises(PackageError, match=message) as caught:
        load_manifest(build)
    assert str(build / "coreproof.json") in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b'{"schema": 1, "schema": 2}', _LITERAL[:-2]])
def test_refuses_other_json(build: Path, content: bytes):
    (build / "coreproof.json").write_bytes(content)
    with pytest.raises(PackageError):
        load_manifest(build)


def test_not_a_build(tmp_path: Path):
    with pytest.raises(PackageError, match=r"not a coreproof build, it has no coreproof.json"):
        load_manifest(tmp_path)


def _fill_receipts(build: Path) -> None:
    (build / "receipts").mkdir()
    (build / "receipts" / "x.json").touch()


def _flip(build: Path) -> None:
    (build / "toy.mlpackage/Data/weights").write_bytes(b"abb")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: (b / "tokens.txt").unlink(), "tokens.txt is missing"),
        (lambda b: (b / "tokens.txt").rename(b / "words.txt"), "tokens.txt is missing"),
        (lambda b: (b / ".hidden").touch(), r"\.hidden is not listed"),
        (lambda b: (b / "toy.mlpackage/receipt.json").touch(), "receipt.json is not listed"),
        (
            lambda b: (b / "toy.mlpackage/coreproof.json").touch(),
            "toy.mlpackage/coreproof.json is not listed",
        ),
        (lambda b: (b / "tokens.txt").write_bytes(b"abcd"), "tokens.txt has 4 bytes, coreproof.json says 3"),
        (_fill_receipts, "receipts/x.json is not listed"),
        (_flip, "toy.mlpackage/Data/weights has sha256 [0-9a-f]{64}, coreproof.json says ba7816bf"),
    ],
)
def test_check_files_names_the_first_difference(build: Path, damage: Callable[[Path], None], message: str):
    manifest = load_manifest(build)
    damage(build)
    with pytest.raises(JudgedBadError, match=message):
        check_files(build, manifest)


def test_check_files_refuses_links(build: Path):
    manifest = load_manifest(build)
    (build / "tokens.txt").rename(build.parent / "outside.txt")
    (build / "tokens.txt").symlink_to(build.parent / "outside.txt")
    with pytest.raises(PackageError, match="neither file nor folder"):
        check_files(build, manifest)


def test_receipts_and_writes_under_way_are_no_part_of_a_build(build: Path):
    manifest = load_manifest(build)
    (build / "receipt-mil.json").touch()
    with atomic_file(build / "receipt-torch.json") as temporary:
        temporary.touch()
        check_files(build, manifest)
    check_files(build, manifest)


def test_digest_files_stays_inside(build: Path):
    os.mkfifo(build / "pipe")
    for path, message in [
        ("../x", "not a plain relative path"), ("pipe", "not a regular file"), ("x", "No such file"),
    ]:  # fmt: skip
        with pytest.raises(PackageError, match=message):
            digest_files(build, [path])


def test_checkpoint_digest_depends_on_everything_it_names(manifest: Manifest):
    files = manifest.files
    changed = [
        checkpoint_digest([replace(files[0], path="other"), *files[1:]]),
        checkpoint_digest([replace(files[0], sha256=_EMPTY), *files[1:]]),
        checkpoint_digest(files[1:]),
    ]
    assert len({checkpoint_digest(files), *changed}) == 4
