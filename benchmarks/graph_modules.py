"""The torch modules of ``graphs.py``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from graphs import FRAMES, HEADS, TINY_OPS, WIDTH, arrays
from torch import Tensor, nn


class TinyOps(nn.Module):
    """A chain of add, mul, tanh and sub on 16 floats."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("a", "b", "c"):
            self.register_buffer(name, torch.randn(16))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(TINY_OPS // 4):
            x = torch.tanh((x + self.a) * self.b) - self.c
        return x


class Block(nn.Module):
    """Attention and a feed-forward layer, normalized before."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, width = x.shape[1], x.shape[2]
        heads = self.qkv(self.norm1(x)).reshape(1, rows, 3, self.heads, width // self.heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        x = x + self.out(mixed.transpose(1, 2).reshape(1, rows, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ResidualUnit(nn.Module):
    """A dilated convolution between two periodic activations, as vocoders and codecs have."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(channels, channels, 7, padding=3 * dilation, dilation=dilation)
        self.conv2 = nn.Conv1d(channels, channels, 1)
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x + torch.sin(self.alpha * x).square() / self.alpha)
        return x + self.conv2(y + torch.sin(self.alpha * y).square() / self.alpha)


class ConvDecoder(nn.Sequential):
    """50 latent frames to 6,400 samples: four upsampling stages of halving width."""

    def __init__(self) -> None:
        layers: list[nn.Module] = [nn.Conv1d(64, 256, 7, padding=3)]
        for stage, (channels, stride) in enumerate(zip((256, 128, 64, 32), (4, 4, 4, 2), strict=True)):
            layers += [
                nn.ELU(),
                nn.ConvTranspose1d(channels, channels // 2, 2 * stride, stride, stride // 2),
                *(ResidualUnit(channels // 2, 3**d) for d in range(3 if stage < 3 else 1)),
            ]
        super().__init__(*layers, nn.ELU(), nn.Conv1d(16, 1, 7, padding=3))


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(256, 256, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


class Step(nn.Module):
    """One frame of a streaming transformer block: the cache moves by one, then is attended to."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(1, HEADS, FRAMES, WIDTH // HEADS))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).reshape(1, 3, HEADS, 1, WIDTH // HEADS).unbind(1)
        self.keys[:] = torch.cat((self.keys[:, :, 1:], key), 2)
        self.values[:] = torch.cat((self.values[:, :, 1:], value), 2)
        mixed = F.scaled_dot_product_attention(query, self.keys, self.values)
        return x + self.out(mixed.reshape(1, 1, WIDTH))


def transformer() -> nn.Module:
    return nn.Sequential(*(Block(384, 12) for _ in range(6)))


MODULES = {
    "tiny_ops": TinyOps,
    "transformer": transformer,
    "conv_decoder": ConvDecoder,
    "lstm": Lstm,
    "stateful_step": Step,
}


def build(name: str) -> nn.Module:
    """The module of graph ``name``, with the same weights every time."""
    torch.manual_seed(0)
    return MODULES[name]().eval()


def tensors(name: str) -> tuple[Tensor, ...]:
    """``graphs.arrays`` as tensors."""
    return tuple(torch.from_numpy(array) for array in arrays(name).values())
