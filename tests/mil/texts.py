"""Short programs as MIL text."""

from __future__ import annotations

from coreproof.mil.from_text import parse_program
from coreproof.mil.program import Blob, Function, Immediate

HEAD = 'program(1.3)\n[buildInfo = dict<string, string>({{"a", "b"}})]\n{\n    func main<ios18>'


def wrap(operations: str, signature: str = "(tensor<fp32, [1, 4]> x)", outputs: str = "y") -> bytes:
    return f"{HEAD}{signature} {{\n        {operations}\n    }} -> ({outputs});\n}}\n".encode()


def main(text: bytes) -> Function:
    return parse_program(text).functions["main"]


def constant(value: str) -> Immediate | Blob:
    (operation,) = main(wrap(f"fp16 y = const()[val = {value}];")).block.operations
    return operation.attributes["val"]
