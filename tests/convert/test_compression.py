"""Compressed Stages: what is stored, where it came from, and that both runtimes read the same weight."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from cases import Case, drawn
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__
from numpy.typing import NDArray
from support import digests
from torch import Tensor, nn
from torch.nn import functional as F

import coreproof
from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.convert import convert_stage
from coreproof.convert.export import export
from coreproof.convert.recipe import Compression, Precision, Recipe, Stage
from coreproof.errors import ConversionError
from coreproof.package.manifest import PackageRecord, load_manifest
from coreproof.package.reader import open_package

INT8 = Compression("linear", 8, threshold=500)
SIX = Compression("palette", 6, threshold=500)
GROUPED = Compression("palette", 4, group_size=8, threshold=500)
TENSORS = {
    "weight": drawn(32, 24),
    "twin": drawn(32, 24),
    "narrow": drawn(20, 32, seed=1),  # 8 does not divide its channels
    "conv": drawn(16, 8, 5, seed=2),
    "up": drawn(16, 8, 6, seed=3),
    "small": drawn(20, seed=4),
}


class Several(nn.Module):
    """A linear op twice, one of a number of channels that 8 does not divide, a convolution and a transposed one."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight).relu() + F.linear(x * 2, self.twin)
        narrow = F.linear(y, self.narrow) * self.small
        rows = F.conv_transpose1d(F.conv1d(y.reshape(1, 8, 4), self.conv, padding=2), self.up)
        return rows.reshape(1, -1) + narrow.sum()


def case(**changes: Any) -> Case:
    return replace(Case(TENSORS, Several), **changes)


def compressed(source: Case, compression: Compression) -> Stage:
    # coremltools gives a linear op without bias one of zeros.
    return replace(source.stage(), compression=compression, constants=("*_bias_0*",))


def made(compression: Compression, folder: Path, **changes: Any) -> tuple[Path, PackageRecord]:
    """The package of the compressed case, and what the manifest says of it."""
    source = case(**changes)
    stage, checkpoint = compressed(source, compression), source.checkpoint(folder)
    recipe = Recipe("case", lambda _: checkpoint, ("v",), lambda c, v: (stage,), lambda *_: None)
    export(recipe, folder / "w.safetensors", checkpoint, [("v", stage)], folder / "build", lambda *_: None)
    (record,) = load_manifest(folder / "build").packages
    return folder / "build" / record.package, record


KINDS = {
    "int8, iOS18": (INT8, {}),
    "int8, iOS17": (INT8, {"target": "iOS17"}),
    "int8, fp32": (INT8, {"precision": Precision("fp32")}),
    "6 bits, iOS18": (SIX, {}),
    "6 bits, iOS17": (SIX, {"target": "iOS17"}),
    "6 bits, fp32": (SIX, {"precision": Precision("fp32")}),
    "8 bits": (Compression("palette", 8, threshold=500), {}),
    "1 bit": (Compression("palette", 1, threshold=500), {}),
    "4 bits, groups": (GROUPED, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_our_runtime_runs_it_as_coremltools_decompresses_it(kind: str, tmp_path: Path) -> None:
    compression, changes = KINDS[kind]
    package, record = made(compression, tmp_path, **changes)
    assert record.compression is not None
    types = {o.type for o in open_package(package).program.functions["main"].block.walk()}
    assert any(t.startswith("constexpr_") for t in types)

    model = ct.models.MLModel(str(package), skip_model_load=True)
    ct.optimize.coreml.decompress_weights(model).save(str(tmp_path / "plain.mlpackage"))
    x = {"x0": np.random.default_rng(5).standard_normal((1, 24)).astype(np.float32)}
    ours = coreproof.load(package, mode="fp32").predict(x)["y"]
    theirs = coreproof.load(tmp_path / "plain.mlpackage", mode="fp32").predict(x)["y"]
    np.testing.assert_allclose(ours, theirs, rtol=2e-3 if "int8" in kind else 1e-6, atol=1e-4)
    whole = case(**changes)
    stage, checkpoint = whole.stage(), whole.checkpoint(tmp_path)
    plain = convert_stage(stage, checkpoint, tmp_path / "whole.mlpackage", lambda *_: None)
    exact = coreproof.load(plain.path, mode="fp32").predict(x)["y"]
    error = np.linalg.norm(ours - exact) / np.linalg.norm(exact)
    assert 1e-6 < error < (0.9 if kind == "1 bit" else 0.2)


def repeat(step: str, key: str, arrays: dict[str, NDArray[Any]], tables: NDArray[Any] | None) -> NDArray[Any]:
    """What a stranger does with a record: follow its words in numpy. The table of a palette is given."""
    array = arrays[key]
    for words in step.split("; "):
        if words == "rounded to float16":
            array = array.astype(np.float16)
        elif words == "rounded to int8":
            array = np.round(array).astype(np.int8)
        elif words.startswith(("twice the greatest", "divided by twice")):
            axis = int(words.split("axis ")[1].split()[0])
            others = tuple(a for a in range(array.ndim) if a != axis)
            greatest = np.abs(array).max(others, keepdims=True)
            scale = (2 * greatest) / array.dtype.type(254)
            array = array / scale if words.startswith("divided") else scale
        elif words.startswith("indices of the nearest"):
            assert tables is not None
            axis = int(words.split("axis ")[1]) if "axis" in words else 0
            tables = tables.reshape(-1, tables.shape[-2]).astype(np.float64)
            parts = np.split(array.astype(np.float64), len(tables), axis)
            near = [np.abs(p[..., None] - t).argmin(-1) for p, t in zip(parts, tables, strict=True)]
            array = np.concatenate(near, axis).astype(np.uint8)
        else:
            assert words == "identity" or words.startswith("zeros"), words
    return array


@pytest.mark.parametrize(
    "kind", ["int8, iOS18", "int8, fp32", "6 bits, iOS18", "6 bits, fp32", "8 bits", "4 bits, groups"]
)
def test_every_record_can_be_repeated_with_numpy(kind: str, tmp_path: Path) -> None:
    compression, changes = KINDS[kind]
    package, record = made(compression, tmp_path, **changes)
    opened = open_package(package)
    operations = {o.name: o for o in opened.program.functions["main"].block.walk()}
    checked = set()
    for weight in record.weights:
        name, _, argument = weight.name.partition(".")
        stored = (package / "Data/com.apple.CoreML" / weight.file).read_bytes()[weight.offset + 64 :]
        assert hashlib.sha256(stored[: weight.size]).hexdigest() == weight.sha256
        if not weight.keys or argument == "lut":
            continue
        tables = None
        if argument == "indices":
            tables = opened.weights.array(operations[name].inputs["lut"][0])
        for key in weight.keys:
            array = repeat(weight.transform, key, dict(TENSORS), tables)
            if argument == "indices" and compression.bits < 8:
                bits = np.unpackbits(array.reshape(-1, 1), axis=1, bitorder="little")[:, : compression.bits]
                array = np.packbits(bits.reshape(-1), bitorder="little")
            assert array.tobytes() == stored[: weight.size], weight.name
        checked.add((weight.keys, argument))
    wanted = {("twin", "weight"), ("conv",), ("up",)}
    assert wanted <= {keys for keys, argument in checked if argument in ("indices", "data", "scale")}


def test_a_palettes_table_is_named_with_its_keys(tmp_path: Path) -> None:
    _, record = made(GROUPED, tmp_path)
    tables = {w.keys: (w.transform, w.shape) for w in record.weights if w.name.endswith(".lut")}
    words = "rounded to float16; palette of 16 by k-means, a table for each 8 of axis"
    assert tables == {
        ("twin", "weight"): (f"{words} 0", (4, 1, 16, 1)),
        ("conv",): (f"{words} 0", (2, 1, 1, 16, 1)),
        ("up",): ("rounded to float16; palette of 16 by k-means", (1, 1, 1, 16, 1)),  # its 8 channels are one
    }


@pytest.mark.parametrize(("compression", "left"), [(INT8, []), (SIX, []), (GROUPED, ["narrow_to_fp16"])])
def test_what_a_compression_leaves_is_listed(
    compression: Compression, left: list[str], tmp_path: Path
) -> None:
    _, record = made(compression, tmp_path)
    assert record.compression is not None
    assert list(record.compression.left) == left
    whole = {w.name: w.transform for w in record.weights if "." not in w.name}
    assert whole["small_to_fp16"] == "rounded to float16"  # under the threshold


def test_the_threshold_decides(tmp_path: Path) -> None:
    _, record = made(replace(SIX, threshold=700), tmp_path)
    assert {w.name for w in record.weights if w.name.endswith(".lut")} == {
        "twin_to_fp16_palettized.lut",
        "up_to_fp16_palettized.lut",
    }


def test_another_weight_than_the_checkpoints_is_refused(tmp_path: Path) -> None:
    source = case()

    def other(checkpoint: Checkpoint) -> nn.Module:
        tensors = {**checkpoint.tensors, "conv": checkpoint.tensors["conv"] * np.float32(1.01)}
        return Several({name: torch.from_numpy(array) for name, array in tensors.items()})

    stage = replace(compressed(source, SIX), module=other)
    checkpoint = source.checkpoint(tmp_path)
    recipe = Recipe("case", lambda _: checkpoint, ("v",), lambda c, v: (stage,), lambda *_: None)
    with pytest.raises(
        ConversionError, match=r"no checkpoint tensor explains 2 weights \(conv\w*.indices, conv"
    ):
        export(recipe, tmp_path / "w", checkpoint, [("v", stage)], tmp_path / "build", lambda *_: None)
    assert not (tmp_path / "build").exists()


@pytest.mark.parametrize(
    ("compression", "changes", "message"),
    [
        (Compression("sparse", 8), {}, "no compression 'sparse' of 8 bits; choose palette of 1, 2, 3, 4, 6, 8 bits; "),
        (Compression("linear", 4), {}, "no compression 'linear' of 4 bits"),
        (Compression("palette", 5), {}, "no compression 'palette' of 5 bits"),
        (Compression("linear", 8, group_size=8), {}, "linear compression has a scale for each channel, no groups"),
        (Compression("palette", 4, group_size=0), {}, "a group has at least one channel"),
        (Compression("palette", 4, threshold=-1), {}, "a threshold is not negative"),
        (GROUPED, {"target": "iOS17"}, "per_grouped_channel palettization is supported since iOS18"),
        (INT8, {"tensors": {**TENSORS, "weight": TENSORS["weight"] * (np.arange(32) != 3)[:, None].astype(np.float32)}},
         "weight_to_fp16_quantized: the scale of one of its channels is zero or not finite"),
        (SIX, {"tensors": {**TENSORS, "conv": TENSORS["conv"] * np.float32("inf")}}, "not finite has no palette"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_cannot_be_compressed_is_refused(
    compression: Compression, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConversionError, match=message):
        made(compression, tmp_path, **changes)
    assert not (tmp_path / "build").exists()


SIMD = " ".join(name for name in __cpu_dispatch__ if __cpu_features__.get(name))
WITHOUT_VECTORS = {"NPY_DISABLE_CPU_FEATURES": SIMD}
SCRIPT = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]
from pathlib import Path
from test_compression import GROUPED, INT8, SIX, made
for name, compression in (("int8", INT8), ("six", SIX), ("grouped", GROUPED)):
    (Path(sys.argv[1]) / name).mkdir(parents=True)
    made(compression, Path(sys.argv[1]) / name)
"""


def test_the_bytes_depend_on_neither_threads_nor_processor(tmp_path: Path) -> None:
    found = []
    for index, conditions in enumerate(
        (
            {"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "2"},
            {
                "PYTHONHASHSEED": "2",
                "OMP_NUM_THREADS": "1",
                "NPY_DISABLE_CPU_FEATURES": SIMD,
                "ATEN_CPU_CAPABILITY": "default",
            },
        )
    ):
        folder = tmp_path / str(index)
        command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder)]
        subprocess.run(command, env={**os.environ, **conditions}, check=True, capture_output=True)
        found.append(digests(folder))
    assert len(found[0]) >= 12
    assert found[0] == found[1]
