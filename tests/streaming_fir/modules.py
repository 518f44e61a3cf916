"""The filter as a torch module with one buffer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coreproof.convert.checkpoint import Checkpoint


class StreamingFilter(nn.Module):
    def __init__(self, taps: Tensor) -> None:
        super().__init__()
        self.taps = nn.Parameter(taps)
        self.register_buffer("history", torch.zeros(1, 1, taps.shape[-1] - 1))
        self.past = taps.shape[-1] - 1

    def forward(self, audio: Tensor) -> Tensor:
        heard = torch.cat([self.history, audio], dim=2)  # (1, 1, past + chunk)
        self.history[:] = heard[:, :, -self.past :]
        return nn.functional.conv1d(heard, self.taps)


class Forgetful(StreamingFilter):
    """The planted defect: what was heard is never kept."""

    def forward(self, audio: Tensor) -> Tensor:
        heard = torch.cat([self.history, audio], dim=2)
        self.history[:] = self.history * 0.0
        return nn.functional.conv1d(heard, self.taps)


def build(checkpoint: Checkpoint, kind: type[StreamingFilter] = StreamingFilter) -> nn.Module:
    return kind(torch.from_numpy(checkpoint.tensors["taps"]))
