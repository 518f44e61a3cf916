"""Write a MIL program as its protobuf form (``MIL.proto`` of coremltools 9.0).

Values are stored as coremltools' own writer stores them (``converters/mil/backend/mil/helper.py``), so
a program that it wrote and we read comes out as it was. Documentation strings, the attributes of
blocks and tensor types and the specializations of other opsets are not part of a
:class:`~coreproof.mil.program.Program`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from coreproof.errors import CoreproofError
from coreproof.mil.from_proto import DTYPES, read_program
from coreproof.mil.identity import difference
from coreproof.mil.program import Binding, Blob, Block, Function, NamedType, Operation, Program, Ref, Value
from coreproof.mil.types import DictType, DType, ListType, StateType, TensorType, TupleType, ValueType
from coreproof.package.proto import module

_NUMBERS = {dtype: number for number, dtype in DTYPES.items()}
# The field of TensorValue for a type; all others are stored in ``bytes``.
_FIELDS = {
    DType.BOOL: "bools", DType.STRING: "strings", DType.FP32: "floats", DType.FP64: "doubles",
    DType.INT16: "ints", DType.UINT16: "ints", DType.INT32: "ints", DType.INT64: "longInts",
    DType.UINT64: "longInts",
}  # fmt: skip


def write_program(program: Program) -> Any:
    """``program`` as a ``MILSpec.Program`` message; :func:`~coreproof.mil.from_proto.read_program` gives
    it back."""
    message = module("MIL_pb2").Program(version=program.version)
    for name, function in program.functions.items():
        _function(function, message.functions[name])
    _attributes(program.attributes, message.attributes)
    return message


def round_trip(program: Program) -> Program:
    """``program`` written as protobuf and read again."""
    return read_program(write_program(program))


def require_round_trip(program: Program) -> None:
    """Raise CoreproofError naming the first place where ``program``, written and read again, is not the
    same."""
    place = difference(program, round_trip(program))
    if place is not None:
        raise CoreproofError(f"the program changes when it is written as protobuf and read again: {place}")


def write_type(type_: ValueType, message: Any) -> None:
    """Set the ``MILSpec.ValueType`` ``message`` to ``type_``."""
    if isinstance(type_, TensorType):
        tensor = message.tensorType
        tensor.dataType = _NUMBERS[type_.dtype]
        tensor.ClearField("dimensions")
        if type_.shape is None:  # an unknown rank is one dimension that stands for any number of them
            tensor.rank = 1
            tensor.dimensions.add().unknown.variadic = True
            return
        tensor.rank = len(type_.shape)
        for size in type_.shape:
            _dimension(size, tensor.dimensions.add())
    elif isinstance(type_, ListType):
        write_type(type_.element, message.listType.type)
        _dimension(type_.length, message.listType.length)
    elif isinstance(type_, TupleType):
        message.tupleType.SetInParent()
        for element in type_.elements:
            write_type(element, message.tupleType.types.add())
    elif isinstance(type_, DictType):
        write_type(type_.key, message.dictionaryType.keyType)
        write_type(type_.value, message.dictionaryType.valueType)
    elif isinstance(type_, StateType):
        write_type(type_.wrapped, message.stateType.wrappedType)


def write_value(value: Value, message: Any) -> None:
    """Set the ``MILSpec.Value`` ``message`` to ``value``."""
    if isinstance(value, Blob):
        write_type(value.type, message.type)
        message.blobFileValue.fileName = value.file
        message.blobFileValue.offset = value.offset
    else:
        _immediate(value.type, value.data, message)


def _function(function: Function, message: Any) -> None:
    message.opset = function.opset
    _named_types(function.inputs, message.inputs)
    _attributes(function.attributes, message.attributes)
    _block(function.block, message.block_specializations[function.opset])


def _block(block: Block, message: Any) -> None:
    _named_types(block.inputs, message.inputs)
    message.outputs.extend(block.outputs)
    for operation in block.operations:
        _operation(operation, message.operations.add())


def _operation(operation: Operation, message: Any) -> None:
    message.type = operation.type
    for name, bindings in operation.inputs.items():
        arguments = message.inputs[name].arguments
        for binding in bindings:
            _binding(binding, arguments.add())
    _named_types(operation.outputs, message.outputs)
    _attributes(operation.attributes, message.attributes)
    for block in operation.blocks:
        _block(block, message.blocks.add())


def _binding(binding: Binding, message: Any) -> None:
    if isinstance(binding, Ref):
        message.name = binding.name
    else:
        write_value(binding, message.value)


def _named_types(named: tuple[NamedType, ...], messages: Any) -> None:
    for one in named:
        message = messages.add(name=one.name)
        write_type(one.type, message.type)


def _attributes(attributes: Mapping[str, Value], messages: Any) -> None:
    for name, value in attributes.items():
        write_value(value, messages[name])


def _dimension(size: int | None, message: Any) -> None:
    if size is None:
        message.unknown.variadic = False
    else:
        message.constant.size = size


def _immediate(type_: ValueType, data: Any, message: Any) -> None:
    write_type(type_, message.type)
    value = message.immediateValue
    if isinstance(type_, ListType):
        value.list.SetInParent()
        for item in data:
            _immediate(type_.element, item, value.list.values.add())
    elif isinstance(type_, TupleType):
        value.tuple.SetInParent()
        for element, item in zip(type_.elements, data, strict=True):
            _immediate(element, item, value.tuple.values.add())
    elif isinstance(type_, DictType):
        value.dictionary.SetInParent()
        for key, item in data:
            pair = value.dictionary.values.add()
            _immediate(type_.key, key, pair.key)
            _immediate(type_.value, item, pair.value)
    elif isinstance(type_, TensorType):
        if type_.size is None:  # open inside a list or dictionary; the element's own sizes are known
            write_type(TensorType(type_.dtype, data.shape), message.type)
        _tensor(type_, data, value.tensor)


def _tensor(type_: TensorType, data: Any, message: Any) -> None:
    field = _FIELDS.get(type_.dtype, "bytes")
    stored = getattr(message, field)
    stored.SetInParent()
    if type_.dtype is DType.STRING:
        stored.values.extend([data] if isinstance(data, str) else data)
    elif field == "bytes":
        stored.values = np.ascontiguousarray(data).astype(data.dtype.newbyteorder("<")).tobytes()
    else:
        flat = data.reshape(-1)
        stored.values.extend((flat.view(np.int64) if type_.dtype is DType.UINT64 else flat).tolist())
