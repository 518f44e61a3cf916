"""The prosody predictor: durations of tokens, and F0 and energy of frames."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coreproof_exporters.styletts2.architecture import Config
from coreproof_exporters.styletts2.layers import AdainResBlk1d, AdaLayerNorm, BiLSTM, Mask


class DurationEncoder(nn.Module):
    """``d_en`` (1, C, L) and the prosodic style (1, S) -> (1, L, C + S)."""

    def __init__(self, config: Config, gated: bool) -> None:
        super().__init__()
        width, style = config["hidden"], config["style"]
        self.lstms = nn.ModuleList(
            layer
            for _ in range(config["layers"])
            for layer in (BiLSTM(width + style, width, gated), AdaLayerNorm(style, width))
        )

    def forward(self, d_en: Tensor, s: Tensor, row: Tensor | None) -> Tensor:
        x = d_en.transpose(1, 2)
        styles = s.unsqueeze(1).expand(1, x.shape[1], s.shape[1])
        real = None if row is None else row.unsqueeze(-1)
        x = torch.cat([x, styles], dim=-1)
        x = x if real is None else x * real
        for index in range(0, len(self.lstms), 2):
            x = self.lstms[index + 1](self.lstms[index](x, row), s)
            x = torch.cat([x, styles], dim=-1)
            x = x if real is None else x * real
        return x


class _Projection(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear_layer = nn.Linear(inputs, outputs)


class Predictor(nn.Module):
    """Everything under upstream's key ``predictor``."""

    def __init__(self, config: Config, gated: bool) -> None:
        super().__init__()
        width, style = config["hidden"], config["style"]
        half = width // 2
        self.text_encoder = DurationEncoder(config, gated)
        self.lstm = BiLSTM(width + style, width, gated)
        self.duration_proj = _Projection(width, config["max_dur"])
        self.shared = BiLSTM(width + style, width, gated)
        self.F0 = self._branch(width, style)
        self.N = self._branch(width, style)
        self.F0_proj = nn.Conv1d(half, 1, 1)
        self.N_proj = nn.Conv1d(half, 1, 1)

    @staticmethod
    def _branch(width: int, style: int) -> nn.ModuleList:
        half = width // 2
        return nn.ModuleList(
            [
                AdainResBlk1d(width, width, style),
                AdainResBlk1d(width, half, style, upsample=True),
                AdainResBlk1d(half, half, style),
            ]
        )

    def durations(self, d_en: Tensor, s: Tensor, row: Tensor | None) -> tuple[Tensor, Tensor]:
        """``d`` (1, L, C + S) and the logits (1, L, 50) whose sigmoids add up to a token's duration."""
        d = self.text_encoder(d_en, s, row)
        logits = self.duration_proj.linear_layer(self.lstm(d, row))
        return d, logits if row is None else logits * row.unsqueeze(-1)

    def curves(self, en: Tensor, s: Tensor, row: Tensor | None) -> tuple[Tensor, Tensor]:
        """F0 in Hz and energy, (1, 2 T) each, of aligned features ``en`` (1, C + S, T)."""
        x = self.shared(en.transpose(1, 2), row).transpose(1, 2)
        mask = None if row is None else Mask.of(row)
        wide = None if mask is None else mask.repeated(2)
        found = []
        for branch, project in ((self.F0, self.F0_proj), (self.N, self.N_proj)):
            y = branch[2](branch[1](branch[0](x, s, mask), s, mask, wide), s, wide)
            y = project(y)
            found.append((y if wide is None else y * wide.frames).squeeze(1))
        return found[0], found[1]
