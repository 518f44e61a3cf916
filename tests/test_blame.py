"""Which op went wrong: the planted op comes first, and arrived errors are not counted twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coreproof.blame import blame
from coreproof.convert.quiet import coremltools


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x -> exp(x * w) * 1e-4 in fp16 with w = 2: exp(12) = 162755 is beyond fp16, its product is not."""
    ct = coremltools()
    from coremltools.converters.mil import Builder as mb

    @mb.program(input_specs=[mb.TensorSpec((16,))], opset_version=ct.target.iOS17)
    def program(x):  # type: ignore[no-untyped-def]
        scaled = mb.mul(x=x, y=np.full(16, 2.0, np.float32), name="scaled")
        grown = mb.exp(x=scaled, name="grown")
        return mb.mul(x=grown, y=np.float32(1e-4), name="shrunk")

    model = ct.convert(program, compute_precision=ct.precision.FLOAT16, skip_model_load=True,
                       minimum_deployment_target=ct.target.iOS17)  # fmt: skip
    path = tmp_path_factory.mktemp("blame") / "overflowing.mlpackage"
    model.save(str(path))
    return path


def test_the_op_that_overflows_comes_first(overflowing: Path) -> None:
    first, *others = blame(overflowing, [{"x": np.full(16, 6.0, np.float32)}], "typed")
    assert (first.op, first.error) == ("exp", float("inf"))
    assert not first.creates_nonfinite  # fp32 mode holds 162755
    assert all(np.isfinite(s.error) for s in others)


def test_small_inputs_leave_only_rounding(overflowing: Path) -> None:
    suspects = blame(overflowing, [{"x": np.linspace(-1, 1, 16).astype(np.float32)}], "typed")
    assert suspects
    assert all(0 < s.error <= 2.0**-10 for s in suspects)


def test_a_nan_is_blamed_on_the_op_that_makes_it(overflowing: Path) -> None:
    x = np.full(16, 6.0, np.float32)
    x[3] = 60.0  # exp(120) is beyond fp32 too
    suspects = blame(overflowing, [{"x": x}], "typed")
    assert [s.op for s in suspects if s.creates_nonfinite] == ["exp"]
    assert suspects[0].op == "exp"


def test_the_weights_of_an_op_are_named(overflowing: Path) -> None:
    suspects = blame(overflowing, [{"x": np.full(16, 1.1, np.float32)}], "typed")
    scaled = next(s for s in suspects if s.name.startswith("scaled"))
    assert [w.startswith("scaled_y") for w in scaled.weights] == [True]


def test_fp32_mode_blames_no_rounding(overflowing: Path) -> None:
    assert blame(overflowing, [{"x": np.full(16, 1.0, np.float32)}], "fp32") == []
