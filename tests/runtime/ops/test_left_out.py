"""The list of what is left out: nothing else is missing, and what it says is refused is refused."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry
from coremltools.proto import Model_pb2
from half import halves
from modes import row, run
from oracle import inferred_shape, normal, ours
from pages import DOCS, what_is_left_out

import coreproof
from coreproof.errors import CoreproofError, InputError, UnsupportedOpError
from coreproof.runtime import left_out
from coreproof.runtime.control import CONTROL
from coreproof.runtime.registry import lookup, registry


def _source(module: str) -> str:
    """coremltools' own source of a module that may need TensorFlow to be imported."""
    spec = importlib.util.find_spec("coremltools")
    assert spec is not None and spec.origin is not None
    return (Path(spec.origin).parent / f"{module}.py").read_text(encoding="utf-8")


def _tensorflow_ops() -> set[str]:
    tree = ast.parse(_source("converters/mil/frontend/tensorflow/dialect_ops"))
    return {n.name for n in tree.body if isinstance(n, ast.ClassDef) and n.name.startswith("tf_")}


def test_no_op_is_missing_without_a_reason() -> None:
    theirs = {
        *SSAOpRegistry.core_ops,
        *SSAOpRegistry.dialect_ops,
        *SSAOpRegistry.custom_ops,
        *_tensorflow_ops(),
    }
    run_here = {*registry(), *CONTROL, "const"}
    assert theirs - run_here == set(left_out.OPS) - {"custom_layer"}
    assert not run_here & set(left_out.OPS)
    assert 'op_type = "custom_layer"' in _source("converters/mil/backend/mil/load")


@pytest.mark.parametrize("name", left_out.OPS)
def test_a_refused_op_says_why(name: str) -> None:
    with pytest.raises(UnsupportedOpError) as caught:
        lookup(name, "ios17")
    assert str(caught.value) == f"op {name!r} (ios17) is not run: {left_out.OPS[name]}"


IMAGE = normal(1, 1, 4, 4)
AFFINE: dict[str, Any] = {
    "x": IMAGE, "transform_matrix": np.float32([[1, 0, 0, 0, 1, 0]]), "output_height": 4, "output_width": 4,
    "sampling_mode": "bilinear", "padding_mode": "constant", "padding_value": 0.0,
    "coordinates_mode": "normalized_minus_one_to_one", "align_corners": True,
}  # fmt: skip
QUANTIZED: dict[str, Any] = {
    "x": IMAGE, "weight": np.zeros((1, 1, 1, 1), np.uint8), "quantization_type": "lut",
    "quant_scale": np.float32(1), "quant_bias": np.float32(0),
}  # fmt: skip
REFUSED: dict[str, list[Callable[[], Any]]] = {
    "affine": [
        lambda: ours("affine", **AFFINE | {"align_corners": False}),
        lambda: ours("affine", **AFFINE | {"coordinates_mode": "unnormalized"}),
    ],
    "constexpr_cast": [lambda: ours("constexpr_cast", "ios16", source_val=IMAGE, output_dtype="int8")],
    "conv_quantized": [lambda: ours("conv_quantized", **QUANTIZED)],
    "einsum": [lambda: ours("einsum", values=(normal(2, 2), normal(2, 2)), equation="ij,jk->ik")],
    "an index outside": [
        lambda: ours("gather", "ios17", x=IMAGE, indices=np.array([1], np.int32), validate_indices=False)
    ],
}


@pytest.mark.parametrize("what", left_out.ARGUMENTS)
def test_refused_arguments(what: str) -> None:
    (calls,) = (calls for start, calls in REFUSED.items() if what.startswith(start))
    for call in calls:
        with pytest.raises((UnsupportedOpError, InputError)):
            call()


@pytest.fixture(scope="module")
def program() -> bytes:
    """The spec of a one-op ML program."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

    @mb.program(input_specs=[mb.TensorSpec((1, 3))], opset_version=ct.target.iOS17)
    def program(x: Any) -> Any:
        return mb.relu(x=x, name="out")

    made = ct.convert(program, minimum_deployment_target=ct.target.iOS17, skip_model_load=True)
    return made.get_spec().SerializeToString()


def _takes(kind: str) -> Callable[[Any], None]:
    def change(spec: Any) -> None:
        getattr(spec.description.input[0].type, kind).SetInParent()

    return change


def _is(kind: str) -> Callable[[Any], None]:
    return lambda spec: getattr(spec, kind).SetInParent()


OTHER_MODELS = [
    field.name
    for field in Model_pb2.Model.DESCRIPTOR.oneofs_by_name["Type"].fields
    if field.name != "mlProgram"
]
OTHER_INPUTS = ["stringType", "int64Type", "doubleType", "dictionaryType", "sequenceType"]


@pytest.mark.parametrize(
    "change",
    [*map(_is, OTHER_MODELS), *map(_takes, OTHER_INPUTS)],
    ids=[*OTHER_MODELS, *OTHER_INPUTS],
)
def test_refused_packages(change: Callable[[Any], None], program: bytes, tmp_path: Path) -> None:
    spec, path = Model_pb2.Model.FromString(program), tmp_path / "m.mlmodel"
    path.write_bytes(program)
    coreproof.load(path)
    change(spec)
    path.write_bytes(spec.SerializeToString())
    with pytest.raises(CoreproofError, match=r"not an ML program|feature 'x' of kind \w+ is not supported"):
        coreproof.load(path)


def test_a_program_of_ios_26_gets_the_ops_of_ios_18_and_int8_features(tmp_path: Path) -> None:
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    assert (
        max(v.value for versions in SSAOpRegistry.core_ops.values() for v in versions)
        == ct.target.iOS18.value
    )

    @mb.program(input_specs=[mb.TensorSpec((2, 2), types.int8)], opset_version=ct.target.iOS26)
    def program(x: Any) -> Any:
        doubled = mb.mul(x=mb.cast(x=x, dtype="fp32"), y=-0.5)
        return mb.cast(x=doubled, dtype="int8", name="out")

    path = tmp_path / "m.mlpackage"
    ct.convert(program, minimum_deployment_target=ct.target.iOS26, skip_model_load=True).save(str(path))
    found = coreproof.load(path).predict({"x": np.array([[4, -128], [127, 0]], np.int8)})["out"]
    np.testing.assert_array_equal(found, np.array([[-2, 64], [-63, 0]], np.int8), strict=True)


LOPSIDED = {"kernel_sizes": [2], "pad_type": "custom", "pad": [1, 0], "strides": [2], "ceil_mode": True}
DEEP = {"kernel_sizes": [2] * 3, "pad_type": "valid", "strides": [2] * 3}


@pytest.mark.parametrize(
    ("op", "shape", "arguments", "message"),
    [
        ("l2_pool", (1, 1, 4, 4, 4), DEEP, "l2_pool only supports rank 1 or 2"),
        ("max_pool", (1, 1, 4, 4, 4), DEEP | {"ceil_mode": True}, "only supported for 1D or 2D"),
        ("max_pool", (1, 1, 6), LOPSIDED, "symmetric"),
    ],
)
def test_what_core_ml_refuses_runs(op: str, shape: tuple[int, ...], arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inferred_shape(op, "ios17", shape, **arguments)
    assert np.isfinite(ours(op, x=halves(*shape), **arguments)).all()


def test_rank_above_5_runs() -> None:
    x = halves(1, 2, 1, 2, 1, 2, 3)
    turned = row("transpose", "moves", lambda x: x, x=x, perm=[6, 5, 4, 3, 2, 1, 0])
    np.testing.assert_array_equal(run(turned, "ios15", "typed")[0], x.T)


def test_the_page_is_up_to_date() -> None:
    written = (DOCS / "left-out.md").read_text(encoding="utf-8")
    assert written == what_is_left_out(), "run python tests/runtime/ops/pages.py"
