"""A MIL program as plain immutable data: functions, blocks, operations, values.

It mirrors ``MIL.proto`` of coremltools 9.0 and knows neither torch nor protobuf, so that readers
(protobuf, MIL text), the engine and ``inspect`` share one form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from coreproof.mil.types import ValueType


@dataclass(frozen=True, slots=True, eq=False)
class Immediate:
    """A value written in the program itself.

    ``data``: a numpy array in the type's numpy dtype for tensors (0-d for scalars), its stored bytes
    as uint8 for types numpy lacks, a str or a list of str for strings, a tuple of such data for
    lists and tuples, a tuple of (key, value) for dictionaries.
    """

    type: ValueType
    data: Any


@dataclass(frozen=True, slots=True)
class Blob:
    """A value stored in a weight file. ``offset`` is that of the entry's header, not of its data;
    ``file`` is written as ``@model_path/weights/weight.bin``."""

    type: ValueType
    file: str
    offset: int


@dataclass(frozen=True, slots=True)
class Ref:
    """The name of a value made earlier: a function input, a block input or an op's output."""

    name: str


Value = Immediate | Blob
Binding = Ref | Immediate | Blob


@dataclass(frozen=True, slots=True)
class NamedType:
    name: str
    type: ValueType


@dataclass(frozen=True, slots=True)
class Operation:
    """One op. ``inputs`` maps MIL argument names to their bindings: one for plain arguments,
    several for variadic ones (``concat.values``). A ``const`` keeps its value in
    ``attributes["val"]``."""

    type: str
    inputs: Mapping[str, tuple[Binding, ...]]
    outputs: tuple[NamedType, ...]
    attributes: Mapping[str, Value] = field(default_factory=dict)
    blocks: tuple[Block, ...] = ()

    @property
    def name(self) -> str:
        """The op's own name, or that of its first output when the program gives none."""
        value = self.attributes.get("name")
        if isinstance(value, Immediate):
            return str(value.data)
        return self.outputs[0].name if self.outputs else self.type

    def blobs(self) -> Iterator[tuple[str, Blob]]:
        """The weights this op refers to, with the attribute or argument that does."""
        for name, value in self.attributes.items():
            if isinstance(value, Blob):
                yield name, value
        for name, bindings in self.inputs.items():
            yield from ((name, binding) for binding in bindings if isinstance(binding, Blob))


@dataclass(frozen=True, slots=True)
class Block:
    inputs: tuple[NamedType, ...]
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]

    def walk(self) -> Iterator[Operation]:
        """Every operation, nested blocks included, in program order."""
        for operation in self.operations:
            yield operation
            for block in operation.blocks:
                yield from block.walk()


@dataclass(frozen=True, slots=True)
class Function:
    """``opset`` is the specialization that runs, such as ``CoreML8`` (iOS 18)."""

    name: str
    inputs: tuple[NamedType, ...]
    opset: str
    block: Block
    attributes: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Program:
    version: int
    functions: Mapping[str, Function]
    attributes: Mapping[str, Value] = field(default_factory=dict)
