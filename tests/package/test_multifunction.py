"""Several functions in one model, with weights of their own and shared ones, in every form."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pair import compile_as_apple

import coreproof
from coreproof.errors import PackageError
from coreproof.inspect import inspect
from coreproof.mil.identity import difference
from coreproof.mil.to_proto import round_trip, write_program
from coreproof.mil.weights import references, weights
from coreproof.package.reader import open_package

SHARED = np.arange(24, dtype=np.float32).reshape(4, 6) / 7
OWN = {"first": np.arange(16, dtype=np.float32).reshape(4, 4), "second": np.eye(4, dtype=np.float32) * 3}
X = np.array([[0.5, -1, 2, 4, -3, 0.25]], np.float32)


def _projected(own: np.ndarray) -> Callable[..., Any]:
    from coremltools.converters.mil import Builder as mb

    return lambda x: mb.linear(x=mb.linear(x=x, weight=SHARED), weight=own, name="y")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two functions that share one weight and have one of their own; the second is the default."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

    folder = tmp_path_factory.mktemp("functions")
    described = ct.utils.MultiFunctionDescriptor()
    for name, own in OWN.items():
        specs = [mb.TensorSpec((1, 6))]
        model = ct.convert(
            mb.program(input_specs=specs, opset_version=ct.target.iOS18)(_projected(own)),
            minimum_deployment_target=ct.target.iOS18,
            compute_precision=ct.precision.FLOAT32,
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        )
        model.save(str(folder / f"{name}.mlpackage"))
        described.add_function(str(folder / f"{name}.mlpackage"), "main", name)
    described.default_function_name = "second"
    ct.utils.save_multifunction(described, str(folder / "both.mlpackage"))
    return folder / "both.mlpackage"


@pytest.fixture(params=["package", "bare", "compiled"])
def path(request: pytest.FixtureRequest, package: Path, tmp_path: Path) -> Path:
    if request.param == "bare":
        return Path(shutil.copytree(package / "Data/com.apple.CoreML", tmp_path / "bare")) / "model.mlmodel"
    return package if request.param == "package" else compile_as_apple(package, tmp_path / "m.mlmodelc")


def test_the_shared_weight_is_stored_once(path: Path) -> None:
    opened = open_package(path)
    opened.check()
    assert list(opened.program.functions) == ["first", "second"]
    stored = [np.array(opened.weights.array(blob)) for _, blob in weights(opened.program)]
    assert len(stored) == 3 and len(list(references(opened.program))) == 4
    for expected in (SHARED, *OWN.values()):
        assert sum(np.array_equal(array, expected) for array in stored) == 1


def test_each_function_runs_by_its_name(path: Path) -> None:
    for name, own in OWN.items():
        found = coreproof.load(path, function_name=name).predict({"x": X})["y"]
        np.testing.assert_allclose(found, X @ SHARED.T @ own.T, rtol=1e-6)
    default = coreproof.load(path)
    assert default.function_name == "second"
    np.testing.assert_allclose(default.predict({"x": X})["y"], X @ SHARED.T @ OWN["second"].T, rtol=1e-6)
    with pytest.raises(PackageError, match="no function 'main'; it has first, second"):
        coreproof.load(path, function_name="main")


def test_inspect_tells_of_each_function(path: Path) -> None:
    seen = inspect(path)
    assert list(seen["functions"]) == ["first", "second"]
    for function in seen["functions"].values():
        assert function["ops"] == {"linear": {"linear": 2}}
        assert [(f["name"], f["shape"]) for f in function["inputs"]] == [("x", "[1, 6]")]
    assert seen["weights"]["by_dtype"] == {"fp32": {"count": 3, "bytes": 4 * (24 + 16 + 16)}}


def test_the_round_trip(package: Path) -> None:
    opened = open_package(package)
    assert write_program(opened.program) == opened.spec.mlProgram
    assert difference(opened.program, round_trip(opened.program)) is None
