"""Packages as coremltools makes them, for any test to read. Do not write into them."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def sample_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An iOS 18 program with fp32 weights (two equal), packed uint4 ones and a nested block."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    weight = np.arange(24, dtype=np.float32).reshape(4, 6) / 7
    indices = np.arange(24, dtype=np.uint8).reshape(4, 6) % 16
    table = np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 1, 16, 1)

    @mb.program(input_specs=[mb.TensorSpec((1, 6))], opset_version=ct.target.iOS18)
    def program(x):
        first = mb.linear(x=x, weight=weight, name="first")
        second = mb.linear(x=x, weight=weight + 1, name="second")
        third = mb.linear(x=x, weight=weight.copy(), bias=np.ones(4, np.float32), name="third")
        packed = mb.constexpr_lut_to_dense(
            indices=indices.astype(types.np_uint4_dtype), lut=table, name="palettized"
        )
        fourth = mb.linear(x=x, weight=packed, name="fourth")
        total = mb.add(x=mb.add(x=first, y=second), y=mb.add(x=third, y=fourth))
        positive = mb.greater(x=mb.reduce_sum(x=total, axes=[0, 1]), y=0.0)
        return mb.cond(
            pred=positive,
            _true_fn=lambda: mb.identity(x=total),
            _false_fn=lambda: mb.mul(x=total, y=weight[:1, :4] * 2),
            name="out",
        )

    return _convert(program, ct.target.iOS18, tmp_path_factory)


@pytest.fixture(scope="session")
def weightless_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An iOS 17 program without stored weights; its weights folder is empty."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

    @mb.program(input_specs=[mb.TensorSpec((1, 3))], opset_version=ct.target.iOS17)
    def program(x):
        return mb.relu(x=x, name="out")

    return _convert(program, ct.target.iOS17, tmp_path_factory)


def _convert(program: object, target: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import coremltools as ct

    model = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=target,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    path = tmp_path_factory.mktemp("packages") / "sample.mlpackage"
    model.save(str(path))
    return path
