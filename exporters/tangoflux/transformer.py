"""The Flux transformer as plain torch, without einsum and with no tensor of more than four axes.

Follows diffusers' ``FluxTransformer2DModel`` (0.42.1), with its names. In shapes, B is 2 (unconditional,
conditional), S the audio rows, T = 65 + S all rows, D the width, H the heads, W their width.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coreproof_exporters.tangoflux.architecture import (
    CONTEXT_ROWS,
    EPS,
    MAX_PERIOD,
    ROPE_AXES,
    TIME_SCALE,
    TIME_WIDTH,
    Config,
    width,
)

Table = tuple[Tensor, Tensor]  # cosines and sines, (1, T, 1, W) each


class RmsNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis of x (..., W).

    As the layer norm of [x, -x], whose mean is 0 and whose variance is the mean of x^2: one op that keeps
    its sums to itself. Written out, x^2 overflows fp16 from 256 on; and scaled by the greatest |x|, as
    coremltools converts torch's own op, a row of zeros becomes 0 / 0.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.gamma = nn.Parameter(torch.empty(2 * size))  # the weight twice

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat((x, -x), -1)
        return F.layer_norm(both, (2 * self.size,), self.gamma, None, EPS)[..., : self.size]


class Turn(nn.Module):
    """The rotary embedding: neighbours (a, b) become (a cos - b sin, b cos + a sin).

    (-b, a) of all pairs is a product with one constant matrix that has one entry a column, so that no
    pair has to become an axis.
    """

    pairs: Tensor

    def __init__(self) -> None:
        super().__init__()
        size = sum(ROPE_AXES)
        pairs = np.zeros((size, size), np.float32)
        even = np.arange(0, size, 2)
        pairs[even + 1, even], pairs[even, even + 1] = -1.0, 1.0
        self.register_buffer("pairs", torch.from_numpy(pairs), persistent=False)

    def forward(self, x: Tensor, table: Table) -> Tensor:
        """x (B, T, H, W), turned."""
        return x * table[0] + torch.matmul(x, self.pairs) * table[1]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """q, k, v (B, T, H, W) and an additive mask that broadcasts to (B, H, T, T) -> (B, T, D)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
    return mixed.reshape(mixed.shape[0], mixed.shape[1], mixed.shape[2] * mixed.shape[3])


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The layer norm of x (B, rows, D) without weights, times 1 + scale, plus shift, (B, 1, D) each."""
    return F.layer_norm(x, (x.shape[-1],), None, None, EPS) * (1.0 + scale) + shift


class AdaNorm(nn.Module):
    """``parts`` modulations (B, 1, D) of the activated condition (B, 1, D)."""

    def __init__(self, inner: int, parts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inner, parts * inner)
        self.parts = parts

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        return self.linear(condition).chunk(self.parts, -1)


class Gelu(nn.Module):
    def __init__(self, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inner, 4 * inner)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    def __init__(self, inner: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([Gelu(inner), nn.Identity(), nn.Linear(4 * inner, inner)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class Attention(nn.Module):
    """The projections of a block. ``joint``: of both streams; the text's are called ``add``ed."""

    def __init__(self, config: Config, *, joint: bool) -> None:
        super().__init__()
        inner, head = width(config), config["head_width"]
        self.shape = (config["heads"], head)
        self.to_q, self.to_k, self.to_v = (nn.Linear(inner, inner) for _ in range(3))
        self.norm_q, self.norm_k = RmsNorm(head), RmsNorm(head)
        if joint:
            self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(inner, inner) for _ in range(3))
            self.norm_added_q, self.norm_added_k = RmsNorm(head), RmsNorm(head)
            self.to_out = nn.ModuleList([nn.Linear(inner, inner)])
            self.to_add_out = nn.Linear(inner, inner)

    def audio(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (self._heads(linear(x)) for linear in (self.to_q, self.to_k, self.to_v))
        return self.norm_q(q), self.norm_k(k), v

    def text(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (self._heads(linear(x)) for linear in (self.add_q_proj, self.add_k_proj, self.add_v_proj))
        return self.norm_added_q(q), self.norm_added_k(k), v

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], *self.shape)  # (B, rows, H, W)


class JointBlock(nn.Module):
    """Two streams that attend to each other."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        inner = width(config)
        self.norm1, self.norm1_context = AdaNorm(inner, 6), AdaNorm(inner, 6)
        self.attn = Attention(config, joint=True)
        self.ff, self.ff_context = FeedForward(inner), FeedForward(inner)

    def forward(
        self, audio: Tensor, text: Tensor, condition: Tensor, turn: Turn, table: Table, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        shift, scale, gate, *rest = self.norm1(condition)
        text_shift, text_scale, text_gate, *text_rest = self.norm1_context(condition)
        own = self.attn.audio(modulated(audio, scale, shift))
        other = self.attn.text(modulated(text, text_scale, text_shift))
        q, k, v = (torch.cat(pair, 1) for pair in zip(other, own, strict=True))
        mixed = attend(turn(q, table), turn(k, table), v, mask)
        rows = text.shape[1]
        audio = audio + gate * self.attn.to_out[0](mixed[:, rows:])
        text = text + text_gate * self.attn.to_add_out(mixed[:, :rows])
        return _fed(audio, self.ff, *rest), _fed(text, self.ff_context, *text_rest)


def _fed(x: Tensor, ff: FeedForward, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
    return x + gate * ff(modulated(x, scale, shift))


class SingleBlock(nn.Module):
    """Attention and feed-forward side by side on text and audio joined, with one projection for both."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        inner = width(config)
        self.norm = AdaNorm(inner, 3)
        self.attn = Attention(config, joint=False)
        self.proj_mlp, self.proj_out = nn.Linear(inner, 4 * inner), nn.Linear(5 * inner, inner)

    def forward(self, x: Tensor, condition: Tensor, turn: Turn, table: Table, mask: Tensor | None) -> Tensor:
        shift, scale, gate = self.norm(condition)
        h = modulated(x, scale, shift)
        q, k, v = self.attn.audio(h)
        mixed = attend(turn(q, table), turn(k, table), v, mask)
        both = torch.cat((mixed, F.gelu(self.proj_mlp(h), approximate="tanh")), 2)
        return x + gate * self.proj_out(both)


class TimestepEmbedding(nn.Module):
    def __init__(self, inputs: int, inner: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(inputs, inner), nn.Linear(inner, inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class CombinedEmbedding(nn.Module):
    """sigma (1,) and the pooled text (B, C) -> (B, D). The sinusoid must be computed in fp32."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        inner = width(config)
        self.timestep_embedder = TimestepEmbedding(TIME_WIDTH, inner)
        self.text_embedder = TimestepEmbedding(config["context_width"], inner)
        self.register_buffer("frequencies", torch.from_numpy(frequencies()), persistent=False)

    def forward(self, timestep: Tensor, pooled: Tensor) -> Tensor:
        angles = (timestep * TIME_SCALE).unsqueeze(1) * self.frequencies
        sinusoid = torch.cat((torch.cos(angles), torch.sin(angles)), 1)
        return self.timestep_embedder(sinusoid) + self.text_embedder(pooled)


class Transformer(nn.Module):
    """One step: ``hidden_states`` (2, S, channels), ``timestep`` (1,), which is sigma,
    ``pooled_projections`` (2, C), ``encoder_hidden_states`` (2, 65, C) and ``key_mask`` (1, 1, 1, T),
    0 where a row may be attended and -1e4 where not -> ``noise_pred`` (2, S, channels).

    Positions are constant: 0 for text, the row's number for audio, from float64.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        inner = width(config)
        self.time_text_embed = CombinedEmbedding(config)
        self.context_embedder = nn.Linear(config["context_width"], inner)
        self.x_embedder = nn.Linear(config["channels"], inner)
        self.transformer_blocks = nn.ModuleList(JointBlock(config) for _ in range(config["joint_layers"]))
        self.single_transformer_blocks = nn.ModuleList(
            SingleBlock(config) for _ in range(config["single_layers"])
        )
        self.norm_out = AdaNorm(inner, 2)
        self.proj_out = nn.Linear(inner, config["channels"])
        self.turn = Turn()
        self._constants(config)

    def _constants(self, config: Config) -> None:
        for name, table in zip(("cos", "sin"), rotation(config["audio_rows"]), strict=True):
            self.register_buffer(name, torch.from_numpy(table), persistent=False)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        pooled_projections: Tensor,
        encoder_hidden_states: Tensor,
        key_mask: Tensor,
    ) -> Tensor:
        condition = self.time_text_embed(timestep, pooled_projections)
        table = (self.cos, self.sin)
        return self.run(hidden_states, encoder_hidden_states, condition, table, key_mask)

    def run(
        self, latents: Tensor, context: Tensor, condition: Tensor, table: Table, mask: Tensor | None
    ) -> Tensor:
        audio, text = self.x_embedder(latents), self.context_embedder(context)
        condition = F.silu(condition).unsqueeze(1)
        for joint in self.transformer_blocks:
            audio, text = joint(audio, text, condition, self.turn, table, mask)
        x = torch.cat((text, audio), 1)
        for single in self.single_transformer_blocks:
            x = single(x, condition, self.turn, table, mask)
        scale, shift = self.norm_out(condition)  # the other way round than in the blocks
        return self.proj_out(modulated(x[:, CONTEXT_ROWS:], scale, shift))


class PublishedTransformer(Transformer):
    """The same behind the six inputs that hosts of the first conversion have: ``hidden_states``,
    ``timestep``, ``pooled_projections``, ``encoder_hidden_states``, ``txt_ids`` (2, 65, 3) and ``img_ids``
    (2, S, 3). It has no mask, so all 64 text rows are attended. The angles must be computed in fp32."""

    omega: Tensor

    def _constants(self, config: Config) -> None:
        self.register_buffer(
            "omega", torch.from_numpy(axis_frequencies().astype(np.float32)), persistent=False
        )

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        pooled_projections: Tensor,
        encoder_hidden_states: Tensor,
        txt_ids: Tensor,
        img_ids: Tensor,
    ) -> Tensor:
        condition = self.time_text_embed(timestep, pooled_projections)
        ids = torch.cat((txt_ids[:1], img_ids[:1]), 1)  # (1, T, 3); both halves have the same
        angles = F.linear(ids, self.omega)  # (1, T, W)
        table = (torch.cos(angles).unsqueeze(2), torch.sin(angles).unsqueeze(2))
        return self.run(hidden_states, encoder_hidden_states, condition, table, None)


def frequencies() -> np.ndarray:
    """The sinusoid's frequencies exp(-ln(10000) i / 128), float32 (1, 128): as diffusers'
    ``get_timestep_embedding``, exponents in float32, but the exponential correctly rounded."""
    half = TIME_WIDTH // 2
    exponents = np.float32(-math.log(MAX_PERIOD)) * np.arange(half, dtype=np.float32) / np.float32(half)
    return np.exp(exponents.astype(np.float64)).astype(np.float32)[np.newaxis]


def axis_frequencies() -> np.ndarray:
    """The angle that a step of each id adds, float64 (W, 3): every column has the width of its axis, and
    each frequency is there twice, for the two of a pair."""
    table = np.zeros((sum(ROPE_AXES), len(ROPE_AXES)))
    start = 0
    for axis, size in enumerate(ROPE_AXES):
        table[start : start + size, axis] = np.repeat(MAX_PERIOD ** -(np.arange(0, size, 2) / size), 2)
        start += size
    return table


def rotation(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines float32 (1, 65 + rows, 1, W), from float64: text rows are not turned, an audio row
    has its number as all three ids."""
    position = np.maximum(np.arange(CONTEXT_ROWS + rows) - CONTEXT_ROWS, 0)
    angles = np.outer(position, axis_frequencies().sum(axis=1))[np.newaxis, :, np.newaxis]
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
