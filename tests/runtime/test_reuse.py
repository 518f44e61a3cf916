"""Results written over operands: the same bits as without, and only where nothing else looks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from handmade import HALF, const, function, no_weights, number, op, run, tensor, text

from coreproof.mil.program import Block, Immediate, NamedType, Operation, Ref
from coreproof.runtime.codegen import MODES, compile_function
from coreproof.runtime.emission import Hook
from coreproof.runtime.registry import registry
from coreproof.runtime.reuse import IN_PLACE

SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 65504.0, -65520.0, 3.3e38]
WHOLE = tensor("fp32", 64)
ARGUMENTS = {
    "clip": (-0.5, 0.25),
    "elu": (1.3,),
    "gelu": ("TANH_APPROXIMATION",),
    "leaky_relu": (0.1,),
}
TWO_OPERANDS = ("add", "mul", "real_div", "sub")


def values(seed: int) -> torch.Tensor:
    random = np.random.default_rng(seed).standard_normal(64).astype(np.float32) * 3
    random[: len(SPECIAL)] = SPECIAL
    return torch.from_numpy(random)


@pytest.mark.parametrize("name", sorted(IN_PLACE))
def test_the_form_in_place_gives_the_bits_of_the_op(name: str) -> None:
    others = (values(2),) if name in TWO_OPERANDS else ARGUMENTS.get(name, ())
    x = values(1)
    expected = registry()[name]["ios15"].fn(x, *others)
    given = x.clone()
    result = IN_PLACE[name](given, *others)
    assert result.data_ptr() == given.data_ptr()
    assert result.numpy().tobytes() == expected.numpy().tobytes()
    assert not torch.equal(given.nan_to_num(), x.nan_to_num())


@pytest.mark.parametrize("mode", ["EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"])
def test_every_gelu_in_place_gives_the_bits_of_the_op(mode: str) -> None:
    expected = registry()["gelu"]["ios15"].fn(values(3), mode)
    assert IN_PLACE["gelu"](values(3), mode).numpy().tobytes() == expected.numpy().tobytes()


def written_over(operations: list[Operation], *outputs: str, hook: Hook | None = None) -> set[str]:
    """The op types whose form in place the compiled function of x and z calls."""
    made = function({"x": WHOLE, "z": WHOLE}, operations, *outputs, opset="CoreML8")
    bound = {id(v) for v in compile_function(made, no_weights, "typed", hook).namespace.values()}
    return {name for name, form in IN_PLACE.items() if id(form) in bound}


def test_an_operand_that_nothing_else_uses_is_written_over() -> None:
    chain = [op("exp", "a", WHOLE, x="x"), op("tanh", "b", WHOLE, x="a"), op("add", "y", WHOLE, x="z", y="b")]
    assert written_over(chain, "y") == {"tanh", "add"}


AXIS = Immediate(tensor("int32", 1), np.array([0], np.int32))
ONE = Immediate(tensor("int32", 1), np.array([1], np.int32))
PLAIN = op("exp", "a", WHOLE, x="x")


@pytest.mark.parametrize(
    ("operations", "outputs"),
    [
        pytest.param([op("tanh", "y", WHOLE, x="x")], ("y",), id="an input"),
        pytest.param([PLAIN, op("tanh", "y", WHOLE, x="a")], ("y", "a"), id="an output"),
        pytest.param([PLAIN, op("add", "y", WHOLE, x="a", y="a")], ("y",), id="used twice"),
        pytest.param(
            [PLAIN, op("log", "b", WHOLE, x="a"), op("tanh", "y", WHOLE, x="a")], ("b", "y"), id="used before"
        ),
        pytest.param(
            [op("identity", "a", WHOLE, x="x"), op("tanh", "y", WHOLE, x="a")],
            ("y",),
            id="a view of an input",
        ),
        pytest.param([PLAIN, op("sub", "y", WHOLE, x="z", y="a")], ("y",), id="what does not commute"),
        pytest.param(
            [
                op("exp", "a", tensor("fp32", 1), x="s"),
                op("add", "y", WHOLE, x="a", y="z"),
            ],
            ("y",),
            id="smaller than the result",
        ),
        pytest.param(
            [op("floor", "a", tensor("int32", 64), x="x"), op("add", "y", tensor("int32", 64), x="a", y="a")],
            ("y",),
            id="integers",
        ),
    ],
)
def test_what_something_else_may_look_at_is_left_alone(
    operations: list[Operation], outputs: tuple[str, ...]
) -> None:
    small = op("slice_by_size", "s", tensor("fp32", 1), x="x", begin=AXIS, size=ONE)
    assert written_over([small, *operations], *outputs) == set()


def test_a_weight_is_never_written_over() -> None:
    made = [
        const("w", np.ones(64, np.float32), "fp32"),
        op("tanh", "a", WHOLE, x="w"),
        op("mul", "y", WHOLE, x="a", y="x"),
    ]
    assert written_over(made, "y") == set()


def test_a_hook_sees_values_that_stay() -> None:
    chain = [PLAIN, op("tanh", "y", WHOLE, x="a")]
    assert written_over(chain, "y") == {"tanh"}
    assert written_over(chain, "y", hook=lambda *_: None) == set()


def test_a_value_from_outside_a_loop_stays_for_its_next_round() -> None:
    """v becomes outside + v three times, from 1 with 10: 31; written over, it would be 10 + 1, 22, 44."""
    integer = tensor("int32")
    i, v = NamedType("i", integer), NamedType("v", HALF)
    more = op("less", "more", tensor("bool"), x="i", y=Immediate(integer, np.array(3, np.int32)))
    body = (
        op("add", "next", integer, x="i", y=Immediate(integer, np.array(1, np.int32))),
        op("add", "sum", HALF, x="outside", y="v"),
    )
    loop = Operation(
        "while_loop",
        {"loop_vars": (Immediate(integer, np.array(0, np.int32)), Ref("x"))},
        (NamedType("count", integer), NamedType("y", HALF)),
        {},
        (Block((i, v), ("more",), (more,)), Block((i, v), ("next", "sum"), body)),
    )
    made = function({"x": HALF}, [op("mul", "outside", HALF, x="x", y=number(10.0)), loop], "y")
    assert run(compile_function(made, no_weights, "typed"), torch.ones(3)).tolist() == [31.0] * 3


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_same_bits_with_and_without(mode: str) -> None:
    half = tensor("fp16", 64)
    chain = [
        op("exp", "a", half, x="x"),
        op("mul", "b", half, x="a", y="z"),
        op("sub", "c", half, x="b", y=number(0.3, "fp16")),
        op("gelu", "d", half, x="c", mode=text("EXACT")),
        op("add", "y", half, x="z", y="d"),
    ]
    made = function({"x": half, "z": half}, chain, "y")
    inputs = [values(seed).half().float() for seed in (5, 6)]
    results = [
        run(compile_function(made, no_weights, mode, hook), *[i.clone() for i in inputs])
        for hook in (None, lambda *_: None)
    ]
    assert results[0].numpy().tobytes() == results[1].numpy().tobytes()
