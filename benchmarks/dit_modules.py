"""The diffusion transformer of ``dit.py`` as plain torch, written for ``torch.jit.trace``.

Joint blocks let two streams attend to each other, single blocks run on both joined, each modulated by
a vector: the shape of a Flux transformer. In shapes, D is the width, H the heads, S the text rows and
the audio rows together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from coreproof.convert.checkpoint import Checkpoint

Config = Mapping[str, Any]
_EPS = 1e-6


def _normed(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=_EPS) * (1 + scale[:, None]) + shift[:, None]


class RmsNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + _EPS) * self.weight


class Projections(nn.Module):
    """Normed queries and keys, and values, of one stream: each (B, H, rows, D / H)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.norm_q, self.norm_k = RmsNorm(width // heads), RmsNorm(width // heads)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = (x.shape[0], x.shape[1], self.heads, x.shape[2] // self.heads)
        q, k, v = (p(x).reshape(shape).transpose(1, 2) for p in (self.q, self.k, self.v))
        return self.norm_q(q), self.norm_k(k), v


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    return x * cos + torch.stack((-odd, even), -1).flatten(3) * sin


def _attend(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    mixed = F.scaled_dot_product_attention(_rotated(q, cos, sin), _rotated(k, cos, sin), v)
    return mixed.transpose(1, 2).flatten(2)


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Stream(nn.Module):
    """One stream's half of a joint block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        self.projections = Projections(width, heads)
        self.out = nn.Linear(width, width)
        self.feed = FeedForward(width)


class JointBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.text, self.audio = Stream(width, heads), Stream(width, heads)

    def forward(
        self, text: Tensor, audio: Tensor, vector: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        streams, rows = (self.text, self.audio), (text, audio)
        parts = [stream.modulation(F.silu(vector)).chunk(6, -1) for stream in streams]
        heads = [s.projections(_normed(x, p[1], p[0])) for s, x, p in zip(streams, rows, parts, strict=True)]
        q, k, v = (torch.cat(pair, 2) for pair in zip(*heads, strict=True))
        mixed = _attend(q, k, v, cos, sin)
        halves = mixed[:, : text.shape[1]], mixed[:, text.shape[1] :]
        done = []
        for stream, x, half, p in zip(streams, rows, halves, parts, strict=True):
            x = x + p[2][:, None] * stream.out(half)
            done.append(x + p[5][:, None] * stream.feed(_normed(x, p[4], p[3])))
        return done[0], done[1]


class SingleBlock(nn.Module):
    """Attention and feed-forward side by side, with one projection for both."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 3 * width)
        self.projections = Projections(width, heads)
        self.up, self.out = nn.Linear(width, 4 * width), nn.Linear(5 * width, width)

    def forward(self, x: Tensor, vector: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(F.silu(vector)).chunk(3, -1)
        h = _normed(x, scale, shift)
        mixed = _attend(*self.projections(h), cos, sin)
        both = torch.cat((mixed, F.gelu(self.up(h), approximate="tanh")), -1)
        return x + gate[:, None] * self.out(both)


class Transformer(nn.Module):
    """``latents`` (B, audio rows, C), ``context`` (B, text rows, D), ``vector`` (B, D) -> (B, audio rows, C)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, heads, channels = config["width"], config["heads"], config["channels"]
        self.text_rows = config["text_rows"]
        self.latents, self.context = nn.Linear(channels, width), nn.Linear(width, width)
        self.vector = FeedForward(width)
        self.joint = nn.ModuleList(JointBlock(width, heads) for _ in range(config["joint"]))
        self.single = nn.ModuleList(SingleBlock(width, heads) for _ in range(config["single"]))
        self.modulation, self.out = nn.Linear(width, 2 * width), nn.Linear(width, channels)
        for name, table in zip(("cos", "sin"), rotation(config), strict=True):
            self.register_buffer(name, torch.from_numpy(table), persistent=False)

    def forward(self, latents: Tensor, context: Tensor, vector: Tensor) -> Tensor:
        text, audio, vector = self.context(context), self.latents(latents), self.vector(vector)
        for joint in self.joint:
            text, audio = joint(text, audio, vector, self.cos, self.sin)
        x = torch.cat((text, audio), 1)
        for single in self.single:
            x = single(x, vector, self.cos, self.sin)
        scale, shift = self.modulation(F.silu(vector)).chunk(2, -1)
        return self.out(_normed(x[:, self.text_rows :], scale, shift))


def rotation(config: Config) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines (S, D / H) of rotary positions, pairs side by side; text rows are not turned."""
    rows, width = config["text_rows"] + config["audio_rows"], config["width"] // config["heads"]
    positions = np.maximum(np.arange(rows) - config["text_rows"], 0)
    angles = np.repeat(np.outer(positions, 10000.0 ** -(np.arange(0, width, 2) / width)), 2, axis=1)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def build(checkpoint: Checkpoint) -> nn.Module:
    """The transformer in eval mode, sharing the checkpoint's arrays."""
    with torch.device("meta"):
        module = Transformer(checkpoint.config)
    state = {name: torch.from_numpy(tensor) for name, tensor in checkpoint.tensors.items()}
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Every parameter's shape by its name."""
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in Transformer(config).named_parameters()}
