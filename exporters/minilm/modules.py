"""The sentence encoder as plain torch, written for ``torch.jit.trace``.

Follows ``transformers.models.bert.modeling_bert`` (attention, feed-forward, order of the layer
norms) and the model card of sentence-transformers/all-MiniLM-L6-v2 (mean over the unmasked tokens,
then L2 normalisation). Parameters carry the checkpoint's own names, whence attributes such as
``self.self`` and ``LayerNorm``. In shapes, H is the hidden size, A the number of heads and D = H / A.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coreproof.convert.checkpoint import Checkpoint
from coreproof_exporters.minilm.checkpoint import SEQUENCE_LENGTH

Config = Mapping[str, Any]

# exp(score - 1e4) is exactly 0 in fp16 and fp32 alike, and 1e4 is an fp16 number.
MASKED_SCORE = -1e4

# The least normal fp16 number: far below the norm of any mean, and no zero once rounded.
LEAST_NORM = 2.0**-14


class Embeddings(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        hidden = config["hidden_size"]
        # A given weight keeps torch from drawing one, for which it imports its compiler.
        words = torch.empty(config["vocab_size"], hidden)
        self.word_embeddings = nn.Embedding(config["vocab_size"], hidden, _weight=words)
        self.position_table = nn.Parameter(torch.empty(SEQUENCE_LENGTH, hidden))
        self.LayerNorm = nn.LayerNorm(hidden, config["layer_norm_eps"])

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.LayerNorm(self.word_embeddings(input_ids) + self.position_table)  # (1, 128, H)


class SelfAttention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.heads = (1, SEQUENCE_LENGTH, heads, hidden // heads)
        self.joined = (1, SEQUENCE_LENGTH, hidden)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (
            projection(x).reshape(self.heads).transpose(1, 2)  # (1, A, 128, D)
            for projection in (self.query, self.key, self.value)
        )
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return context.transpose(1, 2).reshape(self.joined)  # (1, 128, H)


class Output(nn.Module):
    """A projection, the residual and the layer norm that closes each half of a layer."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config["hidden_size"])
        self.LayerNorm = nn.LayerNorm(config["hidden_size"], config["layer_norm_eps"])

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + residual)


class Attention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.self = SelfAttention(config)
        self.output = Output(config, config["hidden_size"])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.output(self.self(x, bias), x)


class Intermediate(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.dense = nn.Linear(config["hidden_size"], config["intermediate_size"])

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.dense(x))


class Layer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Intermediate(config)
        self.output = Output(config, config["intermediate_size"])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = self.attention(x, bias)
        return self.output(self.intermediate(x), x)


class Stack(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        for layer in self.layer:
            x = layer(x, bias)
        return x


class SentenceEncoder(nn.Module):
    """``input_ids`` and ``attention_mask``, int32 (1, 128) -> ``embedding`` (1, H) of length 1.

    The mask is 1 on tokens and 0 on padding. Without a single token the embedding is 0.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Stack(config)
        self.pooled = (1, config["hidden_size"])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask.to(torch.float32)
        bias = ((1.0 - mask) * MASKED_SCORE).reshape(1, 1, 1, SEQUENCE_LENGTH)
        x = self.pool(self.encoder(self.embeddings(input_ids), bias), mask)
        return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(LEAST_NORM)

    def pool(self, x: Tensor, mask: Tensor) -> Tensor:
        """The mean of ``x`` (1, 128, H) over the tokens, (1, H).

        One product with weights of mask / count: no partial sum leaves the range of fp16, and the
        rounding of 1 / count is a common factor that the normalisation removes.
        """
        weights = mask / mask.sum(dim=-1, keepdim=True).clamp_min(1.0)
        return torch.matmul(weights.reshape(1, 1, SEQUENCE_LENGTH), x).reshape(self.pooled)


def build(checkpoint: Checkpoint, encoder: type[SentenceEncoder] = SentenceEncoder) -> SentenceEncoder:
    """The encoder in eval mode, sharing the checkpoint's arrays (nothing is copied or drawn)."""
    with torch.device("meta"):
        module = encoder(checkpoint.config)
    state = {name: torch.from_numpy(tensor) for name, tensor in checkpoint.tensors.items()}
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval().requires_grad_(False)
