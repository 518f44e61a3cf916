"""The words of MIL text, one at a time, each with its place.

Every pattern is possessive: no text makes the search go back, so reading takes time linear in the
length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NoReturn, TypeVar

from coreproof.errors import PackageError

MAX_NAME = 4096  # bytes
MAX_NUMBER = 64
MAX_STRING = 1 << 20

NAME, NUMBER, STRING, SIGN, END = 1, 2, 3, 4, 0
_KINDS = {NAME: "name", NUMBER: "number", STRING: "string", SIGN: "sign", END: "end of the text"}
_LONGEST = {NAME: MAX_NAME, NUMBER: MAX_NUMBER, STRING: MAX_STRING, SIGN: 2}
_TOKEN = re.compile(
    rb"[ \t\r\n]*+(?:"
    rb"([A-Za-z_][A-Za-z0-9_.]*+)"
    rb"|([+-]?+(?:0[xX][0-9A-Fa-f.]++(?:[pP][+-]?+[0-9]++)?+|[0-9][0-9.]*+(?:[eE][+-]?+[0-9]++)?+|(?<=[+-])(?:inf|nan)))"
    rb'|"([^"\\]*+(?:\\.[^"\\]*+)*+)"'
    rb"|(->|[()\[\]{}<>=,;?])"
    rb")",
    re.DOTALL,
)
_BLANK = re.compile(rb"[ \t\r\n]*+")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES = {'"': '"', "\\": "\\", "'": "'", "n": "\n", "r": "\r", "t": "\t"}
_SHOWN = 40  # bytes of a token that a message quotes

T = TypeVar("T")


class Lexer:
    """A cursor over MIL text: ``kind`` and ``text`` are the present token's."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._start = self._stop = 0
        self.kind = END
        self.text = b""
        self.advance()

    def advance(self) -> None:
        """Go to the next token. Raises PackageError for what is no token, or too long a one."""
        match = _TOKEN.match(self._data, self._stop)
        if match is None:
            self._end()
            return
        kind = match.lastindex or END
        self._start, stop = match.span(kind)
        if stop - self._start > _LONGEST[kind]:
            self.fail(f"a {_KINDS[kind]} of {stop - self._start} bytes, at most {_LONGEST[kind]} are allowed")
        self.kind, self.text, self._stop = kind, match[kind], match.end()

    def at(self, sign: bytes) -> bool:
        """Whether the present token is the sign ``sign``."""
        return self.text == sign and self.kind == SIGN

    def skip(self, sign: bytes) -> bool:
        """Go past the sign ``sign`` if it is the present token; whether it was."""
        found = self.at(sign)
        if found:
            self.advance()
        return found

    def expect(self, sign: bytes) -> None:
        """Go past the sign ``sign``. Raises PackageError when the present token is another."""
        if not self.skip(sign):
            self.expected(repr(sign.decode()))

    def name(self, what: str = "a name") -> str:
        """Go past a name and return it. Raises PackageError when the present token is none."""
        if self.kind != NAME:
            self.expected(what)
        text = self.text.decode()
        self.advance()
        return text

    def word(self, word: bytes) -> None:
        """Go past the name ``word``. Raises PackageError when the present token is another."""
        if self.kind != NAME or self.text != word:
            self.expected(repr(word.decode()))
        self.advance()

    def string(self) -> str:
        r"""Go past a string and return what it says; ``\"``, ``\\``, ``\'``, ``\n``, ``\r`` and ``\t`` are
        known. Raises PackageError when the present token is none."""
        if self.kind != STRING:
            self.expected("a string")
        try:
            text = self.text.decode("utf-8")
        except UnicodeDecodeError:
            self.fail("a string that is not UTF-8")
        if "\\" in text:
            text = _ESCAPE.sub(self._unescape, text)
        self.advance()
        return text

    def number(self, what: str = "a number") -> bytes:
        """Go past a number and return its text. Raises PackageError when the present token is none."""
        if self.kind != NUMBER:
            self.expected(what)
        text = self.text
        self.advance()
        return text

    def listed(self, opening: bytes, closing: bytes, read: Callable[[], T]) -> list[T]:
        """What ``read`` reads, any number of times with commas between, in two signs."""
        self.expect(opening)
        found: list[T] = []
        if self.skip(closing):
            return found
        found.append(read())
        while self.skip(b","):
            found.append(read())
        self.expect(closing)
        return found

    def expected(self, what: str) -> NoReturn:
        """Raise PackageError: the present token is not ``what`` it should be."""
        if self.kind == END:
            self.fail(f"expected {what}, found the end of the text")
        shown = self.text[:_SHOWN].decode("utf-8", "replace") + ("..." if len(self.text) > _SHOWN else "")
        self.fail(f"expected {what}, found {_KINDS[self.kind]} {shown!r}")

    def fail(self, what: str) -> NoReturn:
        """Raise PackageError with the present token's place."""
        before = self._data.rfind(b"\n", 0, self._start) + 1
        line = self._data.count(b"\n", 0, self._start) + 1
        column = len(self._data[before : self._start].decode("utf-8", "replace")) + 1
        raise PackageError(f"line {line}, column {column}: {what}")

    def _end(self) -> None:
        blank = _BLANK.match(self._data, self._stop)
        self._start = self._stop = blank.end() if blank else self._stop
        if self._stop < len(self._data):
            byte = self._data[self._stop : self._stop + 1]
            if byte == b'"':
                self.fail("a string without its closing '\"'")
            self.fail(f"unexpected character {byte.decode('latin-1')!r}")
        self.kind, self.text = END, b""

    def _unescape(self, match: re.Match[str]) -> str:
        if match[1] not in _ESCAPES:
            self.fail(f"unknown escape {match[0]!r} in a string")
        return _ESCAPES[match[1]]
