"""The torch modules of the packages, in eval mode, with a checkpoint's weights.

Every stage of the exact layout takes the mask of its padded axis as an input; the stages of the
compatibility layout take none, so that there padding is data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from coreproof.convert.checkpoint import Checkpoint
from coreproof_exporters.styletts2.architecture import F0_FRAME, SINE_AMPLITUDE, Config
from coreproof_exporters.styletts2.denoiser import DiffusionStep
from coreproof_exporters.styletts2.harmonics import NOISE_PERIOD, fixed_noise, weights_of
from coreproof_exporters.styletts2.naming import tensor_name
from coreproof_exporters.styletts2.prosody import Predictor
from coreproof_exporters.styletts2.source import Phase, Source
from coreproof_exporters.styletts2.style import StyleEncoder
from coreproof_exporters.styletts2.text import Albert, TextEncoder
from coreproof_exporters.styletts2.vocoder import Decoder


class Text(nn.Module):
    """Tokens (1, B) and their mask -> ``t_en``, ``bert_dur``, ``d_en``; all zero over padding."""

    def __init__(self, config: Config, gated: bool = True) -> None:
        super().__init__()
        self.bert = Albert(config)
        self.bert_encoder = nn.Linear(config["bert"], config["hidden"])
        self.text_encoder = TextEncoder(config, gated)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bert = self.bert(tokens, mask) * mask.unsqueeze(-1)
        d_en = self.bert_encoder(bert).transpose(1, 2) * mask.unsqueeze(1)
        return self.text_encoder(tokens, mask), bert, d_en


class Duration(nn.Module):
    def __init__(self, config: Config, gated: bool = True) -> None:
        super().__init__()
        self.predictor = Predictor(config, gated)

    def forward(self, d_en: Tensor, s: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.predictor.durations(d_en, s, mask)


class TextPredictor(Text):
    """The text stage and the duration stage in one graph without masks, the compatibility layout's."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, gated=False)
        self.predictor = Predictor(config, gated=False)
        self.diffusion: Any = nn.Module()
        self.diffusion.unet = nn.Module()
        self.diffusion.unet.fixed_embedding = nn.Module()
        self.diffusion.unet.fixed_embedding.embedding = nn.Embedding(512, config["bert"])

    def forward(self, tokens: Tensor, style: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        bert = self.bert(tokens, None)
        d_en = self.bert_encoder(bert).transpose(1, 2)
        d, logits = self.predictor.durations(d_en, style, None)
        table = self.diffusion.unet.fixed_embedding.embedding.weight
        fixed = table[: tokens.shape[1]].unsqueeze(0)
        return self.text_encoder(tokens, None), d_en, d, logits, fixed, bert


class Curves(nn.Module):
    def __init__(self, config: Config, gated: bool = True) -> None:
        super().__init__()
        self.predictor = Predictor(config, gated)

    def forward(self, en: Tensor, s: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.predictor.curves(en, s, mask)


class Vocoder(nn.Module):
    """The decoder behind a source that the host computed."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.decoder = Decoder(config)

    def forward(
        self, asr: Tensor, f0: Tensor, energy: Tensor, s: Tensor, mask: Tensor, source: Tensor
    ) -> Tensor:
        return self.decoder(asr, f0, energy, s, source, mask)


class SourcedVocoder(nn.Module):
    """The decoder with the source inside; the noise, mixed by the harmonics' weights, is an input."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.decoder = Decoder(config)
        self.source = Source()

    def forward(
        self, asr: Tensor, f0: Tensor, energy: Tensor, s: Tensor, mask: Tensor, noise: Tensor
    ) -> Tensor:
        return self.decoder(asr, f0, energy, s, self.source(f0, noise), mask)


class LoneVocoder(SourcedVocoder):
    """The compatibility layout's decoder: no mask, and one second of noise, again and again."""

    noise: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.register_buffer("noise", torch.zeros(1, 1, NOISE_PERIOD))

    def forward(self, asr: Tensor, f0: Tensor, energy: Tensor, s: Tensor) -> Tensor:  # type: ignore[override]
        samples = f0.shape[1] * F0_FRAME
        times = -(-samples // NOISE_PERIOD)
        noise = self.noise.repeat(1, 1, times)[..., :samples]
        return self.decoder(asr, f0, energy, s, self.source(f0, noise), None)


def built(kind: Callable[..., nn.Module], **options: Any) -> Callable[[Checkpoint], nn.Module]:
    """A builder of ``kind`` with the weights of a checkpoint, for :class:`coreproof.convert.recipe.Stage`."""

    def build(checkpoint: Checkpoint) -> nn.Module:
        with torch.device("meta"):
            module = kind(checkpoint.config, **options)
        return fill(module, checkpoint)

    return build


def encoder(part: str) -> Callable[[Checkpoint], nn.Module]:
    """A builder of the style encoder under upstream's key ``part``."""

    def build(checkpoint: Checkpoint) -> nn.Module:
        with torch.device("meta"):
            module = StyleEncoder(checkpoint.config)
        return fill(module, checkpoint, f"{part}.")

    return build


def fill(module: nn.Module, checkpoint: Checkpoint, prefix: str = "") -> nn.Module:
    """Put the checkpoint's arrays, shared and not copied, into ``module``, which has no data."""
    for place, part in module.named_modules():
        for name in [n for n, p in part._parameters.items() if p is not None]:
            stored = tensor_name(part, _upstream(prefix + place), name)
            shape = part._parameters[name].shape
            array = np.zeros(shape, np.float32) if stored is None else checkpoint.tensors[stored]
            part._parameters[name] = nn.Parameter(torch.from_numpy(array), requires_grad=False)
            if isinstance(part, nn.LSTM):
                setattr(part, name, part._parameters[name])
    _fill_buffers(module, checkpoint)
    return module.eval()


def _upstream(place: str) -> str:
    """Where upstream keeps what is at ``place`` here."""
    for own, theirs in (("source.", "decoder.generator.m_source."), ("diffusion.", "diffusion.unet.")):
        if place.startswith(own) and not place.startswith(theirs):
            return theirs + place.removeprefix(own)
    return place


def _fill_buffers(module: nn.Module, checkpoint: Checkpoint) -> None:
    for part in module.modules():
        if isinstance(part, Source):
            part.phase = Phase()
        if isinstance(part, LoneVocoder):
            gain = math.hypot(*weights_of(checkpoint)[0])
            part.noise = torch.from_numpy((fixed_noise() * gain).astype(np.float32)).reshape(1, 1, -1)


__all__ = [
    "SINE_AMPLITUDE",
    "Curves",
    "DiffusionStep",
    "Duration",
    "LoneVocoder",
    "SourcedVocoder",
    "Text",
    "TextPredictor",
    "Vocoder",
    "built",
    "encoder",
    "fill",
]
