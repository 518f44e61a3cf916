"""Stages that make coremltools do with weights all that it does: keep, cast, fold, fuse, merge, compress."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from coreproof.convert.checkpoint import Checkpoint, Origin
from coreproof.convert.mapped import read_safetensors
from coreproof.convert.recipe import Precision, Stage, StateSpec, TensorSpec

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Case:
    """``build(tensors)`` makes the module, of float32 inputs of ``shapes`` and one output."""

    tensors: Arrays
    build: Callable[[Mapping[str, Tensor]], nn.Module]
    shapes: tuple[tuple[int, ...], ...] = ((1, 24),)
    states: tuple[StateSpec, ...] = ()
    precision: Precision = field(default_factory=lambda: Precision("fp16"))
    target: str = "iOS18"
    dtype: str = "fp32"

    def checkpoint(self, folder: Path) -> Checkpoint:
        """The tensors as a recipe reads them: in a file, mapped."""
        save_file({k: np.ascontiguousarray(v) for k, v in self.tensors.items()}, folder / "w.safetensors")
        tensors = read_safetensors(folder / "w.safetensors")
        return Checkpoint((), {}, tensors, {key: Origin((key,)) for key in tensors})

    def stage(self) -> Stage:
        with torch.no_grad():
            given = {k: torch.from_numpy(np.array(v)) for k, v in self.tensors.items()}
            made = self.build(given).eval()(*(torch.ones(s) for s in self.shapes))
        return Stage(
            name="case",
            package="case",
            module=lambda c: self.build({k: torch.from_numpy(v) for k, v in c.tensors.items()}),
            inputs=tuple(TensorSpec(f"x{i}", s, self.dtype) for i, s in enumerate(self.shapes)),
            outputs=(TensorSpec("y", tuple(made.shape), self.dtype),),
            precision=self.precision,
            states=self.states,
            target=self.target,
            metadata={"description": "a case", "weights": "drawn"},
        )


class Graph(nn.Module):
    """Parameters, and one function of them and the inputs."""

    def __init__(self, function: Callable[..., Tensor], tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.function = function
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self, *inputs)


def drawn(*shape: int, seed: int = 0, scale: float = 0.1) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def graph(function: Callable[..., Tensor], *shapes: tuple[int, ...], **tensors: NDArray[Any]) -> Case:
    return Case(tensors, partial(Graph, function), shapes or ((1, 24),))


def filled(make: Callable[[], nn.Module], *shapes: tuple[int, ...]) -> Case:
    """A module of torch's with drawn parameters and buffers."""
    with torch.device("meta"):
        wanted = {name: tuple(t.shape) for name, t in make().state_dict().items()}
    tensors = {name: drawn(*shape, seed=i) for i, (name, shape) in enumerate(wanted.items()) if shape}
    tensors |= {name: np.abs(t) + 0.5 for name, t in tensors.items() if "running_var" in name}

    def build(given: Mapping[str, Tensor]) -> nn.Module:
        module = make()
        module.load_state_dict(given, strict=False, assign=True)
        return module.requires_grad_(False)

    return Case(tensors, build, shapes)


class First(nn.Module):
    """The first of a module's outputs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)[0]


def concatenated(g: Any, x: Tensor) -> Tensor:
    return F.linear(x, torch.cat([g.first, g.second, g.third]))


def split(g: Any, x: Tensor) -> Tensor:
    """Three projections that are one tensor: views of it that start within."""
    q, k, v = g.fused.chunk(3, 0)
    return F.linear(x, q) * F.linear(x, k) + F.linear(x, v)


def attended(g: Any, x: Tensor) -> Tensor:
    heads = F.linear(x, g.fused, g.bias).reshape(1, 6, 3, 4, 6)
    q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, 6, 24)


def normed(g: Any, x: Tensor) -> Tensor:
    """A layer norm over channels written out, which a pass finds, multiplying shift by scale."""
    centred = x - x.mean(1, keepdim=True)
    spread = torch.rsqrt((centred * centred).mean(1, keepdim=True) + 1e-5)
    return (centred * spread + g.shift) * g.scale


def shared(g: Any, x: Tensor) -> Tensor:
    return F.linear(F.linear(x, g.first).relu(), g.second) + F.linear(x, g.third)


class Stateful(nn.Module):
    """A cache that moves on by one row, and a table."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(tensors["weight"], requires_grad=False)
        self.register_buffer("cache", torch.zeros(1, 6, 24))
        self.register_buffer("table", torch.linspace(-1, 1, 144).reshape(1, 6, 24))

    def forward(self, x: Tensor) -> Tensor:
        self.cache[:] = torch.cat([self.cache[:, 1:], F.linear(x, self.weight)[:, None]], 1)
        return self.cache * self.table


class Palettized(nn.Module):
    """A weight that came with the table its values are from, as coremltools' own optimizer leaves it."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(24, 32, bias=False)
        self.linear.weight = nn.Parameter(tensors["weight"], requires_grad=False)
        self.register_buffer("_COREML_/metadata_version", torch.tensor(1))
        self.linear.register_buffer("_COREML_/weight/compression_type", torch.tensor([2]))
        self.linear.register_buffer("_COREML_/weight/lut", tensors["lut"])
        self.linear.register_buffer("_COREML_/weight/palettization_scale", torch.ones(1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).relu().reshape(1, 4, 8).transpose(1, 2)


class Overwritten(nn.Module):
    """Writes into the weight it was given, which is a view of a mapped file."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        tensors["weight"][::7] = 3.0
        self.weight = nn.Parameter(tensors["weight"], requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


def palettes() -> Arrays:
    lut = np.linspace(-1, 1, 16, dtype=np.float32)
    indices = np.random.default_rng(0).integers(0, 16, (32, 24))
    return {"weight": lut[indices], "lut": lut.reshape(1, 1, 16, 1)}


LINEAR = graph(lambda g, x: F.linear(x, g.weight, g.bias), weight=drawn(32, 24), bias=drawn(32))
SAME = {"first": drawn(24, 24), "second": drawn(24, 24), "third": drawn(24, 24) + np.float32(1e-13)}
LOUD = drawn(32, 24)
LOUD[3, 4] = -65505.0
ENDLESS = drawn(32, 24)
ENDLESS[3, 4] = -np.inf
TINY = np.full((32, 24), 2.0**-26, np.float32)


def upsampled(g: Graph, x: Tensor) -> Tensor:
    """What is given to the one function has a name, to the other none."""
    rows = F.conv_transpose2d(x, g.weight, None, (2, 1))
    return F.conv_transpose1d(F.elu(rows[:, :, 0]), g.other, g.bias, 2, dilation=1, padding=1) + rows.mean()


class Sized(nn.ConvTranspose1d):
    """Upsamples to a given length."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, [30])


CASES: Mapping[str, Case] = {
    "kept": LINEAR,
    "kept in fp32": replace(LINEAR, precision=Precision("fp16", lambda op: op.op_type == "linear", "a case")),
    "fp32": replace(LINEAR, precision=Precision("fp32")),
    "fp16 features": replace(LINEAR, dtype="fp16"),
    "iOS16": replace(LINEAR, target="iOS16"),
    "transposed": graph(lambda g, x: x @ g.weight.t(), weight=drawn(32, 24)),
    "permuted": graph(lambda g, x: x.reshape(4, 2, 3) * g.weight.permute(2, 0, 1), weight=drawn(2, 3, 4)),
    "transposed fp32": replace(
        graph(lambda g, x: x.reshape(4, 2, 3) * g.weight.permute(2, 0, 1), weight=drawn(2, 3, 4)),
        precision=Precision("fp32"),
    ),
    "reshaped": graph(lambda g, x: F.linear(x, g.weight.reshape(32, 24)), weight=drawn(24, 32)),
    "concatenated": graph(concatenated, first=drawn(5, 24), second=drawn(9, 24, seed=1), third=drawn(1, 24, seed=2)),
    "split": graph(split, fused=drawn(60, 24)),
    "computed": graph(lambda g, x: F.linear(x, g.weight * 2 + g.other.exp()), weight=drawn(32, 24), other=drawn(24)),
    "normed": graph(normed, (1, 24, 1, 6), scale=drawn(1, 24, 1, 1), shift=drawn(1, 24, 1, 1, seed=1)),
    "ones": graph(lambda g, x: x * g.ones + g.zeros, ones=np.ones(24, np.float32), zeros=np.zeros(24, np.float32)),
    "equal": graph(shared, **SAME),
    "equal fp32": replace(graph(shared, **SAME), precision=Precision("fp32")),
    "alike in the beginning": graph(
        lambda g, x: F.linear(x, g.a) * F.linear(x, g.b),
        a=np.zeros((32, 24), np.float32),
        b=np.concatenate([np.zeros((31, 24), np.float32), drawn(1, 24)]),
    ),
    "alike and transposed": graph(
        lambda g, x: F.linear(x, g.a.t()) * F.linear(x, g.b.t()) + F.linear(x, g.c.t()) * F.linear(x, g.d.t()),
        a=np.ones((24, 32), np.float32),
        b=np.concatenate([np.ones((23, 32), np.float32), drawn(1, 32)]),
        c=np.ones((24, 32), np.float32),
        d=drawn(24, 32, seed=1),
    ),
    "too large for fp16": graph(lambda g, x: F.linear(x, g.weight).relu(), weight=LOUD),
    "infinite": graph(lambda g, x: F.linear(x, g.weight).clamp(-1, 1), weight=ENDLESS),
    "vanishing": graph(lambda g, x: F.linear(x, g.weight), weight=TINY),
    "few vanishing": graph(lambda g, x: F.linear(x, g.weight), weight=TINY[:16]),
    "embedded": graph(lambda g, x: F.embedding(x.long(), g.weight), weight=drawn(50, 24)),
    "convolved": filled(lambda: nn.Sequential(nn.Conv1d(8, 16, 3), nn.BatchNorm1d(16), nn.ReLU()), (1, 8, 20)),
    "scaled convolution": graph(
        lambda g, x: F.conv2d(x, g.weight, g.bias) * g.scale + g.shift,
        (1, 3, 8, 8),
        weight=drawn(6, 3, 3, 3), bias=drawn(6), scale=drawn(1, 6, 1, 1, seed=1), shift=drawn(1, 6, 1, 1, seed=2),
    ),
    "upsampled": filled(lambda: nn.ConvTranspose1d(8, 4, 6, 3, 1), (1, 8, 10)),
    "in groups": filled(lambda: nn.Conv2d(4, 6, (3, 1), (2, 1), (1, 0), (2, 1), 2, bias=False), (1, 4, 9, 5)),
    "upsampled in groups": filled(lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, 2, bias=False), (1, 4, 5, 4)),
    "upsampled to a length": filled(lambda: Sized(8, 4, 6, 3, 2), (1, 8, 10)),
    "upsampled by functions": graph(
        upsampled, (1, 4, 5, 4), weight=drawn(4, 6, 3, 2), other=drawn(6, 4, 3, seed=1), bias=drawn(4)
    ),
    "padded by a rule": filled(
        lambda: nn.Sequential(nn.Conv1d(4, 4, 3, padding="same"), nn.Conv1d(4, 2, 3, 1, 1, padding_mode="reflect")),
        (1, 4, 9),
    ),
    "without a batch": filled(lambda: nn.Conv1d(4, 6, 3), (4, 9)),
    "weight norm": filled(lambda: nn.utils.parametrizations.weight_norm(nn.Conv1d(8, 16, 3)), (1, 8, 20)),
    "attention": graph(attended, (1, 6, 24), fused=drawn(72, 24), bias=drawn(72)),
    "lstm": filled(lambda: First(nn.LSTM(24, 16, 2, bidirectional=True, batch_first=True)), (1, 6, 24)),
    "stateful": Case({"weight": drawn(24, 24)}, Stateful, states=(StateSpec("cache", (1, 6, 24)),)),
    "palettized": Case(palettes(), Palettized),
    "overwritten": Case({"weight": drawn(32, 24)}, Overwritten),
    "integers": graph(lambda g, x: x.index_select(1, g.places), places=np.arange(23, -1, -1, np.int32)),
}  # fmt: skip
