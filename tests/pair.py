"""Models in their compiled form: a published one beside its package, and compiled folders to order.

``mil_text`` prints a program the way Apple's compiler does; a test holds it to the published model's
text, byte for byte, and so may lend it to programs of which no compiled form is at hand.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coreproof.mil.from_text import parse_program
from coreproof.mil.weights import weights
from coreproof.package.blob import BlobWriter
from coreproof.package.layout import canonical_manifest
from coreproof.package.proto import module

PUBLISHED = Path(__file__).parent / "silero_vad"
OPSETS = {"CoreML5": "ios15", "CoreML6": "ios16", "CoreML7": "ios17", "CoreML8": "ios18", "CoreML9": "ios26"}
MIL = module("MIL_pb2")


@dataclass(frozen=True)
class Pair:
    """One model on disk in both forms."""

    package: Path
    compiled: Path


def published_pair(folder: Path) -> Pair:
    """The published model in both forms, with seeded numbers for weights."""
    pair = Pair(folder / "vad.mlpackage", folder / "vad.mlmodelc")
    inner = pair.package / "Data/com.apple.CoreML"
    (inner / "weights").mkdir(parents=True)
    shutil.copy(PUBLISHED / "model.mlmodel", inner)
    (pair.package / "Manifest.json").write_bytes(canonical_manifest(weights=True))
    (pair.compiled / "weights").mkdir(parents=True)
    for name in ("model.mil", "coremldata.bin", "metadata.json"):
        shutil.copy(PUBLISHED / name, pair.compiled)
    rng = np.random.default_rng(0)
    with BlobWriter(inner / "weights/weight.bin") as writer:
        for _, blob in weights(parse_program((PUBLISHED / "model.mil").read_bytes())):
            values = rng.standard_normal(blob.type.shape) / 8
            assert writer.add(values.astype(blob.type.dtype.numpy_name), blob.type.dtype) == blob.offset
    shutil.copy(inner / "weights/weight.bin", pair.compiled / "weights")
    return pair


def compile_as_apple(package: Path, folder: Path) -> Path:
    """``package`` as a compiled model ``folder``: text, description and weights."""
    from coreproof.package.reader import open_package

    opened = open_package(package)
    folder.mkdir()
    (folder / "model.mil").write_text(mil_text(opened.spec.mlProgram), encoding="utf-8")
    (folder / "coremldata.bin").write_bytes(coremldata(opened.spec))
    if opened.weight_files():
        shutil.copytree(opened.weights.folder / "weights", folder / "weights")
    return folder


def coremldata(spec: Any, number: int = 502) -> bytes:
    """``coremldata.bin`` of a ``Model`` message, laid out as in the published model."""
    description = spec.description.SerializeToString()
    return b"".join(
        (
            struct.pack("<II20xQ", number, 5, len(b"generic")) + b"generic",
            struct.pack("<Q24xQ", spec.specificationVersion, len(description)) + description,
            struct.pack("<I12x", number),
        )
    )


def mil_text(program: Any, version: str = "1.3") -> str:
    """A ``MILSpec.Program`` message as text. In version 1.0 scalars are written as tensors."""
    return _Printer(version).program(program)


class _Printer:
    def __init__(self, version: str) -> None:
        self.version = version

    def program(self, message: Any) -> str:
        functions = "".join(self.function(n, message.functions[n]) for n in sorted(message.functions))
        return f"program({self.version})\n{self.attributes(message.attributes)}\n{{\n{functions}}}"

    def function(self, name: str, message: Any) -> str:
        block = message.block_specializations[message.opset]
        inputs = self.named(sorted(message.inputs, key=lambda i: i.name))
        attributes = self.attributes(message.attributes)
        head = f"    func {name}<{OPSETS[message.opset]}>({inputs}){attributes and ' ' + attributes} "
        return f"{head}{self.body(block, '    ' * 2)};\n"

    def body(self, block: Any, indent: str) -> str:
        operations = "".join(f"{indent}    {self.operation(o, indent)};\n" for o in block.operations)
        return f"{{\n{operations}{indent}}} -> ({', '.join(block.outputs)})"

    def operation(self, message: Any, indent: str) -> str:
        outputs = f"{self.named(message.outputs)} = " if message.outputs else ""
        arguments = self.joined(
            message.inputs, lambda n: f"{n} = {self.bindings(message.inputs[n].arguments)}"
        )
        blocks = "".join(f" ({self.named(b.inputs)}) {self.body(b, indent + '    ')}" for b in message.blocks)
        return f"{outputs}{message.type}({arguments}){self.attributes(message.attributes)}{blocks}"

    def bindings(self, messages: Any) -> str:
        texts = [m.name if m.HasField("name") else self.value(m.value) for m in messages]
        return texts[0] if len(texts) == 1 else f"({', '.join(texts)})"

    def attributes(self, messages: Any) -> str:
        if not messages:
            return ""
        return f"[{self.joined(messages, lambda n: f'{n} = {self.value(messages[n])}')}]"

    def joined(self, names: Iterable[str], text: Callable[[str], str]) -> str:
        return ", ".join(text(name) for name in sorted(names))

    def named(self, messages: Any) -> str:
        return ", ".join(f"{self.type(m.type)} {m.name}" for m in messages)

    def type(self, message: Any) -> str:
        kind = message.WhichOneof("type")
        if kind == "tensorType":
            name = MIL.DataType.Name(message.tensorType.dataType).lower()
            dtype = "bf16" if name == "bfloat16" else name.replace("float", "fp")
            if not message.tensorType.dimensions and self.version != "1.0":
                return dtype
            return f"tensor<{dtype}, [{', '.join(map(self.size, message.tensorType.dimensions))}]>"
        if kind == "listType":
            return f"list<{self.type(message.listType.type)}, {self.size(message.listType.length)}>"
        if kind == "tupleType":
            return f"tuple<{', '.join(map(self.type, message.tupleType.types))}>"
        if kind == "stateType":
            return f"state<{self.type(message.stateType.wrappedType)}>"
        pair = (message.dictionaryType.keyType, message.dictionaryType.valueType)
        return f"dict<{', '.join(map(self.type, pair))}>"

    def size(self, message: Any) -> str:
        return str(message.constant.size) if message.HasField("constant") else "?"

    def value(self, message: Any) -> str:
        if message.HasField("blobFileValue"):
            blob = message.blobFileValue
            string, uint64 = ("string", "uint64") if self.version != "1.0" else (
                "tensor<string, []>", "tensor<uint64, []>"
            )  # fmt: skip
            inner = f'BLOBFILE(path = {string}("{blob.fileName}"), offset = {uint64}({blob.offset}))'
        else:
            inner = self.literal(message)
        return f"{self.type(message.type)}({inner})"

    def literal(self, message: Any) -> str:
        value = message.immediateValue
        kind = value.WhichOneof("value")
        if kind == "list":
            return f"[{', '.join(map(self.literal, value.list.values))}]"
        if kind == "tuple":
            return f"({', '.join(map(self.literal, value.tuple.values))})"
        if kind == "dictionary":
            pairs = sorted((self.literal(p.key), self.literal(p.value)) for p in value.dictionary.values)
            return f"{{{', '.join(f'{{{k}, {v}}}' for k, v in pairs)}}}"
        shape = [d.constant.size for d in message.type.tensorType.dimensions]
        elements = iter(_elements(message.type.tensorType, value.tensor))
        return _nested(shape, elements)


def _nested(shape: list[int], elements: Any) -> str:
    if not shape:
        return str(next(elements))
    return f"[{', '.join(_nested(shape[1:], elements) for _ in range(shape[0]))}]"


def _elements(type_: Any, tensor: Any) -> list[str]:
    name = MIL.DataType.Name(type_.dataType).lower()
    field = tensor.WhichOneof("value")
    values = getattr(tensor, field).values if field else ()
    if field == "bytes":
        count = int(np.prod([d.constant.size for d in type_.dimensions], dtype=int))
        values = _unpacked(name, values, count)
    if name == "bool":
        return ["true" if v else "false" for v in values]
    if name == "string":
        return ['"' + v.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"' for v in values]
    if "float" in name:
        return [_hexadecimal(float(v)) for v in values]
    return [str(v % 2**64 if name == "uint64" else v) for v in values]


def _unpacked(name: str, data: bytes, count: int) -> list[Any]:
    if name in ("int4", "uint1", "uint2", "uint3", "uint4", "uint6"):
        width = int(name.removeprefix("u").removeprefix("int"))
        bits = int.from_bytes(data, "little")
        fields = [bits >> width * i & (1 << width) - 1 for i in range(count)]
        return [f - 16 if name == "int4" and f > 7 else f for f in fields]
    return np.frombuffer(data, np.dtype(name).newbyteorder("<")).tolist()


def _hexadecimal(value: float) -> str:
    """As C's %a: no zeros at the end."""
    if not np.isfinite(value):
        return str(value)
    mantissa, exponent = value.hex().split("p")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}p{exponent}"
