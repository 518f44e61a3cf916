"""Compressed weights against the checkpoint, by compressing its tensors again with numpy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cases import drawn, graph
from support import sign
from torch import Tensor
from torch.nn import functional as F

from coreproof.convert.export import export
from coreproof.convert.recipe import Compression, Precision, Recipe
from coreproof.mil.weights import weights
from coreproof.package.manifest import load_manifest
from coreproof.package.reader import open_package
from coreproof.weights_only import WeightsOnly, verify_weights

KINDS = {
    "int8": (Compression("linear", 8, threshold=500), "iOS18", "fp16"),
    "int8, iOS17": (Compression("linear", 8, threshold=500), "iOS17", "fp16"),
    "6 bits": (Compression("palette", 6, threshold=500), "iOS18", "fp16"),
    "6 bits, iOS17": (Compression("palette", 6, threshold=500), "iOS17", "fp32"),
    "4 bits, groups": (Compression("palette", 4, group_size=8, threshold=500), "iOS18", "fp16"),
}


def _twice(module: Any, x: Tensor) -> Tensor:
    return F.linear(F.linear(x, module.weight), module.second)


def made(kind: str, folder: Path) -> tuple[Path, Any]:
    """A build of one compressed package, and what verify_weights takes for its recipe."""
    compression, target, precision = KINDS[kind]
    source = replace(
        graph(_twice, weight=drawn(32, 24), second=drawn(24, 32, seed=1)),
        target=target,
        precision=Precision(precision),
    )
    checkpoint = source.checkpoint(folder)
    stage = replace(source.stage(), compression=compression, constants=("*_bias_0*",))
    recipe = Recipe("case", lambda _: checkpoint, ("v",), lambda c, v: (stage,), lambda *_: None)
    build = folder / "build"
    export(recipe, folder / "w.safetensors", checkpoint, [("v", stage)], build, lambda *_: None)
    return build, SimpleNamespace(recipe=lambda: recipe)


def check(build: Path, parts: Any) -> WeightsOnly:
    return verify_weights(build, parts, build, lambda *_: None)


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_of_a_compressed_weight_is_the_checkpoints(kind: str, tmp_path: Path) -> None:
    build, parts = made(kind, tmp_path)
    found = check(build, parts)
    assert found.findings == ()
    (record,) = load_manifest(build).packages
    told = [w for w in record.weights if "palette of" in w.transform or "magnitude" in w.transform]
    assert len(told) >= 4  # two weights of two parts and more
    assert found.packages[0].weights == len(record.weights)


@pytest.mark.parametrize("kind", KINDS)
def test_one_changed_byte_of_any_part_is_caught(kind: str, tmp_path: Path) -> None:
    """In each stored part in turn: table, indices, integers, scales, zero points."""
    build, parts = made(kind, tmp_path)
    (record,) = load_manifest(build).packages
    opened = open_package(build / record.package)
    constants = {w.name for w in record.weights if not w.keys}
    places = {
        name: (opened.weights.file(blob.file).path, opened.weights.entry(blob).data_offset)
        for name, blob in weights(opened.program)
        if name not in constants
    }
    assert len(places) >= 4
    for name, (path, offset) in places.items():
        data = bytearray(path.read_bytes())
        data[offset] ^= 1
        path.write_bytes(data)
        _sign_weights(build)
        findings = check(build, parts).findings
        assert any(name.split(".")[0] in f.what for f in findings), (name, findings)
        data[offset] ^= 1
        path.write_bytes(data)
    _sign_weights(build)
    assert check(build, parts).passed


def _sign_weights(build: Path) -> None:
    """A manifest that tells the truth about every byte, and lies about nothing but where weights are from."""
    (record,) = load_manifest(build).packages
    opened = open_package(build / record.package)
    blobs = dict(weights(opened.program))
    told = tuple(opened.weights.record(w.name, blobs[w.name], w.keys, w.transform) for w in record.weights)
    sign(build, packages=(replace(record, weights=told),))


def test_another_transform_is_caught(tmp_path: Path) -> None:
    build, parts = made("6 bits", tmp_path)
    (record,) = load_manifest(build).packages
    index = next(i for i, w in enumerate(record.weights) if "palette of" in w.transform)
    for transform in ("identity", record.weights[index].transform.replace("64", "32")):
        changed = list(record.weights)
        changed[index] = replace(changed[index], transform=transform)
        sign(build, packages=(replace(record, weights=tuple(changed)),))
        (finding,) = check(build, parts).findings
        assert "no tensor of the checkpoint is" in finding.what


def test_the_whole_is_compared_and_not_the_dequantized(tmp_path: Path) -> None:
    """Two tables of one palette that are swapped with their indices give the same weight, not this file."""
    build, parts = made("6 bits", tmp_path)
    (record,) = load_manifest(build).packages
    opened = open_package(build / record.package)
    lut = next((n, b) for n, b in weights(opened.program) if n.endswith("lut"))
    values = opened.weights.array(lut[1]).reshape(-1).copy()
    path, entry = opened.weights.file(lut[1].file).path, opened.weights.entry(lut[1])
    data = bytearray(path.read_bytes())
    data[entry.data_offset : entry.data_offset + entry.nbytes] = np.sort(values)[::-1].tobytes()
    path.write_bytes(data)
    _sign_weights(build)
    assert not check(build, parts).passed
