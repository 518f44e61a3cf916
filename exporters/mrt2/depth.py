"""The depth body as plain torch: 12 levels of one frame, all at once or drawn one by one.

Follows ``magenta_rt.jax.model`` and ``magenta_rt.jax.depthformer`` of magenta-rt 2.0.3. In shapes, D is
the temporal width, N the depth width, H the heads, W the width of a head, L the 12 levels and C the
1024 codes of a level.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from coreproof_exporters.mrt2.architecture import LOGIT_CAP, NORM_EPS, Config, vocabulary
from coreproof_exporters.mrt2.contract import HIDDEN_SCORE
from coreproof_exporters.mrt2.temporal import FeedForward, RmsNorm

TOP_K = 40  # the official default, and what the published graph fixes


class DepthAttention(nn.Module):
    """Causal self-attention without sinks. ``forward(x, bias)`` takes all positions, ``step(x, keys,
    values)`` one position and what the earlier ones left."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, heads, head_width = config["depth_width"], config["depth_heads"], config["head_width"]
        self.pre_norm = RmsNorm(width)
        self.query = nn.Linear(width, heads * head_width, bias=False)  # its scale is folded in
        self.key = nn.Linear(width, heads * head_width, bias=False)
        self.value = nn.Linear(width, heads * head_width, bias=False)
        self.output = nn.Linear(heads * head_width, width, bias=False)
        self.post_norm = RmsNorm(width)
        self.split = (1, -1, heads, head_width)
        self.joined = (1, -1, heads * head_width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        normed = self.pre_norm(x)
        query, key, value = (
            projection(normed).reshape(self.split) for projection in (self.query, self.key, self.value)
        )
        scores = torch.matmul(query.permute(0, 2, 1, 3), key.permute(0, 2, 3, 1)) + bias  # (1, H, L, L)
        context = torch.matmul(scores.softmax(dim=-1), value.permute(0, 2, 1, 3))  # (1, H, L, W)
        return self.close(x, context)

    def step(self, x: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
        normed = self.pre_norm(x)
        query = self.query(normed).reshape(self.split).permute(0, 2, 1, 3)  # (1, H, 1, W)
        keys.append(self.key(normed).reshape(self.split))
        values.append(self.value(normed).reshape(self.split))
        scores = torch.matmul(query, torch.cat(keys, dim=1).permute(0, 2, 3, 1))
        context = torch.matmul(scores.softmax(dim=-1), torch.cat(values, dim=1).permute(0, 2, 1, 3))
        return self.close(x, context)

    def close(self, x: Tensor, context: Tensor) -> Tensor:
        return x + self.post_norm(self.output(context.permute(0, 2, 1, 3).reshape(self.joined)))


class DepthLayer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.self = DepthAttention(config)
        self.ffn = FeedForward(config["depth_width"], config["depth_ffn"])


class DepthBody(nn.Module):
    """What both graphs share: the input adapter, the layers and the final layer norm."""

    layers: Any  # of DepthLayer

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.adapter = nn.Linear(config["width"], config["depth_width"], bias=False)
        self.layers = nn.ModuleList(DepthLayer(config) for _ in range(config["depth_layers"]))
        self.norm = nn.LayerNorm(config["depth_width"], NORM_EPS)


def soft_cap(logits: Tensor) -> Tensor:
    return LOGIT_CAP * torch.tanh(logits / LOGIT_CAP)


class DepthLogits(DepthBody):
    """``depth_inputs`` (1, L, D), the temporal output and then the embedded tokens of levels 0 to L - 2
    -> ``depth_logits`` (1, L, 6 + L * C), soft-capped, over every token id."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        levels = config["levels"]
        self.logits = nn.Linear(config["depth_width"], vocabulary(config))
        later = torch.full((levels, levels), HIDDEN_SCORE, device="cpu").triu(1)
        self.register_buffer("later", later.reshape(1, 1, levels, levels), persistent=False)

    def forward(self, depth_inputs: Tensor) -> Tensor:
        x = self.adapter(depth_inputs)
        for layer in self.layers:
            x = layer.ffn(layer.self(x, self.later))
        return soft_cap(self.logits(self.norm(x)))


class DepthRollout(DepthBody):
    """Draw the codes of one frame, level after level.

    ``temporal_frame`` (1, 1, D), ``gumbel_noise`` (L, C), ``inverse_temperature`` (1,) -> ``sampled_codes``
    int32 (L,), 0 to C - 1, and ``temporal_feedback`` (1, D), the next frame's temporal input.

    A level's code is the greatest of logit / temperature + noise among the 40 best logits, ties with
    the 40th included. Multiplying the noise by the temperature, as the official code does, has the
    same winner. Zero noise gives the greatest logit. Only the level's own C logits are computed.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        levels, codes, width = config["levels"], config["codes"], config["width"]
        self.heads = nn.ModuleList(nn.Linear(config["depth_width"], codes) for _ in range(levels))
        self.tokens = nn.ModuleList(
            nn.Embedding(codes, width, _weight=torch.empty(codes, width)) for _ in range(levels)
        )
        self.scale = math.sqrt(width)
        self.levels = levels

    def forward(
        self, temporal_frame: Tensor, gumbel_noise: Tensor, inverse_temperature: Tensor
    ) -> tuple[Tensor, Tensor]:
        keys: list[list[Tensor]] = [[] for _ in self.layers]
        values: list[list[Tensor]] = [[] for _ in self.layers]
        codes, rows = [], []
        given = temporal_frame
        for level in range(self.levels):
            x = self.adapter(given)
            for index, layer in enumerate(self.layers):
                x = layer.ffn(layer.self.step(x, keys[index], values[index]))
            logits = soft_cap(self.heads[level](self.norm(x))).reshape(1, -1)  # (1, C)
            code = self.choose(logits, gumbel_noise[level : level + 1], inverse_temperature)  # (1,)
            row = self.tokens[level](code).reshape(1, 1, -1) * self.scale
            codes.append(code)
            rows.append(row)
            given = row
        feedback = torch.cat(rows, dim=1).mean(dim=1)
        return torch.cat(codes).to(torch.int32), feedback

    def choose(self, logits: Tensor, noise: Tensor, inverse_temperature: Tensor) -> Tensor:
        least = torch.topk(logits, TOP_K, dim=-1).values[:, TOP_K - 1 :]  # (1, 1)
        kept = torch.where(logits >= least, logits * inverse_temperature + noise, HIDDEN_SCORE)
        return kept.argmax(dim=-1)
