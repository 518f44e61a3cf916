"""Ways to spoil a file: bytes, and what its format is made of."""

# ruff: noqa: E501  (tables of hostile values)
from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

SIZES = (
    0, 1, 2, 3, 7, 8, 17, 63, 64, 65, 127, 128, 255, 256, 1000, 4096, 65535, 65536, 1 << 20, 1 << 26,
    (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 64, (1 << 64) - 1,
)  # fmt: skip
FLOATS = (0.0, -0.0, 0.5, -1.0, 3.0, 1e-45, 65520.0, 1e38, 1e308, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    "", "x", "x" * 300, "x" * 5000, "\0", "\n", "a\0b", "é", "\U0001f600", "..", "../../etc/passwd", "/etc/passwd",
    "@model_path/", "@model_path/../Manifest.json", "@model_path/weights", "@model_path/weights/weight.bin",
    "CoreML5", "CoreML8", "main", "name", "val", "valid", "same", "same_lower", "custom", "fp16", "fp32", "int32", "int8",
    "constant", "reflect", "replicate", "border", "ALIGN_CORNERS", "DEFAULT", "LINEAR", "EXACT", "update", "add", "-1", "%s",
)  # fmt: skip
_REPEATS = (2, 2, 3, 20, 300, 5000)

# Bytes


def spoil(rng: Random, data: bytes, other: bytes) -> bytes:
    """``data`` cut, flipped, spliced with ``other``, shortened, lengthened or with another number in it."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = rng.choice(_BYTES)(rng, data, other)
    return data


def _cut(rng: Random, data: bytes, other: bytes) -> bytes:
    return data[: rng.randint(0, len(data))]


def _flip(rng: Random, data: bytes, other: bytes) -> bytes:
    spoiled = bytearray(data)
    for _ in range(min(len(data), rng.choice((1, 2, 8, 64)))):
        spoiled[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(spoiled)


def _splice(rng: Random, data: bytes, other: bytes) -> bytes:
    (start, end), (first, last) = _span(rng, data), _span(rng, other)
    return data[:start] + other[first:last] + data[end:]


def _drop(rng: Random, data: bytes, other: bytes) -> bytes:
    start, end = _span(rng, data)
    return data[:start] + data[end:]


def _repeat(rng: Random, data: bytes, other: bytes) -> bytes:
    start, end = _span(rng, data)
    return (
        data[:start]
        + data[start:end] * min(rng.choice(_REPEATS), 1 + 200_000 // (end - start + 1))
        + data[end:]
    )


def _number(rng: Random, data: bytes, other: bytes) -> bytes:
    width = rng.choice((1, 2, 4, 8))
    place = rng.randint(0, max(0, len(data) - width))
    number = (rng.choice(SIZES) + rng.choice((0, 0, -1, len(data), -len(data)))) % (1 << 8 * width)
    return data[:place] + number.to_bytes(width, rng.choice(("little", "big"))) + data[place + width :]


def _span(rng: Random, data: Sequence[Any]) -> tuple[int, int]:
    start = rng.randint(0, len(data))
    return start, min(len(data), start + rng.choice((1, 4, 16, 64, len(data))))


_BYTES = (_cut, _flip, _flip, _splice, _drop, _repeat, _number, _number)


def little(rng: Random, data: bytes, fields: Sequence[tuple[int, str]]) -> bytes:
    """``data`` with extreme numbers in some of its ``fields``: (offset, struct format)."""
    spoiled = bytearray(data)
    for _ in range(rng.choice((1, 1, 2))):
        offset, code = rng.choice(fields)
        limit = 1 << 8 * struct.calcsize(code)
        number = rng.choice((*SIZES, len(data) - 64, len(data), len(data) + 64, offset, offset + 64))
        struct.pack_into(f"<{code}", spoiled, offset, number % limit)
    return bytes(spoiled)


# JSON

_DEEP = "a place for many brackets"
_JSON = (
    None, True, False, 0, -1, 1, 1 << 31, 1 << 63, 1 << 64, 10**400, 0.5, -0.0, 1e308, [], {}, [[]], {"": {}}, [None] * 50,
    *TEXTS, "\ud800", "\udc80", "x" * 70_000, _DEEP,
)  # fmt: skip
_WRITTEN = (
    "NaN",
    "-Infinity",
    "1e999",
    "-0",
    "1E400",
    "007",
    "1.",
    ".5",
    "'x'",
    "nul",
    "9" * 5000,
    "1e-999",
    "\\u0041",
)


def spoil_json(rng: Random, data: bytes, other: bytes) -> bytes:
    """JSON with values of other types and sizes, keys renamed, lost or twice there, and brackets in heaps."""
    if rng.random() < 0.2:
        return spoil(rng, data, other)
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = _change(rng, value)
    text = json.dumps(value)
    count = rng.choice((3, 100, 900, 3000, 100_000))
    text = text.replace(json.dumps(_DEEP), rng.choice((("[", "]"), ('{"a":', "}")))[0] * count)
    if rng.random() < 0.2:
        text = re.sub(r"(?<=[:\[,] )\d+|null|true", rng.choice(_WRITTEN).replace("\\", "\\\\"), text, count=1)
    if rng.random() < 0.05:
        text = text.replace("{", '{"path": 1, "path": 2, ', 1)
    if rng.random() < 0.05:
        return rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\x00")) + text.encode()
    return text.encode(rng.choice(("utf-8",) * 9 + ("utf-16",)))


def _change(rng: Random, value: Any) -> Any:
    """``value`` with something of it changed; it is changed itself."""
    if isinstance(value, dict | list) and value and rng.random() < 0.9:
        key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        if isinstance(value[key], dict | list) and rng.random() < 0.75:
            value[key] = _change(rng, value[key])
            return value
        _change_member(rng, value, key)
        return value
    return rng.choice((rng.choice(_JSON), [value], {"a": value}, [value] * 3))


def _change_member(rng: Random, parent: Any, key: Any) -> None:
    deed = rng.choice(("replace", "replace", "replace", "drop", "copy", "wrap", "swap", "resize"))
    another = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
    member = parent[key]
    if deed == "drop":
        del parent[key]
    elif deed == "copy" and isinstance(parent, dict):
        parent[rng.choice((*TEXTS, key.upper()))] = member
    elif deed == "copy":
        parent[key:key] = [member] * rng.choice((1, 5, 200))
    elif deed == "wrap":
        parent[key] = rng.choice(([member], {"a": member}, str(member)))
    elif deed == "swap":
        parent[key], parent[another] = parent[another], member
    elif deed == "resize" and isinstance(member, int | float):
        parent[key] = rng.choice(
            (-member, member + 1, member * 3, member / 7 if member < 1 << 64 else 0.5, f"{member}")
        )
    elif deed == "resize" and isinstance(member, str):
        parent[key] = rng.choice((member[:-1], member + member, member.upper(), member + "/", "./" + member))
    else:
        parent[key] = rng.choice(_JSON)


# Protobuf, by reflection

_INTEGERS = {
    FieldDescriptor.TYPE_INT32: (-(1 << 31), (1 << 31) - 1), FieldDescriptor.TYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_UINT32: (0, (1 << 32) - 1), FieldDescriptor.TYPE_UINT64: (0, (1 << 64) - 1),
}  # fmt: skip


def spoil_message(rng: Random, message: Any, other: Any) -> None:
    """Change some fields of ``message``: numbers, texts, types, names, what nests in what."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _change_message(rng, message, other, [])


def spoil_numbers(rng: Random, tensor: Any) -> None:
    """Other elements, as many as before, for a ``TensorValue`` message."""
    kind = tensor.WhichOneof("value")
    if kind == "bytes":
        tensor.bytes.values = _flip(rng, tensor.bytes.values, b"")
    elif kind is not None:
        values = getattr(tensor, kind).values
        field = getattr(tensor, kind).DESCRIPTOR.fields_by_name["values"]
        for _ in range(min(len(values), rng.choice((1, 1, 2, 8)))):
            place = rng.randrange(len(values))
            values[place] = _scalar(rng, field, values[place])


def _change_message(rng: Random, message: Any, other: Any, above: list[Any]) -> None:
    there = message.ListFields()
    fields = message.DESCRIPTOR.fields
    if fields and (not there or rng.random() < 0.03):
        field = rng.choice(fields)
        _change_field(rng, message, field, other, above)
        return
    if not there:
        return
    field, value = rng.choice(there)
    inner = _inner(rng, field, value)
    if inner is not None and rng.random() < 0.9:
        _change_message(rng, inner, other, [*above, message])
    else:
        _change_field(rng, message, field, other, above)


def _inner(rng: Random, field: Any, value: Any) -> Any:
    """A message in the field, None when it holds none."""
    if field.message_type is None:
        return None
    if field.message_type.GetOptions().map_entry:
        inner = value[rng.choice(sorted(value))] if value else None
        return inner if hasattr(inner, "ListFields") else None
    return value if not field.is_repeated else rng.choice(value) if value else None


def _change_field(rng: Random, message: Any, field: Any, other: Any, above: list[Any]) -> None:
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        _change_map(rng, value, field.message_type.fields_by_name["value"])
    elif field.message_type is not None:
        _change_messages(rng, message, field, other, above)
    elif field.is_repeated:
        items = list(value)
        start, end = _span(rng, items)
        middle = items[start:end]
        others = [_scalar(rng, field, item) for item in middle]
        chosen = rng.choice(
            (others, others, others, [], middle * rng.choice(_REPEATS), [_scalar(rng, field)], middle[::-1])
        )
        del value[:]
        value.extend([*items[:start], *chosen, *items[end:]][:100_000])
    else:
        setattr(message, field.name, _scalar(rng, field, value))


def _change_map(rng: Random, entries: Any, field: Any) -> None:
    names = sorted(entries)
    deed = rng.choice(("drop", "copy", "new"))
    if names and deed == "drop":
        del entries[rng.choice(names)]
    elif names and deed == "copy":
        source, target = rng.choice(names), rng.choice((*names, *TEXTS))
        if field.message_type is None:
            entries[target] = entries[source]
        elif source != target:
            entries[target].CopyFrom(entries[source])
    elif field.message_type is not None:
        entries[rng.choice((*TEXTS, "x", "shape", "axes", "pad", "weight"))].SetInParent()
    else:
        entries[rng.choice(TEXTS)] = _scalar(rng, field)


def _change_messages(rng: Random, message: Any, field: Any, other: Any, above: list[Any]) -> None:
    kind = field.message_type.full_name
    pool = [m for m in above if m.DESCRIPTOR.full_name == kind] + list(_found(rng, other, kind))
    replacement = None
    if pool:
        replacement = type(pool[0])()
        replacement.CopyFrom(rng.choice(pool))
    value = getattr(message, field.name)
    if not field.is_repeated:
        if replacement is not None and rng.random() < 0.6:
            value.CopyFrom(replacement)
        elif rng.random() < 0.5:
            value.SetInParent()
        else:
            message.ClearField(field.name)
        return
    items = list(value)
    deed = rng.choice(("drop", "repeat", "add", "empty", "swap"))
    if deed == "drop" and items:
        del value[rng.randrange(len(items))]
    elif deed == "repeat" and items:
        value.extend([rng.choice(items)] * rng.choice(_REPEATS[:-1]))
    elif deed == "add" and replacement is not None:
        value.append(replacement)
    elif deed == "swap" and len(items) > 1:
        one, two = rng.sample(range(len(items)), 2)
        kept = type(items[one])()
        kept.CopyFrom(items[one])
        value[one].CopyFrom(items[two])
        value[two].CopyFrom(kept)
    else:
        value.add()


def _found(rng: Random, message: Any, kind: str) -> Any:
    """Messages of type ``kind`` met on random ways down."""
    for _ in range(6):
        at = message
        while at is not None:
            if at.DESCRIPTOR.full_name == kind:
                yield at
            inner = [i for f, v in at.ListFields() if (i := _inner(rng, f, v)) is not None]
            at = rng.choice(inner) if inner else None


def _scalar(rng: Random, field: Any, value: Any = None) -> Any:
    if field.type in _INTEGERS:
        low, high = _INTEGERS[field.type]
        near = [value + 1, value - 1, -value, value * 2] if isinstance(value, int) else []
        return min(high, max(low, rng.choice((*SIZES, *(-s for s in SIZES), *near, *range(10)))))
    if field.type == FieldDescriptor.TYPE_ENUM:
        return rng.choice([*(v.number for v in field.enum_type.values), 45])
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return rng.choice(FLOATS)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return rng.random() < 0.5
    if field.type == FieldDescriptor.TYPE_BYTES:
        return spoil(rng, value or b"\0\0", b"\xff" * 8)
    return rng.choice((*TEXTS, f"{value}{value}", f"{value}_0"))


# MIL text

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[A-Za-z_][\w.]*|[-+]?[0-9][\w.+-]*|->|\s+|.', re.DOTALL)
_WORDS = (
    b"0", b"-1", b"1", b"7", b"2147483647", b"18446744073709551615", b"-9223372036854775808", b"9" * 50, b"9" * 5000,
    b"1e999", b"0x1p+1", b"0x1p99999", b"0x1.fffffffffffffp-1074", b"inf", b"nan", b"-inf", b"0x", b"1.2.3", b"true",
    b'""', b'"\\"', b'"\\x"', b'"\\n"', b'"' + b"x" * 5000 + b'"', b'"\xff"', b'"\x00"', b'"../../etc/passwd"', b'"',
    b'"@model_path/weights"', b"x" * 5000, b"\x00", b"\xff", b";", b",", b"?", b"->", b"=", b"tensor", b"list", b"tuple",
    b"dict", b"state", b"fp16", b"int4", b"uint1", b"bf16", b"fp8e4m3fn", b"string", b"bool", b"int32", b"uint64",
    b"BLOBFILE", b"func", b"program", b"cond", b"while_loop", b"fill", b"tile", b"const", b"main", b"ios15", b"ios99",
)  # fmt: skip
_PAIRS = (
    (b"(", b")"), (b"[", b"]"), (b"{", b"}"), (b"<", b">"), (b"list<", b", 1>"), (b"tuple<", b">"), (b"state<", b">"),
    (b"dict<string, ", b">"), (b"string(BLOBFILE(path = ", b""), (b"uint64(BLOBFILE(offset = ", b"))"), (b"(", b""), (b"[", b""), (b"", b")"), (b"() {", b"} -> ()"),
)  # fmt: skip


_DEEDS = (*("like",) * 10, *("word",) * 3, "drop", "repeat", "swap", "wrap", "graft")


def spoil_text(rng: Random, data: bytes, other: bytes) -> bytes:
    """MIL text with words lost, repeated, swapped, taken from ``other`` and wrapped in brackets."""
    if rng.random() < 0.15:
        return spoil(rng, data, other)
    words = _TOKEN.findall(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        _change_words(rng, words, other)
    return b"".join(words)


def _change_words(rng: Random, words: list[bytes], other: bytes) -> None:
    solid = [i for i, word in enumerate(words) if not word.isspace()]
    if not solid:
        return
    place, another = rng.choice(solid), rng.choice(solid)
    end = min(len(words), place + rng.choice((1, 1, 3, 12, 60)))
    deed = rng.choice(_DEEDS)
    if deed == "word":
        words[place] = rng.choice(_WORDS)
    elif deed == "like":  # a number for a number, a name for a name
        first = words[place][:1]
        alike = [
            w
            for w in set(_TOKEN.findall(other))
            if w[:1].isdigit() == first.isdigit() and w[:1].isalpha() == first.isalpha()
        ]
        words[place] = rng.choice(sorted(alike) or _WORDS)
    elif deed == "drop":
        del words[place:end]
    elif deed == "repeat":
        words[place:place] = words[place:end] * rng.choice(_REPEATS[:-1])
    elif deed == "swap":
        words[place], words[another] = words[another], words[place]
    elif deed == "wrap":
        opening, closing = rng.choice(_PAIRS)
        times = rng.choice(_REPEATS)
        words[place:end] = [opening * times, *words[place:end], closing * times]
    else:
        grafted = _TOKEN.findall(other)
        start, stop = _span(rng, grafted)
        words[place:place] = grafted[start:stop]


Mutator = Callable[[Random, bytes, bytes], bytes]
