"""``coreproof.load``: contracts, states, modes, errors, and that nothing is shared by accident."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types
from support import Made

import coreproof
from coreproof.errors import (
    CoreproofError,
    ExecutionError,
    InputError,
    PackageError,
    UnsupportedOpError,
    UsageError,
)

WEIGHT = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
X = np.array([[0.5, -1.0, 2.0, 1 / 3]], np.float32)


def save(
    program: Any, path: Path, target: Any = ct.target.iOS18, precision: Any = ct.precision.FLOAT32
) -> Path:
    model = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=target,
        compute_precision=precision,
        skip_model_load=True,
    )
    model.save(str(path))
    return path


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Packages made by coremltools alone, by what they are for."""
    folder = tmp_path_factory.mktemp("model")

    @mb.program(input_specs=[mb.TensorSpec((1, 4))], opset_version=ct.target.iOS18)
    def linear(x):
        return mb.linear(x=x, weight=WEIGHT, name="y"), mb.identity(x=mb.const(val=WEIGHT), name="w")

    @mb.program(
        input_specs=[mb.TensorSpec((1, 4)), mb.TensorSpec((2,), dtype=types.int32)],
        opset_version=ct.target.iOS18,
    )
    def picking(x, indices):
        return mb.gather(x=x, indices=indices, axis=1, validate_indices=False, name="picked")

    state = mb.StateTensorSpec((1, 4), dtype=types.fp16)

    @mb.program(input_specs=[mb.TensorSpec((1, 4)), state], opset_version=ct.target.iOS18)
    def delay(x, memory):
        before = mb.read_state(input=memory)
        mb.coreml_update_state(state=memory, value=mb.cast(x=x, dtype="fp16"))
        return mb.cast(x=before, dtype="fp32", name="delayed")

    @mb.program(input_specs=[mb.TensorSpec((1, 4)), mb.TensorSpec((1, 4))], opset_version=ct.target.iOS17)
    def weightless(x, z):
        return mb.add(x=x, y=z, name="sum")

    @mb.program(input_specs=[mb.TensorSpec((1, 64))], opset_version=ct.target.iOS17)
    def summing(x):
        return mb.reduce_sum(x=x, axes=[1], keep_dims=True, name="total")

    half = ct.precision.FLOAT16
    return {
        "linear": save(linear, folder / "linear.mlpackage"),
        "picking": save(picking, folder / "picking.mlpackage"),
        "delay": save(delay, folder / "delay.mlpackage"),
        "weightless": save(weightless, folder / "weightless.mlpackage", ct.target.iOS17),
        "summing": save(summing, folder / "summing.mlpackage", ct.target.iOS17, half),
    }


# Predictions


def test_a_prediction_is_numpys(packages: Mapping[str, Path]) -> None:
    found = coreproof.load(packages["linear"]).predict({"x": X})
    assert found.keys() == {"y", "w"}
    np.testing.assert_allclose(found["y"], X @ WEIGHT.T, rtol=1e-6)
    np.testing.assert_array_equal(found["w"], WEIGHT, strict=True)
    assert found["y"].dtype == np.float32


def test_paths_may_be_text(packages: Mapping[str, Path]) -> None:
    model = coreproof.load(str(packages["linear"]))
    assert isinstance(model, coreproof.Model)
    assert [f.name for f in model.contract.inputs] == ["x"]


def test_predictions_repeat_bit_for_bit(shared_minilm: Made) -> None:
    rng = np.random.default_rng(0)
    inputs = {
        "input_ids": rng.integers(104, 1200, (1, 128)).astype(np.int32),
        "attention_mask": (np.arange(128) < 90).astype(np.int32)[None],
    }
    model = coreproof.load(shared_minilm.package("fp16"))
    first = model.predict(inputs)["embedding"]
    model.predict({**inputs, "input_ids": inputs["input_ids"][:, ::-1]})
    assert model.predict(inputs)["embedding"].tobytes() == first.tobytes()
    again = coreproof.load(shared_minilm.package("fp16"))
    assert again.predict(inputs)["embedding"].tobytes() == first.tobytes()


def test_writing_into_an_output_changes_nothing_else(packages: Mapping[str, Path]) -> None:
    model = coreproof.load(packages["linear"])
    first = model.predict({"x": X})
    kept = {name: array.copy() for name, array in first.items()}
    for array in first.values():
        array[:] = 99
    second = model.predict({"x": X})
    for name, array in kept.items():
        np.testing.assert_array_equal(second[name], array)


def test_inputs_are_not_written_into(packages: Mapping[str, Path]) -> None:
    x = X.copy()
    x.flags.writeable = False
    z = np.ones((1, 4), np.float32)
    found = coreproof.load(packages["weightless"]).predict({"x": x, "z": z})["sum"]
    found[:] = 99
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(z, np.ones((1, 4)))


@pytest.mark.parametrize(
    "view", [X[:, ::-1][:, ::-1], np.asfortranarray(X), np.repeat(X, 2, axis=1)[:, ::2], X.tolist()]
)
def test_any_memory_layout_will_do(view: Any, packages: Mapping[str, Path]) -> None:
    array = np.asarray(view, np.float32) if isinstance(view, list) else view
    found = coreproof.load(packages["linear"]).predict({"x": array})["y"]
    np.testing.assert_allclose(found, X @ WEIGHT.T, rtol=1e-6)


# The contract


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"missing input 'x'; linear.mlpackage takes x: float32 \[1, 4\]"),
        ({"x": X, "y": X}, "unknown input 'y'; linear.mlpackage takes x: float32"),
        ({"x": X.astype(np.float64)}, r"input 'x': dtype float64, expected float32; convert it with .astype"),
        ({"x": X.astype(np.int32)}, "input 'x': dtype int32, expected float32"),
        ({"x": X.astype(">f4")}, "input 'x': dtype >f4, expected float32"),
        ({"x": X.astype(object)}, "input 'x': dtype object, expected float32"),
        ({"x": X[0]}, r"input 'x': shape \[4\], expected \[1, 4\]"),
        ({"x": np.zeros((2, 4), np.float32)}, r"input 'x': shape \[2, 4\], expected \[1, 4\]"),
        ({"x": np.zeros((1, 0), np.float32)}, r"input 'x': shape \[1, 0\], expected \[1, 4\]"),
        ({"x": [[1.0, 2.0], [3.0]]}, "input 'x'"),
        ({"x": None}, "input 'x': dtype object, expected float32"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit(inputs: dict[str, Any], message: str, packages: Mapping[str, Path]) -> None:
    with pytest.raises(InputError, match=message):
        coreproof.load(packages["linear"]).predict(inputs)


def test_unknown_names_are_refused(packages: Mapping[str, Path], tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="no function 'decode'; it has main"):
        coreproof.load(packages["linear"], function_name="decode")
    with pytest.raises(UnsupportedOpError, match="numeric mode 'fp64' does not exist; choose one of typed"):
        coreproof.load(packages["linear"], mode="fp64")
    with pytest.raises(PackageError, match=r"nowhere.mlpackage: cannot be opened"):
        coreproof.load(tmp_path / "nowhere.mlpackage")


def test_the_functions_of_a_multifunction_package(tmp_path: Path) -> None:
    def scaled(factor: float) -> Path:
        @mb.program(input_specs=[mb.TensorSpec((1, 4))], opset_version=ct.target.iOS18)
        def program(x):
            return mb.mul(x=x, y=np.float32(factor), name="y")

        return save(program, tmp_path / f"{factor}.mlpackage")

    described = ct.utils.MultiFunctionDescriptor()
    for name, factor in (("double", 2.0), ("triple", 3.0)):
        described.add_function(str(scaled(factor)), src_function_name="main", target_function_name=name)
    described.default_function_name = "triple"
    path = tmp_path / "both.mlpackage"
    ct.utils.save_multifunction(described, str(path))
    results = {
        name: coreproof.load(path, function_name=name).predict({"x": X})["y"]
        for name in (None, "double", "triple")
    }
    np.testing.assert_array_equal(results["double"], X * np.float32(2))
    np.testing.assert_array_equal(results["triple"], X * np.float32(3))
    np.testing.assert_array_equal(results[None], results["triple"])
    with pytest.raises(PackageError, match="no function 'main'; it has double, triple"):
        coreproof.load(path, function_name="main")


def test_a_bare_spec_without_weights(packages: Mapping[str, Path], tmp_path: Path) -> None:
    spec = tmp_path / "alone.mlmodel"
    shutil.copyfile(packages["weightless"] / "Data/com.apple.CoreML/model.mlmodel", spec)
    found = coreproof.load(spec).predict({"x": X, "z": X})
    np.testing.assert_array_equal(found["sum"], X + X)


def test_a_bare_spec_with_weights_elsewhere_is_refused(packages: Mapping[str, Path], tmp_path: Path) -> None:
    spec = tmp_path / "alone.mlmodel"
    shutil.copyfile(packages["linear"] / "Data/com.apple.CoreML/model.mlmodel", spec)
    with pytest.raises(PackageError, match=r"weight\.bin"):
        coreproof.load(spec).predict({"x": X})


def test_an_output_of_another_shape_than_declared_is_an_error(
    packages: Mapping[str, Path], tmp_path: Path
) -> None:
    path = shutil.copytree(packages["weightless"], tmp_path / "lying.mlpackage")
    spec_file = path / "Data/com.apple.CoreML/model.mlmodel"
    spec = ct.utils.load_spec(str(path))
    spec.description.output[0].type.multiArrayType.shape[:] = [1, 5]
    spec_file.write_bytes(spec.SerializeToString())
    with pytest.raises(CoreproofError, match=r"'sum'.*\[1, 4\].*\[1, 5\]"):
        coreproof.load(path).predict({"x": X, "z": X})


# Errors while it runs


@pytest.mark.parametrize(("indices", "index"), [([0, 4], 4), ([-5, 0], -1)])
def test_an_index_out_of_range_names_the_op(
    indices: list[int], index: int, packages: Mapping[str, Path]
) -> None:
    """coremltools' program adds 4 to negative indices itself, so -5 reaches the op as -1."""
    model = coreproof.load(packages["picking"])
    with pytest.raises(ExecutionError) as caught:
        model.predict({"x": X, "indices": np.array(indices, np.int32)})
    assert "op 'gather' (name 'picked" in str(caught.value)
    assert f"index {index} is out of bounds for a dimension of size 4" in str(caught.value)


def test_after_an_error_the_model_still_works(packages: Mapping[str, Path]) -> None:
    model = coreproof.load(packages["picking"])
    with pytest.raises(ExecutionError):
        model.predict({"x": X, "indices": np.array([9, 9], np.int32)})
    found = model.predict({"x": X, "indices": np.array([3, 0], np.int32)})["picked"]
    np.testing.assert_array_equal(found, X[:, [3, 0]])


# Numeric modes


def test_modes_differ_as_documented(packages: Mapping[str, Path]) -> None:
    """1024 and 63 times 0.3: fp16 has steps of 1 there, so ``typed`` rounds the sum once and
    ``fp16acc`` rounds inside it; ``fp32`` does not even round the input."""
    x = np.full((1, 64), 0.3, np.float32)
    x[0, 0] = 1024
    exact = x.astype(np.float64).sum()
    inputs_rounded = x.astype(np.float16).astype(np.float64).sum()
    totals = {
        mode: coreproof.load(packages["summing"], mode).predict({"x": x})["total"].item()
        for mode in ("fp32", "typed", "fp16acc")
    }
    assert totals["fp32"] == pytest.approx(exact, rel=1e-6)
    assert totals["typed"] == np.float16(inputs_rounded)
    # The first 32 elements in order: 1024 + 0.3 is 1024 again, 31 times; then 32 times 0.3.
    lost = np.float16(1024)
    rest = np.float16(0)
    for _ in range(32):
        rest = np.float16(rest + np.float16(0.3))
    assert totals["fp16acc"] == np.float16(lost + rest)
    assert len(set(totals.values())) == 3


# States


def test_a_state_carries_from_one_prediction_to_the_next(packages: Mapping[str, Path]) -> None:
    model = coreproof.load(packages["delay"])
    state, other = model.make_state(), model.make_state()
    steps = [X, X + 1, X + 2]
    found = [model.predict({"x": x}, state)["delayed"] for x in steps]
    np.testing.assert_array_equal(found[0], np.zeros((1, 4)))
    for given, back in zip(steps, found[1:], strict=False):
        np.testing.assert_array_equal(back, given.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(other.read_state("memory"), np.zeros((1, 4), np.float16), strict=True)


def test_a_state_can_be_read_and_written(packages: Mapping[str, Path]) -> None:
    model = coreproof.load(packages["delay"])
    state = model.make_state()
    value = np.array([[1 / 3, 65519.0, 65520.0, 2.0**-26]])
    state.write_state("memory", value)
    expected = np.array([[1 / 3, 65504.0, np.inf, 0.0]]).astype(np.float16)
    np.testing.assert_array_equal(state.read_state("memory"), expected, strict=True)
    found = model.predict({"x": X}, state)["delayed"]
    np.testing.assert_array_equal(found, expected.astype(np.float32), strict=True)
    np.testing.assert_array_equal(state.read_state("memory"), X.astype(np.float16), strict=True)


@pytest.mark.parametrize("mode", ["typed", "fp32"])
def test_a_state_is_the_models_own(mode: str, packages: Mapping[str, Path]) -> None:
    """Later writes to what was passed in, or to what was read, do not reach it."""
    model = coreproof.load(packages["delay"], mode)
    state = model.make_state()
    x, written = X.copy(), np.ones((1, 4), np.float32)
    model.predict({"x": x}, state)
    x[:] = 7
    np.testing.assert_array_equal(state.read_state("memory"), X.astype(np.float16))
    state.write_state("memory", written)
    written[:] = 7
    state.read_state("memory")[:] = 7
    np.testing.assert_array_equal(state.read_state("memory"), np.ones((1, 4)))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda m, s: m.predict({"x": X}), r"delay.mlpackage is stateful: pass state=model.make_state\(\)"),
        (lambda m, s: s.read_state("past"), "no state 'past'; the model has memory"),
        (lambda m, s: s.write_state("past", X), "no state 'past'; the model has memory"),
        (lambda m, s: s.write_state("memory", X[0]), r"state 'memory': shape \[4\], expected \[1, 4\]"),
        (lambda m, s: s.write_state("memory", X + 1j), "state 'memory': dtype complex64, expected float16"),
        (lambda m, s: s.write_state("memory", np.array([list("abcd")])), "state 'memory': dtype <U1"),
    ],
)
def test_states_that_do_not_fit(
    act: Callable[[Any, Any], object], message: str, packages: Mapping[str, Path]
) -> None:
    model = coreproof.load(packages["delay"])
    with pytest.raises(InputError, match=message):
        act(model, model.make_state())


def test_a_state_of_another_model_is_refused(packages: Mapping[str, Path], shared_filter: Made) -> None:
    foreign = coreproof.load(shared_filter.package("fp16")).make_state()
    with pytest.raises(InputError, match="no state 'memory'; the model has history"):
        coreproof.load(packages["delay"]).predict({"x": X}, foreign)


def test_a_model_without_states_has_none(packages: Mapping[str, Path]) -> None:
    state = coreproof.load(packages["linear"]).make_state()
    with pytest.raises(InputError, match="no state 'memory'; the model has none"):
        state.read_state("memory")


def test_importing_coreproof_imports_no_torch() -> None:
    code = "import sys, coreproof; assert not {'torch', 'coremltools', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_torch_compile_is_refused_where_it_would_drop_roundings(packages: dict[str, Path]) -> None:
    with pytest.raises(UnsupportedOpError, match="drops the roundings of mode 'typed'"):
        coreproof.load(packages["linear"], compile=True)


def test_a_program_goes_through_torch_compile(packages: dict[str, Path]) -> None:
    model = coreproof.load(packages["weightless"], mode="fp32", compile=True)
    if shutil.which("g++") or shutil.which("clang++"):
        assert model.predict({"x": X, "z": X})["sum"].tolist() == (X + X).tolist()
    else:
        with pytest.raises(UsageError, match=r"needs a C\+\+ compiler"):
            model.predict({"x": X, "z": X})


def test_torch_compile_without_a_compiler_says_what_to_install(
    packages: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def nothing(*_: object) -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", nothing)
    model = coreproof.load(packages["linear"], mode="fp32", compile=True)
    with pytest.raises(UsageError, match=r"needs a C\+\+ compiler"):
        model.predict({"x": X})


def test_a_device_that_is_not_here_is_refused(packages: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="device 'abacus' is not to be had here"):
        coreproof.load(packages["linear"], device="abacus")
