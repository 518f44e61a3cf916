"""MIL value types, as ``MIL.proto`` of coremltools 9.0 defines them, free of torch and protobuf."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class DType(StrEnum):
    """Scalar types, by the names MIL text uses (``tensor<fp16, [1, 128]>``)."""

    BOOL = "bool"
    STRING = "string"
    FP16 = "fp16"
    FP32 = "fp32"
    FP64 = "fp64"
    BF16 = "bf16"
    FP8E4M3FN = "fp8e4m3fn"
    FP8E5M2 = "fp8e5m2"
    INT4 = "int4"
    INT8 = "int8"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    UINT1 = "uint1"
    UINT2 = "uint2"
    UINT3 = "uint3"
    UINT4 = "uint4"
    UINT6 = "uint6"
    UINT8 = "uint8"
    UINT16 = "uint16"
    UINT32 = "uint32"
    UINT64 = "uint64"

    @property
    def bits(self) -> int:
        """Stored size of one element in bits; 0 for ``string``, which has no fixed size."""
        return _BITS[self]

    @property
    def is_float(self) -> bool:
        return self in _FLOATS

    @property
    def numpy_name(self) -> str | None:
        """The numpy dtype that stores it element for element; None for packed sub-byte types,
        bf16, fp8 and string, which numpy lacks."""
        return _NUMPY.get(self)


_BITS = {
    DType.BOOL: 8, DType.STRING: 0, DType.FP16: 16, DType.FP32: 32, DType.FP64: 64, DType.BF16: 16,
    DType.FP8E4M3FN: 8, DType.FP8E5M2: 8,
    DType.INT4: 4, DType.INT8: 8, DType.INT16: 16, DType.INT32: 32, DType.INT64: 64,
    DType.UINT1: 1, DType.UINT2: 2, DType.UINT3: 3, DType.UINT4: 4, DType.UINT6: 6,
    DType.UINT8: 8, DType.UINT16: 16, DType.UINT32: 32, DType.UINT64: 64,
}  # fmt: skip
_FLOATS = {DType.FP16, DType.FP32, DType.FP64, DType.BF16, DType.FP8E4M3FN, DType.FP8E5M2}
_NUMPY = {
    DType.BOOL: "bool", DType.FP16: "float16", DType.FP32: "float32", DType.FP64: "float64",
    DType.INT8: "int8", DType.INT16: "int16", DType.INT32: "int32", DType.INT64: "int64",
    DType.UINT8: "uint8", DType.UINT16: "uint16", DType.UINT32: "uint32", DType.UINT64: "uint64",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorType:
    """A tensor, or with ``shape == ()`` a scalar. A dimension of None is not known before run
    time; ``shape`` itself is None when not even the rank is known."""

    dtype: DType
    shape: tuple[int | None, ...] | None = ()

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype}[...]"
        return f"{self.dtype}[{','.join('?' if d is None else str(d) for d in self.shape)}]"

    @property
    def size(self) -> int | None:
        """Number of elements, None when a dimension is unknown."""
        if self.shape is None:
            return None
        total = 1
        for dim in self.shape:
            if dim is None:
                return None
            total *= dim
        return total


@dataclass(frozen=True, slots=True)
class ListType:
    """A list of values of one type; ``length`` is None when it is dynamic."""

    element: ValueType
    length: int | None

    def __str__(self) -> str:
        return f"list<{self.element}, {'?' if self.length is None else self.length}>"


@dataclass(frozen=True, slots=True)
class TupleType:
    elements: tuple[ValueType, ...]

    def __str__(self) -> str:
        return f"tuple<{', '.join(map(str, self.elements))}>"


@dataclass(frozen=True, slots=True)
class DictType:
    key: ValueType
    value: ValueType

    def __str__(self) -> str:
        return f"dict<{self.key}, {self.value}>"


@dataclass(frozen=True, slots=True)
class StateType:
    """A buffer that outlives a prediction (iOS 18), read by ``read_state``."""

    wrapped: TensorType

    def __str__(self) -> str:
        return f"state<{self.wrapped}>"


ValueType = TensorType | ListType | TupleType | DictType | StateType
