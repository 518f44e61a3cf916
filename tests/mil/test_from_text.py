"""MIL text: a published compiled model and its package, and programs printed as the compiler does."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import MODELS
from pair import PUBLISHED, mil_text
from texts import constant, main, wrap

from coreproof.mil.from_proto import read_program
from coreproof.mil.from_text import parse_program, read_text
from coreproof.mil.identity import difference
from coreproof.mil.program import Blob, Immediate, NamedType, Operation, Program, Ref
from coreproof.mil.to_proto import round_trip
from coreproof.mil.types import DictType, DType, ListType, StateType, TensorType, TupleType
from coreproof.package.proto import read_spec
from coreproof.package.reader import open_package

TEXT = TensorType(DType.STRING)


def as_compiled(program: Program) -> Program:
    """What the compiler changes: inputs and build information come sorted."""
    info = program.attributes["buildInfo"]
    assert isinstance(info, Immediate)
    functions = {
        name: replace(f, inputs=tuple(sorted(f.inputs, key=lambda i: i.name)))
        for name, f in program.functions.items()
    }
    return Program(1, functions, {"buildInfo": Immediate(info.type, tuple(sorted(info.data)))})


def without_build(program: Program) -> Program:
    return replace(program, attributes={})


def test_a_published_model_is_the_same_program_in_both_forms() -> None:
    compiled = read_text(PUBLISHED / "model.mil")
    package = as_compiled(read_program(read_spec(PUBLISHED / "model.mlmodel").mlProgram))
    assert difference(without_build(compiled), without_build(package)) is None
    ours, theirs = (dict(p.attributes["buildInfo"].data) for p in (compiled, package))
    assert ours.items() > theirs.items()
    assert ours.keys() - theirs.keys() == {"coremlc-component-MIL", "coremlc-version"}
    assert len(list(compiled.functions["main"].block.walk())) == 137
    assert difference(compiled, round_trip(compiled)) is None


def test_the_printer_of_these_tests_prints_as_apples_compiler_does() -> None:
    program = read_spec(PUBLISHED / "model.mlmodel").mlProgram
    pairs = program.attributes["buildInfo"].immediateValue.dictionary.values
    for key, version in (("coremlc-component-MIL", "3500.14.1"), ("coremlc-version", "3500.32.1")):
        pair = pairs.add()
        pair.CopyFrom(pairs[0])
        pair.key.immediateValue.tensor.strings.values[0] = key
        pair.value.immediateValue.tensor.strings.values[0] = version
    assert mil_text(program, "1.0") == (PUBLISHED / "model.mil").read_text(encoding="utf-8")


@pytest.mark.parametrize("version", ["1.0", "1.3"])
@pytest.mark.parametrize("name", MODELS)
def test_text_and_protobuf_of_a_program_read_the_same(
    name: str, version: str, built: Callable[[str], Path]
) -> None:
    opened = open_package(built(name))
    found = parse_program(mil_text(opened.spec.mlProgram, version).encode())
    assert difference(found, as_compiled(opened.program)) is None


def test_an_operation() -> None:
    function = main(
        wrap(
            'tensor<fp16, [1, ?]> a, list<string, ?> b = op(z = x, v = (x, fp16(0x1p+0)))[name = string("n")];'
        )
    )
    assert (function.name, function.opset) == ("main", "CoreML8")
    assert function.inputs == (NamedType("x", TensorType(DType.FP32, (1, 4))),)
    assert function.block.outputs == ("y",)
    (operation,) = function.block.operations
    assert operation.type == "op" and operation.name == "n" and not operation.blocks
    assert operation.outputs == (
        NamedType("a", TensorType(DType.FP16, (1, None))),
        NamedType("b", ListType(TEXT, None)),
    )
    assert list(operation.inputs) == ["v", "z"] and operation.inputs["z"] == (Ref("x"),)
    first, second = operation.inputs["v"]
    assert first == Ref("x") and isinstance(second, Immediate) and second.data == 1


def test_an_operation_without_results() -> None:
    function = main(
        wrap("write_state(data = x, input = s);", "(tensor<fp16, [2]> x, state<tensor<fp16, [2]>> s)")
    )
    assert function.inputs[1] == NamedType("s", StateType(TensorType(DType.FP16, (2,))))
    assert function.block.operations == (
        Operation("write_state", {"data": (Ref("x"),), "input": (Ref("s"),)}, ()),
    )


def test_blocks() -> None:
    text = """
        fp32 y = while_loop(loop_vars = x) cond(fp32 a) { bool b = less(x = a, y = a); } -> (b)
                 (fp32 c) { fp32 d = cond(pred = x) () {} -> (c) else() {} -> (x); } -> (d);"""
    (loop,) = main(wrap(text)).block.operations
    first, second = loop.blocks
    assert first.inputs == (NamedType("a", TensorType(DType.FP32)),) and first.outputs == ("b",)
    assert [o.type for o in first.operations] == ["less"]
    assert [b.outputs for b in second.operations[0].blocks] == [("c",), ("x",)]


def test_functions_and_their_attributes() -> None:
    text = b"""program(1.3)
    {
      func second<ios17>(tensor<fp32, [?]> x) [FlexibleShapeInformation =
        tuple<tuple<string, dict<string, tensor<int32, [?]>>>,
              tuple<string, dict<string, list<tensor<int32, [2]>, ?>>>>(
          (("DefaultShapes", {{"x", [4]}}), ("RangeDims", {{"x", [[0, 4], [1, 2]]}})))]
      { fp32 y = relu(x = x); } -> (y);
      func first<ios99>() {} -> ();
    }"""
    program = parse_program(text)
    assert list(program.functions) == ["first", "second"] and program.attributes == {}
    assert program.functions["first"].opset == "ios99"
    shapes = program.functions["second"].attributes["FlexibleShapeInformation"]
    assert isinstance(shapes, Immediate)
    default, ranges = shapes.data
    assert default[0] == "DefaultShapes" and default[1][0][0] == "x" and default[1][0][1].tolist() == [4]
    assert [r.tolist() for r in ranges[1][0][1]] == [[0, 4], [1, 2]]
    assert shapes.type == TupleType(
        (
            TupleType((TEXT, DictType(TEXT, TensorType(DType.INT32, (None,))))),
            TupleType((TEXT, DictType(TEXT, ListType(TensorType(DType.INT32, (2,)), None)))),
        )
    )
    assert difference(program, round_trip(program)) is None


@pytest.mark.parametrize(
    ("text", "dtype", "expected"),
    [
        ("fp16(0x1.388p+13)", "float16", np.float16(10000)),
        ("fp16(0x1p-24)", "float16", np.float16(5.9604645e-08)),
        ("fp16(-0x0p+0)", "float16", np.float16(-0.0)),
        ("fp16(-inf)", "float16", np.float16("-inf")),
        ("fp16(0.1)", "float16", np.float16(0.1)),
        ("fp32(0x1.921fb6p+1)", "float32", np.float32(np.pi)),
        ("fp32(1e-5)", "float32", np.float32(1e-5)),
        ("fp32(+3)", "float32", np.float32(3)),
        ("fp64(0x1.921fb54442d18p+1)", "float64", np.float64(np.pi)),
        ("fp64(0X1P-1074)", "float64", np.float64(5e-324)),
        ("int32(-2147483648)", "int32", np.int32(-(2**31))),
        ("uint64(18446744073709551615)", "uint64", np.uint64(2**64 - 1)),
        ("int64(-9223372036854775808)", "int64", np.int64(-(2**63))),
        ("bool(true)", "bool", np.True_),
        ("tensor<int8, []>(-1)", "int8", np.int8(-1)),
        ("tensor<uint8, [2, 2]>([[1, 2], [3, 255]])", "uint8", np.uint8([[1, 2], [3, 255]])),
        ("tensor<fp32, [1, 2, 1]>([[[0x1p+0], [inf]]])", "float32", np.float32([[[1], [np.inf]]])),
        ("tensor<bool, [3]>([true, false, true])", "bool", np.array([True, False, True])),
        ("tensor<int32, [0]>([])", "int32", np.zeros(0, np.int32)),
        ("tensor<fp16, [2, 0, 3]>([[], []])", "float16", np.zeros((2, 0, 3), np.float16)),
    ],
)
def test_numbers(text: str, dtype: str, expected: np.ndarray) -> None:
    data = constant(text).data
    assert data.dtype == dtype and data.shape == expected.shape and not data.flags.writeable
    assert data.tobytes() == expected.tobytes()


@pytest.mark.parametrize("text", ["fp32(nan)", "fp16(-nan)"])
def test_nan(text: str) -> None:
    assert np.isnan(constant(text).data)


def test_a_weight() -> None:
    place = '(BLOBFILE(path = string("@model_path/weights/weight.bin"), offset = uint64(64)))'
    weight = Blob(TensorType(DType.FP16, (2, 3)), "@model_path/weights/weight.bin", 64)
    assert constant(f"tensor<fp16, [2, 3]>{place}") == weight
    assert constant(f"tensor<fp16, [2, 3]>{place}".replace("uint64", "tensor<uint64, []>")) == weight


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r'"plain"', "plain"),
        (r'"say \"hi\" \\ \'x\'"', "say \"hi\" \\ 'x'"),
        (r'"a\nb\tc\r"', "a\nb\tc\r"),
        ('"naïve ✓"', "naïve ✓"),
        ('"} -> (x); ] //"', "} -> (x); ] //"),
        ('""', ""),
    ],
)
def test_strings(text: str, expected: str) -> None:
    assert constant(f"string({text})").data == expected
    assert constant(f"tensor<string, [2, 1]>([[{text}], [{text}]])").data == [expected, expected]
    assert constant(f"list<string, 1>([{text}])").data == (expected,)


def test_space_means_nothing() -> None:
    text = (PUBLISHED / "model.mil").read_bytes()
    dense = re.sub(rb"\s*([\[\](){}<>=,;])\s*", rb"\1", text)
    wide = re.sub(rb"(->|[\[\](){}<>=,;])", rb" \r\n\t\1\n", text)
    assert len(dense) < len(text) < len(wide)
    expected = parse_program(text)
    assert difference(parse_program(dense), expected) is None
    assert difference(parse_program(wide), expected) is None
