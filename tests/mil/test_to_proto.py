"""Programs written as protobuf, held to what coremltools itself wrote."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import MODELS

from coreproof.mil.from_proto import read_program, read_type, read_value
from coreproof.mil.identity import difference, same_value
from coreproof.mil.program import Blob, Block, Function, Immediate, NamedType, Operation, Program, Ref, Value
from coreproof.mil.to_proto import round_trip, write_program, write_type, write_value
from coreproof.mil.types import DictType, DType, ListType, StateType, TensorType, TupleType, ValueType
from coreproof.package.proto import module
from coreproof.package.reader import open_package

MIL = module("MIL_pb2")
TEXT = TensorType(DType.STRING)


@pytest.mark.parametrize("name", MODELS)
def test_a_program_by_coremltools_is_written_as_it_was(name: str, built: Callable[[str], Path]) -> None:
    opened = open_package(built(name))
    assert write_program(opened.program) == opened.spec.mlProgram
    assert difference(opened.program, round_trip(opened.program)) is None


def test_the_builders_spread_over_the_format(built: Callable[[str], Path]) -> None:
    operations, kinds, dtypes = set(), set(), set()
    for name in MODELS:
        for function in open_package(built(name)).program.functions.values():
            for operation in function.block.walk():
                operations.add(operation.type)
                bound = [b for bs in operation.inputs.values() for b in bs]
                for value in (*operation.attributes.values(), *bound):
                    if not isinstance(value, Ref):
                        kinds.add((type(value), type(value.type)))
                        dtypes.update(_dtypes(value.type))
    assert len(MODELS) >= 36 and len(operations) >= 75
    assert {(Blob, TensorType), (Immediate, TensorType), (Immediate, ListType)} == kinds
    assert {d.value for d in DType} - {d.value for d in dtypes} == {
        "fp64", "bf16", "fp8e4m3fn", "fp8e5m2", "uint64",
    }  # fmt: skip


def _dtypes(type_: ValueType) -> set[DType]:
    return {type_.dtype} if isinstance(type_, TensorType) else _dtypes(type_.element)


def frozen(values: object, dtype: str) -> np.ndarray:
    array = np.array(values, dtype)
    array.setflags(write=False)
    return array


VALUES: dict[str, Value] = {
    "bits of nan": Immediate(TensorType(DType.FP32, (2,)), frozen([0x7FC00001, 0xFFC12345], "u4").view("f4")),
    "fp64": Immediate(TensorType(DType.FP64, (2,)), frozen([-0.0, 1e-320], "f8")),
    "uint64": Immediate(TensorType(DType.UINT64, (2,)), frozen([2**64 - 1, 5], "u8")),
    "int64": Immediate(TensorType(DType.INT64), frozen(-(2**63), "i8")),
    "uint32": Immediate(TensorType(DType.UINT32, (1, 1)), frozen([[2**32 - 1]], "u4")),
    "bf16": Immediate(TensorType(DType.BF16, (2,)), frozen([0x80, 0x3F, 0, 0xC0], "u1")),
    "fp8": Immediate(TensorType(DType.FP8E4M3FN, (3,)), frozen([1, 2, 255], "u1")),
    "uint3": Immediate(TensorType(DType.UINT3, (5,)), frozen([0b11010001, 0b01111101], "u1")),
    "empty": Immediate(TensorType(DType.INT32, (2, 0)), frozen(np.zeros((2, 0)), "i4")),
    "texts": Immediate(TensorType(DType.STRING, (2, 1)), ["", "naïve\n"]),
    "no texts": Immediate(TensorType(DType.STRING, (0,)), []),
    "list of lists": Immediate(ListType(ListType(TEXT, 1), None), (("a",), ("b",))),
    "empty list": Immediate(ListType(TEXT, 0), ()),
    "tuple": Immediate(
        TupleType((TEXT, TensorType(DType.BOOL), TupleType(()))), ("x", frozen(True, "bool"), ())
    ),
    "dictionary": Immediate(
        DictType(TEXT, ListType(TensorType(DType.INT32, (2,)), None)),
        (("k", (frozen([1, 2], "i4"), frozen([3, 4], "i4"))), ("l", ())),
    ),
    "open inside": Immediate(
        DictType(TEXT, TensorType(DType.INT32, (None,))), (("k", frozen([1, 2, 3], "i4")),)
    ),
    "weight": Blob(TensorType(DType.FP16, (2, 3)), "@model_path/weights/weight.bin", 2**63),
}


@pytest.mark.parametrize("value", VALUES.values(), ids=list(VALUES))
def test_values(value: Value) -> None:
    message = MIL.Value()
    write_value(value, message)
    parsed = MIL.Value.FromString(message.SerializeToString())
    assert same_value(read_value(parsed), value)


@pytest.mark.parametrize(
    "type_",
    [
        TensorType(DType.FP16, None),
        TensorType(DType.FP8E5M2, (None, 3, None)),
        StateType(TensorType(DType.FP16, (1, 2))),
        ListType(TensorType(DType.FP32, (None,)), None),
        TupleType(()),
        DictType(TupleType((TEXT,)), ListType(TEXT, 3)),
    ],
    ids=str,
)
def test_types(type_: ValueType) -> None:
    message = MIL.ValueType()
    write_type(type_, message)
    assert read_type(MIL.ValueType.FromString(message.SerializeToString())) == type_


def _program(**changes: object) -> Program:
    """Two functions with a nested block, several results, no result and attributes everywhere."""
    one = TensorType(DType.FP32, (1,))
    name = Immediate(TEXT, "n")
    weight = Blob(one, "@model_path/weights/weight.bin", 64)
    inner = Operation("relu", {"x": (Ref("q"),)}, (NamedType("r", one),), {"name": name})
    branch = Operation(
        "cond", {"pred": (Ref("p"),)}, (NamedType("y", one), NamedType("z", one)), {"name": name},
        (Block((NamedType("q", one),), ("r", "r"), (inner,)), Block((), ("x", "x"), ())),
    )  # fmt: skip
    write = Operation("write_state", {"data": (Ref("x"),), "input": (Ref("s"),)}, (), {"name": name})
    both = Operation("concat", {"values": (Ref("x"), weight, Ref("x"))}, (NamedType("c", one),))
    inputs = (NamedType("x", one), NamedType("s", StateType(one)))
    first = Function("a", inputs, "CoreML8", Block((), ("y", "c"), (branch, write, both)), {"k": name})
    program = Program(1, {"a": first, "b": replace(first, name="b")}, {"buildInfo": name})
    return replace(program, **changes)  # type: ignore[arg-type]


def test_a_whole_program() -> None:
    program = _program()
    message = MIL.Program.FromString(write_program(program).SerializeToString())
    assert difference(read_program(message), program) is None
    function = message.functions["b"]
    assert list(function.block_specializations) == ["CoreML8"] and list(function.attributes) == ["k"]


def _changed(change: Callable[[Function], Function]) -> Program:
    program = _program()
    return replace(program, functions={**program.functions, "b": change(program.functions["b"])})


def _operation(index: int, **changes: object) -> Program:
    def change(function: Function) -> Function:
        operations = list(function.block.operations)
        operations[index] = replace(operations[index], **changes)  # type: ignore[arg-type]
        return replace(function, block=replace(function.block, operations=tuple(operations)))

    return _changed(change)


ONE = TensorType(DType.FP32, (1,))


@pytest.mark.parametrize(
    ("other", "where"),
    [
        (_program(version=2), "version 1, 2"),
        (_program(attributes={}), r"attributes of the program: \['buildInfo'\], \[\]"),
        (_program(attributes={"buildInfo": Immediate(TEXT, "m")}), "attribute 'buildInfo' of the program"),
        (_program(functions={}), r"functions \['a', 'b'\], \[\]"),
        (_changed(lambda f: replace(f, opset="CoreML7")), "opset of function 'b'"),
        (_changed(lambda f: replace(f, attributes={})), "attributes of function 'b'"),
        (_changed(lambda f: replace(f, block=replace(f.block, outputs=("y",)))), "block of function 'b'"),
        (_changed(lambda f: replace(f, block=replace(f.block, operations=()))), "3, 0 operations in a block"),
        (_operation(0, type="if"), r"type, outputs or blocks of op 'n' \(cond\) of function 'b'"),
        (_operation(0, blocks=()), "type, outputs or blocks of op 'n'"),
        (_operation(0, outputs=(NamedType("y", ONE), NamedType("w", ONE))), "outputs or blocks of op 'n'"),
        (_operation(1, attributes={}), r"attributes of op 'n' \(write_state\)"),
        (_operation(2, inputs={"values": (Ref("x"), Ref("x"), Ref("x"))}), "inputs of op 'c'"),
        (_operation(2, inputs={"value": (Ref("x"),)}), "inputs of op 'c'"),
        (_operation(2, inputs={"values": (Ref("x"), Blob(ONE, "@model_path/w", 64), Ref("x"))}), "inputs of"),
    ],
)  # fmt: skip
def test_a_difference_is_named(other: Program, where: str) -> None:
    assert re.search(where, str(difference(_program(), other)))


@pytest.mark.parametrize(
    "other",
    [
        Immediate(TensorType(DType.FP32, (2,)), frozen([0.0, 1.0], "f4")),
        Immediate(TensorType(DType.FP32, (1, 2)), frozen([[-0.0, 1.0]], "f4")),
        Immediate(TensorType(DType.FP64, (2,)), frozen([-0.0, 1.0], "f8")),
        Immediate(TensorType(DType.FP32, (2,)), [-0.0, 1.0]),
        Blob(TensorType(DType.FP32, (2,)), "@model_path/w", 64),
        Ref("x"),
    ],
)
def test_values_that_are_not_the_same(other: Value) -> None:
    value = Immediate(TensorType(DType.FP32, (2,)), frozen([-0.0, 1.0], "f4"))
    assert same_value(value, Immediate(value.type, frozen([-0.0, 1.0], "f4")))
    assert not same_value(value, other)
