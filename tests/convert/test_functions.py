"""Several functions in one package: one copy of the weights, each function's own shapes, the same bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import digests
from torch import nn

import coreproof
from coreproof.convert.checkpoint import Checkpoint, Origin
from coreproof.convert.convert import convert_stage
from coreproof.convert.origins import weight_records
from coreproof.convert.recipe import FunctionSpec, Precision, Stage, TensorSpec
from coreproof.errors import ConversionError, UsageError

WEIGHT = np.arange(1, 33, dtype=np.float32).reshape(4, 8) / 7


def features(length: int) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    return (TensorSpec("x", (1, length, 8), "fp32"),), (TensorSpec("y", (1, length, 4), "fp32"),)


class Projected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(WEIGHT), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight) / x.shape[1]


CHECKPOINT = Checkpoint((), {}, {"weight": WEIGHT}, {"weight": Origin(("w",))})
STAGE = Stage(
    name="projected",
    package="projected",
    module=lambda _: Projected(),
    inputs=features(3)[0],
    outputs=features(3)[1],
    precision=Precision("fp32"),
    target="iOS18",
    constants=("linear_*_bias_0*",),
    functions=tuple(FunctionSpec(f"b{n}", *features(n)) for n in (3, 5)),
    trace_inputs=features(2)[0],
)


def quiet(step: str, done: int, total: int) -> None:
    pass


def test_functions_share_one_weight_and_have_their_own_shapes(tmp_path: Path) -> None:
    package = convert_stage(STAGE, CHECKPOINT, tmp_path / "a.mlpackage", quiet)
    x = np.random.default_rng(0).normal(size=(1, 5, 8)).astype(np.float32)
    for length in (3, 5):
        model = coreproof.load(package.path, "fp32", f"b{length}")
        found = model.predict({"x": x[:, :length]})["y"]
        np.testing.assert_allclose(found, x[:, :length] @ WEIGHT.T / length, rtol=1e-5)
    default = coreproof.load(package.path, "fp32")
    assert default.contract.inputs[0].shape == (1, 3, 8)
    assert [r.keys for r in weight_records(STAGE, CHECKPOINT, package) if r.keys] == [("w",)]
    convert_stage(STAGE, CHECKPOINT, tmp_path / "b.mlpackage", quiet)
    assert digests(tmp_path / "a.mlpackage") == digests(tmp_path / "b.mlpackage")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "iOS17"}, "functions need target iOS18"),
        ({"functions": (STAGE.functions[1],)}, "must be those of 'b5'"),
        ({"functions": (STAGE.functions[0],) * 2}, "functions b3; names must differ"),
        ({"functions": (replace(STAGE.functions[0], name="a b"),)}, "identifiers"),
    ],
)
def test_functions_that_no_package_can_have_are_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConversionError, match=message):
        convert_stage(replace(STAGE, **changes), CHECKPOINT, tmp_path / "a.mlpackage", quiet)  # type: ignore[arg-type]
    assert not (tmp_path / "a.mlpackage").exists()


def test_a_stage_at_a_function_it_lacks_is_refused() -> None:
    assert STAGE.at("b5").inputs == features(5)[0]
    assert STAGE.at(None).functions == ()
    with pytest.raises(UsageError, match="no function 'b7'; it has b3, b5"):
        STAGE.at("b7")
