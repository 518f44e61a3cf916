"""Where a manifest says each weight came from, checked with numpy and safetensors alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from support import Made
from torch import Tensor, nn

from coreproof.convert.checkpoint import Checkpoint, Origin
from coreproof.convert.convert import convert_stage
from coreproof.convert.origins import weight_records
from coreproof.convert.recipe import Precision, Stage, TensorSpec
from coreproof.errors import ConversionError
from coreproof.package.manifest import WeightRecord

Function = Callable[[Any, Tensor], Tensor]

# Below 2**-25 float16 rounds to zero, above 65520 to infinity; 1/3 is not an fp16 number.
TINY, THIRD = 2.0**-26, 1 / 3


def checkpoint(**tensors: np.ndarray) -> Checkpoint:
    origins = {name: Origin((f"file.{name}",)) for name in tensors}
    return Checkpoint(files=(), config={}, tensors=tensors, origins=origins)


class Graph(nn.Module):
    """A module made of its parameters and one function of them and its input."""

    def __init__(self, parameters: Mapping[str, np.ndarray], function: Function) -> None:
        super().__init__()
        self.function = function
        for name, array in parameters.items():
            self.register_parameter(name, nn.Parameter(torch.from_numpy(array)))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def records(
    folder: Path,
    source: Checkpoint,
    width: int,
    function: Function,
    precision: str = "fp16",
    constants: tuple[str, ...] = (),
) -> tuple[WeightRecord, ...]:
    """Convert ``function`` of a (1, width) input over the checkpoint's tensors; its weights' records."""
    with torch.no_grad():
        result = Graph(source.tensors, function)(torch.ones(1, width))
    stage = Stage(
        name="made",
        package="made",
        module=lambda c: Graph(c.tensors, function),
        inputs=(TensorSpec("x", (1, width), "fp32"),),
        outputs=(TensorSpec("y", tuple(result.shape), "fp32"),),
        precision=Precision(precision),
        constants=constants,
    )
    package = convert_stage(stage, source, folder / "made.mlpackage", lambda *_: None)
    return weight_records(stage, source, package)


def linear(graph: Any, x: Tensor) -> Tensor:
    return nn.functional.linear(x, graph.weight)


def ramp(*shape: int) -> np.ndarray:
    return (np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 1) / 1024


def test_a_weight_stored_as_it_is(tmp_path: Path) -> None:
    (record,) = records(tmp_path, checkpoint(weight=ramp(4, 5)), 5, linear, "fp32")
    assert (record.keys, record.transform) == (("file.weight",), "identity")
    assert (record.dtype, record.shape, record.size) == ("fp32", (4, 5), 80)
    assert record.sha256 == hashlib.sha256(ramp(4, 5).tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("value", "transform", "stored"),
    [
        (THIRD, "rounded to float16", np.float16(THIRD)),
        (TINY, "rounded to float16 but never to zero", np.float16(2.0**-24)),
        (-TINY, "rounded to float16 but never to zero", np.float16(-(2.0**-24))),
    ],
)
def test_a_rounded_weight(value: float, transform: str, stored: np.float16, tmp_path: Path) -> None:
    weight = ramp(4, 5)
    weight[2, 3] = value
    (record,) = records(tmp_path, checkpoint(weight=weight), 5, linear)
    expected = weight.astype(np.float16)
    expected[2, 3] = stored
    assert (record.keys, record.transform) == (("file.weight",), transform)
    assert record.sha256 == hashlib.sha256(expected.tobytes()).hexdigest()


def test_in_a_large_weight_what_rounds_to_zero_is_zero(tmp_path: Path) -> None:
    weight = ramp(20, 25)  # 500 elements; coremltools keeps tiny values up to 400 only
    weight[2, 3] = TINY
    (record,) = records(
        tmp_path, checkpoint(weight=weight), 500, lambda g, x: x.reshape(1, 20, 25) * g.weight
    )
    assert record.transform == "rounded to float16"
    assert record.sha256 == hashlib.sha256(weight.astype(np.float16).tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("precision", "dtype", "transform"),
    [
        ("fp32", np.float32, "transposed [2, 0, 1]"),
        ("fp16", np.float16, "transposed [2, 0, 1]; rounded to float16"),
    ],
)
def test_a_transposed_weight(precision: str, dtype: type, transform: str, tmp_path: Path) -> None:
    weight = ramp(6, 3, 4) + np.float32(THIRD)

    def function(graph: Any, x: Tensor) -> Tensor:
        return x.reshape(1, 4, 6, 3) * graph.weight.permute(2, 0, 1)

    (record,) = records(tmp_path, checkpoint(weight=weight), 72, function, precision)
    assert (record.keys, record.transform) == (("file.weight",), transform)
    expected = np.ascontiguousarray(weight.transpose(2, 0, 1)).astype(dtype)
    assert record.sha256 == hashlib.sha256(expected.tobytes()).hexdigest()


def test_equal_tensors_are_stored_once_and_all_named(tmp_path: Path) -> None:
    same = checkpoint(first=ramp(4, 5), second=ramp(4, 5))
    (record,) = records(
        tmp_path,
        same,
        5,
        lambda g, x: nn.functional.linear(x, g.first) + nn.functional.linear(x + 1, g.second),
        "fp32",
    )
    assert record.keys == ("file.first", "file.second")


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_a_folded_weight_is_refused_by_name(precision: str, tmp_path: Path) -> None:
    def function(graph: Any, x: Tensor) -> Tensor:
        return nn.functional.linear(x, graph.weight * 2 + 1)

    with pytest.raises(ConversionError, match=r"stage 'made': no checkpoint tensor explains 1 weights \(\w+"):
        records(tmp_path, checkpoint(weight=ramp(4, 5)), 5, function, precision)


def test_a_table_of_the_stage_must_be_declared(tmp_path: Path) -> None:
    table = torch.arange(20, dtype=torch.float32).reshape(4, 5) ** 2

    def function(graph: Any, x: Tensor) -> Tensor:
        return nn.functional.linear(x, graph.weight) + nn.functional.linear(x, table)

    source = checkpoint(weight=ramp(4, 5))
    with pytest.raises(ConversionError, match="explains 1 weights"):
        records(tmp_path / "undeclared", source, 5, function, "fp32")
    found = records(tmp_path / "declared", source, 5, function, "fp32", constants=("*",))
    assert sorted((r.keys, r.transform) for r in found) == [
        ((), "constant of the stage"),
        (("file.weight",), "identity"),
    ]


def test_one_bit_of_another_value_is_no_origin(tmp_path: Path) -> None:
    stored = torch.from_numpy(ramp(4, 5))
    other = ramp(4, 5)
    other[3, 4] = np.nextafter(other[3, 4], np.float32(9))
    with pytest.raises(ConversionError, match="no checkpoint tensor explains 1 weights"):
        records(tmp_path, checkpoint(weight=other), 5, lambda g, x: nn.functional.linear(x, stored), "fp32")


# The manifest of a build, with nothing of coreproof


def repeat(transform: str, key_arrays: list[np.ndarray]) -> np.ndarray:
    """What a stranger does with a record of MiniLM or the filter: follow its words in numpy."""
    array = key_arrays[0]
    for step in transform.split("; "):
        if step.startswith("rows 0..127 of the first key plus row 0 of the second"):
            array = (array[:128].astype(np.float64) + key_arrays[1][0].astype(np.float64)).astype(np.float32)
        elif step == "reversed, as (1, 1, taps)":
            array = array[::-1].reshape(1, 1, -1)
        elif step == "rounded to float16":
            array = array.astype(np.float16)
        else:
            assert step in ("identity", "rounded to float16 but never to zero"), step
            if step != "identity":
                tiny = np.copysign(np.float16(2.0**-24), array).astype(np.float16)
                half = array.astype(np.float16)
                array = np.where((half == 0) & (array != 0), tiny, half)
    return array


@pytest.mark.parametrize(
    ("model", "file"),
    [("shared_minilm", "model.safetensors"), ("shared_filter", "filter.safetensors")],
)
def test_every_record_of_a_build_can_be_repeated(
    model: str, file: str, request: pytest.FixtureRequest
) -> None:
    made: Made = request.getfixturevalue(model)
    checkpoint_tensors = load_file(made.checkpoint / file)
    manifest = json.loads((made.build / "coreproof.json").read_bytes())
    used, count = set(manifest["checkpoint"]["unused"]), 0
    for package in manifest["packages"]:
        data = made.build / package["package"] / "Data" / "com.apple.CoreML"
        for record in package["weights"]:
            array = repeat(record["transform"], [checkpoint_tensors[key] for key in record["keys"]])
            stored = np.ascontiguousarray(array).tobytes()
            assert hashlib.sha256(stored).hexdigest() == record["sha256"], record["name"]
            assert (list(array.shape), len(stored)) == (record["shape"], record["size"])
            # The data offset is the third field of the 64-byte entry header, a 64-bit integer.
            blob = (data / record["file"]).read_bytes()
            start = int.from_bytes(blob[record["offset"] + 16 : record["offset"] + 24], "little")
            assert blob[start : start + len(stored)] == stored
            used |= set(record["keys"])
            count += 1
    assert used == set(checkpoint_tensors)
    assert count >= len(manifest["packages"])
