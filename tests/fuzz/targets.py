"""What is fuzzed: where good files of each kind come from, how they are spoiled and who reads them."""

# ruff: noqa: E501  (tables of hostile values)
from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import builders
import numpy as np
from exercise import allow, exercise
from forked import Finding, Judge
from mutators import Mutator, little, spoil, spoil_json, spoil_message, spoil_numbers, spoil_text
from pair import compile_as_apple, published_pair

from coreproof import catalog
from coreproof.arrays import read_inputs
from coreproof.convert.checkpoint import FileDigest
from coreproof.convert.recipe import TensorSpec
from coreproof.mil.contract import Contract, Feature
from coreproof.mil.types import TensorType
from coreproof.package.blob import CODES, WeightFile
from coreproof.package.layout import list_files
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
from coreproof.package.proto import new_model
from coreproof.parity import fixture
from coreproof.parity.suite import Reference

SPEC = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
STORED = (
    "conv",
    "recurrent",
    "wide_weights",
    "constexpr_ios16",
    "constexpr_blockwise",
    "constexpr_lut",
    "constexpr_sparse",
)


@dataclass(frozen=True, slots=True)
class Seed:
    """A good ``file`` of a good folder ``original``; ``copy`` is the folder that is spoiled."""

    original: Path
    copy: Path
    file: str

    @property
    def data(self) -> bytes:
        return (self.original / self.file).read_bytes()

    def spoiled(self, data: bytes) -> Path:
        """The copied folder with ``data`` in place of the file."""
        (self.copy / self.file).write_bytes(data)
        return self.copy


@dataclass(frozen=True, slots=True)
class Target:
    """``seeds`` makes good files below a folder; ``spoil`` makes a mutant of the bytes of one with
    another at hand; ``read`` gives the mutant to what reads such files."""

    name: str
    seeds: Callable[[Path, Sequence[str]], list[Seed]]
    spoil: Mutator
    read: Callable[[Seed, bytes, Random], str]

    def judge(self, folder: Path, seed: int, models: Sequence[str] = ()) -> Judge:
        """A judge of mutant numbers, made from ``seed``; ``models`` are names of ``builders.MODELS``, all
        unless given."""
        found = self.seeds(folder, models or sorted(builders.MODELS))
        contents = [one.data for one in found]

        def judge(index: int) -> str:
            rng = Random(f"{seed} {self.name} {index}")
            one, other = rng.randrange(len(found)), rng.randrange(len(found))
            return self.read(found[one], self.spoil(rng, contents[one], contents[other]), rng)

        return judge


def copied(original: Path, *files: str) -> list[Seed]:
    copy = shutil.copytree(original, original.with_name(f"copy-{original.name}"))
    return [Seed(original, copy, file) for file in files]


# Models


def packages(folder: Path, models: Sequence[str]) -> list[Path]:
    return [builders.convert(name, folder / f"{name}.mlpackage") for name in models]


def specs(folder: Path, models: Sequence[str]) -> list[Seed]:
    made = [*packages(folder, models), published_pair(folder).package]
    return [seed for path in made for seed in copied(path, SPEC)]


def texts(folder: Path, models: Sequence[str]) -> list[Seed]:
    made = [compile_as_apple(p, p.with_suffix(".mlmodelc")) for p in packages(folder, models)]
    return [seed for path in (*made, published_pair(folder).compiled) for seed in copied(path, "model.mil")]


def weight_files(folder: Path, models: Sequence[str]) -> list[Seed]:
    stored = [name for name in models if name in STORED]
    return [seed for path in packages(folder, stored) for seed in copied(path, WEIGHTS)]


def layouts(folder: Path, models: Sequence[str]) -> list[Seed]:
    return [seed for path in packages(folder, models[:3]) for seed in copied(path, "Manifest.json")]


def descriptions(folder: Path, models: Sequence[str]) -> list[Seed]:
    made = [compile_as_apple(p, p.with_suffix(".mlmodelc")) for p in packages(folder, models)]
    return [
        seed for path in (*made, published_pair(folder).compiled) for seed in copied(path, "coremldata.bin")
    ]


def metadata(folder: Path, models: Sequence[str]) -> list[Seed]:
    compiled = published_pair(folder).compiled
    (compiled / "coremldata.bin").unlink()
    several = shutil.copytree(compiled, compiled.with_name("several.mlmodelc"))
    (entry,) = json.loads((several / "metadata.json").read_text())
    schemas = {key: entry.pop(key) for key in ("inputSchema", "outputSchema")}
    schemas["inputSchema"][0] |= {"shapeRange": "[[1, 1], [2, -1]]", "isOptional": "1"}
    state = {"name": "s", "type": "State", "dataType": "Float16", "shape": "[1, 8]"}
    entry["functions"] = [{"name": "main", **schemas}, {"name": "other", **schemas, "stateSchema": [state]}]
    (several / "metadata.json").write_text(json.dumps([entry]))
    return [*copied(compiled, "metadata.json"), *copied(several, "metadata.json")]


def spoil_spec(rng: Random, data: bytes, other: bytes) -> bytes:
    """Mostly single operations and constants, so that what surrounds them is still in order."""
    if rng.random() < 0.1:
        return spoil(rng, data, other)
    model, source = new_model(), new_model()
    model.ParseFromString(data)
    source.ParseFromString(other)
    if rng.random() < 0.15:
        spoil_message(rng, model, source)
        return model.SerializeToString()
    for _ in range(rng.choice((1, 1, 2, 4))):
        operation, deed = rng.choice(operations(model)), rng.random()
        value = operation.attributes["val"] if "val" in operation.attributes else None  # noqa: SIM401  (a message map)
        if value is not None and deed < 0.7:
            spoil_numbers(rng, value.immediateValue.tensor)
        elif value is not None and deed < 0.9:
            spoil_message(rng, value, source)
        elif deed < 0.1:
            operation.type = rng.choice(operations(source)).type
        else:
            spoil_message(rng, operation, source)
    return model.SerializeToString()


def operations(model: Any) -> list[Any]:
    """Every operation of a ``Model`` message."""
    blocks = [b for f in model.mlProgram.functions.values() for b in f.block_specializations.values()]
    found = []
    for block in blocks:
        found += block.operations
        blocks += [nested for operation in block.operations for nested in operation.blocks]
    return found


def spoil_weights(rng: Random, data: bytes, other: bytes) -> bytes:
    if rng.random() < 0.3:
        return spoil(rng, data, other)
    entries = [i for i in range(64, len(data), 64) if data[i : i + 4] == b"\xef\xbe\xad\xde"]
    entry = [
        (i + place, code)
        for i in entries
        for place, code in ((0, "I"), (4, "I"), (8, "Q"), (16, "Q"), (24, "Q"))
    ]
    return little(rng, data, [(0, "I"), (4, "I"), *entry])


def read_model(seed: Seed, data: bytes, rng: Random) -> str:
    return exercise(seed.spoiled(data), seed.original, rng)


def read_weight_file(seed: Seed, data: bytes, rng: Random) -> str:
    """The file by itself, at places where nothing need be, then the model it belongs to."""
    path = seed.spoiled(data)
    file = WeightFile(path / WEIGHTS)
    try:
        for _ in range(4):
            offset = rng.choice((0, 64, 64 * rng.randrange(40), len(data) - 64, len(data), 1 << 63, 1))
            shape = tuple(rng.choice((0, 1, 2, 8, 1 << 40)) for _ in range(rng.randrange(3)))
            type_ = TensorType(rng.choice(list(CODES)), shape)
            array = allow(lambda offset=offset, type_=type_: file.array(offset, type_))
            if array is not None and array.nbytes > len(data):
                raise Finding(f"{array.nbytes} bytes of a file of {len(data)}")
    finally:
        file.close()
    return exercise(path, seed.original, rng)


def read_layout_of(seed: Seed, data: bytes, rng: Random) -> str:
    """A package with another manifest, or with something else in the place of one of its files."""
    outside = seed.copy.with_name("outside")
    outside.mkdir(exist_ok=True)
    path = seed.copy
    shutil.rmtree(path)
    shutil.copytree(seed.original, path)
    if rng.random() < 0.6:
        seed.spoiled(data)
    else:
        names = list_files(path)
        victim = path / rng.choice((*names, *(str(Path(n).parent) for n in names if "/" in n)))
        shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
        rng.choice((
            lambda: None, victim.mkdir, victim.touch, lambda: os.mkfifo(victim), lambda: victim.symlink_to(victim),
            lambda: victim.symlink_to(outside), lambda: victim.symlink_to("/dev/zero"), lambda: victim.symlink_to("/etc/passwd"),
        ))()  # fmt: skip
    reached = exercise(path, seed.original, rng)
    if any((path / name).is_symlink() for name in list_files(path)):
        raise Finding("a link was followed")
    return reached


# What goes with models


def manifests(folder: Path, models: Sequence[str]) -> list[Seed]:
    build = folder / "build"
    for name, content in (
        ("toy.mlpackage/Manifest.json", b"{}"),
        ("toy.mlpackage/Data/w", b"abc"),
        ("tokens", b"abc"),
    ):
        (build / name).parent.mkdir(parents=True, exist_ok=True)
        (build / name).write_bytes(content)
    files = digest_files(build, ("toy.mlpackage/Manifest.json", "toy.mlpackage/Data/w", "tokens"))
    sources = (FileDigest("model.safetensors", 3, files[0].sha256),)
    weight = WeightRecord(
        "w", "fp16", (1, 2), "weights/weight.bin", 64, 4, files[0].sha256, ("a", "b"), "identity"
    )
    x = TensorSpec("x", (1, 64), "fp32")
    package = PackageRecord(
        "toy.mlpackage", "toy", "fp16", ContractRecord((x,), (x,), ()), PrecisionRecord("fp16", ("op",), "overflows"),
        CompressionRecord("palette", 6, None, 2048, ("table",)), "iOS18", "ALL", (weight, weight),
    )  # fmt: skip
    checkpoint = CheckpointRecord(sources, checkpoint_digest(sources), "synthetic", 7, {"pooler": "not used"})
    manifest = Manifest("toy", checkpoint, {"torch": "2.13.0"}, files, (package,))
    (build / "coreproof.json").write_bytes(manifest.to_bytes())
    return copied(build, "coreproof.json")


def read_manifest(seed: Seed, data: bytes, rng: Random) -> str:
    build = seed.spoiled(data)
    manifest = load_manifest(build)
    manifest.to_bytes()
    for package in manifest.packages:
        manifest.package_digest(package.package)
    check_files(build, manifest)
    return "opened"


def checkpoints(folder: Path, models: Sequence[str]) -> list[Seed]:
    made = folder / "minilm"
    catalog.find("minilm").recipe().synth(made, "small", 0)
    return copied(
        made, "model.safetensors", "model.safetensors", "config.json", "synth.json", "tokenizer.json"
    )


def spoil_checkpoint(rng: Random, data: bytes, other: bytes) -> bytes:
    """The header of a safetensors file is JSON behind its length."""
    if data.startswith(b"{"):
        return spoil_json(rng, data, data)
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.3:
        return spoil(rng, data[: 8 + length], data[:64]) + data[8 + length :]
    header = spoil_json(rng, data[8 : 8 + length], data[:64])
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def read_checkpoint(seed: Seed, data: bytes, rng: Random) -> str:
    path = seed.spoiled(data)
    try:
        catalog.find("minilm").recipe().load(path)
    finally:
        seed.spoiled(seed.data)
    return "opened"


SHA256 = "0" * 64


def fixtures(folder: Path, models: Sequence[str]) -> list[Seed]:
    arrays = {
        "x": np.arange(12, dtype=np.float32).reshape(3, 4),
        "y": np.zeros((), np.int64),
        "z": np.ones(3, bool),
    }
    made = fixture.save(Reference(arrays, {"torch": "2.13.0"}), "toy", SHA256, folder)
    np.savez(made / "reference.npz", **arrays)  # not compressed, so that what is spoiled is seen
    return copied(made, "reference.npz", "reference.npz", "fixture.json")


def spoil_archive(rng: Random, data: bytes, other: bytes) -> bytes:
    """A zip with spoiled members; with other arrays' headers, and other ways to compress."""
    if data.startswith(b"{"):
        return spoil_json(rng, data, data)
    if rng.random() < 0.3 or not other.startswith(b"PK"):
        return spoil(rng, data, other)
    made = io.BytesIO()
    ways = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    with (
        zipfile.ZipFile(io.BytesIO(data)) as archive,
        zipfile.ZipFile(made, "w", rng.choice(ways)) as spoiled,
    ):
        for name in archive.namelist():
            content = archive.read(name)
            if rng.random() < 0.5:
                content = spoil_array(rng, content, content)
            spoiled.writestr(rng.choice((name,) * 8 + ("../x.npy", "x", "y.npy", "a\0.npy")), content)
    packed = made.getvalue()
    return spoil(rng, packed, other) if rng.random() < 0.2 else packed


def spoil_array(rng: Random, data: bytes, other: bytes) -> bytes:
    """A .npy file whose header, a dictionary in Python's words, says something else."""
    if rng.random() < 0.2:
        return spoil(rng, data, other)
    length = int.from_bytes(data[8:10], "little")
    header = spoil_text(
        rng,
        data[10 : 10 + length],
        b"'descr' : '|O' '<U99999999' ('<f4', (1 << 40,)) True - [[ lambda 1e9 0x7",
    )
    return data[:8] + (len(header) % 65536).to_bytes(2, "little") + header + data[10 + length :]


def read_fixture(seed: Seed, data: bytes, rng: Random) -> str:
    path = seed.spoiled(data)
    try:
        fixture.load(path, "toy", SHA256)
    finally:
        seed.spoiled(seed.data)
    return "opened"


def inputs(folder: Path, models: Sequence[str]) -> list[Seed]:
    folder = folder / "inputs"
    folder.mkdir()
    np.savez(folder / "a.npz", x=np.arange(6.0), y=np.zeros((2, 3), np.int32))
    np.save(folder / "x.npy", np.arange(6.0).reshape(2, 3))
    (folder / "b.json").write_text(json.dumps({"x": [[1, 2.5], [3, 4]], "y": 7, "z": [True, False]}))
    return copied(folder, "a.npz", "x.npy", "b.json")


def spoil_input(rng: Random, data: bytes, other: bytes) -> bytes:
    return spoil_array(rng, data, other) if data.startswith(b"\x93NUMPY") else spoil_archive(rng, data, other)


def read_input(seed: Seed, data: bytes, rng: Random) -> str:
    features = (Feature("x", "multiArray", "float16", (2, 2)), Feature("y", "multiArray", "int32", (1,)))
    path = seed.spoiled(data) / seed.file
    argument = f"x={path}" if path.suffix == ".npy" else str(path)
    read_inputs([argument], Contract(features, (), ()))
    return "opened"


TARGETS = {
    target.name: target
    for target in (
        Target("spec", specs, spoil_spec, read_model),
        Target("text", texts, spoil_text, read_model),
        Target("weights", weight_files, spoil_weights, read_weight_file),
        Target("manifest", manifests, spoil_json, read_manifest),
        Target("layout", layouts, spoil_json, read_layout_of),
        Target("description", descriptions, spoil, read_model),
        Target("metadata", metadata, spoil_json, read_model),
        Target("checkpoint", checkpoints, spoil_checkpoint, read_checkpoint),
        Target("fixture", fixtures, spoil_archive, read_fixture),
        Target("inputs", inputs, spoil_input, read_input),
    )
}
