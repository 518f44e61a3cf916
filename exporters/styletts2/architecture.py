"""Dimensions of StyleTTS 2 (multi-speaker, HiFi-GAN decoder), by size, and the buckets of its packages."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

SAMPLE_RATE = 24_000
FRAME = 600  # samples of an aligned frame, 25 ms
F0_FRAME = 300  # samples of a frame of F0 and energy
HARMONICS = 9
VOICED = 10.0  # Hz; an F0 above this is voiced
SINE_AMPLITUDE = 0.1
VOICED_NOISE = 0.003  # deviation of the source's noise where voiced; a third of the amplitude elsewhere

TEXT_BUCKETS = (32, 64, 128, 256, 512)  # tokens
FRAME_BUCKETS = (256, 512, 1024, 2048, 4096)  # aligned frames: 6.4 s to 102.4 s
MEL_BUCKETS = (256, 512, 1024, 2048)  # mel frames of a reference clip: 3.2 s to 25.6 s
MEL_BANDS = 80
LEAST_MEL = 65  # frames; fewer leave nothing to the last convolution of a style encoder
POSITIONS = 512  # rows of the position tables of PL-BERT and the denoiser, so tokens of one sentence
HEAD = 64  # width of an attention head, in PL-BERT and the denoiser
BERT_LAYERS = 12  # passes through PL-BERT's one layer

Config = Mapping[str, Any]

_SHARED = {
    "style": 128,
    "layers": 3,
    "tokens": 178,
    "max_dur": 50,
    "mels": MEL_BANDS,
    "upsample_rates": (10, 5, 3, 2),
    "upsample_kernels": (20, 10, 6, 4),
    "resblock_kernels": (3, 7, 11),
    "resblock_dilations": ((1, 3, 5), (1, 3, 5), (1, 3, 5)),
    "denoiser_layers": 3,
    "denoiser_multiplier": 2,
}

# ``inner``: width of the decoder between its encoder and its upsampling; ``asr``: of the text features
# that each of its blocks reads again. Upstream's code fixes both, and the small size departs from it.
SIZES: Mapping[str, Config] = MappingProxyType(
    {
        "small": MappingProxyType(
            _SHARED
            | {
                "hidden": 64,
                "dim_in": 8,
                "bert_embedding": 32,
                "bert": 128,
                "bert_ffn": 192,
                "inner": 96,
                "asr": 16,
                "initial": 64,
                "denoiser_heads": 2,
                "sigma_data": 0.19926648961191362,
            }
        ),
        "full": MappingProxyType(
            _SHARED
            | {
                "hidden": 512,
                "dim_in": 64,
                "bert_embedding": 128,
                "bert": 768,
                "bert_ffn": 2048,
                "inner": 1024,
                "asr": 64,
                "initial": 512,
                "denoiser_heads": 8,
                "sigma_data": 0.19926648961191362,
            }
        ),
    }
)
