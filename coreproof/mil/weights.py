"""The weights that a program refers to, found in one walk over it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from coreproof.mil.program import Blob, Operation, Program


@dataclass(frozen=True, slots=True)
class Reference:
    """One place that refers to a weight: ``argument`` names an op's argument or attribute, or without
    ``operation`` an attribute of the function, without ``function`` one of the program."""

    blob: Blob
    argument: str
    function: str | None = None
    operation: Operation | None = None

    @property
    def name(self) -> str:
        """What the weight is called: a const's own name, else the op's and the argument's."""
        if self.operation is None:
            return self.argument
        if self.operation.type == "const":
            return self.operation.outputs[0].name if self.operation.outputs else self.operation.name
        return f"{self.operation.name}.{self.argument}"

    @property
    def where(self) -> str:
        """The place in words, for messages."""
        if self.function is None:
            return f"program attribute {self.argument!r}"
        if self.operation is None:
            return f"function {self.function!r}, attribute {self.argument!r}"
        return (
            f"function {self.function!r}, op {self.operation.name!r} ({self.operation.type}), "
            f"argument {self.argument!r}"
        )


def references(program: Program) -> Iterator[Reference]:
    """Every reference to a weight file, in program order."""
    for name, value in program.attributes.items():
        if isinstance(value, Blob):
            yield Reference(value, name)
    for function in program.functions.values():
        for operation in function.block.walk():
            for name, blob in operation.blobs():
                yield Reference(blob, name, function.name, operation)


def weights(program: Program) -> Iterator[tuple[str, Blob]]:
    """(name, blob) of every weight, by file and offset; one that several ops share comes once, under
    its first name."""
    found: dict[tuple[str, int], tuple[str, Blob]] = {}
    for reference in references(program):
        blob = reference.blob
        found.setdefault((blob.file, blob.offset), (reference.name, blob))
    for place in sorted(found):
        yield found[place]
