"""Programs from protobuf, with values as coremltools' own writer stores them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coreproof.errors import PackageError
from coreproof.mil import from_proto
from coreproof.mil.from_proto import read_program, read_type, read_value
from coreproof.mil.program import Blob, Immediate, NamedType, Ref
from coreproof.mil.types import DictType, DType, ListType, StateType, TensorType, TupleType
from coreproof.package.proto import module, read_spec

MIL = module("MIL_pb2")


def test_every_data_type_of_the_format_is_known():
    renamed = {"FLOAT": "fp", "BFLOAT": "bf"}
    for name, number in MIL.DataType.items():
        if name == "UNUSED_TYPE":
            continue
        stem = name.rstrip("0123456789") if "8E" not in name else "FLOAT"
        expected = renamed.get(stem, stem.lower()) + name.removeprefix(stem).lower()
        message = MIL.ValueType()
        message.tensorType.dataType = number
        assert read_type(message) == TensorType(DType(expected), ())


_SHAPES = [(), (1,), (5,), (2, 3), (0,), (2, 0, 3)]
_NUMBERS = [
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "float16",
    "float32",
    "float64",
]


@pytest.mark.parametrize("shape", _SHAPES, ids=str)
@pytest.mark.parametrize("name", _NUMBERS)
def test_tensors_as_coremltools_stores_them(name: str, shape: tuple[int, ...]):
    from coremltools.converters.mil.backend.mil.helper import create_tensor_value

    dtype = np.dtype(name)
    rng = np.random.default_rng(len(shape))
    if dtype.kind == "f":
        array = rng.standard_normal(shape).astype(dtype)
    else:
        info = np.iinfo(dtype) if dtype.kind != "b" else np.iinfo("uint8")
        array = rng.integers(info.min, info.max, shape, dtype=info.dtype, endpoint=True).astype(dtype)
    value = read_value(create_tensor_value(np.asarray(array)))
    assert value.data.dtype == dtype and value.data.shape == shape == value.type.shape
    np.testing.assert_array_equal(value.data, array)
    assert not value.data.flags.writeable


@pytest.mark.parametrize("name", ["float16", "float32", "float64"])
def test_special_floats(name: str):
    from coremltools.converters.mil.backend.mil.helper import create_tensor_value

    array = np.array([np.nan, np.inf, -np.inf, -0.0, np.finfo(name).tiny, np.finfo(name).max], name)
    found = read_value(create_tensor_value(array)).data
    assert found.tobytes() == array.tobytes()


@pytest.mark.parametrize("name", ["int4", "uint1", "uint2", "uint3", "uint4", "uint6"])
def test_packed_types_come_as_bytes(name: str):
    from coremltools.converters.mil.backend.mil.helper import create_tensor_value
    from coremltools.converters.mil.mil import types

    bits = DType(name).bits
    low = -(1 << bits - 1) if name == "int4" else 0
    array = (np.arange(13) % (1 << bits) + low).astype(getattr(types, f"np_{name}_dtype"))
    value = read_value(create_tensor_value(array))
    unpacked = np.unpackbits(array.view(np.uint8)[:, None], axis=1, count=bits, bitorder="little")
    assert value.type == TensorType(DType(name), (13,))
    np.testing.assert_array_equal(value.data, np.packbits(unpacked.reshape(-1), bitorder="little"))


def test_strings_lists_and_dictionaries(sample_package: Path):
    from coremltools.converters.mil.backend.mil.helper import create_list_scalarvalue, create_scalar_value

    text = read_value(create_scalar_value("naïve"))
    assert text.type == TensorType(DType.STRING, ()) and text.data == "naïve"
    words = read_value(create_list_scalarvalue(["a", "b"], str))
    assert words.type == ListType(TensorType(DType.STRING), 2) and words.data == ("a", "b")
    numbers = read_value(create_list_scalarvalue([np.int64(-1), np.int64(2**40)], np.int64))
    assert [n.item() for n in numbers.data] == [-1, 2**40]
    program = read_program(_program(sample_package))
    info = program.attributes["buildInfo"]
    assert info.type == DictType(TensorType(DType.STRING), TensorType(DType.STRING))
    assert info.data == (("coremltools-version", "9.0"), ("coremltools-component-milinternal", ""))


def test_string_tensor_and_tuple():
    message = MIL.Value()
    one = message.type.tupleType.types.add()
    two = message.type.tupleType.types.add()
    _set_type(one, MIL.STRING, 2)
    _set_type(two, MIL.INT32)
    first, second = message.immediateValue.tuple.values.add(), message.immediateValue.tuple.values.add()
    first.type.CopyFrom(one)
    first.immediateValue.tensor.strings.values.extend(["x", "y"])
    second.type.CopyFrom(two)
    second.immediateValue.tensor.ints.values.append(-3)
    value = read_value(message)
    assert value.type == TupleType((TensorType(DType.STRING, (2,)), TensorType(DType.INT32)))
    assert value.data[0] == ["x", "y"] and value.data[1].item() == -3


@pytest.mark.parametrize(
    ("number", "field", "stored", "expected"),
    [
        (MIL.INT16, "bytes", b"\xff\xff\x02\x00", np.array([-1, 2], np.int16)),
        (MIL.UINT16, "ints", [65535, 0], np.array([65535, 0], np.uint16)),
        (MIL.INT8, "ints", [-128, 127], np.array([-128, 127], np.int8)),
        (MIL.UINT64, "longInts", [-1, 5], np.array([2**64 - 1, 5], np.uint64)),
        (MIL.UINT32, "longInts", [2**32 - 1, 5], np.array([2**32 - 1, 5], np.uint32)),
        (MIL.BFLOAT16, "bytes", b"\x80\x3f\x00\xc0", np.array([0x80, 0x3F, 0x00, 0xC0], np.uint8)),
        (MIL.FLOAT8E5M2, "bytes", b"\x01\x02", np.array([1, 2], np.uint8)),
    ],
)
def test_other_ways_to_store(number: int, field: str, stored: Any, expected: np.ndarray):
    data = read_value(_tensor(number, field, stored, 2)).data
    assert data.dtype == expected.dtype
    np.testing.assert_array_equal(data, expected)


def test_types():
    message = MIL.ValueType()
    _set_type(message.stateType.wrappedType, MIL.FLOAT16, 3, 4)
    assert read_type(message) == StateType(TensorType(DType.FP16, (3, 4)))
    _set_type(message, MIL.FLOAT32, 3, 4)
    message.tensorType.dimensions[1].unknown.variadic = False
    assert read_type(message) == TensorType(DType.FP32, (3, None))
    message.tensorType.dimensions[1].unknown.variadic = True
    assert read_type(message) == TensorType(DType.FP32, None)
    _set_type(message, MIL.FLOAT32)
    message.tensorType.rank = -1
    assert read_type(message) == TensorType(DType.FP32, None)
    _set_type(message.listType.type, MIL.STRING)
    message.listType.length.unknown.variadic = False
    assert read_type(message) == ListType(TensorType(DType.STRING), None)


def test_whole_program(sample_package: Path):
    message = _program(sample_package)
    function = read_program(message).functions["main"]
    block = message.functions["main"].block_specializations["CoreML8"]
    assert function.opset == "CoreML8" and function.name == "main"
    assert function.inputs == (NamedType("x", TensorType(DType.FP32, (1, 6))),)
    assert [o.type for o in function.block.operations] == [o.type for o in block.operations]
    assert function.block.outputs == ("out",) == tuple(block.outputs)
    by_name = {o.name: o for o in function.block.walk()}
    linear = by_name["third"]
    assert list(linear.inputs) == ["bias", "weight", "x"] and linear.inputs["x"] == (Ref("x"),)
    assert linear.outputs == (NamedType("third", TensorType(DType.FP32, (1, 4))),)
    weight = by_name["third_weight_0"].attributes["val"]
    assert isinstance(weight, Blob) and weight.file == "@model_path/weights/weight.bin"
    bias = by_name["third_bias_0"].attributes["val"]
    assert isinstance(bias, Immediate) and bias.data.tolist() == [1, 1, 1, 1]
    condition = by_name["out"]
    assert condition.type == "cond" and [b.outputs for b in condition.blocks] == [
        tuple(b.outputs) for o in block.operations if o.type == "cond" for b in o.blocks
    ]
    walked = [o.type for o in function.block.walk()]
    assert walked.index("cond") < walked.index("mul") and "mul" not in [o.type for o in block.operations]


def test_the_specialization_of_the_opset(sample_package: Path):
    message = _program(sample_package)
    function = message.functions["main"]
    function.block_specializations["CoreML5"].outputs.append("older")
    function.opset = "CoreML5"
    assert read_program(message).functions["main"].block.outputs == ("older",)


def _program(package: Path) -> Any:
    return read_spec(package / "Data/com.apple.CoreML/model.mlmodel").mlProgram


def _set_type(message: Any, number: int, *shape: int) -> None:
    message.Clear()
    message.tensorType.dataType, message.tensorType.rank = number, len(shape)
    for size in shape:
        message.tensorType.dimensions.add().constant.size = size


def _tensor(number: int, field: str, stored: Any, *shape: int) -> Any:
    message = MIL.Value()
    _set_type(message.type, number, *shape)
    values = getattr(message.immediateValue.tensor, field)
    if field == "bytes":
        values.values = stored
    else:
        values.values.extend(stored)
    return message


def _list(declared: int, element: int) -> Any:
    message = MIL.Value()
    _set_type(message.type.listType.type, declared)
    message.type.listType.length.constant.size = 1
    message.immediateValue.list.values.add().CopyFrom(_tensor(element, "ints", [1]))
    return message


def _blob(number: int, *shape: int) -> Any:
    message = MIL.Value()
    _set_type(message.type, number, *shape)
    message.blobFileValue.fileName = "@model_path/w"
    return message


def _with(message: Any, change: Callable[[Any], None]) -> Any:
    change(message)
    return message


def _open_dimension(message: Any) -> None:
    message.type.tensorType.dimensions[0].unknown.variadic = False


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (_tensor(MIL.INT32, "ints", [1, 2], 3), r"2 values for a int32\[3\], expected 3"),
        (_tensor(MIL.INT32, "ints", []), r"0 values for a int32\[\], expected 1"),
        (_tensor(MIL.FLOAT16, "bytes", b"abc", 2), r"3 bytes for a fp16\[2\], expected 4"),
        (_tensor(MIL.UINT4, "bytes", b"ab", 5), r"2 bytes for a uint4\[5\], expected 3"),
        (_tensor(MIL.FLOAT16, "floats", [1.0], 1), "stored as floats, expected bytes"),
        (_tensor(MIL.INT32, "strings", ["1"], 1), "stored as strings, expected ints or bytes"),
        (_tensor(MIL.STRING, "strings", ["a"], 2), "1 values for a string"),
        (_tensor(MIL.INT16, "ints", [32768], 1), "a value that a int16 cannot hold"),
        (_tensor(MIL.UINT16, "ints", [-1], 1), "a value that a uint16 cannot hold"),
        (_tensor(99, "ints", [1], 1), "unknown data type 99"),
        (_tensor(0, "ints", [1], 1), "unknown data type 0"),
        (_tensor(MIL.INT32, "ints", [], 2**40, 2), "more than 2147483648 elements"),
        (_tensor(MIL.INT32, "ints", [], 0, 2**63, 2**63), "more than 2147483648 elements"),
        (_tensor(MIL.INT32, "ints", [], *[1] * 33), "rank 33"),
        (
            _with(_blob(MIL.INT32, 3), lambda m: m.type.tensorType.dimensions.pop()),
            "rank 1 with 0 dimensions",
        ),
        (
            _with(_blob(MIL.INT32, 3), lambda m: m.type.tensorType.dimensions[0].Clear()),
            "neither constant nor",
        ),
        (_with(_tensor(MIL.INT32, "ints", [1], 1), _open_dimension), "immediate value of the open shape"),
        (_with(_blob(MIL.INT32, 1), _open_dimension), "cannot be in a weight file"),
        (
            _with(_list(MIL.INT32, MIL.INT32), lambda m: m.ClearField("immediateValue")),
            "neither immediate nor",
        ),
        (_with(_blob(MIL.INT32), lambda m: m.type.listType.type.SetInParent()), "value without a type"),
        (MIL.Value(), "value without a type"),
        (_list(MIL.FLOAT32, MIL.INT32), r"type int32\[\] where fp32\[\] is declared"),
        (
            _with(_list(MIL.INT32, MIL.INT32), lambda m: m.immediateValue.list.values.pop()),
            "0 values for a list",
        ),
        (
            _with(
                _list(MIL.INT32, MIL.INT32),
                lambda m: m.immediateValue.list.values[0].CopyFrom(_blob(MIL.INT32)),
            ),
            "element of a list, tuple or dictionary in a weight file",
        ),
        (
            _with(_list(MIL.INT32, MIL.INT32), lambda m: _set_type(m.type, MIL.INT32)),
            "immediate list for type",
        ),
    ],
)
def test_bad_values(message: Any, error: str):
    with pytest.raises(PackageError, match=error):
        read_value(message)


def test_an_element_may_close_the_open_dimensions_of_its_type():
    message = _list(MIL.INT32, MIL.INT32)
    _set_type(message.type.listType.type, MIL.INT32, 3)
    message.type.listType.type.tensorType.dimensions[0].unknown.variadic = False
    message.immediateValue.list.values[0].CopyFrom(_tensor(MIL.INT32, "ints", [4, 5, 6], 3))
    value = read_value(message)
    assert value.type == ListType(TensorType(DType.INT32, (None,)), 1)
    assert [d.tolist() for d in value.data] == [[4, 5, 6]]
    for other in (_tensor(MIL.INT32, "ints", [4], 1, 1), _tensor(MIL.BOOL, "bools", [True], 1)):
        message.immediateValue.list.values[0].CopyFrom(other)
        with pytest.raises(PackageError, match=r"where int32\[\?\] is declared"):
            read_value(message)


def test_a_state_wraps_a_tensor():
    message = MIL.ValueType()
    _set_type(message.stateType.wrappedType.stateType.wrappedType, MIL.FLOAT16, 3)
    with pytest.raises(PackageError, match=r"a state of state<fp16\[3\]>, expected a tensor"):
        read_type(message)


def _first(program: Any, kind: str) -> Any:
    operations = program.functions["main"].block_specializations["CoreML8"].operations
    return next(o for o in operations if o.type == kind)


def _unbind(program: Any) -> None:
    _first(program, "linear").inputs["x"].arguments[0].Clear()


def _bad_output(program: Any) -> None:
    _first(program, "linear").outputs[0].type.tensorType.dataType = 0


def _bad_constant(program: Any) -> None:
    _first(program, "const").attributes["val"].Clear()


def _bad_inside(program: Any) -> None:
    _first(program, "cond").blocks[1].operations[0].attributes["name"].Clear()


def _bad_input(program: Any) -> None:
    program.functions["main"].inputs[0].type.Clear()


def _no_block(program: Any) -> None:
    program.functions["main"].opset = "CoreML9"


@pytest.mark.parametrize(
    ("damage", "place"),
    [
        (_unbind, r"^function 'main': op 'first' \(linear\): argument 'x': bound to nothing$"),
        (_bad_output, r"op 'first' \(linear\): value 'first': unknown data type 0"),
        (_bad_constant, r"^function 'main': op '\w+' \(const\): attribute 'val': a value without a type$"),
        (_bad_inside, r"function 'main': op 'out' \(cond\): op '\w+' \(\w+\): attribute 'name'"),
        (_bad_input, "function 'main': value 'x': a value without a type"),
        (_no_block, r"function 'main': no block for its opset 'CoreML9', only for \['CoreML8'\]"),
        (lambda p: setattr(p, "version", 2), "version 2, expected 1"),
        (lambda p: p.attributes["buildInfo"].Clear(), "^attribute 'buildInfo': a value without a type"),
    ],
)
def test_errors_name_the_place(sample_package: Path, damage: Callable[[Any], None], place: str):
    message = _program(sample_package)
    damage(message)
    with pytest.raises(PackageError, match=place):
        read_program(message)


def test_nesting_limit():
    program = MIL.Program(version=1)
    block = program.functions["main"].block_specializations["CoreML8"]
    program.functions["main"].opset = "CoreML8"
    for _ in range(from_proto.MAX_BLOCK_DEPTH):
        block = block.operations.add(type="cond").blocks.add()
    read_program(program)
    block.operations.add(type="cond").blocks.add()
    with pytest.raises(PackageError, match="nested more than 16 deep"):
        read_program(program)


def test_operation_limit(sample_package: Path, monkeypatch: pytest.MonkeyPatch):
    message = _program(sample_package)
    count = sum(1 for _ in read_program(message).functions["main"].block.walk())
    monkeypatch.setattr(from_proto, "MAX_OPERATIONS", count)
    read_program(message)
    monkeypatch.setattr(from_proto, "MAX_OPERATIONS", count - 1)
    with pytest.raises(PackageError, match=f"more than {count - 1} operations"):
        read_program(message)
