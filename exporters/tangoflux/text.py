"""The text encoder and what the transformer is conditioned on, as plain torch.

Follows transformers' ``T5EncoderModel`` and ``tangoflux.model.TangoFlux`` (0.1.0). In shapes, C is T5's
width and 64 the tokens of a prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coreproof_exporters.tangoflux.architecture import DURATION_WAVES, EPS, TEXT_ROWS, Config
from coreproof_exporters.tangoflux.contract import HIDDEN_SCORE


class T5Norm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight. T5's stream leaves the range of fp16, so this stays fp32, where
    nothing overflows and a row of zeros stays zeros."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + EPS) * self.weight


class SelfAttention(nn.Module):
    """Without a scale, which T5 has in its weights."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        model, self.shape = config["context_width"], (config["text_heads"], config["text_head_width"])
        inner = self.shape[0] * self.shape[1]
        self.q, self.k, self.v = (nn.Linear(model, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, model, bias=False)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        heads = (linear(x).reshape(1, TEXT_ROWS, *self.shape) for linear in (self.q, self.k, self.v))
        q, k, v = (h.transpose(1, 2) for h in heads)  # (1, H, 64, W)
        scores = torch.matmul(q, k.transpose(2, 3)) + bias
        mixed = torch.matmul(F.softmax(scores, -1), v).transpose(1, 2)
        return self.o(mixed.reshape(1, TEXT_ROWS, self.shape[0] * self.shape[1]))


class DenseReluDense(nn.Module):
    """T5's name for it; flan-t5's activation is a gated GELU in the form with tanh."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        model, inner = config["context_width"], config["text_inner"]
        self.wi_0, self.wi_1 = nn.Linear(model, inner, bias=False), nn.Linear(model, inner, bias=False)
        self.wo = nn.Linear(inner, model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))


class AttentionLayer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.SelfAttention, self.layer_norm = SelfAttention(config), T5Norm(config["context_width"])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return x + self.SelfAttention(self.layer_norm(x), bias)


class FeedForwardLayer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.DenseReluDense, self.layer_norm = DenseReluDense(config), T5Norm(config["context_width"])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.DenseReluDense(self.layer_norm(x))


class Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.layer = nn.ModuleList([AttentionLayer(config), FeedForwardLayer(config)])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.layer[1](self.layer[0](x, bias))


class TextEncoder(nn.Module):
    """``input_ids`` and ``attention_mask`` int32 (1, 64) -> ``text_hidden`` (1, 64, C). Rows of padding
    are computed too, as upstream's are: those within the longer prompt's length are attended."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.shared = nn.Embedding(config["vocabulary"], config["context_width"])
        shape = (1, config["text_heads"], TEXT_ROWS, TEXT_ROWS)
        self.position_bias = nn.Parameter(torch.empty(shape))
        self.block = nn.ModuleList(Block(config) for _ in range(config["text_layers"]))
        self.final_layer_norm = T5Norm(config["context_width"])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = (1.0 - attention_mask.to(torch.float32)) * HIDDEN_SCORE
        bias = self.position_bias + hidden.reshape(1, 1, 1, TEXT_ROWS)
        x = self.shared(input_ids)
        for block in self.block:
            x = block(x, bias)
        return self.final_layer_norm(x)


class Conditioning(nn.Module):
    """``text_hidden`` (2, 64, C) and ``attention_mask`` int32 (2, 64), both [unconditional, conditional],
    and ``duration`` (1,) in seconds -> ``pooled_projections`` (2, C) and ``encoder_hidden_states``
    (2, 65, C), whose last row is the duration's.

    The mean is a sum over a count; upstream's mean without NaN is the same.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        model = config["context_width"]
        self.longest = float(config["max_duration"])
        self.projection = nn.Linear(model, model)
        self.duration = nn.Linear(2 * DURATION_WAVES + 1, model)
        self.angles = nn.Parameter(torch.empty(1, DURATION_WAVES))

    def forward(self, text_hidden: Tensor, attention_mask: Tensor, duration: Tensor) -> tuple[Tensor, Tensor]:
        mask = attention_mask.to(torch.float32).unsqueeze(2)
        pooled = (text_hidden * mask).sum(1) / mask.sum(1)
        share = (duration.clamp(0.0, self.longest) * (1.0 / self.longest)).unsqueeze(1)  # (1, 1)
        angles = share * self.angles
        features = torch.cat((share, torch.sin(angles), torch.cos(angles)), 1)
        token = self.duration(features).unsqueeze(0)  # (1, 1, C)
        context = torch.cat((text_hidden, torch.cat((token, token), 0)), 1)
        return F.relu(self.projection(pooled)), context
