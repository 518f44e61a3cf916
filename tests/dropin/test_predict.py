"""coremltools' own classes over coreproof's runtime: predictions, batches, states, functions, assets."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

X = np.linspace(-2, 2, 8, dtype=np.float32).reshape(2, 4)


class Linear(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.relu(x @ self.weight.T)
        return y, y.sum()


class Accumulator(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.total.add_(x)
        return self.total * 2


@pytest.fixture(scope="module")
def linear(ct: Any) -> Any:
    return ct.convert(
        torch.jit.trace(Linear().eval(), torch.tensor(X)),
        inputs=[ct.TensorType("x", X.shape, np.float16)],
        outputs=[ct.TensorType("y", dtype=np.float16), ct.TensorType("sum")],
        minimum_deployment_target=ct.target.iOS18,
    )


@pytest.fixture(scope="module")
def stateful(ct: Any) -> Any:
    return ct.convert(
        torch.jit.trace(Accumulator().eval(), torch.zeros(2)),
        inputs=[ct.TensorType("x", (2,))],
        outputs=[ct.TensorType("y")],
        states=[ct.StateType(ct.TensorType(shape=(2,), dtype=np.float16), "total")],
        minimum_deployment_target=ct.target.iOS18,
    )


def _expected(x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return Linear()(torch.tensor(x.astype(np.float32)))[0].numpy()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32, np.int8])
def test_inputs_of_bridged_dtypes_are_converted(linear: Any, dtype: Any):
    x = (X * 2).astype(dtype)
    result = linear.predict({"x": x})
    np.testing.assert_allclose(result["y"], _expected(x), atol=1e-2)


def test_outputs_are_float32_and_scalars_have_rank_one(linear: Any):
    result = linear.predict({"x": X})
    assert {n: (a.dtype, a.shape) for n, a in result.items()} == {
        "y": (np.float32, (2, 3)),
        "sum": (np.float32, (1,)),
    }
    np.testing.assert_allclose(result["sum"], _expected(X).sum(keepdims=True).reshape(1), rtol=1e-2)


def test_a_torch_tensor_and_a_list_of_floats_become_arrays(linear: Any):
    expected = linear.predict({"x": X})["y"]
    for x in (torch.tensor(X), X.tolist()):
        np.testing.assert_array_equal(linear.predict({"x": x})["y"], expected)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X.astype(np.int64), "value type not convertible.*rank 2 and dtype int64"),
        (X > 0, "value type not convertible.*bool"),
        (np.float32(1), "value type not convertible.*np.array"),
        (np.zeros((2, 5), np.float32), r"MultiArray shape \(2 x 5\) does not match the shape \(2 x 4\)"),
    ],
)
def test_what_the_bridge_refuses_is_a_runtime_error(linear: Any, x: Any, message: str):
    with pytest.raises(RuntimeError, match=message):
        linear.predict({"x": np.asarray(x)})


def test_coremltools_own_checks_stay(linear: Any):
    with pytest.raises(KeyError, match="does not match any of the model input"):
        linear.predict({"x": X, "z": X})
    with pytest.raises(TypeError, match="must be either a dict or list of dict"):
        linear.predict((X,))
    with pytest.raises(RuntimeError, match="Feature x is required but not specified"):
        linear.predict({})


def test_a_batch_is_its_single_predictions(linear: Any):
    batch = [{"x": X}, {"x": -X}]
    results = linear.predict(batch)
    assert len(results) == 2
    for x, result in zip((X, -X), results, strict=True):
        np.testing.assert_allclose(result["y"], _expected(x), atol=1e-2)
    with pytest.raises(RuntimeError, match="MultiArray shape"):
        linear.predict([{"x": X}, {"x": X[:1]}])


def test_a_compiled_model_predicts_and_stands_on_its_own(ct: Any, linear: Any, tmp_path: Path):
    copy = str(shutil.copytree(linear.get_compiled_model_path(), tmp_path / "copy.mlmodelc"))
    compiled = ct.models.CompiledMLModel(copy)
    np.testing.assert_array_equal(compiled.predict({"x": X})["y"], linear.predict({"x": X})["y"])
    # Unlike MLModel it neither checks names nor converts lists and scalars.
    assert list(compiled.predict({"x": X, "other": 1.5})) == ["y", "sum"]
    for x, message in (
        (X.tolist(), "Feature x is required"),
        (1.5, "only allows MultiArrays.*float"),
        (object(), "value type not convertible.*object"),
    ):
        with pytest.raises(RuntimeError, match=message):
            compiled.predict({"x": x})


def test_the_compiled_folder_goes_with_its_model(ct: Any, linear: Any):
    model = ct.models.MLModel(linear.package_path)
    path = Path(model.get_compiled_model_path())
    assert path.is_dir()
    assert model.get_compiled_model_path() == str(path)
    del model
    assert not path.exists()


def test_compile_model_writes_where_it_is_told(ct: Any, linear: Any, tmp_path: Path):
    target = str(tmp_path / "x.mlmodelc")
    assert ct.models.utils.compile_model(linear.package_path, target) == target
    np.testing.assert_array_equal(
        ct.models.CompiledMLModel(target).predict({"x": X})["y"], linear.predict({"x": X})["y"]
    )
    (tmp_path / "empty.mlmodelc").mkdir()
    for load in (ct.models.CompiledMLModel, ct.models.model.MLModelAsset.from_path):
        with pytest.raises(RuntimeError, match=r"open the \.mlpackage it was made from"):
            load(str(tmp_path / "empty.mlmodelc"))


@pytest.mark.parametrize("from_memory", [True, False])
def test_assets(ct: Any, linear: Any, from_memory: bool):
    Asset = ct.models.model.MLModelAsset  # noqa: N806
    if from_memory:
        weights = Path(linear.weights_dir, "weight.bin").read_bytes()
        asset = Asset.from_memory(linear.get_spec().SerializeToString(), {"weights/weight.bin": weights})
    else:
        asset = Asset.from_path(linear.get_compiled_model_path())
    model = ct.models.CompiledMLModel.from_asset(asset)
    np.testing.assert_array_equal(model.predict({"x": X})["y"], linear.predict({"x": X})["y"])


def test_an_asset_may_not_leave_its_folder(ct: Any, linear: Any):
    spec = linear.get_spec().SerializeToString()
    with pytest.raises(RuntimeError, match="not a plain relative path"):
        ct.models.model.MLModelAsset.from_memory(spec, {"../weight.bin": b""})


def test_states_keep_what_a_stream_wrote(stateful: Any):
    one, other = stateful.make_state(), stateful.make_state()
    x = np.array([1.0, 2.0], np.float32)
    results = [stateful.predict({"x": x}, state=s)["y"].tolist() for s in (one, one, other)]
    assert results == [[2, 4], [4, 8], [2, 4]]
    assert one.read_state("total").tolist() == [2, 4]
    assert one.read_state("total").dtype == np.float32
    one.write_state("total", np.array([0.1, 100.0]))
    assert one.read_state("total").tolist() == [float(np.float16(0.1)), 100]
    assert stateful.predict({"x": x}, state=one)["y"][1] == 204


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("total", np.zeros(3, np.float32), "shape .*3.*expected .*2"),
        ("total", np.zeros(2, np.float16), "value type not convertible.*float16"),
        ("total", [0.0, 0.0], "only multi-array value is supported"),
        ("total", 0.0, "only multi-array value is supported"),
        ("other", np.zeros(2, np.float32), "no state 'other'"),
    ],
)
def test_a_state_refuses_what_is_not_its(stateful: Any, name: str, value: Any, message: str):
    state = stateful.make_state()
    with pytest.raises(RuntimeError, match=message):
        state.write_state(name, value)
    assert state.read_state("total").tolist() == [0, 0]
    with pytest.raises(RuntimeError, match="no state 'other'"):
        state.read_state("other")


def test_a_stateful_model_needs_a_state_of_its_own(linear: Any, stateful: Any):
    x = np.zeros(2, np.float32)
    for state in (None, linear.make_state()):
        with pytest.raises(
            RuntimeError, match="The input feature for total must be an MLState, but it was not"
        ):
            stateful.predict({"x": x}, state=state)
    with pytest.raises(RuntimeError, match="must be an MLState"):
        stateful.predict([{"x": x}])


def _scaled(factor: float) -> Callable[..., Any]:
    from coremltools.converters.mil import Builder as mb

    return lambda x: mb.mul(x=x, y=np.float32(factor), name="out")


@pytest.fixture(scope="module")
def two_functions(ct: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    from coremltools.converters.mil import Builder as mb

    folder = tmp_path_factory.mktemp("functions")
    descriptor = ct.utils.MultiFunctionDescriptor()
    for name, factor in (("twice", 2), ("thrice", 3)):
        program = mb.program(input_specs=[mb.TensorSpec((3,))], opset_version=ct.target.iOS18)(
            _scaled(factor)
        )
        path = str(folder / f"{name}.mlpackage")
        ct.convert(program, minimum_deployment_target=ct.target.iOS18).save(path)
        descriptor.add_function(path, "main", name)
    descriptor.default_function_name = "thrice"
    ct.utils.save_multifunction(descriptor, str(folder / "both.mlpackage"))
    return str(folder / "both.mlpackage")


@pytest.mark.parametrize(("function", "factor"), [("twice", 2), ("thrice", 3), (None, 3)])
def test_functions_by_name(ct: Any, two_functions: str, function: str | None, factor: int):
    x = np.array([1, 2, 3], np.float32)
    model = ct.models.MLModel(two_functions, function_name=function)
    assert model.predict({"x": x})["out"].tolist() == (x * factor).tolist()
    compiled = ct.models.CompiledMLModel(model.get_compiled_model_path(), function_name=function)
    assert compiled.predict({"x": x})["out"].tolist() == (x * factor).tolist()


def test_an_unknown_function_is_a_runtime_error(ct: Any, two_functions: str):
    with pytest.raises(RuntimeError, match="no function 'other'; it has thrice, twice"):
        ct.models.CompiledMLModel(two_functions, function_name="other")


def test_a_neural_network_is_no_ml_program(ct: Any):
    from coremltools.converters.mil import Builder as mb

    program = mb.program(input_specs=[mb.TensorSpec((3,))])(lambda x: mb.relu(x=x))
    with pytest.warns(RuntimeWarning, match="You will not be able to run predict.*not an ML program"):
        model = ct.convert(program, convert_to="neuralnetwork")
    with pytest.raises(RuntimeError, match="a neuralNetwork model, not an ML program"):
        model.predict({"x": np.zeros(3, np.float32)})


@pytest.mark.parametrize(
    ("ask", "what"),
    [
        (lambda ct, m: m.load_duration_in_nano_seconds, "load durations"),
        (lambda ct, m: m.last_predict_duration_in_nano_seconds, "prediction durations"),
        (lambda ct, m: m.get_available_compute_devices(), "compute devices"),
        (lambda ct, m: ct.models.compute_device.MLComputeDevice.get_all_compute_devices(), "compute devices"),
        (lambda ct, m: ct.models.compute_plan.MLComputePlan.load_from_path("x"), "compute plans"),
        (lambda ct, m: ct.models.compute_plan.MLModelStructure.load_from_path("x"), "model structures"),
        (lambda ct, m: ct.libcoremlpython._MLComputePlanProxy(), "compute plans"),
        (lambda ct, m: ct.libcoremlpython._MLModelProxy.auto_set_specification_version(b""), "specification"),
    ],
)
def test_what_only_a_mac_knows_says_so(ct: Any, linear: Any, ask: Callable[..., Any], what: str):
    with pytest.raises(RuntimeError, match=f"{what}.* come from Apple's Core ML.*use a Mac"):
        ask(ct, linear)


def test_an_op_that_fails_is_named(ct: Any):
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    specs = [mb.TensorSpec((3,)), mb.TensorSpec((1,), types.int32)]
    program = mb.program(input_specs=specs)(lambda x, i: mb.gather(x=x, indices=i, axis=0, name="picked"))
    model = ct.convert(program, minimum_deployment_target=ct.target.iOS15)
    with pytest.raises(RuntimeError, match="Unable to compute the prediction using ML Program: op 'gather'"):
        model.predict({"x": np.zeros(3, np.float32), "i": np.array([7], np.int32)})
