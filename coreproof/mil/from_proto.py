"""Read a MIL program from its protobuf form (``MIL.proto`` of coremltools 9.0).

What the message says is taken as hostile: sizes, types and nesting are checked before use. How
values are stored follows the writer, ``converters/mil/backend/mil/helper.py`` of coremltools.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coreproof.errors import PackageError
from coreproof.mil.program import (
    Binding,
    Blob,
    Block,
    Function,
    Immediate,
    NamedType,
    Operation,
    Program,
    Ref,
    Value,
)
from coreproof.mil.types import DictType, DType, ListType, StateType, TensorType, TupleType, ValueType

MAX_OPERATIONS = 1_000_000
MAX_BLOCK_DEPTH = 16  # Python, to which blocks are compiled, nests 20 loops at most
MAX_RANK = 32
MAX_ELEMENTS = 1 << 31  # of one value: 8 GiB as fp32. MIL itself counts and indexes with int32

DTYPES = {
    1: DType.BOOL, 2: DType.STRING, 10: DType.FP16, 11: DType.FP32, 12: DType.FP64, 13: DType.BF16,
    21: DType.INT8, 22: DType.INT16, 23: DType.INT32, 24: DType.INT64, 25: DType.INT4,
    31: DType.UINT8, 32: DType.UINT16, 33: DType.UINT32, 34: DType.UINT64, 35: DType.UINT4,
    36: DType.UINT2, 37: DType.UINT1, 38: DType.UINT6, 39: DType.UINT3,
    40: DType.FP8E4M3FN, 41: DType.FP8E5M2,
}  # fmt: skip
# The fields of TensorValue that may hold a type; all others are stored in ``bytes`` only.
_FIELDS = {
    DType.BOOL: ("bools",), DType.STRING: ("strings",), DType.FP32: ("floats", "bytes"),
    DType.FP64: ("doubles", "bytes"), DType.INT8: ("bytes", "ints"), DType.UINT8: ("bytes", "ints"),
    DType.INT16: ("ints", "bytes"), DType.UINT16: ("ints", "bytes"), DType.INT32: ("ints", "bytes"),
    DType.UINT32: ("bytes", "longInts"), DType.INT64: ("longInts", "bytes"),
    DType.UINT64: ("longInts", "bytes"),
}  # fmt: skip
# What protobuf keeps a field's numbers as.
_FIELD_DTYPES = {
    "bools": "bool", "floats": "float32", "doubles": "float64", "ints": "int32", "longInts": "int64",
}  # fmt: skip


def read_program(message: Any) -> Program:
    """The program in a ``MILSpec.Program`` message; of each function, the specialization its opset
    names.

    Raises PackageError naming function, op and argument.
    """
    if message.version != 1:
        raise PackageError(f"the program is of version {message.version}, expected 1")
    return _Reader().program(message)


def read_type(message: Any) -> ValueType:
    """The type in a ``MILSpec.ValueType`` message. Raises PackageError."""
    kind = message.WhichOneof("type")
    if kind == "tensorType":
        return _tensor_type(message.tensorType)
    if kind == "listType":
        return ListType(read_type(message.listType.type), _dimension(message.listType.length))
    if kind == "tupleType":
        return TupleType(tuple(read_type(t) for t in message.tupleType.types))
    if kind == "dictionaryType":
        return DictType(
            read_type(message.dictionaryType.keyType), read_type(message.dictionaryType.valueType)
        )
    if kind == "stateType":
        wrapped = read_type(message.stateType.wrappedType)
        if isinstance(wrapped, TensorType):
            return StateType(wrapped)
        raise PackageError(f"a state of {wrapped}, expected a tensor")
    raise PackageError("a value without a type")


def read_value(message: Any) -> Value:
    """The value in a ``MILSpec.Value`` message.

    An immediate's ``data`` is, by its type: for tensors a read-only array of the type's numpy dtype
    and shape; for types that numpy lacks, the stored bytes as uint8 of shape (nbytes,); a str or,
    for string tensors, a list of str in C order; a tuple of such data for lists and tuples; a tuple
    of (key, value) for dictionaries. Raises PackageError.
    """
    type_ = read_type(message.type)
    stored = message.WhichOneof("value")
    if stored == "blobFileValue":
        if isinstance(type_, TensorType) and type_.size is not None:
            return Blob(type_, message.blobFileValue.fileName, message.blobFileValue.offset)
        raise PackageError(f"a value of type {type_} cannot be in a weight file")
    if stored != "immediateValue":
        raise PackageError(f"a value of type {type_} is neither immediate nor in a weight file")
    return Immediate(type_, _immediate(message.immediateValue, type_))


class _Reader:
    """Reads one program; counts its operations on the way."""

    def __init__(self) -> None:
        self._operations = 0

    def program(self, message: Any) -> Program:
        functions = {
            name: self._function(name, message.functions[name]) for name in sorted(message.functions)
        }
        return Program(message.version, functions, _attributes(message.attributes))

    def _function(self, name: str, message: Any) -> Function:
        try:
            blocks = message.block_specializations
            if message.opset not in blocks:
                raise PackageError(f"no block for its opset {message.opset!r}, only for {sorted(blocks)}")
            block = self._block(blocks[message.opset], depth=0)
            inputs, attributes = _named_types(message.inputs), _attributes(message.attributes)
            return Function(name, inputs, message.opset, block, attributes)
        except PackageError as error:
            raise PackageError(f"function {name!r}: {error}") from None

    def _block(self, message: Any, depth: int) -> Block:
        if depth > MAX_BLOCK_DEPTH:
            raise PackageError(f"blocks nested more than {MAX_BLOCK_DEPTH} deep")
        self._operations += len(message.operations)
        if self._operations > MAX_OPERATIONS:
            raise PackageError(f"more than {MAX_OPERATIONS} operations")
        operations = tuple(self._operation(o, depth) for o in message.operations)
        return Block(_named_types(message.inputs), tuple(message.outputs), operations)

    def _operation(self, message: Any, depth: int) -> Operation:
        try:
            return Operation(
                message.type,
                {name: _bindings(name, message.inputs[name]) for name in sorted(message.inputs)},
                _named_types(message.outputs),
                _attributes(message.attributes),
                tuple(self._block(block, depth + 1) for block in message.blocks),
            )
        except PackageError as error:
            raise PackageError(f"op {_label(message)!r} ({message.type}): {error}") from None


def _label(operation: Any) -> str:
    """What to call an operation that may be malformed: its name attribute, else its first output."""
    name = operation.attributes.get("name")
    texts = name.immediateValue.tensor.strings.values if name is not None else ()
    return next(iter(texts), operation.outputs[0].name if operation.outputs else "?")


def _bindings(argument: str, message: Any) -> tuple[Binding, ...]:
    try:
        return tuple(_binding(b) for b in message.arguments)
    except PackageError as error:
        raise PackageError(f"argument {argument!r}: {error}") from None


def _binding(message: Any) -> Binding:
    kind = message.WhichOneof("binding")
    if kind == "name":
        return Ref(message.name)
    if kind == "value":
        return read_value(message.value)
    raise PackageError("bound to nothing")


def _attributes(messages: Any) -> dict[str, Value]:
    attributes = {}
    for name in sorted(messages):
        try:
            attributes[name] = read_value(messages[name])
        except PackageError as error:
            raise PackageError(f"attribute {name!r}: {error}") from None
    return attributes


def _named_types(messages: Iterable[Any]) -> tuple[NamedType, ...]:
    return tuple(_named_type(m) for m in messages)


def _named_type(message: Any) -> NamedType:
    try:
        return NamedType(message.name, read_type(message.type))
    except PackageError as error:
        raise PackageError(f"value {message.name!r}: {error}") from None


def _tensor_type(message: Any) -> TensorType:
    dtype = DTYPES.get(message.dataType)
    if dtype is None:
        raise PackageError(f"unknown data type {message.dataType}")
    count = len(message.dimensions)
    dimensions = tuple(message.dimensions) if count <= MAX_RANK else ()
    if count <= MAX_RANK and (message.rank < 0 or any(d.unknown.variadic for d in dimensions)):
        return TensorType(dtype, None)
    if message.rank != count or count > MAX_RANK:
        raise PackageError(f"rank {message.rank} with {count} dimensions (at most {MAX_RANK} are allowed)")
    shape = tuple(_dimension(d) for d in dimensions)
    elements = 1
    for dim in shape:
        elements *= dim or 1
    if elements > MAX_ELEMENTS:
        raise PackageError(f"a tensor of shape {list(shape)} has more than {MAX_ELEMENTS} elements")
    return TensorType(dtype, shape)


def _dimension(message: Any) -> int | None:
    kind = message.WhichOneof("dimension")
    if kind == "constant":
        return int(message.constant.size)
    if kind == "unknown":
        return None
    raise PackageError("a dimension that is neither constant nor unknown")


def _immediate(message: Any, type_: ValueType) -> Any:
    kind = message.WhichOneof("value")
    if isinstance(type_, TensorType) and kind in ("tensor", None):
        return _tensor(message.tensor, type_)
    if isinstance(type_, ListType) and kind in ("list", None):
        types = [type_.element] * len(message.list.values)
        if type_.length not in (None, len(types)):
            raise PackageError(f"{len(types)} values for a {type_}")
        return _elements(message.list.values, types)
    if isinstance(type_, TupleType) and kind in ("tuple", None):
        if len(message.tuple.values) != len(type_.elements):
            raise PackageError(f"{len(message.tuple.values)} values for a {type_}")
        return _elements(message.tuple.values, type_.elements)
    if isinstance(type_, DictType) and kind in ("dictionary", None):
        pairs = message.dictionary.values
        keys = _elements([p.key for p in pairs], [type_.key] * len(pairs))
        return tuple(zip(keys, _elements([p.value for p in pairs], [type_.value] * len(pairs)), strict=True))
    raise PackageError(f"an immediate {kind} for type {type_}")


def _elements(messages: Iterable[Any], types: Iterable[ValueType]) -> tuple[Any, ...]:
    return tuple(_element(m, t) for m, t in zip(messages, types, strict=True))


def _element(message: Any, expected: ValueType) -> Any:
    value = read_value(message)
    if isinstance(value, Blob):
        raise PackageError("an element of a list, tuple or dictionary in a weight file is not supported")
    if value.type != expected and not _closes(value.type, expected):
        raise PackageError(f"an element of type {value.type} where {expected} is declared")
    return value.data


def _closes(type_: ValueType, open_: ValueType) -> bool:
    """Whether ``type_`` is ``open_`` with sizes for its open dimensions."""
    if not isinstance(type_, TensorType) or not isinstance(open_, TensorType) or open_.shape is None:
        return False
    return (
        type_.dtype is open_.dtype
        and type_.shape is not None
        and len(type_.shape) == len(open_.shape)
        and all(wanted in (None, size) for size, wanted in zip(type_.shape, open_.shape, strict=True))
    )


def _tensor(message: Any, type_: TensorType) -> Any:
    if type_.size is None or type_.shape is None:
        raise PackageError(f"an immediate value of the open shape {type_}")
    field = message.WhichOneof("value")
    allowed = _FIELDS.get(type_.dtype, ("bytes",))
    if field is not None and field not in allowed:
        raise PackageError(f"a {type_} stored as {field}, expected {' or '.join(allowed)}")
    if type_.dtype is DType.STRING:
        return _strings(message.strings.values, type_)
    if field == "bytes" or (field is None and type_.dtype.numpy_name is None):
        return _from_bytes(message.bytes.values, type_)
    # A message without a field holds no values: it means an empty tensor.
    stored = getattr(message, field).values if field else ()
    _check_count(len(stored), type_)
    raw = np.array(stored, dtype=_FIELD_DTYPES.get(field, type_.dtype.numpy_name))
    array = raw.astype(type_.dtype.numpy_name)
    if type_.dtype is not DType.UINT64 and not np.array_equal(raw, array, equal_nan=type_.dtype.is_float):
        raise PackageError(f"a value that a {type_.dtype} cannot hold")
    return _frozen(array.reshape(_shape(type_)))


def _strings(values: Any, type_: TensorType) -> str | list[str]:
    _check_count(len(values), type_)
    return values[0] if type_.shape == () else list(values)


def _from_bytes(data: bytes, type_: TensorType) -> NDArray[np.generic]:
    """Little-endian values; types smaller than a byte are packed from the lowest bit on."""
    assert type_.size is not None
    nbytes = (type_.size * type_.dtype.bits + 7) // 8
    if len(data) != nbytes:
        raise PackageError(f"{len(data)} bytes for a {type_}, expected {nbytes}")
    name = type_.dtype.numpy_name
    if name is None:
        return np.frombuffer(data, np.uint8)
    return np.frombuffer(data, np.dtype(name).newbyteorder("<")).reshape(_shape(type_))


def _shape(type_: TensorType) -> tuple[int, ...]:
    return tuple(dim for dim in type_.shape or () if dim is not None)


def _check_count(count: int, type_: TensorType) -> None:
    if count != type_.size:
        raise PackageError(f"{count} values for a {type_}, expected {type_.size}")


def _frozen(array: NDArray[np.generic]) -> NDArray[np.generic]:
    array.setflags(write=False)
    return array
