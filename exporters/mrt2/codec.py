"""SpectroStream's decoder as plain torch, channels first: codec embeddings to STFT rows.

Follows ``magenta_rt.jax.spectrostream`` of magenta-rt 2.0.3 (``spectrostream_decoder_config``). In
shapes, T is the token frames of a call, R the STFT rows so far (1, 2, then 4 a frame), F the frequency
bins so far (5 to 480) and B the base depth 64. The two stereo halves share weights and lie on the
batch axis.

Streaming carries what a call needs of the one before: the last rows that each convolution saw and
the output rows that each transposed convolution has begun.

The fp16 form divides the stream by :data:`~coreproof_exporters.mrt2.naming.STREAM_SCALE` from one
block on until after the last convolution. Everything there but the biases and ELU is homogeneous, so
with the biases divided alike and ELU written for the smaller stream the result is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coreproof_exporters.mrt2.architecture import (
    BINS,
    BLOCKS,
    HALF_CHANNELS,
    INPUT_BINS,
    LAST_KERNEL,
    LOOKAHEAD_ROWS,
    ROWS_PER_FRAME,
    Config,
)
from coreproof_exporters.mrt2.naming import STREAM_SCALE

# elu(-20) is -1 to within 2e-9, so nothing is lost by cutting there, and no product can overflow.
_SATURATED = 20.0


@dataclass
class Memory:
    """The carried tensors of one call: ``given`` in the order of use, ``left`` for the next call. With
    None given, the call starts from silence and leaves nothing."""

    given: list[Tensor] | None
    left: list[Tensor]


class Elu(nn.Module):
    """ELU of x, where the stream holds x / scale: ``elu(scale y) / scale`` for positive and negative y."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = float(scale)

    def forward(self, y: Tensor) -> Tensor:
        if self.scale == 1.0:
            return F.elu(y)
        negative = y.clamp(-_SATURATED / self.scale, 0.0)
        return F.relu(y) + F.elu(negative * self.scale) * (1.0 / self.scale)


class CausalConv(nn.Conv2d):
    """A convolution that sees the rows before (time) and both sides (frequency)."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel, padding=(0, kernel // 2))
        self.rows = kernel - 1

    def run(self, x: Tensor, memory: Memory) -> Tensor:
        if memory.given is None:
            return super().forward(F.pad(x, (0, 0, self.rows, 0)))
        seen = torch.cat([memory.given.pop(0), x], dim=2)
        memory.left.append(seen[:, :, -self.rows :])
        return super().forward(seen)


class Upsampling(nn.ConvTranspose2d):
    """A transposed convolution cut to stride * length: at the end in time, evenly in frequency."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], stride: tuple[int, int]) -> None:
        super().__init__(inputs, outputs, kernel, stride)
        self.rows = kernel[0] - stride[0]
        self.before = (kernel[1] - stride[1]) // 2

    def run(self, x: Tensor, memory: Memory) -> Tensor:
        length, bins = x.shape[2] * self.stride[0], x.shape[3] * self.stride[1]
        part = slice(self.before, self.before + bins)
        if memory.given is None:
            return super().forward(x)[:, :, :length, part]
        whole = F.conv_transpose2d(x, self.weight, None, self.stride)[:, :, :, part]
        begun = F.pad(memory.given.pop(0), (0, 0, 0, length - self.rows))
        memory.left.append(whole[:, :, length:])
        bias = self.bias.reshape(1, -1, 1, 1)  # type: ignore[union-attr]
        return whole[:, :, :length] + begun + bias


class Input(nn.Module):
    """(1, features, T, 1) -> (1, 8 B, T, 5)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        features, self.channels = config["features"], 8 * config["base_depth"]
        self.first = nn.Conv2d(features, INPUT_BINS * self.channels, 1)
        self.shortcut_1 = nn.Conv2d(features, INPUT_BINS * self.channels, 1)
        self.shortcut_2 = nn.Conv2d(INPUT_BINS * self.channels, INPUT_BINS * self.channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x) + self.shortcut_2(F.elu(self.shortcut_1(x)))  # (1, 5 * 8 B, T, 1)
        return y.reshape(1, INPUT_BINS, self.channels, x.shape[2]).permute(0, 2, 3, 1)


class Unit(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = CausalConv(channels, channels, 3)
        self.second = CausalConv(channels, channels, 3)

    def run(self, x: Tensor, memory: Memory) -> Tensor:
        return x + self.second.run(F.elu(self.first.run(F.elu(x), memory)), memory)


class Block(nn.Module):
    """(n, inputs, R, F) -> (n, outputs, stride[0] R, stride[1] F)."""

    def __init__(self, index: int, base: int, elu: nn.Module) -> None:
        super().__init__()
        stride, kernel, narrow, wide = BLOCKS[index]
        self.elu = elu
        self.transposed = Upsampling(narrow * base, wide * base, kernel, stride)
        self.conv = CausalConv(wide * base, wide * base, 3)
        self.shortcut = nn.Conv2d(narrow * base, wide * base, 1) if narrow != wide else nn.Identity()
        self.stride = stride

    def run(self, x: Tensor, memory: Memory) -> Tensor:
        body = self.transposed.run(self.elu(x), memory)
        body = self.conv.run(self.elu(body), memory)
        return body + F.interpolate(self.shortcut(x), scale_factor=self.stride, mode="nearest")


class Decoder(nn.Module):
    """``decoder_embeddings`` (1, T, features) -> ``decoder_stft`` (1, 4 T - 4, 480, 4): rows of STFT with
    (re left, im left, re right, im right) a bin.

    ``scaled_from``: the block from which the stream is divided, None for nowhere.
    """

    blocks: Any  # of Block

    def __init__(self, config: Config, scaled_from: int | None = None, elu: type[nn.Module] = Elu) -> None:
        super().__init__()
        base = config["base_depth"]
        self.scaled_from = len(BLOCKS) + 1 if scaled_from is None else scaled_from
        scales = [STREAM_SCALE if index >= self.scaled_from else 1 for index in range(len(BLOCKS) + 1)]
        self.input = Input(config)
        self.unit = Unit(8 * base)
        self.blocks = nn.ModuleList(Block(i, base, elu(scales[i])) for i in range(len(BLOCKS)))
        self.last_elu = elu(scales[-1])
        self.last = CausalConv(base, HALF_CHANNELS, LAST_KERNEL)
        self.divided = scales[-1] != 1

    def forward(self, decoder_embeddings: Tensor) -> Tensor:
        return self.run(decoder_embeddings, Memory(None, []))[:, LOOKAHEAD_ROWS:]

    def run(self, embeddings: Tensor, memory: Memory) -> Tensor:
        """All 4 T rows, the 4 of the lookahead first."""
        frames = embeddings.shape[1]
        x = self.input(embeddings.permute(0, 2, 1).unsqueeze(3))
        x = self.unit.run(x, memory)
        for index, block in enumerate(self.blocks):
            if index == self.scaled_from:
                x = x * (1.0 / STREAM_SCALE)
            x = block.run(x, memory)
            if index == 0:
                x = x.reshape(2, x.shape[1] // 2, x.shape[2], x.shape[3])
        y = self.last.run(self.last_elu(x), memory)  # (2, 2, R, 480)
        rows = y.reshape(1, 2 * HALF_CHANNELS, ROWS_PER_FRAME * frames, BINS).permute(0, 2, 3, 1)
        # After the reordering, because coremltools folds a factor next to a convolution into its weights.
        return rows * float(STREAM_SCALE) if self.divided else rows


class StreamingDecoder(Decoder):
    """``decoder_embeddings`` (1, T, features), then the tensors that ``contract.carried`` names ->
    ``decoder_stft`` (1, 4 T, 480, 4) and those tensors for the next call. A stream's first 4 rows come
    before its first frame and are dropped by the host."""

    def forward(self, decoder_embeddings: Tensor, *given: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        memory = Memory(list(given), [])
        return (self.run(decoder_embeddings, memory), *memory.left)
