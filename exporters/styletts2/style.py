"""The style encoders: a reference clip's mel spectrogram to one half of its style, ``models.py``."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from coreproof_exporters.styletts2.architecture import Config
from coreproof_exporters.styletts2.layers import SpectralConv2d

BLOCKS = 4
_TINY = 1e-3  # below the least share of real columns in a pair, one half


class _ResBlk(nn.Module):
    """(1, C, H, W) -> (1, C', H / 2, ceil(W / 2)). ``real`` (1, 1, 1, W) is 1 where W is no padding."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = SpectralConv2d(inputs, inputs, 3, padding=1)
        self.conv2 = SpectralConv2d(inputs, outputs, 3, padding=1)
        self.conv1x1 = SpectralConv2d(inputs, outputs, 1, bias=False) if inputs != outputs else None
        self.downsample_res: Any = nn.Module()
        self.downsample_res.conv = SpectralConv2d(inputs, inputs, 3, stride=2, padding=1, groups=inputs)

    def forward(self, x: Tensor, real: Tensor, share: Tensor, next_real: Tensor) -> Tensor:
        shortcut = x if self.conv1x1 is None else self.conv1x1(x)
        # An odd last column stands for a pair of itself: the mean over the real ones of the two.
        shortcut = F.avg_pool2d(shortcut * real, 2) / (share + (1.0 - next_real))
        y = self.conv1(F.leaky_relu(x, 0.2) * real) * real
        y = F.leaky_relu(self.downsample_res.conv(y), 0.2) * next_real
        return (shortcut + self.conv2(y)) * next_real / math.sqrt(2)


class StyleEncoder(nn.Module):
    """``mel`` (1, 1, 80, W) and its mask (1, W) -> (1, S)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config["dim_in"]
        blocks: list[nn.Module] = [SpectralConv2d(1, width, 3, padding=1)]
        for _ in range(BLOCKS):
            wider = min(2 * width, config["hidden"])
            blocks.append(_ResBlk(width, wider))
            width = wider
        # Activations and the pooling have no parameters; upstream counts them in the numbering.
        blocks += [nn.Identity(), SpectralConv2d(width, width, 5), nn.Identity(), nn.Identity()]
        self.shared = nn.Sequential(*blocks)
        self.unshared = nn.Linear(width, config["style"])

    def forward(self, mel: Tensor, row: Tensor) -> Tensor:
        real = row.unsqueeze(1).unsqueeze(1)
        x = self.shared[0](mel * real) * real
        for index in range(1, 1 + BLOCKS):
            share = F.avg_pool2d(real, (1, 2))
            next_real = (share > _TINY).to(share.dtype)
            x = self.shared[index](x, real, share, next_real)
            real = next_real
        y = self.shared[6](F.leaky_relu(x, 0.2))
        real = real[..., 4:]  # outputs all of whose five columns are real
        y = (y * real).mean(dim=(2, 3)) / real.mean(dim=(2, 3))
        return self.unshared(F.leaky_relu(y, 0.2))
