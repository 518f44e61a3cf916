"""A package that coremltools made alone, for the commands that take anyone's."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def picking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain coremltools' work: picks 2 of 3 numbers. Its metadata looks like console markup."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    @mb.program(
        input_specs=[mb.TensorSpec((1, 3)), mb.TensorSpec((2,), dtype=types.int32)],
        opset_version=ct.target.iOS17,
    )
    def program(x, indices):
        return mb.gather(x=x, indices=indices, axis=1, name="picked")

    model = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS17,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    model.user_defined_metadata["[/title]"] = "[red]loud[/]"
    path = tmp_path_factory.mktemp("picking") / "[red]" / "[/odd] names" / "picking.mlpackage"
    path.parent.mkdir(parents=True)
    model.save(str(path))
    return path
