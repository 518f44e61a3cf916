"""The decoder of diffusers' ``AutoencoderOobleck`` (0.42.1) as plain torch: latent rows to stereo.

Weight norms, exponentials and reciprocals are folded into the weights; see ``naming.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coreproof_exporters.tangoflux.architecture import AUDIO_CHANNELS, DILATIONS, UNIT_KERNEL, Config


class Snake(nn.Module):
    """x + sin(alpha x)^2 / beta, for each channel of x (1, channels, samples)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(1, channels, 1))
        self.inverse_beta = nn.Parameter(torch.empty(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        wave = torch.sin(x * self.alpha)
        return x + wave * wave * self.inverse_beta


class ResidualUnit(nn.Module):
    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        padding = UNIT_KERNEL // 2 * dilation
        self.snake1, self.snake2 = Snake(channels), Snake(channels)
        self.conv1 = nn.Conv1d(channels, channels, UNIT_KERNEL, padding=padding, dilation=dilation)
        self.conv2 = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.snake2(self.conv1(self.snake1(x))))


class Block(nn.Module):
    """(1, wide, n) -> (1, narrow, stride n)."""

    def __init__(self, wide: int, narrow: int, stride: int) -> None:
        super().__init__()
        self.snake1 = Snake(wide)
        self.conv_t1 = nn.ConvTranspose1d(wide, narrow, 2 * stride, stride, padding=(stride + 1) // 2)
        self.res_unit1, self.res_unit2, self.res_unit3 = (ResidualUnit(narrow, d) for d in DILATIONS)

    def forward(self, x: Tensor) -> Tensor:
        return self.res_unit3(self.res_unit2(self.res_unit1(self.conv_t1(self.snake1(x)))))


class Decoder(nn.Module):
    """``latents`` (1, rows, channels) as the transformer has them -> ``audio`` (1, 2, hop * rows)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths = config["vae_widths"]
        self.conv1 = nn.Conv1d(config["channels"], widths[0], UNIT_KERNEL, padding=UNIT_KERNEL // 2)
        self.block = nn.ModuleList(
            Block(wide, narrow, stride)
            for wide, narrow, stride in zip(widths, widths[1:], config["vae_strides"], strict=False)
        )
        self.snake1 = Snake(widths[-1])
        self.conv2 = nn.Conv1d(widths[-1], AUDIO_CHANNELS, UNIT_KERNEL, padding=UNIT_KERNEL // 2, bias=False)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.conv1(latents.transpose(1, 2))
        for block in self.block:
            x = block(x)
        return self.conv2(self.snake1(x))
