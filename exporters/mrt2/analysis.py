"""SpectroStream's analysis encoder as plain torch, channels first: STFT rows to codec embeddings.

Follows ``magenta_rt.jax.spectrostream`` of magenta-rt 2.0.3 (``spectrostream_encoder_config``). In
shapes, R is the STFT rows of a call, four a token frame, and B the base depth 32. The two stereo halves
share weights and lie on the batch axis until the last block, which sees both.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from coreproof_exporters.mrt2.architecture import (
    ANALYSIS_BLOCKS,
    HALF_CHANNELS,
    INPUT_BINS,
    LAST_KERNEL,
    Config,
)


class StridedConv(nn.Conv2d):
    """A convolution whose last row of input is its last: kernel - stride rows of zeros come before in
    time, and in frequency as many on both sides, the odd one after."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1)
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride)
        rows, bins = (k - s for k, s in zip(kernel, stride, strict=True))
        self.zeros = (bins // 2, bins - bins // 2, rows, 0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.zeros))


class Block(nn.Module):
    """(n, inputs, R, F) -> (n, outputs, R / stride[0], F / stride[1])."""

    def __init__(self, index: int, base: int) -> None:
        super().__init__()
        self.stride, kernel, narrow, wide = ANALYSIS_BLOCKS[index]
        self.conv = StridedConv(narrow * base, narrow * base, (3, 3))
        self.strided = StridedConv(narrow * base, wide * base, kernel, self.stride)
        self.shortcut = nn.Conv2d(narrow * base, wide * base, 1) if narrow != wide else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        body = self.strided(F.elu(self.conv(F.elu(x))))
        return body + self.shortcut(self.pool(x))

    def pool(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.stride, self.stride)


class Unit(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = StridedConv(channels, channels, (3, 3))
        self.second = StridedConv(channels, channels, (3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.elu(self.first(F.elu(x))))


class Output(nn.Module):
    """(1, 8 B, T, 5) -> (1, features, T, 1)."""

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__()
        features, flat = config["features"], INPUT_BINS * channels
        self.last = nn.Conv2d(flat, features, 1)
        self.shortcut_1 = nn.Conv2d(flat, flat, 1)
        self.shortcut_2 = nn.Conv2d(flat, features, 1)
        self.flat = flat

    def forward(self, x: Tensor) -> Tensor:
        y = x.permute(0, 3, 1, 2).reshape(1, self.flat, x.shape[2], 1)  # bins outside, channels inside
        return self.last(y) + self.shortcut_2(F.elu(self.shortcut_1(F.elu(y))))


class AnalysisEncoder(nn.Module):
    """``encoder_stft`` (1, R, 480, 4), rows with (re left, im left, re right, im right) a bin ->
    ``encoder_embeddings`` (1, R / 4, features)."""

    blocks: Any  # of Block

    def __init__(self, config: Config) -> None:
        super().__init__()
        base = config["base_depth"] // 2
        channels = ANALYSIS_BLOCKS[-1][-1] * base
        self.first = StridedConv(HALF_CHANNELS, base, (LAST_KERNEL, LAST_KERNEL))
        self.blocks = nn.ModuleList(Block(i, base) for i in range(len(ANALYSIS_BLOCKS)))
        self.unit = Unit(channels)
        self.output = Output(config, channels)

    def forward(self, encoder_stft: Tensor) -> Tensor:
        rows, bins = encoder_stft.shape[1:3]
        halves = encoder_stft.permute(0, 3, 1, 2).reshape(2, HALF_CHANNELS, rows, bins)
        x = self.first(halves)
        for block in self.blocks[:-1]:
            x = block(x)
        x = self.blocks[-1](x.reshape(1, 2 * x.shape[1], x.shape[2], x.shape[3]))
        return self.output(self.unit(x)).squeeze(3).permute(0, 2, 1)
