"""The engine on programs written by hand: rounding, folding, freeing, hooks and refusals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from handmade import HALF, function, no_weights, number, op, run, tensor, text, weight

from coreproof.errors import PackageError, UnsupportedOpError
from coreproof.mil.program import Blob, Block, Immediate, NamedType, Operation, Ref
from coreproof.mil.types import TensorType
from coreproof.runtime.codegen import compile_function


@pytest.mark.parametrize(("mode", "expected"), [("fp32", 1.0 + 2**-11 + 2**-12), ("typed", 1.0009765625)])
def test_typed_rounds_each_result_once_and_fp32_never(mode: str, expected: float) -> None:
    made = op("add", "y", HALF, x="x", y=number(2**-11 + 2**-12))
    result = run(compile_function(function({"x": HALF}, [made], "y"), no_weights, mode), torch.ones(3))
    assert result.tolist() == [expected] * 3


@pytest.mark.parametrize(
    ("value", "expected"), [(65519.0, 65504.0), (65520.0, float("inf")), (-65520.0, float("-inf"))]
)
def test_typed_overflows_where_fp16_does(value: float, expected: float) -> None:
    made = op("add", "y", HALF, x="x", y=number(0.0))
    result = run(
        compile_function(function({"x": HALF}, [made], "y"), no_weights, "typed"), torch.full((3,), value)
    )
    assert result.tolist() == [expected] * 3


def test_fp32_results_are_not_rounded_in_typed_mode() -> None:
    made = op("add", "y", tensor("fp32", 3), x="x", y=number(2**-20))
    result = run(compile_function(function({"x": HALF}, [made], "y"), no_weights, "typed"), torch.ones(3))
    assert result.tolist() == [1.0 + 2**-20] * 3


def test_a_running_sum_is_rounded_only_in_fp16acc() -> None:
    """1024 followed by 31 halves: fp16 has no number between 1024 and 1025, so each half is lost."""
    axes = Immediate(tensor("int32", 1), np.array([1], np.int32))
    keep = Immediate(tensor("bool"), np.array(False))
    made = function(
        {"x": tensor("fp16", 1, 32)},
        [op("reduce_sum", "y", tensor("fp16", 1), x="x", axes=axes, keep_dims=keep)],
        "y",
    )
    x = torch.tensor([[1024.0, *[0.5] * 31]])
    results = {m: run(compile_function(made, no_weights, m), x).item() for m in ("fp32", "typed", "fp16acc")}
    assert results == {"fp32": 1039.5, "typed": 1040.0, "fp16acc": 1024.0}


def test_weights_are_read_only_when_asked_and_folded_once() -> None:
    reads = []

    def read(blob: Blob) -> np.ndarray:
        reads.append(blob.offset)
        return np.arange(6, dtype=np.float16).reshape(2, 3)

    kind = tensor("fp16", 2, 3)
    made = [
        weight("w", kind, 64),
        op(
            "transpose",
            "t",
            tensor("fp16", 3, 2),
            x="w",
            perm=Immediate(tensor("int32", 2), np.array([1, 0], np.int32)),
        ),
        op("matmul", "y", tensor("fp16", 1, 2), x="x", y="t"),
    ]
    compiled = compile_function(function({"x": tensor("fp16", 1, 3)}, made, "y"), read, "typed")
    assert reads == []
    assert run(compiled, torch.ones(1, 3)).tolist() == [[3.0, 12.0]]
    assert reads == [64]
    assert "transpose" not in compiled.source


@pytest.mark.parametrize(("dtype", "released"), [("fp16", [64]), ("fp32", [])])
def test_a_weight_that_was_copied_is_released(dtype: str, released: list[int]) -> None:
    kind, seen = tensor(dtype, 3), []
    made = [weight("w", kind, 64), op("add", "y", kind, x="x", y="w")]
    compiled = compile_function(
        function({"x": kind}, made, "y"),
        lambda blob: np.ones(3, kind.dtype.numpy_name),
        "typed",
        release=lambda blob: seen.append(blob.offset),
    )
    assert run(compiled, torch.ones(3)).tolist() == [2.0] * 3
    assert seen == released


def test_values_are_dropped_after_their_last_use() -> None:
    made = [op("exp", "a", HALF, x="x"), op("tanh", "b", HALF, x="a"), op("add", "y", HALF, x="b", y="b")]
    source = compile_function(function({"x": HALF}, made, "y"), no_weights, "fp32").source
    assert source.count("del ") == 3
    assert source.index("del i0") < source.index("tanh")


def test_a_string_argument_that_looks_like_a_local_name_is_kept() -> None:
    made = op("cast", "y", tensor("int32", 3), x="x", dtype=text("int32"))
    assert (
        run(compile_function(function({"x": HALF}, [made], "y"), no_weights, "typed"), torch.ones(3)).dtype
        == torch.int32
    )


def test_the_hook_sees_every_op_with_its_results() -> None:
    seen = []
    made = [op("exp", "a", HALF, x="x"), op("log", "y", HALF, x="a")]
    compiled = compile_function(
        function({"x": HALF}, made, "y"),
        no_weights,
        "fp32",
        hook=lambda o, r, i: seen.append((o.name, r[0].tolist(), i["x"].tolist())),
    )
    run(compiled, torch.zeros(3))
    assert seen == [("the_a", [1.0] * 3, [0.0] * 3), ("the_y", [0.0] * 3, [1.0] * 3)]


@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        (
            op("flux_capacitor", "y", HALF, x="x"),
            UnsupportedOpError,
            "op 'flux_capacitor' .*is not implemented",
        ),
        (
            op("add", "y", HALF, x="x", y="nowhere"),
            PackageError,
            "refers to 'nowhere', which nothing before it defines",
        ),
        (op("add", "y", HALF, x="x"), PackageError, "lacks its required argument 'y'"),
        (op("exp", "y", HALF, x="x", colour="x"), UnsupportedOpError, "has no argument 'colour'; it takes x"),
        (
            op("scaled_dot_product_attention", "y", HALF, query="x", key="x", value="x"),
            UnsupportedOpError,
            "exists from ios18 on",
        ),
    ],
)
def test_a_bad_program_is_refused_with_the_op_named(
    made: Operation, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        compile_function(function({"x": HALF}, [made], "y"), no_weights, "typed")
    assert "the_y" in str(caught.value)
    assert "ios17" in str(caught.value)


def test_an_unknown_mode_and_opset_are_refused() -> None:
    with pytest.raises(
        UnsupportedOpError, match="numeric mode 'fp8' does not exist; choose one of typed, fp32, fp16acc"
    ):
        compile_function(function({"x": HALF}, [], "x"), no_weights, "fp8")
    with pytest.raises(UnsupportedOpError, match="opset 'CoreML99' is not known"):
        compile_function(function({"x": HALF}, [], "x", opset="CoreML99"), no_weights, "fp32")


INT = tensor("int32")


def nested(
    kind: str, out: str, result: TensorType, blocks: tuple[Block, ...], **inputs: str | Sequence[str]
) -> Operation:
    plain = op(kind, out, result, **inputs)
    return Operation(kind, plain.inputs, plain.outputs, plain.attributes, blocks)


def test_cond_runs_only_the_branch_taken() -> None:
    yes = Block((), ("a",), (op("exp", "a", HALF, x="x"),))
    no = Block((), ("b",), (op("exp", "shared", HALF, x="z"), op("add", "b", HALF, x="shared", y="x")))
    made = [op("mul", "z", HALF, x="x", y="x"), nested("cond", "y", HALF, (yes, no), pred="p")]
    seen: list[str] = []
    compiled = compile_function(
        function({"x": HALF, "p": tensor("bool")}, made, "y"),
        no_weights,
        "fp32",
        lambda o, *_: seen.append(o.name),
    )
    zeros = torch.zeros(3)
    assert run(compiled, zeros, torch.tensor(True)).tolist() == [1.0] * 3
    assert seen == ["the_z", "the_a", "the_y"]
    seen.clear()
    assert run(compiled, torch.full((3,), 2.0), torch.tensor(False)).tolist() == pytest.approx(
        [np.exp(4) + 2] * 3
    )
    assert seen == ["the_z", "the_shared", "the_b", "the_y"]


def test_while_loop_feeds_its_results_back_and_keeps_what_it_needs_from_outside() -> None:
    """x doubled n times, plus the outside value each time: n = 3 from 1 with 10 gives 1, 12, 34, 78."""
    i, v = NamedType("i", INT), NamedType("v", HALF)
    condition = Block((i, v), ("more",), (op("less", "more", tensor("bool"), x="i", y="n"),))
    body = Block(
        (i, v),
        ("next", "sum"),
        (
            op("add", "next", INT, x="i", y=Immediate(INT, np.array(1, np.int32))),
            op("add", "twice", HALF, x="v", y="v"),
            op("add", "sum", HALF, x="twice", y="outside"),
        ),
    )
    loop = Operation(
        "while_loop",
        {"loop_vars": (Immediate(INT, np.array(0, np.int32)), Ref("x"))},
        (NamedType("count", INT), NamedType("y", HALF)),
        {},
        (condition, body),
    )
    made = [op("mul", "outside", HALF, x="x", y=number(10.0)), loop]
    compiled = compile_function(function({"x": HALF, "n": INT}, made, "y"), no_weights, "typed")
    for n, expected in ((0, 1.0), (1, 12.0), (3, 78.0)):
        assert run(compiled, torch.ones(3), torch.tensor(n, dtype=torch.int32)).tolist() == [expected] * 3


@pytest.mark.parametrize("blocks", [(), (Block((), (), ()),), (Block((), ("x",), ()), Block((), (), ()))])
def test_a_cond_whose_blocks_do_not_fit_is_refused(blocks: tuple[Block, ...]) -> None:
    made = [nested("cond", "y", HALF, blocks, pred="p")]
    with pytest.raises(PackageError, match=r"op 'cond' .*nested block"):
        compile_function(function({"x": HALF, "p": tensor("bool")}, made, "y"), no_weights, "fp32")


def test_names_made_in_a_block_are_not_seen_outside() -> None:
    inner = Block((), ("a",), (op("exp", "a", HALF, x="x"),))
    made = [nested("cond", "y", HALF, (inner, inner), pred="p"), op("add", "z", HALF, x="a", y="y")]
    with pytest.raises(PackageError, match="refers to 'a', which nothing before it defines"):
        compile_function(function({"x": HALF, "p": tensor("bool")}, made, "z"), no_weights, "fp32")
