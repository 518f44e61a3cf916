"""The style denoiser: ``Modules/diffusion/modules.py`` (StyleTransformer1d) inside KDiffusion's scaling."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coreproof_exporters.styletts2.architecture import HEAD, POSITIONS, Config
from coreproof_exporters.styletts2.layers import AdaLayerNorm, attention, score_bias


class _Waves(nn.Module):
    """Time (1,) -> (1, 1 + 2 n): itself, and sine and cosine at learned frequencies."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(count))

    def forward(self, time: Tensor) -> Tensor:
        time = time.reshape(1, 1)
        angles = time * self.weights.reshape(1, -1) * (2 * math.pi)
        return torch.cat([time, torch.sin(angles), torch.cos(angles)], dim=-1)


class _Block(nn.Module):
    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.heads = config["denoiser_heads"]
        inner = self.heads * HEAD
        self.attention: Any = nn.Module()
        self.attention.norm = AdaLayerNorm(2 * config["style"], width)
        self.attention.norm_context = AdaLayerNorm(2 * config["style"], width)
        self.attention.to_q = nn.Linear(width, inner, bias=False)
        self.attention.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.attention.attention = nn.Module()
        self.attention.attention.to_out = nn.Linear(inner, width)
        wide = width * config["denoiser_multiplier"]
        self.feed_forward = nn.Sequential(nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, width))

    def forward(self, x: Tensor, features: Tensor, bias: Tensor | None) -> Tensor:
        own = self.attention
        k, v = own.to_kv(own.norm_context(x, features)).chunk(2, dim=-1)
        q = own.to_q(own.norm(x, features))
        x = own.attention.to_out(attention(q, k, v, self.heads, HEAD, bias)) + x
        return self.feed_forward(x) + x


class StyleTransformer1d(nn.Module):
    """Everything under upstream's key ``diffusion.unet``."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels = 2 * config["style"]
        width = channels + config["bert"]
        self.blocks = nn.ModuleList(_Block(width, config) for _ in range(config["denoiser_layers"]))
        self.to_out = nn.Sequential(nn.Identity(), nn.Conv1d(width, channels, 1))
        self.to_mapping = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU()
        )
        self.to_time = nn.Sequential(
            nn.Sequential(_Waves(channels // 2), nn.Linear(channels + 1, width)), nn.GELU()
        )
        self.to_features = nn.Sequential(nn.Linear(channels, width), nn.GELU())
        self.fixed_embedding: Any = nn.Module()
        self.fixed_embedding.embedding = nn.Embedding(POSITIONS, config["bert"])

    def forward(
        self, x: Tensor, time: Tensor, embedding: Tensor, features: Tensor, row: Tensor | None
    ) -> Tensor:
        """``x`` (1, 1, S), ``time`` (1,), ``embedding`` (1, L, W), ``features`` (1, S) -> (1, 1, S)."""
        mapping = self.to_mapping(self.to_time(time) + self.to_features(features)).unsqueeze(1)
        x = torch.cat([x.expand(1, embedding.shape[1], x.shape[2]), embedding], dim=-1)
        bias = None if row is None else score_bias(row)
        for block in self.blocks:
            x = block(x + mapping, features, bias)
        if row is None:
            x = x.mean(dim=1, keepdim=True)
        else:
            real = row.unsqueeze(-1)
            x = (x * real).mean(dim=1, keepdim=True) / real.mean(dim=1, keepdim=True)
        project: Any = self.to_out[1]
        return F.linear(x, project.weight.squeeze(-1), project.bias)


class Scaling(nn.Module):
    """KDiffusion's coefficients of a noise level: Karras et al. 2022, arXiv:2206.00364, section 5."""

    def __init__(self, sigma_data: float) -> None:
        super().__init__()
        self.sigma_data = sigma_data

    def forward(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """skip, out and in (1, 1, 1), and the time (1,), of ``sigma`` (1,)."""
        data = self.sigma_data
        level = sigma.reshape(1, 1, 1)
        root = torch.rsqrt(level * level + data * data)
        # No quotient of a number and a tensor: coremltools makes it MIL's inverse, which adds 1e-4 below.
        return data * data * (root * root), level * data * root, root, torch.log(sigma) * 0.25


class DiffusionStep(nn.Module):
    """One evaluation of the denoiser at a noise level."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.scaling = Scaling(config["sigma_data"])
        self.diffusion = StyleTransformer1d(config)

    def forward(
        self, x: Tensor, sigma: Tensor, embedding: Tensor, features: Tensor, row: Tensor | None = None
    ) -> Tensor:
        skip, out, into, time = self.scaling(sigma)
        return skip * x + out * self.diffusion(into * x, time, embedding, features, row)
