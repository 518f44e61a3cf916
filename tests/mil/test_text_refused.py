"""MIL text that nobody should have written: what is wrong is named with its place, in little time."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import numpy as np
import pytest
from pair import PUBLISHED
from texts import constant, main, wrap

from coreproof.errors import PackageError
from coreproof.mil import from_text, lexer
from coreproof.mil.from_text import parse_program, read_text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "line 1, column 1: expected 'program', found the end of the text"),
        (b"  \n ", "line 2, column 2: expected 'program', found the end of the text"),
        (b"model(1.0)", "line 1, column 1: expected 'program', found name 'model'"),
        (b"program(2.0) {}", "line 1, column 9: expected a version 1, found number '2.0'"),
        (b"program(x) {}", "line 1, column 9: expected a version 1, found name 'x'"),
        (b"program(1.0)", "line 1, column 13: expected '{', found the end of the text"),
        (b"program(1.0) {} x", "line 1, column 17: expected the end of the text, found name 'x'"),
        (b"program(1.0) {\x00}", r"line 1, column 15: unexpected character '\x00'"),
        (b"program(1.0) { func f ios18>", "line 1, column 23: expected '<', found name 'ios18'"),
        (b'program(1.0) [a = string("b)] {}', "line 1, column 26: a string without its closing"),
        (b'program(1.0) [a = string("\\q")] {}', r"line 1, column 27: unknown escape '\\q' in a string"),
        (b'program(1.0) [a = string("\xff")] {}', "line 1, column 27: a string that is not UTF-8"),
        (b'program(1.0) [a = string(x)] {}', "expected a string, found name 'x'"),
        (b"program(1.0) [a = int32(1), a = int32(2)] {}", "'a' was given twice"),
        (b"program(1.0) { func f<i>() {} -> (); func f<i>() {} -> (); }", "a second function 'f'"),
        (wrap("fp16 y = relu(x = x)"), "line 6, column 5: expected a block or ';', found sign '}'"),
        (wrap("fp16 y relu(x = x);"), "line 5, column 16: expected '=', found name 'relu'"),
        (wrap("fp16 y = relu(x x);"), "expected '=', found name 'x'"),
        (wrap("fp16 y = relu(x = );"), "expected a value's name, or a value, found sign ')'"),
        (wrap("fp16 y = relu(x = x, x = x);"), "'x' was given twice"),
        (wrap("fp16 y = relu(x = (x, x);"), "expected ')', found sign ';'"),
        (wrap("fp17 y = relu(x = x);"), "expected a type before this, found 'fp17'"),
        (wrap("fp16 = relu(x = x);"), "expected the value's name, found sign '='"),
        (wrap("tensor<fp17, [1]> y = relu(x = x);"), "an element type that is not known"),
        (wrap("tensor<fp16> y = relu(x = x);"), "expected ',', found sign '>'"),
        (wrap("tensor<fp16, [-1]> y = relu(x = x);"), "expected a size before this, found '-1'"),
        (wrap("tensor<fp16, [1.5]> y = relu(x = x);"), "expected a size before this, found '1.5'"),
        (wrap("tensor<fp16, [x]> y = relu(x = x);"), "expected a size or '?', found name 'x'"),
        (wrap(f"tensor<fp16, [{2**31}, 2]> y = relu(x = x);"), "more than 2147483648 elements"),
        (wrap(f"tensor<fp16, [0, {2**31}, {2**31}]> y = relu(x = x);"), "more than 2147483648 elements"),
        (wrap(f"tensor<fp16, [0, {2**63}]> y = relu(x = x);"), "a size of more than 2147483648"),
        (wrap(f"list<fp16, {10**30}> y = relu(x = x);"), "a size of more than 2147483648"),
        (wrap(f"tensor<fp16, [{', '.join('1' * 33)}]> y = relu(x = x);"), "or of rank over 32"),
        (wrap("state<string> y, state<list<string, 1>> z = f();"), "a state of list<string[], 1>, expected a tensor"),
        (wrap("a(x = x)[name = x];"), "expected a type before this, found 'x'"),
        (wrap("fp16 y = cond() { } -> ();"), "expected a block or ';', found sign '{'"),
        (wrap("fp16 y = cond() () { };"), "expected '->', found sign ';'"),
    ],
)  # fmt: skip
def test_what_is_no_program(text: bytes, message: str) -> None:
    with pytest.raises(PackageError) as caught:
        parse_program(text)
    assert message in str(caught.value)
    assert re.match(r"line \d+, column \d+: ", str(caught.value))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("fp16(65520)", "a number that a fp16 cannot hold"),
        ("fp32(1e39)", "a number that a fp32 cannot hold"),
        ("fp64(1e309)", "1e309 is too large for a fp64"),
        ("fp64(0x1p+1024)", "0x1p+1024 is no number that a fp64 holds"),
        ("fp64(0x1p+99999999999999999999)", "is no number that a fp64 holds"),
        ("fp32(0x1.8.8p+0)", "0x1.8.8p+0 is no number"),
        ("fp32(1.2.3)", "1.2.3 is no number"),
        ('fp32("inf")', "expected a number for a fp32, found string 'inf'"),
        ("fp32(true)", "expected a number for a fp32, found name 'true'"),
        ("bf16(0.1)", "a number that a bf16 cannot hold"),
        ("fp8e5m2(1000000)", "a number that a fp8e5m2 cannot hold"),
        ("fp8e4m3fn(inf)", "a number that a fp8e4m3fn cannot hold"),
        ("int8(128)", "128 for a int8, which holds -128 to 127"),
        ("uint64(-1)", "-1 for a uint64, which holds 0 to 18446744073709551615"),
        ("uint3(8)", "8 for a uint3, which holds 0 to 7"),
        ("int4(-9)", "-9 for a int4, which holds -8 to 7"),
        ("int32(1.0)", "expected a whole number for a int32, found number '1.0'"),
        ("int32(0x10)", "expected a whole number for a int32, found number '0x10'"),
        ("int32(+-1)", "unexpected character '+'"),
        ("bool(1)", "expected 'true' or 'false', found number '1'"),
        ("tensor<int32, [2]>(1)", "expected '[', found number '1'"),
        ("tensor<int32, [2]>([1])", "1 elements in dimension 0 of a int32[2], expected 2"),
        ("tensor<int32, [2]>([1, 2, 3])", "expected ']', found sign ','"),
        ("tensor<int32, [2]>([1 2])", "expected ']', found number '2'"),
        ("tensor<int32, [2, 1]>([[1], [2, 3]])", "expected ']', found sign ','"),
        ("tensor<int32, [?]>([1])", "an immediate value of the open shape int32[?]"),
        ("list<tensor<uint4, [?]>, 1>([[1]])", "an immediate value of the open shape uint4[?]"),
        ("list<string, 2>([\"a\"])", "1 values for a list<string[], 2>"),
        ("tuple<string, int32>((\"a\"))", "expected ',', found sign ')'"),
        ("tuple<string>((\"a\", 1))", "expected ')', found sign ','"),
        ("dict<string, int32>({{\"a\"}})", "expected ',', found sign '}'"),
        ("state<fp16>(1)", "a value of type state<fp16[]> cannot be written in a program"),
        ("list<string, 1>(BLOBFILE(path = string(\"a\"), offset = uint64(1)))", "cannot be in a weight file"),
        ("tensor<fp16, [?]>(BLOBFILE(path = string(\"a\"), offset = uint64(1)))", "cannot be in a weight file"),
        ("fp16(BLOBFILE(offset = uint64(1), path = string(\"a\")))", "expected 'path', found name 'offset'"),
        ("fp16(BLOBFILE(path = string(\"a\"), offset = int32(1)))", "are a string and a uint64, found a int32[]"),
        ("fp16(BLOBFILE(path = int32(1), offset = uint64(1)))", "are a string and a uint64, found a int32[]"),
    ],
)  # fmt: skip
def test_what_is_no_value(value: str, message: str) -> None:
    with pytest.raises(PackageError) as caught:
        constant(value)
    assert message in str(caught.value)
    assert re.match(r"line 5, column \d+: ", str(caught.value))


def test_columns_count_characters() -> None:
    with pytest.raises(PackageError, match=r"^line 2, column 19: expected '\]'"):
        parse_program('program(1.0)\n[a = string("✓é") b] {}'.encode())


def test_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for limit, kind, token in (
        (lexer.MAX_NAME, "name", "n{}"),
        (lexer.MAX_NUMBER, "number", "0{}"),
        (lexer.MAX_STRING, "string", '"s{}"'),
    ):
        fits, over = (token.format("0" * (limit - 1 + n)).encode() for n in (0, 1))
        for text, message in (
            (fits, "expected 'program'"),
            (over, f"a {kind} of {limit + 1} bytes, at most"),
        ):
            with pytest.raises(PackageError, match=message):
                parse_program(text)
    deep = "list<" * from_text.MAX_TYPE_DEPTH + "string" + ", 1>" * from_text.MAX_TYPE_DEPTH
    main(wrap(f"{deep} y = f();"))
    with pytest.raises(PackageError, match="types nested more than 16 deep"):
        main(wrap(f"list<{deep}, 1> y = f();"))
    nested = ""
    for _ in range(from_text.MAX_BLOCK_DEPTH):
        nested = f"f() () {{ {nested} }} -> ();"
    main(wrap(nested))
    with pytest.raises(PackageError, match="blocks nested more than 16 deep"):
        main(wrap(f"f() () {{ {nested} }} -> ();"))
    monkeypatch.setattr(from_text, "MAX_OPERATIONS", 2)
    main(wrap("f(); g();"))
    with pytest.raises(PackageError, match="more than 2 operations"):
        main(wrap("f() () { g(); h(); } -> ();"))
    monkeypatch.setattr(from_text, "MAX_TEXT_BYTES", 30)
    (tmp_path / "long.mil").write_bytes(b"program(1.0) {}" + b" " * 16)
    with pytest.raises(PackageError, match="larger than the 30 bytes allowed"):
        read_text(tmp_path / "long.mil")


@pytest.mark.parametrize(
    "start",
    [
        b"\\" * 9,
        b'"',
        b'"\\',
        b"(",
        b"[",
        b"<",
        b"-",
        b"0x",
        b"1e",
        b"a.",
        b'"\\"',
        b"list<",
        b"tuple<",
        b" \n",
    ],
    ids=str,
)
def test_reading_takes_time_in_proportion(start: bytes) -> None:
    """A megabyte of anything ends in an error in a moment: what fails is not tried again and again."""
    for head in (b"", b"program(1.0) [a = string(", b"program(1.0) { func f<i>() {"):
        text = head + start * (1_000_000 // len(start))
        begun = time.process_time()
        with pytest.raises(PackageError):
            parse_program(text)
        assert time.process_time() - begun < 2


def test_a_large_constant_is_read_in_a_moment() -> None:
    values = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    text = ", ".join(float(v).hex() for v in values)
    begun = time.process_time()
    found = constant(f"tensor<fp32, [100000]>([{text}])").data
    assert time.process_time() - begun < 5
    np.testing.assert_array_equal(found, values)


def test_damaged_texts_end_in_package_errors() -> None:
    text = (PUBLISHED / "model.mil").read_bytes()
    source = random.Random(0)
    words = [
        b"[",
        b"]",
        b"(",
        b"{",
        b"}",
        b";",
        b"tensor<",
        b">",
        b",",
        b'"',
        b"\\",
        b"-1",
        b"\xff",
        b"?",
        b"",
    ]
    read = 0
    for _ in range(150):
        damaged = text
        for _ in range(source.randint(1, 3)):
            at = source.randrange(len(damaged))
            damaged = damaged[:at] + source.choice(words) + damaged[at + source.randint(0, 3) :]
        try:
            parse_program(damaged)
            read += 1
        except PackageError as error:
            assert re.match(r"line \d+, column \d+: ", str(error))
    assert 0 < read < 150  # the damage neither always nor never shows
