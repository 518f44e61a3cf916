"""The decoder of protobuf's wire format against the protobuf library and coremltools' own messages."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import builders
import pytest
from mutators import spoil, spoil_message

from coreproof.errors import PackageError
from coreproof.mil.from_proto import read_program
from coreproof.mil.identity import difference
from coreproof.package import wire
from coreproof.package.proto import module, new_model, parse, read_spec
from coreproof.package.schema import MESSAGES, MODEL, MODEL_TYPES
from coreproof.package.wire import MAX_ENTRIES, Field, Message, Repeated, check, decode

SPEC = "Data/com.apple.CoreML/model.mlmodel"
KINDS = {
    1: "double", 2: "float", 3: "int64", 4: "uint64", 5: "int32", 8: "bool", 9: "string", 12: "bytes",
    14: "int32",
}  # fmt: skip
# What nobody here asks a message for.
UNREAD = {
    "Block": {"attributes"}, "Model": {"isUpdatable"}, "ModelDescription": {"trainingInput"},
    "Program": {"docString"}, "TensorType": {"attributes"}, "Value": {"docString"},
}  # fmt: skip


def descriptors() -> dict[str, Any]:
    """Apple's descriptors of the messages that the table declares."""
    found: dict[str, Any] = {}

    def add(messages: Iterable[Any]) -> None:
        for message in messages:
            found.setdefault(message.name, message)
            add(message.nested_types)

    for name in ("MIL_pb2", "FeatureTypes_pb2", "Model_pb2"):
        add(module(name).DESCRIPTOR.message_types_by_name.values())
    return found


def apples(descriptor: Any, field: Any) -> tuple[Any, ...]:
    """Kind, rule and oneof of a field, by Apple's descriptor."""
    message, rule = field.message_type, "repeated" if field.is_repeated else ""
    if message is not None and message.GetOptions().map_entry:
        assert message.fields_by_name["key"].type == 9
        field, rule = message.fields_by_name["value"], "map"
        message = field.message_type
    group = field.containing_oneof
    others = {f.name for f in group.fields} - {field.name} if group and not rule else set()
    return message.name if message else KINDS[field.type], rule, others


@pytest.mark.parametrize("name", [name for name in MESSAGES if name != "Unread"])
def test_a_message_is_declared_as_apple_declares_it(name: str) -> None:
    descriptor = descriptors()[name]
    ours = {(tag >> 3): field for tag, field in MESSAGES[name].fields.items()}
    theirs = {f.number: f for f in descriptor.fields}
    assert set(ours) <= set(theirs)
    assert {theirs[n].name for n in set(theirs) - set(ours)} == UNREAD.get(name, set())
    for number, field in ours.items():
        assert field.name == theirs[number].name
        kind, rule, others = apples(descriptor, theirs[number])
        assert (field.rule, set(field.others)) == (rule, others)
        declared = field.kind if isinstance(field.kind, str) else field.kind.__name__
        assert declared in (kind, "Unread")
    assert {g: set(m) for g, m in MESSAGES[name].groups.items()} == {
        g.name: {f.name for f in g.fields} for g in descriptor.oneofs
    }


def test_every_type_of_model_is_known_by_its_name() -> None:
    apple = new_model().DESCRIPTOR.oneofs_by_name["Type"].fields
    assert {f.number: f.name for f in apple} == MODEL_TYPES


def same(ours: Any, theirs: Any) -> bool:
    """Whether the library reads the same in every field that the table declares."""
    if isinstance(ours, Message):
        return all(same_field(ours, theirs, field) for field in type(ours).fields.values()) and all(
            ours.WhichOneof(group) == theirs.WhichOneof(group) for group in ours.groups
        )
    if isinstance(ours, Mapping):
        return set(ours) == set(theirs) and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, str | bytes | int | float):
        return ours == theirs or (ours != ours and theirs != theirs)
    return len(ours) == len(theirs) and all(same(a, b) for a, b in zip(ours, theirs, strict=True))


def same_field(ours: Message, theirs: Any, field: Field) -> bool:
    if not field.rule and not isinstance(field.kind, str) and field.name not in ours.__dict__:
        return not theirs.HasField(field.name)
    return same(getattr(ours, field.name), getattr(theirs, field.name))


@pytest.mark.parametrize("name", sorted(builders.MODELS))
def test_a_model_reads_as_the_library_reads_it(name: str, built: Callable[[str], Path]) -> None:
    spec = built(name) / SPEC
    ours, theirs = decode(MODEL, spec.read_bytes()), read_spec(spec)
    assert same(ours.description, theirs.description) and same(ours.mlProgram, theirs.mlProgram)
    assert ours.WhichOneof("Type") == "mlProgram" == theirs.WhichOneof("Type")
    assert difference(read_program(ours.mlProgram), read_program(theirs.mlProgram)) is None


def by_library(data: bytes) -> Any:
    """The message, or None where the library refuses it."""
    message = new_model()
    try:
        parse(message, data)
    except ValueError:
        return None
    return message


def by_us(data: bytes) -> Any:
    """The message, or why it is refused."""
    try:
        message = decode(MODEL, data)
        check(message)
    except PackageError as error:
        return str(error)
    return message


SPOILED = ("small_constants", "condition", "text_labels", "sequences", "constexpr_lut")


@pytest.mark.parametrize("name", SPOILED)
def test_bytes_spoiled_at_random_read_as_the_library_reads_them(
    name: str, built: Callable[[str], Path]
) -> None:
    rng, data, other = Random(name), (built(name) / SPEC).read_bytes(), (built("casts") / SPEC).read_bytes()
    read = refused = overlooked = 0
    for _ in range(400):
        spoiled = spoil(rng, data, other)
        ours, theirs = by_us(spoiled), by_library(spoiled)
        if isinstance(ours, str):
            assert theirs is None or re.search("an entry of|wire type", ours), ours
            refused += 1
        elif theirs is None:
            overlooked += 1  # a bad text, or the like, in a field that is not read
        else:
            assert same(ours, theirs)
            read += 1
    assert read >= 10 and refused >= 200 and overlooked <= 4


@pytest.mark.parametrize("name", SPOILED)
def test_messages_spoiled_at_random_read_as_the_library_reads_them(
    name: str, built: Callable[[str], Path]
) -> None:
    rng, other = Random(name), read_spec(built("casts") / SPEC)
    for _ in range(100):
        message = read_spec(built(name) / SPEC)
        spoil_message(rng, message, other)
        assert same(by_us(message.SerializeToString(deterministic=True)), message)


def varint(number: int) -> bytes:
    head = bytes((number >> 7 * k & 0x7F) | 0x80 for k in range(10) if number >> 7 * (k + 1))
    return head + bytes([number >> 7 * len(head)])


def nested(depth: int) -> bytes:
    """A type ``depth`` lists deep, as the output of a function's block."""
    body = b""
    for _ in range(depth):
        body = b"\x12" + varint(len(body) + len(varint(len(body))) + 1) + b"\x0a" + varint(len(body)) + body
    return body


@pytest.mark.parametrize(
    ("kind", "data", "reason"),
    [
        ("SizeRange", b"\x08", "a number without an end"),
        ("SizeRange", b"\x08" + b"\xff" * 10 + b"\x01", "a number without an end"),
        ("SizeRange", b"\x0b\x0c", "wire type 3"),
        ("SizeRange", b"\x0e", "wire type 6"),
        ("SizeRange", b"\x00\x00", "field with the number 0"),
        ("SizeRange", varint(1 << 32) + b"\x00", "field with the number"),
        ("ArrayFeatureType", b"\x9d\x03\x00\x00", "4 bytes where 2 are left"),
        ("FeatureDescription", b"\x0a\x05abc", "5 bytes where 3 are left"),
        ("FeatureDescription", b"\x0a" + varint(1 << 62), "bytes where 0 are left"),
        ("FeatureDescription", b"\x0a\x01\xff", "not UTF-8"),
        ("RepeatedFloats", b"\x0a\x03abc", "3 bytes of float values"),
        ("RepeatedInts", b"\x0a\x02\x80\x80", "packed numbers without an end"),
        ("RepeatedInts", b"\x0a\x0c" + b"\x80" * 11 + b"\x01", "more than 10 bytes"),
        ("Operation", b"\x12\x02\x18\x01", "an entry of inputs with a field of the tag 24"),
        ("ValueType", nested(101), "nested more than 100 deep"),
    ],
)
def test_what_protobuf_does_not_allow(kind: str, data: bytes, reason: str) -> None:
    with pytest.raises(PackageError, match=reason):
        check(decode(MESSAGES[kind], data))


def test_the_deepest_message_that_is_allowed() -> None:
    message = decode(MESSAGES["ValueType"], nested(50))
    depth = 0
    while message.WhichOneof("type"):
        message, depth = message.listType.type, depth + 1
    assert depth == 50


def test_numbers_in_every_form() -> None:
    many = [0, 1, 127, 128, 300, -1, -(1 << 31), (1 << 31) - 1]
    message = module("MIL_pb2").TensorValue()
    message.ints.values.extend(many)
    packed = message.ints.SerializeToString()
    assert list(decode(MESSAGES["RepeatedInts"], packed).values) == many
    apart = b"".join(b"\x08" + varint(n % (1 << 64)) for n in many)
    assert list(decode(MESSAGES["RepeatedInts"], apart + packed).values) == many * 2
    wide = module("MIL_pb2").TensorValue.RepeatedLongInts(values=range(-(1 << 62), 1 << 62, 1 << 50))
    assert decode(MESSAGES["RepeatedLongInts"], wide.SerializeToString()).values.tolist() == list(wide.values)
    assert decode(MESSAGES["RepeatedBools"], b"\x0a\x05\x00\x01\x02\x80\x01").values.tolist() == [0, 1, 1, 1]


def test_packed_numbers_are_decoded_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_PIECE", 16)
    message = module("MIL_pb2").TensorValue.RepeatedLongInts(values=[3**k for k in range(39)] * 3)
    assert decode(MESSAGES["RepeatedLongInts"], message.SerializeToString()).values.tolist() == list(
        message.values
    )


def test_a_message_that_occurs_twice_is_merged_and_the_last_of_a_oneof_counts() -> None:
    mil = module("MIL_pb2")
    first = mil.NamedValueType(name="a", type=mil.ValueType(tensorType=mil.TensorType(dataType=11)))
    second = mil.NamedValueType(type=mil.ValueType(tensorType=mil.TensorType(rank=2)))
    third = mil.NamedValueType(type=mil.ValueType(listType=mil.ListType()))
    data = first.SerializeToString() + second.SerializeToString()
    assert same(decode(MESSAGES["NamedValueType"], data), mil.NamedValueType.FromString(data))
    data += third.SerializeToString()
    found = decode(MESSAGES["NamedValueType"], data)
    assert found.type.WhichOneof("type") == "listType"
    assert same(found, mil.NamedValueType.FromString(data))


def test_a_map_has_so_many_entries_and_not_more() -> None:
    entries = b"".join(b"\x12\x06\x0a\x04" + b"%04x" % n for n in range(MAX_ENTRIES))
    assert len(decode(MESSAGES["Operation"], entries).inputs) == MAX_ENTRIES
    with pytest.raises(PackageError, match="more than 65536 entries of inputs"):
        decode(MESSAGES["Operation"], entries + b"\x12\x03\x0a\x01x")


def test_the_elements_of_a_repeated_field_are_a_sequence() -> None:
    outputs = decode(MESSAGES["Block"], b"\x12\x01a\x12\x01b\x12\x01c").outputs
    assert isinstance(outputs, Repeated)
    assert (len(outputs), outputs[0], outputs[-1], outputs[1:]) == (3, "a", "c", ["b", "c"])
    with pytest.raises(IndexError):
        outputs[3]


def test_opening_and_running_a_package_needs_neither_protobuf_nor_coremltools(
    built: Callable[[str], Path],
) -> None:
    code = (
        "import sys\n"
        "sys.modules['google.protobuf'] = sys.modules['coremltools'] = None\n"
        "import coreproof, numpy\n"
        f"model = coreproof.load({str(built('activation'))!r})\n"
        "inputs = {f.name: numpy.zeros(f.shape, f.dtype) for f in model.contract.inputs}\n"
        "print(sorted(model.predict(inputs)) == sorted(f.name for f in model.contract.outputs))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
