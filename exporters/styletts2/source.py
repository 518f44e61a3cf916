"""The harmonic source inside a graph: upstream's SineGen in a form that static graphs and fp32 hold.

Upstream samples F0 at the frame rate, sums phases there, and interpolates the sum to the sample rate. So
does this, in turns. The remainder by 80 is taken out before anything is summed (a frame of 300 samples at
24 kHz is f / 80 turns of a frequency f), and sums run over blocks of 64 frames, whose totals are wrapped
and summed in turn: nothing grows with the length of the speech.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coreproof_exporters.styletts2.architecture import (
    F0_FRAME,
    HARMONICS,
    SAMPLE_RATE,
    SINE_AMPLITUDE,
    VOICED,
    VOICED_NOISE,
)

BLOCK = 64  # frames of F0
_TURN = SAMPLE_RATE // F0_FRAME  # Hz that make one turn a frame


def wrapped(x: Tensor, turn: float = 1.0) -> Tensor:
    """``x`` less whole turns."""
    return x - turn * torch.floor(x / turn)


class Phase(nn.Module):
    """Turns of each harmonic at each sample, (1, 9, 300 T2), of F0 in Hz (1, T2); T2 is a multiple of 64."""

    harmonics: Tensor
    places: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("harmonics", torch.arange(1.0, HARMONICS + 1).reshape(1, HARMONICS, 1))
        # Where in the span between two frames' middles a sample lies.
        places = (torch.arange(F0_FRAME, dtype=torch.float64) + 0.5) / F0_FRAME
        self.register_buffer("places", places.float().reshape(1, 1, 1, F0_FRAME))

    def sums(self, steps: Tensor) -> Tensor:
        """Running sums of ``steps`` (1, 9, T2), less whole turns."""
        blocks = torch.cumsum(steps.reshape(1, HARMONICS, -1, BLOCK), dim=3)
        totals = wrapped(blocks[..., -1:])
        before = torch.cumsum(totals, dim=2) - totals
        return wrapped(wrapped(before) + blocks).reshape(1, HARMONICS, -1)

    def forward(self, f0: Tensor) -> Tensor:
        # Turns a frame, thirty and more. A negative F0, which is unvoiced, turns 300 times as often: upstream
        # takes the remainder by one turn a sample, and a voiced frame before it hears half a turn of that.
        raw = wrapped(f0.unsqueeze(1) * self.harmonics / SAMPLE_RATE) * F0_FRAME
        steps = wrapped(wrapped(f0, float(_TURN)).unsqueeze(1) * self.harmonics, float(_TURN)) / _TURN
        sums = self.sums(steps)
        still = raw[..., :1] * 0.0
        first = torch.cat([sums[..., :1], sums], dim=-1).unsqueeze(-1)
        slope = torch.cat([still, raw[..., 1:], still], dim=-1).unsqueeze(-1)
        turns = (first + slope * self.places).reshape(1, HARMONICS, -1)
        return turns[..., F0_FRAME // 2 : -(F0_FRAME // 2)]


class Source(nn.Module):
    """F0 (1, T2) -> the source (1, 1, 300 T2), with noise that was mixed by the weights of the harmonics.

    ``noise`` (1, 1, 300 T2): the sum over harmonics of a harmonic's weight times standard normal noise;
    :func:`coreproof_exporters.styletts2.harmonics.mixed` makes it. Its level follows from F0 here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.phase = Phase()
        self.l_linear = nn.Linear(HARMONICS, 1)

    def forward(self, f0: Tensor, noise: Tensor) -> Tensor:
        voiced = F.interpolate(
            (f0 > VOICED).float().unsqueeze(1), scale_factor=float(F0_FRAME), mode="nearest"
        )
        sines = torch.sin(wrapped(self.phase(f0)) * (2 * math.pi)) * SINE_AMPLITUDE
        level = voiced * VOICED_NOISE + (1.0 - voiced) * (SINE_AMPLITUDE / 3)
        merged = self.l_linear((sines * voiced).transpose(1, 2)).transpose(1, 2)
        return torch.tanh(merged + level * noise)
