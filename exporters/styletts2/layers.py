"""Building blocks with upstream's parameter names: StyleTTS 2's ``models.py`` and ``Modules/hifigan.py``.

A ``Mask`` marks what is real in a padded axis. With one, every block equals what it computes on the
unpadded input; without one (None) padding is data, as in ports that have no masks.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLOSED = -60.0  # of an LSTM's input gate over padding; sigmoid(-60) is 1e-26


class NormedConv1d(nn.Conv1d):
    """Weight-normed upstream; the product is folded in checkpoint.py."""


class NormedConvTranspose1d(nn.ConvTranspose1d):
    """Weight-normed upstream, over all axes but the first, which is the input channel's."""


class SpectralConv2d(nn.Conv2d):
    """Spectral-normed upstream; the quotient is folded in checkpoint.py."""


class Mask(NamedTuple):
    """``frames``: (1, 1, T) of ones and then zeros. ``share``: the mean of it, (1, 1, 1)."""

    frames: Tensor
    share: Tensor

    @classmethod
    def of(cls, row: Tensor) -> Mask:
        """From a row (1, T)."""
        frames = row.unsqueeze(1)
        return cls(frames, frames.mean(dim=2, keepdim=True))

    def repeated(self, times: int) -> Mask:
        """For an axis ``times`` as long."""
        return Mask(F.interpolate(self.frames, scale_factor=float(times), mode="nearest"), self.share)


def masked(x: Tensor, mask: Mask | None) -> Tensor:
    """``x`` (1, C, T) with zeros over padding."""
    return x if mask is None else x * mask.frames


class BiLSTM(nn.LSTM):
    """One bidirectional layer over (1, L, I) -> (1, L, 2H).

    With ``gated`` a further input, 1 over padding, closes the input gates: the state stays zero over the
    padding on the right, so that the backward direction starts clean at the last real step.
    """

    def __init__(self, inputs: int, hidden: int, gated: bool) -> None:
        super().__init__(inputs + gated, hidden // 2, batch_first=True, bidirectional=True)
        self.gated = gated

    def forward(self, x: Tensor, row: Tensor | None = None) -> Tensor:  # type: ignore[override]
        if self.gated:
            assert row is not None
            x = torch.cat([x, 1.0 - row.unsqueeze(-1)], dim=-1)
        return super().forward(x)[0]


class Snake(nn.Module):
    """``x + sin(alpha x)**2 / alpha``, channel by channel: Ziyin et al. 2020, arXiv:2006.08195."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))
        self.inverse = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inverse * torch.sin(self.alpha * x) ** 2


class AdaIN1d(nn.Module):
    """Instance norm of (1, C, T), scaled and shifted by the style (1, S)."""

    eps = 1e-5

    def __init__(self, style: int, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(style, 2 * channels)

    def forward(self, x: Tensor, s: Tensor, mask: Mask | None) -> Tensor:
        gamma, beta = self.fc(s).unsqueeze(-1).chunk(2, dim=1)
        if mask is None:
            return (1 + gamma) * F.instance_norm(x, eps=self.eps) + beta
        # Means over the whole axis and their share of it, because a sum over an hour of samples would
        # leave the range of fp16.
        mean = (x * mask.frames).mean(dim=2, keepdim=True) / mask.share
        centred = (x - mean) * mask.frames
        variance = (centred * centred).mean(dim=2, keepdim=True) / mask.share
        return ((1 + gamma) * (centred * torch.rsqrt(variance + self.eps)) + beta) * mask.frames


class AdainResBlk1d(nn.Module):
    """(1, C, T) -> (1, C', T), or (1, C', 2 T) with ``upsample``."""

    def __init__(self, inputs: int, outputs: int, style: int, upsample: bool = False) -> None:
        super().__init__()
        self.upsample = upsample
        self.conv1 = NormedConv1d(inputs, outputs, 3, padding=1)
        self.conv2 = NormedConv1d(outputs, outputs, 3, padding=1)
        self.norm1 = AdaIN1d(style, inputs)
        self.norm2 = AdaIN1d(style, outputs)
        self.conv1x1 = NormedConv1d(inputs, outputs, 1, bias=False) if inputs != outputs else None
        self.pool = (
            NormedConvTranspose1d(inputs, inputs, 3, 2, padding=1, output_padding=1, groups=inputs)
            if upsample
            else None
        )

    def forward(self, x: Tensor, s: Tensor, mask: Mask | None, wider: Mask | None = None) -> Tensor:
        """``wider``: the mask at twice the rate, for a block that upsamples."""
        y = F.leaky_relu(self.norm1(x, s, mask), 0.2)
        if self.pool is not None:
            y, mask = masked(self.pool(y), wider), wider
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        y = F.leaky_relu(self.norm2(self.conv1(y), s, mask), 0.2)
        shortcut = x if self.conv1x1 is None else self.conv1x1(x)
        return (self.conv2(y) + shortcut) / math.sqrt(2)


class AdaLayerNorm(nn.Module):
    """Layer norm over the last axis of (1, L, C), scaled and shifted by the style (1, S)."""

    def __init__(self, style: int, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.fc = nn.Linear(style, 2 * channels)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        gamma, beta = self.fc(s).unsqueeze(1).chunk(2, dim=2)
        return (1 + gamma) * F.layer_norm(x, (self.channels,), eps=1e-5) + beta


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, width: int, bias: Tensor | None) -> Tensor:
    """Softmax attention of (1, L, heads * width); ``bias`` (1, 1, 1, L) is added to the scores."""

    def split(x: Tensor) -> Tensor:
        return x.reshape(1, -1, heads, width).transpose(1, 2)

    scores = torch.matmul(split(q), split(k).transpose(2, 3)) * width**-0.5
    if bias is not None:
        scores = scores + bias
    mixed = torch.matmul(torch.softmax(scores, dim=-1), split(v))
    return mixed.transpose(1, 2).reshape(1, -1, heads * width)


def score_bias(row: Tensor) -> Tensor:
    """What hides padding from attention, (1, 1, 1, L), of a mask row (1, L)."""
    return ((row - 1.0) * 1e4).unsqueeze(1).unsqueeze(1)
