"""Read a MIL program from its text form, the ``model.mil`` of a compiled model (``.mlmodelc``).

Apple publishes no grammar. This one is what compiled models show (coremlc 3500 to 3600, which write
``program(1.0)`` and ``program(1.3)``)::

    program    = "program" "(" version ")" [ attributes ] "{" { function } "}"
    function   = "func" name "<" opset ">" "(" [ typed { "," typed } ] ")" [ attributes ] body ";"
    body       = "{" { operation } "}" "->" "(" [ name { "," name } ] ")"
    operation  = [ typed { "," typed } "=" ] type-of-op "(" [ argument { "," argument } ] ")"
                 [ attributes ] { block } ";"
    argument   = name "=" ( binding | "(" [ binding { "," binding } ] ")" )
    binding    = name | value
    attributes = "[" [ name "=" value { "," name "=" value } ] "]"
    block      = [ name ] "(" [ typed { "," typed } ] ")" body
    typed      = type name
    type       = dtype | "tensor" "<" dtype "," "[" [ dimension { "," dimension } ] "]" ">"
               | "list" "<" type "," dimension ">" | "tuple" "<" [ type { "," type } ] ">"
               | "dict" "<" type "," type ">" | "state" "<" type ">"
    dimension  = digits | "?"
    value      = type "(" ( literal | "BLOBFILE" "(" "path" "=" value "," "offset" "=" value ")" ) ")"
    literal    = number | "true" | "false" | string
               | "[" ... "]"  for lists, and for tensors nested as the shape says
               | "(" literal { "," literal } ")"  for tuples
               | "{" [ "{" literal "," literal "}" { "," ... } ] "}"  for dictionaries

``version`` is 1 or starts with ``1.``. ``dtype`` is a name of :class:`~coreproof.mil.types.DType`; a bare
one is a scalar, the same as ``tensor<dtype, []>``. Floats are written in C's hexadecimal form, which is
exact, or as ``inf`` and ``nan``; a decimal number is rounded to the nearest. The sign and payload of NaN
are not in the text.

How the compiler writes the blocks of ``cond`` and ``while_loop``, a tensor of unknown rank and characters
such as ``"`` in a string has not been seen: blocks are read as written above, strings with C's
escapes, and the rank must be known.

The program is the one that the protobuf reader gives for the same model, but for what the compiler
changed: it sorts a function's inputs by name, adds to ``buildInfo``, and writes flexible shapes into the
function attribute ``FlexibleShapeInformation``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from coreproof.errors import PackageError
from coreproof.files import read_bytes
from coreproof.mil.from_proto import MAX_BLOCK_DEPTH, MAX_ELEMENTS, MAX_OPERATIONS, MAX_RANK
from coreproof.mil.lexer import END, NAME, Lexer
from coreproof.mil.literals import read_literal
from coreproof.mil.program import Binding, Block, Function, NamedType, Operation, Program, Ref, Value
from coreproof.mil.types import DictType, DType, ListType, StateType, TensorType, TupleType, ValueType

# A graph of ten thousand operations takes 6 MB; weights are kept elsewhere.
MAX_TEXT_BYTES = 64 << 20
MAX_TYPE_DEPTH = 16

OPSETS = {"ios15": "CoreML5", "ios16": "CoreML6", "ios17": "CoreML7", "ios18": "CoreML8", "ios26": "CoreML9"}
_DTYPES = {dtype.value: dtype for dtype in DType}

T = TypeVar("T")


def read_text(path: Path) -> Program:
    """The program in the MIL text file ``path``. Raises PackageError as :func:`parse_program`, and for a
    file that is larger than MAX_TEXT_BYTES."""
    text = read_bytes(path, MAX_TEXT_BYTES)
    try:
        return parse_program(text)
    except PackageError as error:
        raise PackageError(f"{path}: {error}") from None


def parse_program(text: bytes) -> Program:
    """The program that MIL ``text`` in UTF-8 says. Functions come sorted by name, the arguments and
    attributes of an operation too, as from protobuf.

    Raises PackageError naming line, column and what was expected there.
    """
    return _Parser(text).program()


class _Parser:
    """Reads one program; counts its operations on the way."""

    def __init__(self, text: bytes) -> None:
        self._lexer = Lexer(text)
        self._operations = 0

    def program(self) -> Program:
        lexer = self._lexer
        lexer.word(b"program")
        lexer.expect(b"(")
        if lexer.text.split(b".")[0] != b"1":
            lexer.expected("a version 1")
        lexer.number()
        lexer.expect(b")")
        attributes = self._attributes()
        lexer.expect(b"{")
        functions: dict[str, Function] = {}
        while not lexer.skip(b"}"):
            function = self._function()
            if function.name in functions:
                lexer.fail(f"a second function {function.name!r}")
            functions[function.name] = function
        if lexer.kind != END:
            lexer.expected("the end of the text")
        return Program(1, dict(sorted(functions.items())), attributes)

    def _function(self) -> Function:
        lexer = self._lexer
        lexer.word(b"func")
        name = lexer.name("the function's name")
        lexer.expect(b"<")
        opset = lexer.name("an opset such as ios18")
        lexer.expect(b">")
        inputs = tuple(self._lexer.listed(b"(", b")", self._typed))
        attributes = self._attributes()
        operations, outputs = self._body(depth=0)
        lexer.expect(b";")
        return Function(name, inputs, OPSETS.get(opset, opset), Block((), outputs, operations), attributes)

    def _body(self, depth: int) -> tuple[tuple[Operation, ...], tuple[str, ...]]:
        lexer = self._lexer
        if depth > MAX_BLOCK_DEPTH:
            lexer.fail(f"blocks nested more than {MAX_BLOCK_DEPTH} deep")
        lexer.expect(b"{")
        operations: list[Operation] = []
        while not lexer.skip(b"}"):
            operations.append(self._operation(depth))
        lexer.expect(b"->")
        return tuple(operations), tuple(lexer.listed(b"(", b")", lexer.name))

    def _operation(self, depth: int) -> Operation:
        lexer = self._lexer
        self._operations += 1
        if self._operations > MAX_OPERATIONS:
            lexer.fail(f"more than {MAX_OPERATIONS} operations")
        outputs: list[NamedType] = []
        kind = lexer.name("an operation or '}'")
        if not lexer.at(b"("):  # an op without outputs starts with its type
            outputs.append(self._typed(kind))
            while lexer.skip(b","):
                outputs.append(self._typed())
            lexer.expect(b"=")
            kind = lexer.name("the type of an operation")
        inputs = self._unique(self._lexer.listed(b"(", b")", lambda: self._assigned(self._bindings)))
        attributes = self._attributes()
        blocks: list[Block] = []
        while not lexer.skip(b";"):
            blocks.append(self._block(depth + 1))
        return Operation(kind, inputs, tuple(outputs), attributes, tuple(blocks))

    def _block(self, depth: int) -> Block:
        if self._lexer.kind == NAME:
            self._lexer.advance()
        elif not self._lexer.at(b"("):
            self._lexer.expected("a block or ';'")
        inputs = tuple(self._lexer.listed(b"(", b")", self._typed))
        operations, outputs = self._body(depth)
        return Block(inputs, outputs, operations)

    def _attributes(self) -> dict[str, Value]:
        if not self._lexer.at(b"["):
            return {}
        return self._unique(self._lexer.listed(b"[", b"]", lambda: self._assigned(self._value)))

    def _assigned(self, read: Callable[[], T]) -> tuple[str, T]:
        name = self._lexer.name()
        self._lexer.expect(b"=")
        return name, read()

    def _unique(self, pairs: list[tuple[str, T]]) -> dict[str, T]:
        found: dict[str, T] = {}
        for name, content in pairs:
            if name in found:
                self._lexer.fail(f"{name!r} was given twice before this")
            found[name] = content
        return dict(sorted(found.items()))

    def _bindings(self) -> tuple[Binding, ...]:
        if self._lexer.at(b"("):
            return tuple(self._lexer.listed(b"(", b")", self._binding))
        return (self._binding(),)

    def _binding(self) -> Binding:
        name = self._lexer.name("a value's name, or a value")
        # Only a type is followed by its value or by what it is made of.
        return self._value(name) if self._lexer.at(b"(") or self._lexer.at(b"<") else Ref(name)

    def _value(self, start: str | None = None) -> Value:
        return read_literal(self._lexer, self._type(start), self._value)

    def _typed(self, start: str | None = None) -> NamedType:
        type_ = self._type(start)
        return NamedType(self._lexer.name("the value's name"), type_)

    def _type(self, start: str | None = None, depth: int = 0) -> ValueType:
        """A type; ``start`` is its first name, where that has been read."""
        lexer = self._lexer
        if depth > MAX_TYPE_DEPTH:
            lexer.fail(f"types nested more than {MAX_TYPE_DEPTH} deep")
        name = start or lexer.name("a type")
        if name in _DTYPES:
            return TensorType(_DTYPES[name])
        if name not in ("tensor", "list", "tuple", "dict", "state"):
            lexer.fail(f"expected a type before this, found {name!r}")
        if name == "tuple":
            return TupleType(tuple(self._lexer.listed(b"<", b">", lambda: self._type(depth=depth + 1))))
        lexer.expect(b"<")
        if name == "tensor":
            made: ValueType = self._tensor_type()
        else:
            inner = self._type(depth=depth + 1)
            if name == "state":
                if not isinstance(inner, TensorType):
                    lexer.fail(f"a state of {inner}, expected a tensor")
                made = StateType(inner)
            else:
                lexer.expect(b",")
                made = (
                    ListType(inner, self._dimension())
                    if name == "list"
                    else DictType(inner, self._type(depth=depth + 1))
                )
        lexer.expect(b">")
        return made

    def _tensor_type(self) -> TensorType:
        lexer = self._lexer
        dtype = _DTYPES.get(lexer.name("an element type"))
        if dtype is None:
            lexer.fail("an element type that is not known before this")
        lexer.expect(b",")
        shape = tuple(self._lexer.listed(b"[", b"]", self._dimension))
        elements = 1
        for dim in shape[:MAX_RANK]:
            elements *= dim or 1
        if len(shape) > MAX_RANK or elements > MAX_ELEMENTS:
            lexer.fail(f"a tensor of more than {MAX_ELEMENTS} elements, or of rank over {MAX_RANK}")
        return TensorType(dtype, shape)

    def _dimension(self) -> int | None:
        if self._lexer.skip(b"?"):
            return None
        text = self._lexer.number("a size or '?'")
        if not text.isdigit():
            self._lexer.fail(f"expected a size before this, found {text.decode()!r}")
        size = int(text)
        if size > MAX_ELEMENTS:
            self._lexer.fail(f"a size of more than {MAX_ELEMENTS}")
        return size
