"""The conditioning encoder as plain torch: the control tokens of one frame to one vector.

Follows ``magenta_rt.jax.model`` of magenta-rt 2.0.3 (``depthformer_config``, the pretrained MusicCoCa
branch and ``MultiChannelEmbedding``), index arithmetic included: the shift by 7 applies to the guidance
channels too, which have no dropout token, so their top bin reads one row past their own channel.

The style table is folded with the projection behind it: fewer roundings than the official order has.
"""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor, nn

from coreproof_exporters.mrt2.architecture import CONTROLS, NORM_EPS, TOKEN_SHIFT, Config, control_rows


class ConditioningEncoder(nn.Module):
    """``conditioning_tokens`` int32 (1, 144): 12 style codes, 128 piano roll, 1 drums, 2 guidance tokens
    of step 0.2 (style, notes), 1 of step 1.0 (drums); -1 is masked -> ``source_encoded`` (1, 1, S)."""

    offsets: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        levels, source = config["levels"], config["source_width"]
        rows = levels * (config["style_codes"] + TOKEN_SHIFT)
        self.style = nn.Embedding(rows, source, _weight=torch.empty(rows, source))
        controls = torch.empty(control_rows(), source)
        self.controls = nn.Embedding(control_rows(), source, _weight=controls)
        self.norm = nn.LayerNorm(source, NORM_EPS)
        self.levels = levels
        self.register_buffer("offsets", self.first_rows(config), persistent=False)

    def first_rows(self, config: Config) -> Tensor:
        """For each token the row of its table that its value -7 would be."""
        style = [level * (config["style_codes"] + TOKEN_SHIFT) for level in range(config["levels"])]
        sizes = [size for _, count, size in CONTROLS for _ in range(count)]
        controls = [0, *accumulate(sizes)][:-1]
        rows = torch.tensor([[*style, *controls]], dtype=torch.int32, device="cpu")
        return rows + TOKEN_SHIFT

    def forward(self, conditioning_tokens: Tensor) -> Tensor:
        rows = conditioning_tokens + self.offsets
        style = self.style(rows[:, : self.levels]).sum(dim=1, keepdim=True)
        controls = self.controls(rows[:, self.levels :]).mean(dim=1, keepdim=True)
        return self.norm((style + controls) * 0.5)
