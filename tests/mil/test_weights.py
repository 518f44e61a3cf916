"""One walk finds every weight, with its place and its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from coreproof.mil.program import Blob, Block, Function, Immediate, NamedType, Operation, Program, Ref
from coreproof.mil.types import DType, TensorType
from coreproof.mil.weights import references, weights
from coreproof.package.reader import open_package

ONE = TensorType(DType.FP32, (1,))


def blob(offset: int, file: str = "@model_path/weights/weight.bin") -> Blob:
    return Blob(ONE, file, offset)


def const(name: str, offset: int) -> Operation:
    text = Immediate(TensorType(DType.STRING), f"op_{name}")
    return Operation("const", {}, (NamedType(name, ONE),), {"name": text, "val": blob(offset)})


def test_places_and_names() -> None:
    inner = Operation("add", {"x": (Ref("w"),), "y": (blob(192),)}, (NamedType("a", ONE),))
    branch = Operation("cond", {}, (NamedType("c", ONE),), {}, (Block((), ("a",), (inner, const("v", 320))),))
    joined = Operation("concat", {"values": (blob(128), Ref("w"), blob(64))}, (NamedType("j", ONE),))
    block = Block((), ("j",), (const("w", 64), branch, joined))
    functions = {n: Function(n, (), "CoreML8", block) for n in ("f", "g")}
    program = Program(1, functions, {"extra": blob(64, "@model_path/a.bin"), "text": Immediate(ONE, None)})
    found = list(references(program))
    names = ["w", "a.y", "v", "j.values", "j.values"]
    assert [r.name for r in found] == ["extra", *names, *names]
    assert [r.blob.offset for r in found] == [64, *[64, 192, 320, 128, 64] * 2]
    assert [r.where for r in found[:3]] == [
        "program attribute 'extra'",
        "function 'f', op 'op_w' (const), argument 'val'",
        "function 'f', op 'a' (add), argument 'y'",
    ]
    assert [(n, b.file[-5:], b.offset) for n, b in weights(program)] == [
        ("extra", "a.bin", 64),
        ("w", "t.bin", 64),
        ("j.values", "t.bin", 128),
        ("a.y", "t.bin", 192),
        ("v", "t.bin", 320),
    ]


def test_every_entry_of_a_weight_file_is_found(built: Callable[[str], Path]) -> None:
    """What coremltools stored, no more and no less: the file's header counts its entries."""
    for name in ("conv", "loop", "constexpr_ios16", "constexpr_lut", "constexpr_sparse", "wide_weights"):
        opened = open_package(built(name))
        (file,) = {b.file for _, b in weights(opened.program)}
        found = [b for _, b in weights(opened.program)]
        assert 0 < len(found) == opened.weights.file(file).count, name
        assert [b.offset for b in found] == sorted({b.offset for b in found})
