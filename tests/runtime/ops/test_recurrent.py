"""Recurrent layers against torch's own in float64, and against their equations walked step by step."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import assert_same, normal, ours

import coreproof
from coreproof.errors import PackageError, UnsupportedOpError
from coreproof.runtime.ops import recurrent

SIZE, FEATURES, BATCH = 4, 3, 2
Array = np.ndarray
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "linear": lambda x: x,
    "scaled_tanh": np.tanh,
    "hard_sigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "sigmoid_hard": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
}
"""As coremltools 9.0 converters/mil/mil/ops/tests/iOS14/test_recurrent.py defines them."""
DEFAULTS = ("sigmoid", "tanh", "tanh")


def walk(x: Array, states: tuple[Array, ...], step: Callable[..., tuple[Array, ...]], all_steps: bool) -> Any:
    """h of every step, or of the last, then the last states."""
    hs = []
    for part in x.astype(np.float64):
        states = step(part, *states)
        hs.append(states[0])
    outputs = [np.stack(hs if all_steps else hs[-1:]), *states]
    return [o.astype(np.float32) for o in outputs]


def weights(gates: int, size: int = SIZE, features: int = FEATURES, seed: int = 0) -> dict[str, Array]:
    return {
        "weight_ih": normal(gates * size, features, seed=seed + 1),
        "weight_hh": normal(gates * size, size, seed=seed + 2),
        "bias": normal(gates * size, seed=seed + 3),
    }


def inputs(steps: int, width: int = SIZE) -> dict[str, Array]:
    return {"x": normal(steps, BATCH, FEATURES, seed=8), "initial_h": normal(BATCH, width, seed=9)}


def double(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(3)
    for parameter in module.double().parameters():
        torch.nn.init.normal_(parameter)
    return module


def as_float32(tensor: torch.Tensor) -> Array:
    return tensor.detach().numpy().astype(np.float32)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("output_sequence", [True, False])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_rnn(activation: str, direction: str, output_sequence: bool, bias: bool) -> None:
    w, start = weights(1), inputs(5)
    if not bias:
        del w["bias"]

    def step(x: Array, h: Array) -> tuple[Array]:
        return (
            ACTIVATIONS[activation](x @ w["weight_ih"].T + h @ w["weight_hh"].T + w.get("bias", np.zeros(1))),
        )

    x = start["x"][::-1] if direction == "reverse" else start["x"]
    expected = walk(x, (start["initial_h"],), step, output_sequence)
    options = {"direction": direction, "output_sequence": output_sequence, "activation": activation}
    for got, wanted in zip(ours("rnn", **start, **w, **options), expected, strict=True):
        assert_same(got, wanted, rtol=2e-5, atol=1e-5)


def gru_reference(start: dict[str, Array], w: dict[str, Array], options: dict[str, Any]) -> list[Array]:
    wr, wo, wz = np.split(w["weight_ih"].astype(np.float64), 3)
    ur, uo, uz = np.split(w["weight_hh"].astype(np.float64), 3)
    br, bo, bz = np.split(w.get("bias", np.zeros(3 * SIZE)), 3)
    ir, io, iz = np.split(w.get("input_bias", np.zeros(3 * SIZE)), 3)
    gate, activate = (
        ACTIVATIONS[options.get("recurrent_activation", "sigmoid")],
        ACTIVATIONS[options.get("activation", "tanh")],
    )

    def step(x: Array, h: Array) -> tuple[Array]:
        r = gate(x @ wr.T + h @ ur.T + br + ir)
        z = gate(x @ wz.T + h @ uz.T + bz + iz)
        recurrent = r * (h @ uo.T + bo) if options.get("reset_after") else (r * h) @ uo.T + bo
        return ((1 - z) * activate(x @ wo.T + io + recurrent) + z * h,)

    x = start["x"][::-1] if options.get("direction") == "reverse" else start["x"]
    return walk(x, (start["initial_h"],), step, options["output_sequence"])


GRU_OPTIONS = [
    {},
    {"direction": "reverse"},
    {"recurrent_activation": "tanh", "activation": "sigmoid"},
    {"recurrent_activation": "hard_sigmoid", "activation": "relu"},
]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("output_sequence", [True, False])
@pytest.mark.parametrize("options", GRU_OPTIONS, ids=str)
@pytest.mark.parametrize("opset", ["ios15", "ios18"])
def test_gru(opset: str, options: dict[str, Any], output_sequence: bool, bias: bool) -> None:
    w, start = weights(3), inputs(4)
    if not bias:
        del w["bias"]
    options = {**options, "output_sequence": output_sequence}
    got = ours("gru", opset, **start, **w, **options)
    for mine, wanted in zip(got, gru_reference(start, w, options), strict=True):
        assert_same(mine, wanted, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_gru_with_input_bias(bias: bool, reset_after: bool) -> None:
    w, start = weights(3), inputs(4)
    w["input_bias"] = normal(3 * SIZE, seed=7)
    if not bias:
        del w["bias"]
    options = {"reset_after": reset_after, "output_sequence": True}
    got = ours("gru", "ios18", **start, **w, **options)
    for mine, wanted in zip(got, gru_reference(start, w, options), strict=True):
        assert_same(mine, wanted, rtol=2e-5, atol=1e-5)


def test_gru_that_resets_after_is_torch_s() -> None:
    """Gates reordered as coremltools 9.0 ops/tests/iOS18/test_recurrent.py does."""
    module, start = double(torch.nn.GRU(FEATURES, SIZE)), inputs(5)

    def order(tensor: torch.Tensor) -> Array:
        r, z, n = np.split(as_float32(tensor), 3)
        return np.concatenate([r, n, z])

    x, h = (torch.from_numpy(a).double() for a in start.values())
    with torch.no_grad():
        sequence, last = module(x, h[None])
    got = ours(
        "gru",
        "ios18",
        **start,
        weight_ih=order(module.weight_ih_l0),
        weight_hh=order(module.weight_hh_l0),
        bias=order(module.bias_hh_l0),
        input_bias=order(module.bias_ih_l0),
        reset_after=True,
        output_sequence=True,
    )
    assert_same(got[0], as_float32(sequence), rtol=2e-5)
    assert_same(got[1], as_float32(last[0]), rtol=2e-5)


def lstm_reference(
    x: Array,
    states: tuple[Array, Array],
    w: dict[str, Array],
    names: tuple[str, str, str] = DEFAULTS,
    clip: float | None = None,
    output_sequence: bool = True,
) -> list[Array]:
    wi, wf, wo, wz = np.split(w["weight_ih"].astype(np.float64), 4)
    ui, uf, uo, uz = np.split(w["weight_hh"].astype(np.float64), 4)
    bi, bf, bo, bz = np.split(w.get("bias", np.zeros(4 * SIZE)), 4)
    pi, pf, po = np.split(w.get("peephole", np.zeros(3 * SIZE)), 3)
    gate, cell_gate, activate = (ACTIVATIONS[n.lower()] for n in names)

    def step(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        i = gate(x @ wi.T + h @ ui.T + bi + pi * c)
        f = gate(x @ wf.T + h @ uf.T + bf + pf * c)
        c = f * c + i * cell_gate(x @ wz.T + h @ uz.T + bz)
        c = c if clip is None else np.clip(c, -clip, clip)
        o = gate(x @ wo.T + h @ uo.T + bo + po * c)
        return o * activate(c), c

    return walk(x, states, step, output_sequence)


def lstm_inputs(steps: int, width: int = SIZE) -> dict[str, Array]:
    return {**inputs(steps, width), "initial_c": normal(BATCH, width, seed=10)}


LSTM_OPTIONS: list[dict[str, Any]] = [
    {},
    {"peephole": True},
    {"clip": 0.3},
    {"peephole": True, "clip": 0.3},
    {"names": ("sigmoid", "tanh", "relu")},
    {"names": ("hard_sigmoid", "tanh", "tanh")},
    {"names": ("sigmoid", "scaled_tanh", "linear"), "clip": 2.0},
    {"names": ("Sigmoid", "relu", "sigmoid"), "peephole": True},
]


@pytest.mark.parametrize("steps", [1, 2, 6])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("options", LSTM_OPTIONS, ids=str)
def test_lstm(options: dict[str, Any], direction: str, bias: bool, steps: int) -> None:
    w, start = weights(4), lstm_inputs(steps)
    if not bias:
        del w["bias"]
    if "peephole" in options:
        w["peephole"] = normal(3 * SIZE, seed=6)
    names, clip = options.get("names", DEFAULTS), options.get("clip")
    x = start["x"][::-1] if direction == "reverse" else start["x"]
    for output_sequence in (True, False):
        states = (start["initial_h"], start["initial_c"])
        expected = lstm_reference(x, states, w, names, clip, output_sequence)
        got = ours(
            "lstm",
            "ios17",
            **start,
            **w,
            direction=direction,
            output_sequence=output_sequence,
            recurrent_activation=names[0],
            cell_activation=names[1],
            activation=names[2],
            clip=clip,
        )
        for mine, wanted in zip(got, expected, strict=True):
            assert_same(mine, wanted, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("peephole", [True, False])
@pytest.mark.parametrize("output_sequence", [True, False])
def test_bidirectional_lstm(output_sequence: bool, peephole: bool, steps: int) -> None:
    start = lstm_inputs(steps, 2 * SIZE)
    there, back = weights(4), weights(4, seed=20)
    if peephole:
        there["peephole"], back["peephole"] = normal(3 * SIZE, seed=6), normal(3 * SIZE, seed=26)
    states = [start["initial_h"], start["initial_c"]]
    first = lstm_reference(start["x"], tuple(s[:, :SIZE] for s in states), there)
    second = lstm_reference(start["x"][::-1], tuple(s[:, SIZE:] for s in states), back)
    sequence = np.concatenate([first[0], second[0][::-1]], -1)
    last = np.concatenate([first[0][-1:], second[0][-1:]], -1)
    expected = [
        sequence if output_sequence else last,
        *(np.concatenate(pair, -1) for pair in zip(first[1:], second[1:], strict=True)),
    ]
    got = ours(
        "lstm",
        **start,
        **there,
        **{f"{name}_back": array for name, array in back.items()},
        direction="bidirectional",
        output_sequence=output_sequence,
    )
    for mine, wanted in zip(got, expected, strict=True):
        assert_same(mine, wanted, rtol=2e-5, atol=1e-5)


def test_reordered_weights_live_as_long_as_the_weights() -> None:
    before = len(recurrent._TORCH_ORDER)
    weight = torch.from_numpy(normal(4 * SIZE, FEATURES))
    assert recurrent._torch_order(weight) is recurrent._torch_order(weight)
    assert len(recurrent._TORCH_ORDER) == before + 1
    del weight
    gc.collect()
    assert len(recurrent._TORCH_ORDER) == before


def test_weights_changed_for_others_of_the_same_shape() -> None:
    """Reordered weights belong to one tensor, not to a place in memory that another may get."""
    for seed in range(20):
        w, start = weights(4, seed=seed), lstm_inputs(4)
        expected = lstm_reference(start["x"], (start["initial_h"], start["initial_c"]), w)
        got = ours("lstm", **start, **w, output_sequence=True)
        assert_same(got[0], expected[0], rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "gates", "wrong", "message"),
    [
        ("rnn", 1, {"direction": "bidirectional"}, "direction 'bidirectional'"),
        ("rnn", 1, {"activation": "softmax"}, "activation 'softmax' is not one of"),
        ("gru", 3, {"direction": "backward"}, "direction 'backward'"),
        ("gru", 3, {"recurrent_activation": "gelu"}, "activation 'gelu'"),
        ("lstm", 4, {"direction": "backward"}, "direction 'backward'"),
        ("lstm", 4, {"cell_activation": "gelu"}, "activation 'gelu'"),
    ],
)
def test_refused(name: str, gates: int, wrong: dict[str, str], message: str) -> None:
    start = lstm_inputs(3) if name == "lstm" else inputs(3)
    with pytest.raises(UnsupportedOpError, match=message):
        ours(name, **start, **weights(gates), **wrong)


@pytest.mark.parametrize("name", ["initial_h", "initial_c", "weight_ih", "weight_hh", "bias"])
def test_shapes_that_torch_s_kernel_would_not_look_at(name: str) -> None:
    """Found by fuzzing (spec, mutant 11169): the process was aborted."""
    given = lstm_inputs(5) | weights(4)
    given[name] = given[name][:-1]
    with pytest.raises(ValueError, match=f"{name} of one direction has shape"):
        ours("lstm", **given)


def test_a_state_of_more_rows_than_the_batch() -> None:
    """As coremltools makes of a packed sequence; its tests expect the result."""
    given = lstm_inputs(5) | weights(4)
    more = given | {name: np.concatenate([given[name], given[name]]) for name in ("initial_h", "initial_c")}
    for found, expected in zip(ours("lstm", **more), ours("lstm", **given), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("absent", ["weight_ih_back", "weight_hh_back"])
def test_bidirectional_without_weights(absent: str) -> None:
    back = {f"{name}_back": array for name, array in weights(4).items()}
    del back[absent]
    with pytest.raises(PackageError, match="lacks weight_ih_back or weight_hh_back"):
        ours("lstm", **lstm_inputs(3, 2 * SIZE), **weights(4), **back, direction="bidirectional")


def convert(module: torch.nn.Module, x: torch.Tensor, path: Path) -> coreproof.Model:
    """The package coremltools' torch frontend makes of the module, in fp32."""
    import coremltools as ct

    ct.convert(
        torch.jit.trace(module, x),
        inputs=[ct.TensorType("x", shape=x.shape)],
        minimum_deployment_target=ct.target.iOS17,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    ).save(str(path))
    return coreproof.load(path)


@pytest.mark.parametrize("steps", [2, 6])
def test_results_of_an_fp16_lstm_are_rounded_once(steps: int, tmp_path: Path) -> None:
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    given = {name: array.astype(np.float16) for name, array in lstm_inputs(steps).items()}
    w = {name: array.astype(np.float16) for name, array in weights(4).items()}
    specs = [mb.TensorSpec(array.shape, types.fp16) for array in given.values()]

    @mb.program(input_specs=specs, opset_version=ct.target.iOS17)
    def program(x: Any, initial_h: Any, initial_c: Any) -> Any:
        return mb.lstm(x=x, initial_h=initial_h, initial_c=initial_c, output_sequence=True, **w)

    path = tmp_path / "m.mlpackage"
    ct.convert(program, minimum_deployment_target=ct.target.iOS17, skip_model_load=True).save(str(path))
    got = list(coreproof.load(path).predict(given).values())
    wide = {name: array.astype(np.float32) for name, array in {**given, **w}.items()}
    for mine, unrounded in zip(got, ours("lstm", "ios17", **wide, output_sequence=True), strict=True):
        assert mine.dtype == np.float16
        np.testing.assert_array_equal(mine, unrounded.astype(np.float16))


MODULES: dict[str, Callable[[], torch.nn.Module]] = {
    "lstm": lambda: torch.nn.LSTM(FEATURES, SIZE),
    "two lstms, no bias, batch first": lambda: torch.nn.LSTM(FEATURES, SIZE, 2, bias=False, batch_first=True),
    "two bidirectional lstms": lambda: torch.nn.LSTM(FEATURES, SIZE, 2, bidirectional=True),
    "rnn": lambda: torch.nn.RNN(FEATURES, SIZE, 2),
    "relu rnn": lambda: torch.nn.RNN(FEATURES, SIZE, nonlinearity="relu", batch_first=True),
}


@pytest.mark.parametrize("name", MODULES)
def test_converted_from_torch(name: str, tmp_path: Path) -> None:
    module = MODULES[name]().eval()
    x = torch.from_numpy(normal(7, 5, FEATURES, seed=4))
    model = convert(module, x, tmp_path / "m.mlpackage")
    with torch.no_grad():
        sequence, states = module.double()(x.double())
    expected = [sequence, *(states if isinstance(states, tuple) else (states,))]
    outputs = list(model.predict({"x": x.numpy()}).values())
    assert len(outputs) == len(expected)
    for got, wanted in zip(outputs, expected, strict=True):
        assert_same(got, as_float32(wanted), rtol=2e-5)
