"""Tokens to features: PL-BERT (an ALBERT), its projection, and the convolutional text encoder."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coreproof_exporters.styletts2.architecture import BERT_LAYERS, HEAD, POSITIONS, Config
from coreproof_exporters.styletts2.layers import BiLSTM, NormedConv1d, attention, score_bias


class _Embeddings(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config["bert_embedding"]
        self.word_embeddings = nn.Embedding(config["tokens"], width)
        # Positions and token type 0, summed in checkpoint.py.
        self.positions = nn.Parameter(torch.zeros(POSITIONS, width))
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.LayerNorm(self.word_embeddings(tokens) + self.positions[: tokens.shape[1]])


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD
        self.query, self.key, self.value, self.dense = (nn.Linear(width, width) for _ in range(4))
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        mixed = attention(self.query(x), self.key(x), self.value(x), self.heads, HEAD, bias)
        return self.LayerNorm(x + self.dense(mixed))


class _Layer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention = _Attention(config["bert"])
        self.ffn = nn.Linear(config["bert"], config["bert_ffn"])
        self.ffn_output = nn.Linear(config["bert_ffn"], config["bert"])
        self.full_layer_layer_norm = nn.LayerNorm(config["bert"], eps=1e-12)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        x = self.attention(x, bias)
        y = self.ffn_output(F.gelu(self.ffn(x), approximate="tanh"))
        return self.full_layer_layer_norm(y + x)


class _Encoder(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embedding_hidden_mapping_in = nn.Linear(config["bert_embedding"], config["bert"])
        group: Any = nn.Module()
        group.albert_layers = nn.ModuleList([_Layer(config)])
        self.albert_layer_groups = nn.ModuleList([group])

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        x = self.embedding_hidden_mapping_in(x)
        group: Any = self.albert_layer_groups[0]
        for _ in range(BERT_LAYERS):
            x = group.albert_layers[0](x, bias)
        return x


class Albert(nn.Module):
    """Tokens (1, L) -> (1, L, W): Lan et al. 2019, arXiv:1909.11942, as ``transformers`` computes it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config)

    def forward(self, tokens: Tensor, row: Tensor | None) -> Tensor:
        return self.encoder(self.embeddings(tokens), None if row is None else score_bias(row))


class _ChannelNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.transpose(1, 2), (self.channels,), self.gamma, self.beta, 1e-5)
        return x.transpose(1, 2)


class TextEncoder(nn.Module):
    """Tokens (1, L) -> (1, C, L)."""

    def __init__(self, config: Config, gated: bool) -> None:
        super().__init__()
        width = config["hidden"]
        self.embedding = nn.Embedding(config["tokens"], width)
        self.cnn = nn.ModuleList(
            nn.Sequential(NormedConv1d(width, width, 5, padding=2), _ChannelNorm(width))
            for _ in range(config["layers"])
        )
        self.lstm = BiLSTM(width, width, gated)

    def forward(self, tokens: Tensor, row: Tensor | None) -> Tensor:
        frames = None if row is None else row.unsqueeze(1)
        x = self.embedding(tokens).transpose(1, 2)
        x = x if frames is None else x * frames
        for block in self.cnn:
            x = F.leaky_relu(block(x), 0.2)
            x = x if frames is None else x * frames
        x = self.lstm(x.transpose(1, 2), row).transpose(1, 2)
        return x if frames is None else x * frames
