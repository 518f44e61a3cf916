"""Attention (coremltools 9.0 ops/defs/iOS18/transformers.py)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from coreproof.runtime.numerics import Numerics
from coreproof.runtime.registry import op


@op("scaled_dot_product_attention", since="ios18")
def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *, num: Numerics
) -> Tensor:
    """``softmax(query @ key.T / sqrt(E) + attn_mask) @ value``; a bool mask is true where attention goes.

    The probabilities are not rounded between the two products. A row that may attend to nothing is
    NaN, as the formula gives; torch returns 0 there.
    """
    if not num.wide:
        scores = num.matmul(query, key.transpose(-1, -2)) / math.sqrt(query.shape[-1])
        if attn_mask is not None:
            boolean = attn_mask.dtype is torch.bool
            scores = torch.where(attn_mask, scores, -math.inf) if boolean else scores + attn_mask
        return num.matmul(num.softmax(scores, -1), value)
    result = F.scaled_dot_product_attention(query, key, value, attn_mask)
    if attn_mask is None:
        return result
    nothing = False if attn_mask.dtype is torch.bool else -math.inf
    best = attn_mask.amax(-1, keepdim=True)
    return result.masked_fill(best == nothing, math.nan) if best.amin().item() == nothing else result
