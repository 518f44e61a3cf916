"""The HiFi-GAN decoder: ``Modules/hifigan.py``."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from coreproof_exporters.styletts2.architecture import Config
from coreproof_exporters.styletts2.layers import (
    AdaIN1d,
    AdainResBlk1d,
    Mask,
    NormedConv1d,
    NormedConvTranspose1d,
    Snake,
    masked,
)


class _ResBlock(nn.Module):
    """Three pairs of dilated convolutions on (1, C, T): AdaINResBlock1."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...], style: int) -> None:
        super().__init__()

        def conv(dilation: int) -> nn.Module:
            padding = (kernel - 1) * dilation // 2
            return NormedConv1d(channels, channels, kernel, padding=padding, dilation=dilation)

        count = len(dilations)
        self.convs1 = nn.ModuleList(conv(d) for d in dilations)
        self.convs2 = nn.ModuleList(conv(1) for _ in dilations)
        self.adain1 = nn.ModuleList(AdaIN1d(style, channels) for _ in range(count))
        self.adain2 = nn.ModuleList(AdaIN1d(style, channels) for _ in range(count))
        self.alpha1 = nn.ModuleList(Snake(channels) for _ in range(count))
        self.alpha2 = nn.ModuleList(Snake(channels) for _ in range(count))

    def forward(self, x: Tensor, s: Tensor, mask: Mask | None) -> Tensor:
        for i in range(len(self.convs1)):
            y = self.convs1[i](self.alpha1[i](self.adain1[i](x, s, mask)))
            y = self.convs2[i](self.alpha2[i](self.adain2[i](y, s, mask)))
            x = x + y
        return x


class Generator(nn.Module):
    """Features (1, C, 2 T) and the source (1, 1, 600 T) -> (1, 1, 600 T)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        rates, style, width = config["upsample_rates"], config["style"], config["initial"]
        kernels = tuple(zip(config["resblock_kernels"], config["resblock_dilations"], strict=True))
        self.rates = rates
        self.branches = len(kernels)
        self.ups, self.noise_convs, self.noise_res, self.resblocks = (nn.ModuleList() for _ in range(4))
        self.alphas = nn.ModuleList([Snake(width)])
        for i, (rate, kernel) in enumerate(zip(rates, config["upsample_kernels"], strict=True)):
            own = width // 2 ** (i + 1)
            self.ups.append(
                NormedConvTranspose1d(
                    2 * own, own, kernel, rate, padding=rate // 2 + rate % 2, output_padding=rate % 2
                )
            )
            step = math.prod(rates[i + 1 :])
            last = step == 1
            self.noise_convs.append(
                nn.Conv1d(1, own, 1)
                if last
                else nn.Conv1d(1, own, 2 * step, stride=step, padding=(step + 1) // 2)
            )
            self.noise_res.append(_ResBlock(own, 11 if last else 7, (1, 3, 5), style))
            self.resblocks.extend(_ResBlock(own, k, d, style) for k, d in kernels)
            self.alphas.append(Snake(own))
        self.conv_post = NormedConv1d(own, 1, 7, padding=3)

    def forward(self, x: Tensor, s: Tensor, source: Tensor, mask: Mask | None) -> Tensor:
        """``mask`` is at the rate of ``x``."""
        masks = [mask]
        for rate in self.rates:
            masks.append(None if masks[-1] is None else masks[-1].repeated(rate))
        source = masked(source, masks[-1])
        for i, up in enumerate(self.ups):
            own = masks[i + 1]
            heard = self.noise_res[i](self.noise_convs[i](source), s, own)
            x = up(self.alphas[i](masked(x, masks[i]))) + heard
            blocks = self.resblocks[i * self.branches : (i + 1) * self.branches]
            x = sum(block(x, s, own) for block in blocks) / self.branches
        x = self.conv_post(self.alphas[-1](masked(x, masks[-1])))
        return masked(torch.tanh(x), masks[-1])


class Decoder(nn.Module):
    """``asr`` (1, C, T), F0 and energy (1, 2 T), style (1, S), source (1, 1, 600 T) -> (1, 1, 600 T)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        style, inner, asr = config["style"], config["inner"], config["asr"]
        again = inner + asr + 2
        self.F0_conv = NormedConv1d(1, 1, 3, stride=2, padding=1)
        self.N_conv = NormedConv1d(1, 1, 3, stride=2, padding=1)
        self.asr_res = nn.Sequential(NormedConv1d(config["hidden"], asr, 1))
        self.encode = AdainResBlk1d(config["hidden"] + 2, inner, style)
        self.decode = nn.ModuleList(
            [
                *(AdainResBlk1d(again, inner, style) for _ in range(3)),
                AdainResBlk1d(again, config["initial"], style, upsample=True),
            ]
        )
        self.generator = Generator(config)

    def forward(
        self, asr: Tensor, f0: Tensor, energy: Tensor, s: Tensor, source: Tensor, row: Tensor | None
    ) -> Tensor:
        mask = None if row is None else Mask.of(row)
        wide = None if mask is None else mask.repeated(2)
        curves = [self.F0_conv(f0.unsqueeze(1)), self.N_conv(energy.unsqueeze(1))]
        x = self.encode(torch.cat([asr, *curves], dim=1), s, mask)
        residual = self.asr_res(asr)
        for block in self.decode:
            x = block(torch.cat([x, residual, *curves], dim=1), s, mask, wide)
        return self.generator(x, s, source, wide)
