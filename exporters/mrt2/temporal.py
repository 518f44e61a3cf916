"""The temporal body as plain torch, one frame at a time, written for ``torch.jit.trace``.

Follows ``magenta_rt.jax.model`` (order of the layers) and ``sequence_layers.jax`` (RMS norm, attention
with sinks, streaming cross-attention) of magenta-rt 2.0.3. In shapes, D is the width, H the heads,
W the width of a head, S that of the source, and 41 the past frames an attention sees. Nothing in the
model depends on a frame's position, so the order of the cached frames cannot matter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coreproof_exporters.mrt2.architecture import NORM_EPS, WINDOW, Config
from coreproof_exporters.mrt2.contract import COLUMNS, HIDDEN_SCORE, STEP, cache_shape, stems


class RmsNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + NORM_EPS) * self.weight


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.pre_norm = RmsNorm(width)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.post_norm = RmsNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.post_norm(self.down(F.gelu(self.up(self.pre_norm(x)), approximate="tanh")))


class Attention(nn.Module):
    """Frames attend to a learned sink, the cached frames and those of their own call.

    ``forward(x, source, keys, values, bias)``: x (1, F, D); source, what keys and values are projected
    from, x's normed self when None; caches (1, 41, H, W); bias (1, 1, F, 42 + F), 0 or -1e4 a column.
    Returns the sum with x, and the frames' keys and values (1, F, H, W).
    """

    def __init__(self, config: Config, inputs: int, frames: int) -> None:
        super().__init__()
        width, heads, head_width = config["width"], config["heads"], config["head_width"]
        self.pre_norm = RmsNorm(width)
        self.query = nn.Linear(width, heads * head_width, bias=False)  # its scale is folded in
        self.key = nn.Linear(inputs, heads * head_width, bias=False)
        self.value = nn.Linear(inputs, heads * head_width, bias=False)
        self.sink_key = nn.Parameter(torch.empty(1, 1, heads, head_width))
        self.sink_value = nn.Parameter(torch.empty(1, 1, heads, head_width))
        self.output = nn.Linear(heads * head_width, width, bias=False)
        self.post_norm = RmsNorm(width)
        self.frames = frames
        self.row = (1, heads, 1, head_width)
        self.frame = (1, frames, heads, head_width)
        self.joined = (1, frames, heads * head_width)

    def forward(
        self, x: Tensor, source: Tensor | None, keys: Tensor, values: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        normed = self.pre_norm(x)
        seen = normed if source is None else source
        query = self._by_head(self.query(normed))
        key = self.key(seen).reshape(self.frame)
        value = self.value(seen).reshape(self.frame)
        all_keys = torch.cat([self.sink_key, keys, key], dim=1)  # (1, 42 + F, H, W)
        all_values = torch.cat([self.sink_value, values, value], dim=1)
        scores = torch.matmul(query, all_keys.permute(0, 2, 3, 1)) + bias  # (1, H, F, 42 + F)
        context = torch.matmul(scores.softmax(dim=-1), all_values.permute(0, 2, 1, 3))  # (1, H, F, W)
        return x + self.post_norm(self.output(self._by_frame(context))), key, value

    # One frame's rows are in order already, and a graph of one frame needs no transposition.

    def _by_head(self, query: Tensor) -> Tensor:
        return query.reshape(self.row) if self.frames == 1 else query.reshape(self.frame).permute(0, 2, 1, 3)

    def _by_frame(self, context: Tensor) -> Tensor:
        moved = context if self.frames == 1 else context.permute(0, 2, 1, 3)
        return moved.reshape(self.joined)


class Layer(nn.Module):
    def __init__(self, config: Config, frames: int = 1) -> None:
        super().__init__()
        self.self = Attention(config, config["width"], frames)
        self.cross = Attention(config, config["source_width"], frames)
        self.ffn = FeedForward(config["width"], config["ffn"])

    def forward(
        self, x: Tensor, source: Tensor, caches: Sequence[Tensor], bias: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        x, self_key, self_value = self.self(x, None, caches[0], caches[1], bias)
        x, cross_key, cross_value = self.cross(x, source, caches[2], caches[3], bias)
        return self.ffn(x), [self_key, self_value, cross_key, cross_value]


class TemporalCarry(nn.Module):
    """One frame, without memory of its own: the host carries the caches.

    ``temporal_inputs`` (1, 1, D), ``source_encoded`` (1, 1, S), ``cache_valid_bias`` (1, 1, 1, 43), then
    four caches (1, 41, H, W) a layer -> ``temporal_outputs`` (1, 1, D) and the four updates (1, 1, H, W)
    a layer that the host appends to its caches.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config["layers"]))

    def forward(self, x: Tensor, source: Tensor, bias: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        updates: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            x, new = layer(x, source, caches[4 * index : 4 * index + 4], bias)
            updates += new
        return (x, *updates)


class TemporalStateful(nn.Module):
    """F frames, one by default, whose caches are states, chronological, the newest last.

    ``temporal_inputs`` (1, F, D), ``source_encoded`` (1, F, S), ``cache_valid_bias`` (1, 1, F, 42 + F) ->
    ``temporal_outputs`` (1, F, D). Each of the ``*_cache`` states (1, 41, H, W) moves on by F frames, so
    after n frames its last n slots are filled. The bias must show those, and to each frame of several no
    more than the 41 before it: see :func:`coreproof_exporters.mrt2.contract.burst_bias`.
    """

    def __init__(self, config: Config, frames: int = 1) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config, frames) for _ in range(config["layers"]))
        self.names = stems(config)
        shape = cache_shape(config)
        for name in self.names:
            self.register_buffer(name, torch.zeros(shape, device="cpu"), persistent=False)

    def forward(self, x: Tensor, source: Tensor, bias: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            names = self.names[4 * index : 4 * index + 4]
            caches = [self.get_buffer(name) for name in names]
            x, new = layer(x, source, caches, bias)
            for cache, frame in zip(caches, new, strict=True):
                self.keep(cache, frame)
        return x

    def keep(self, cache: Tensor, frame: Tensor) -> None:
        cache[:] = torch.cat([cache[:, frame.shape[1] :], frame], dim=1)


class TemporalPublished(TemporalStateful):
    """The stateful graph behind the published signature: no bias input, the frames seen so far (up to
    41) counted in one more state, ``step`` (1,)."""

    step: Tensor
    needed: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.register_buffer(STEP, torch.zeros(1, device="cpu"), persistent=False)
        # How many frames must have been seen for a column to hold something.
        needed = torch.arange(WINDOW + 1, -1, -1, dtype=torch.float32, device="cpu")
        needed[0] = needed[-1] = 0.0  # the sink and the current frame
        self.register_buffer("needed", needed.reshape(1, 1, 1, COLUMNS), persistent=False)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:  # type: ignore[override]
        missing = (self.needed - self.step).clamp(0.0, 1.0)
        y = super().forward(x, source, missing * HIDDEN_SCORE)
        # Both bounds, because an open one becomes an infinite constant.
        self.step[:] = (self.step + 1.0).clamp(0.0, float(WINDOW))
        return y
