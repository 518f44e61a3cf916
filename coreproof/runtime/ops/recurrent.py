"""Recurrent layers (coremltools 9.0 ops/defs/iOS15, iOS17, iOS18/recurrent.py).

x is [sequence, batch, features]; from iOS 17 on it may be fp16. Where the definitions are silent or
unclear, what Apple expects of its own runtime decides (converters/mil/mil/ops/tests/iOS14 and
iOS18/test_recurrent.py), and so:

A layer of direction ``reverse`` walks from the last step to the first, and its output sequence
stands in the order of that walk; of a bidirectional lstm the backward half is in the order of x.
``scaled_tanh`` is tanh, ``hard_sigmoid`` is ``clip(0.2 x + 0.5, 0, 1)`` and ``linear`` changes nothing.

Nothing is rounded between the steps. Products accumulate as ``num`` says, those with x and those
with h apart; their sums are fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from coreproof.errors import PackageError, UnsupportedOpError
from coreproof.runtime.numerics import Numerics
from coreproof.runtime.registry import op

Activation = Callable[[Tensor], Tensor]


def _hard_sigmoid(x: Tensor) -> Tensor:
    return torch.clamp(0.2 * x + 0.5, 0.0, 1.0)


_ACTIVATIONS: dict[str, Activation] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "linear": lambda x: x,
    "scaled_tanh": torch.tanh,
    "hard_sigmoid": _hard_sigmoid,
    "sigmoid_hard": _hard_sigmoid,
}


def _activation(name: str) -> Activation:
    if name.lower() not in _ACTIVATIONS:
        raise UnsupportedOpError(f"activation {name!r} is not one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name.lower()]


def _in_order(x: Tensor, direction: str) -> Tensor:
    """The steps of x as a layer of that direction walks them."""
    if direction not in ("forward", "reverse"):
        raise UnsupportedOpError(f"direction {direction!r} is neither forward nor reverse")
    return x.flip(0) if direction == "reverse" else x


def _walk(
    inputs: Tensor, state: tuple[Tensor, ...], step: Callable[..., tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Call ``step`` with each slice of ``inputs`` and the state it gave before, h first. Returns h of
    all steps, then the last state."""
    passed = []
    for part in inputs.unbind(0):
        state = step(part, *state)
        passed.append(state[0])
    return (torch.stack(passed), *state)


@op("rnn")
def rnn(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    activation: str = "tanh",
    *,
    num: Numerics,
) -> tuple[Tensor, Tensor]:
    """``h = activation(weight_ih @ x + weight_hh @ h + bias)``."""
    activate = _activation(activation)

    def step(part: Tensor, h: Tensor) -> tuple[Tensor]:
        return (activate(part + num.linear(h, weight_hh, None)),)

    inputs = num.linear(_in_order(x, direction), weight_ih, bias)
    sequence, h = _walk(inputs, (initial_h,), step)
    return sequence if output_sequence else h.unsqueeze(0), h


@op("gru")
def gru(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    *,
    num: Numerics,
) -> tuple[Tensor, Tensor]:
    """Gates in the order reset, output, update. The reset gate scales h before the product with the
    output gate's weights, whereas torch scales that product: ``reset_after`` of iOS 18."""
    return gru_ios18(
        x, initial_h, weight_ih, weight_hh, bias, direction, output_sequence, recurrent_activation, activation,
        num=num,
    )  # fmt: skip


@op("gru", since="ios18")
def gru_ios18(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    reset_after: bool = False,
    input_bias: Tensor | None = None,
    *,
    num: Numerics,
) -> tuple[Tensor, Tensor]:
    """``input_bias`` goes with x and ``bias`` with h, so that with ``reset_after`` the reset gate
    scales ``weight @ h + bias``."""
    gate, activate = _activation(recurrent_activation), _activation(activation)
    reset_w, output_w, update_w = weight_hh.chunk(3)
    reset_b, output_b, update_b = (None, None, None) if bias is None else bias.chunk(3)

    def step(part: Tensor, h: Tensor) -> tuple[Tensor]:
        reset_x, output_x, update_x = part.chunk(3, -1)
        r = gate(reset_x + num.linear(h, reset_w, reset_b))
        z = gate(update_x + num.linear(h, update_w, update_b))
        if reset_after:
            recurrent = num.product(r, num.linear(h, output_w, output_b))
        else:
            recurrent = num.linear(num.product(r, h), output_w, output_b)
        o = activate(output_x + recurrent)
        return (num.product(1 - z, o) + num.product(z, h),)

    inputs = num.linear(_in_order(x, direction), weight_ih, input_bias)
    sequence, h = _walk(inputs, (initial_h,), step)
    return sequence if output_sequence else h.unsqueeze(0), h


class _Layer(NamedTuple):
    """The weights of one direction of an lstm, gates in the order input, forget, output, cell."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor | None
    peephole: Tensor | None


@op("lstm")
def lstm(
    x: Tensor,
    initial_h: Tensor,
    initial_c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    peephole: Tensor | None = None,
    weight_ih_back: Tensor | None = None,
    weight_hh_back: Tensor | None = None,
    bias_back: Tensor | None = None,
    peephole_back: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
    clip: float | None = None,
    *,
    num: Numerics,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gates in the order input, forget, output, cell (torch: input, forget, cell, output).

    ``clip`` bounds the cell state, not, as the definition says, the cell gate. Peepholes see the
    previous cell state, the output gate's the new one. The states of a bidirectional layer are
    [batch, 2 hidden], forward half first; its last step is each direction's own.
    """
    names = recurrent_activation, cell_activation, activation
    forward = _Layer(weight_ih, weight_hh, bias, peephole)

    def run(x: Tensor, h: Tensor, c: Tensor, layer: _Layer) -> tuple[Tensor, ...]:
        plain = names == ("sigmoid", "tanh", "tanh") and layer.peephole is None and clip is None
        if plain and num.wide and len(x) > _FEW_STEPS:
            return _fused(x, h, c, layer)
        return _step_by_step(x, h, c, layer, names, clip, num)

    if direction != "bidirectional":
        sequence, h, c = run(_in_order(x, direction), initial_h, initial_c, forward)
    else:
        if weight_ih_back is None or weight_hh_back is None:
            raise PackageError("a bidirectional lstm lacks weight_ih_back or weight_hh_back")
        back = _Layer(weight_ih_back, weight_hh_back, bias_back, peephole_back)
        (h_there, h_back), (c_there, c_back) = initial_h.chunk(2, -1), initial_c.chunk(2, -1)
        there = run(x, h_there, c_there, forward)
        again = run(x.flip(0), h_back, c_back, back)
        sequence = torch.cat([there[0], again[0].flip(0)], -1)
        h, c = (torch.cat(pair, -1) for pair in zip(there[1:], again[1:], strict=True))
    return sequence if output_sequence else h.unsqueeze(0), h, c


def _step_by_step(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    layer: _Layer,
    names: tuple[str, str, str],
    clip: float | None,
    num: Numerics,
) -> tuple[Tensor, ...]:
    gate, cell_gate, activate = map(_activation, names)
    peeps = None if layer.peephole is None else layer.peephole.chunk(3)

    def step(part: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, o, z = (part + num.linear(h, layer.weight_hh, None)).chunk(4, -1)
        if peeps is not None:
            i, f = i + num.product(peeps[0], c), f + num.product(peeps[1], c)
        c = num.product(gate(f), c) + num.product(gate(i), cell_gate(z))
        if clip is not None:
            c = torch.clamp(c, -clip, clip)
        if peeps is not None:
            o = o + num.product(peeps[2], c)
        return num.product(gate(o), activate(c)), c

    return _walk(num.linear(x, layer.weight_ih, layer.bias), (h, c), step)


_FEW_STEPS = 2
"""Up to here torch's fused kernel spends longer on packing the weights than on the steps."""
_TORCH_ORDER: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _fused(x: Tensor, h: Tensor, c: Tensor, layer: _Layer) -> tuple[Tensor, ...]:
    _check_shapes(x, h, c, layer)
    weights = [_torch_order(layer.weight_ih), _torch_order(layer.weight_hh)]
    if layer.bias is not None:
        weights += [_torch_order(layer.bias), torch.zeros_like(layer.bias)]
    state = tuple(rows[: x.shape[1]].unsqueeze(0).contiguous() for rows in (h, c))
    biased = layer.bias is not None
    sequence, h, c = torch.lstm(x, state, weights, biased, 1, 0.0, False, False, False)
    return sequence, h.squeeze(0), c.squeeze(0)


def _check_shapes(x: Tensor, h: Tensor, c: Tensor, layer: _Layer) -> None:
    """Raise ValueError for shapes that do not fit together: torch's fused kernel does not look, and reads
    and writes outside what it was given.

    A state may have more rows than the batch, of which the first count: coremltools gives one a step when
    it converts a packed sequence, and expects the result (frontend/torch/test, TestLSTMWithPackedSequence).
    """
    _, batch, features = x.shape
    hidden = layer.weight_hh.shape[-1]
    expected = {
        "initial_h": (h[:batch], (batch, hidden)),
        "initial_c": (c[:batch], (batch, hidden)),
        "weight_ih": (layer.weight_ih, (4 * hidden, features)),
        "weight_hh": (layer.weight_hh, (4 * hidden, hidden)),
        "bias": (layer.bias, (4 * hidden,)),
    }
    for name, (value, shape) in expected.items():
        if value is not None and tuple(value.shape) != shape:
            raise ValueError(
                f"{name} of one direction has shape {list(value.shape)}, x of shape {list(x.shape)} and "
                f"hidden size {hidden} take {list(shape)}"
            )


def _torch_order(weight: Tensor) -> Tensor:
    """``weight`` with its gates in torch's order. Kept while the weight lives: making it again for
    every prediction can take longer than the steps."""
    ordered = _TORCH_ORDER.get(weight)
    if ordered is None:
        i, f, o, z = weight.chunk(4)
        ordered = _TORCH_ORDER[weight] = torch.cat([i, f, z, o])
    return ordered
