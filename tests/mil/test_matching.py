"""Which operations are the same, on programs short enough to see it."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest

from coreproof.errors import PackageError
from coreproof.mil.from_text import parse_program
from coreproof.mil.matching import Match, match
from coreproof.mil.program import Blob
from coreproof.mil.values import Values

INPUTS = "tensor<fp32, [1, 4]> x, state<tensor<fp16, [4]>> s"


def no_weight(blob: Blob) -> NoReturn:
    raise AssertionError("these programs have no weight file")


def compare(
    first: str, second: str, inputs: tuple[str, str] = (INPUTS, INPUTS), outputs: Any = ("y", "y")
) -> Match:
    programs = []
    for operations, signature, names in zip((first, second), inputs, outputs, strict=True):
        text = f"program(1.3) {{ func main<ios18>({signature}) {{ {operations} }} -> ({names}); }}"
        programs.append(parse_program(text.encode()).functions["main"])
    return match(*programs, Values(no_weight, no_weight))


def found(result: Match) -> list[tuple[str, str, str, str]]:
    return [(d.kind, d.op, d.argument, d.change.what) for d in result.differences]


BASE = """
    fp32 c = const()[name = string("c"), val = fp32(0x1p+0)];
    tensor<fp32, [1, 4]> a = relu(x = x)[name = string("a")];
    tensor<fp32, [1, 4]> b = add(x = a, y = c)[name = string("b")];
    tensor<fp32, [1, 4]> m = mul(x = b, y = a)[name = string("m")];
    tensor<fp32, [1, 4]> y = exp(x = m)[name = string("y")];
"""


def test_a_program_is_the_same_as_itself() -> None:
    result = compare(BASE, BASE)
    assert (result.differences, result.operations, result.renamed) == ([], 4, 0)


@pytest.mark.parametrize(
    ("change", "renamed"),
    [
        (lambda t: t.replace("b)", "bb)").replace(" b ", " bb ").replace("x = b,", "x = bb,"), 1),
        (lambda t: t.replace('"a"', '"op_1"').replace('"m"', '"op_2"'), 2),
        (lambda t: t.replace('[name = string("b")]', ""), 0),
        (lambda t: t.replace("y = c", "y = fp32(0x1p+0)"), 0),
        (lambda t: t + "fp32 unused = const()[val = fp32(0x1p+1)];", 0),
        (lambda t: t.replace(" c ", " d ").replace("= c)", "= d)"), 0),
    ],
    ids=["value", "op names", "no op name", "constant inlined", "constant unused", "constant renamed"],
)
def test_names_and_places_of_constants_do_not_matter(change: Any, renamed: int) -> None:
    text = change(BASE)
    assert text != BASE
    for result in (compare(BASE, text), compare(text, BASE)):
        assert (result.differences, result.operations, result.renamed) == ([], 4, renamed)


def test_the_order_of_independent_operations_does_not_matter() -> None:
    lines = BASE.strip().splitlines()
    one = "tensor<fp32, [1, 4]> z = tanh(x = x);"
    first, second = "\n".join([*lines, one]), "\n".join([one, *lines])
    assert compare(first, second, outputs=("y, z", "y, z")).differences == []
    assert compare(first, second, outputs=("y, z", "z, y")).differences == []


def test_inputs_in_another_order_and_by_another_name() -> None:
    result = compare(BASE, BASE, (INPUTS, ", ".join(reversed(INPUTS.split(", s")))
                                  .replace("tate<", "state<").replace(" x", " x")))  # fmt: skip
    assert result.differences == []
    renamed = BASE.replace("x = x)", "x = q)")
    result = compare(BASE, renamed, (INPUTS, INPUTS.replace(" x", " q")))
    assert (result.differences, result.renamed) == ([], 1)
    assert compare(BASE, BASE.replace("> y =", "> r ="), outputs=("y", "r")).renamed == 2


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("fp32(0x1p+0)", "fp32(0x1.8p+0)", ("constant", "b", "y", "1.0, 1.5")),
        ("fp32(0x1p+0)", "fp32(-0x1p+0)", ("constant", "b", "y", "1.0, -1.0")),
        ("add(x = a, y = c)", "add(x = x, y = c)", ("wiring", "b", "x", "from 'a', 'x'")),
        ("mul(x = b, y = a)", "mul(x = a, y = b)", ("wiring", "m", "x", "from 'b', 'a'")),
        ("add(x = a, y = c)", "add(x = a, y = x)", ("wiring", "b", "y", "a constant of type fp32[], from 'x'")),
        ("exp(x = m)", "exp(x = m, k = c)", ("argument", "y", "k", "only in the second")),
        ("add(x = a, y = c)", "add(x = (a, a), y = c)", ("argument", "b", "x", "1 values, 2")),
        ("[1, 4]> m", "[4]> m", ("type", "m", "result 'm'", "fp32[1,4], fp32[4]")),
        ("exp(x", "exp2(x", ("op", "y", "", "is exp2 in the second")),
        ("> y = exp", "> y, fp32 z = exp", ("op", "y", "", "1 results, 2")),
    ],
)  # fmt: skip
def test_one_change_is_one_difference_and_named(old: str, new: str, expected: tuple[str, ...]) -> None:
    assert old in BASE
    result = compare(BASE, BASE.replace(old, new))
    assert found(result)[0] == expected
    others = {(d.op, d.kind) for d in result.differences[1:]}
    assert others <= {("m", "wiring")}  # the other argument that was swapped


def test_an_operation_put_in_or_taken_out() -> None:
    more = BASE.replace("x = m)", "x = n)").replace(
        'name = string("m")];', 'name = string("m")]; tensor<fp32, [1, 4]> n = abs(x = m);'
    )
    assert found(compare(BASE, more)) == [("op", "n", "", "only in the second")]
    assert found(compare(more, BASE)) == [("op", "n", "", "only in the first")]
    first = f"tensor<fp32, [1, 4]> z = abs(x = x); {BASE.replace('relu(x = x)', 'relu(x = z)')}"
    assert found(compare(BASE, first)) == [("op", "z", "", "only in the second")]
    assert found(compare(first, BASE)) == [("op", "z", "", "only in the first")]
    assert compare(BASE, more).operations == compare(first, BASE).operations == 4


def test_differences_come_in_program_order() -> None:
    text = BASE.replace("fp32(0x1p+0)", "fp32(0x1p+1)").replace("exp(x = m)", "log(x = m)")
    text = text.replace("relu(x = x)", "relu(x = x, k = c)")
    assert [(d.kind, d.op) for d in compare(BASE, text).differences] == [
        ("argument", "a"),
        ("constant", "b"),
        ("op", "y"),
    ]


def test_equal_inputs_are_told_apart_by_constants_then_names() -> None:
    def projections(*parts: tuple[str, int]) -> str:
        lines = [f'fp32 {n} = mul(x = x, y = fp32({v}))[name = string("{n}")];' for n, v in parts]
        return " ".join(lines) + "fp32 y = concat(values = (q, k, v));"

    first = projections(("q", 1), ("k", 2), ("v", 3))
    assert compare(first, projections(("v", 3), ("q", 1), ("k", 2))).differences == []
    changed = compare(first, projections(("v", 3), ("k", 5), ("q", 1)))
    assert found(changed) == [("constant", "k", "y", "2.0, 5.0")]
    renamed = first.replace(" q", " a").replace("(q", "(a").replace(" v", " b").replace(", v", ", b")
    assert compare(first, renamed).differences == []


STATE = """
    tensor<fp16, [4]> old = read_state(input = s)[name = string("old")];
    tensor<fp16, [4]> sum = add(x = old, y = old)[name = string("sum")];
    write_state(data = sum, input = s)[name = string("write")];
    tensor<fp16, [4]> y = read_state(input = s)[name = string("y")];
"""


def test_a_state_read_before_and_after_a_write() -> None:
    assert compare(STATE, STATE).differences == []
    lines = STATE.strip().splitlines()
    early = "\n".join([lines[0], lines[3], lines[1], lines[2]])
    assert {(d.kind, d.op) for d in compare(STATE, early).differences} == {("op", "y")}
    write, read = "write_state(data = x, input = s);", "tensor<fp16, [4]> y = read_state(input = s);"
    assert [(d.kind, d.op) for d in compare(read + write, write + read).differences] == [("order", "y")]
    twice = "\n".join([*lines[:3], lines[2], lines[3]])
    assert [d.kind for d in compare(STATE, twice).differences] != []
    assert [d.kind for d in compare(twice, STATE).differences] != []


def test_a_state_used_in_a_block_before_and_after_a_write() -> None:
    write = "write_state(data = x, input = s);"
    use = "fp32 y = cond(pred = x) () { fp32 r = read_state(input = s); } -> (r) () { } -> (x);"
    assert compare(write + use, write + use).differences == []
    assert compare(write + use, use + write).differences != []
    assert compare(use + write, write + use).differences != []
    inside = use.replace("read_state(input = s);", f"read_state(input = s); {write}")
    read = "fp32 z = read_state(input = s);"
    assert compare(inside + read, inside + read).differences == []
    assert compare(inside + read, read + inside).differences != []


LOOP = """
    fp32 n = const()[val = fp32(0x1p+2)];
    fp32 y = while_loop(loop_vars = x)[name = string("loop")]
      (fp32 a) { bool b = less(x = a, y = n); } -> (b)
      (fp32 c) {
        fp32 d = cond(pred = c)[name = string("branch")] () { fp32 t = relu(x = c); } -> (t) () { } -> (x);
        write_state(data = d, input = s);
        fp32 r = read_state(input = s);
      } -> (r);
"""


def test_nested_blocks() -> None:
    assert compare(LOOP, LOOP).differences == [] and compare(LOOP, LOOP).operations == 6
    renamed = LOOP.replace("fp32 c)", "fp32 k)").replace("= c)", "= k)")
    assert compare(LOOP, renamed).differences == []
    for old, new, expected in (
        ("0x1p+2", "0x1p+3", ("constant", "loop block 0 / b", "y", "4.0, 8.0")),
        ("relu(x = c)", "abs(x = c)", ("op", "loop block 1 / branch block 0 / t", "", "is abs in the second")),
        ("} -> (x)", "} -> (c)", ("wiring", "loop block 1 / branch", "output 0 of block 1", "from 'x', 'c'")),
        ("} -> (r)", "} -> (d)", ("wiring", "loop", "output 0 of block 1", "from 'r', 'd'")),
        ("} -> (r)", "} -> (n)", ("wiring", "loop", "output 0 of block 1", "from 'r', a constant of type fp32[]")),
        ("() { } -> (x)", "", ("block", "loop block 1 / branch", "", "2 blocks, 1")),
        ("fp32 a)", "fp16 a)", ("type", "", "input 'a'", "fp32[], fp16[]")),
    ):  # fmt: skip
        assert expected in found(compare(LOOP, LOOP.replace(old, new))), new
        assert compare(LOOP.replace(old, new), LOOP).differences


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [
        (INPUTS, "y, a", ("feature", "", "", "1 outputs, 2")),
        (INPUTS, "m", ("wiring", "", "output 'y'", "from 'y', 'm'")),
        (INPUTS, "c", ("wiring", "", "output 'y'", "from 'y', a constant of type fp32[]")),
        (INPUTS.replace("fp32", "fp16"), "y", ("type", "", "input 'x'", "fp32[1,4], fp16[1,4]")),
        (f"{INPUTS}, fp32 z", "y", ("feature", "", "", "2 inputs, 3")),
    ],
)
def test_inputs_and_outputs(inputs: str, outputs: str, expected: tuple[str, ...]) -> None:
    assert found(compare(BASE, BASE, (INPUTS, inputs), ("y", outputs))) == [expected]


def test_a_name_may_be_used_again_where_it_is_not_seen() -> None:
    text = """
        fp32 y = cond(pred = x)[name = string("branch")]
          () { fp32 c = const()[val = fp32(1)]; fp32 t = mul(x = x, y = c); } -> (t)
          () { fp32 c = const()[val = fp32(2)]; fp32 t = mul(x = x, y = c); } -> (t);
    """
    assert compare(text, text).differences == []
    changed = found(compare(text, text.replace("fp32(1)", "fp32(3)")))
    assert changed == [("constant", "branch block 0 / t", "y", "1.0, 3.0")]
    for twice in (
        "fp32 v = relu(x = x); fp32 w = exp(x = v); fp32 v = abs(x = x);",
        "fp32 v = relu(x = x); fp32 w = cond(pred = x) () { fp32 v = abs(x = x); } -> (v) () { } -> (v);",
        "fp32 x = relu(x = x);",
        "fp32 w = while_loop(loop_vars = x) (fp32 x) { } -> (x) (fp32 c) { } -> (c);",
    ):
        for pair in ((twice, BASE), (BASE, twice)):
            with pytest.raises(PackageError, match=r"function 'main': two values are called '[vx]'"):
                compare(*pair)


def test_opsets() -> None:
    first, second = (
        parse_program(f"program(1.0) {{ func main<{o}>() {{}} -> (); }}".encode()).functions["main"]
        for o in ("ios17", "ios18")
    )
    assert found(match(first, second, Values(no_weight, no_weight))) == [
        ("opset", "", "", "opset CoreML7, CoreML8")
    ]


def test_many_equal_operations_take_no_time() -> None:
    """10,000 that only their order tells apart, one of them changed."""
    lines = [f"fp32 v{i} = mul(x = x, y = fp32({i % 7}));" for i in range(10_000)]
    first = " ".join(lines)
    lines[5000] = "fp32 v5000 = mul(x = x, y = fp32(0.5));"
    result = compare(first, " ".join(lines), outputs=("v9999", "v9999"))
    assert [(d.kind, d.op, d.change.max_abs) for d in result.differences] == [("constant", "v5000", 1.5)]


def test_programs_with_nothing_in_common_are_compared_all_the_same() -> None:
    first = " ".join(f"fp32 a{i} = f{i}(x = x);" for i in range(4000))
    second = " ".join(f"fp32 a{i} = g{i}(x = x);" for i in range(4000))
    result = compare(first, second, outputs=("a0", "a0"))
    assert {d.kind for d in result.differences} == {"op"} and len(result.differences) == 4000
