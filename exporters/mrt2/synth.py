"""Write a synthetic ``mrt2_small.safetensors``: the published keys and shapes, with drawn weights.

The spreads are chosen so that what must be tested matters: attention selects, history reaches the
output, the stream has the published magnitudes (first input to 35, outputs with spread 4 to 5 and a
few channels near 90), logits spread over several units, and the codec's tail leaves the range of fp16
while its audio stays near full scale. Every number is an integer draw times a factor: the same seed
gives the same bytes on every CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from coreproof.convert.synthetic import bell, check_request, write_note
from coreproof_exporters.mrt2.architecture import (
    ANALYSIS,
    QUANTIZER,
    SIZES,
    START_TOKEN,
    TOKEN_EMBEDDING,
    Config,
    Shapes,
    analysis_shapes,
    shapes,
)
from coreproof_exporters.mrt2.checkpoint import ENCODER_FILE, FILE

# Key pattern: mean, spread; the first that fits. "kernel" spreads are gains, divided by the square
# root of the number of inputs that meet in one output.
_STATISTICS = {
    "*/pre_norm/scale": (1.0, 0.15),
    "*/post_norm/scale": (0.7, 0.15),
    "*/final_ln/scale": (1.0, 0.1),
    "*/encoder_ln/scale": (1.0, 0.1),
    "*_ln/bias": (0.0, 0.05),
    "*/per_dim_scale": (0.0, 0.3),
    "*/query_projection/kernel": (0.0, 1.4),
    "*/key_projection/kernel": (0.0, 1.4),
    "*/depthformer/*/kernel": (0.0, 1.0),
    "*/to_logits/bias": (0.0, 0.3),
    "*/sink_key_embeddings": (0.0, 1.0),
    "*/sink_value_embeddings": (0.0, 0.5),
    "*/mulan_dequantizer/embedding": (0.0, 0.3),
    "*/regular_embedder/embedding": (0.0, 4.0),
    "*/ffn_layer?/bias": (0.0, 0.05),
    "*/input_layer/*/kernel": (0.0, 2.0),
    "*/input_layers_residual_unit/*/kernel": (0.0, 1.4),
    "*/decoder_[012]/*/kernel": (0.0, 2.0),
    "*/decoder_3/*/kernel": (0.0, 3.0),
    "*/decoder_4/*/kernel": (0.0, 30.0),
    "*/decoder_5/*/kernel": (0.0, 6.0),
    "*/decoder_6/*/kernel": (0.0, 0.006),
    f"{ANALYSIS}base_conv_first/*/kernel": (0.0, 0.3),
    f"{ANALYSIS}output_convs/*/kernel": (0.0, 0.12),
    f"{ANALYSIS}*/kernel": (0.0, 1.2),
    f"{ANALYSIS}*/bias": (0.0, 0.3),
    "*/base_conv_last/conv/kernel": (0.0, 0.01),
    "*/base_conv_last/conv/bias": (0.0, 0.02),
    "*/decoder_[45]/*/bias": (0.0, 50.0),
    "*/soundstream/*/bias": (0.0, 0.3),
}
# Codec decoders of plain spreads whose tails leave the range of fp16 by these gains of three blocks. With the
# first the stream peaks near 6e5, its output near 3e3, and nothing of plain fp16 is finite; with the second
# most is.
_TAILS = {"+loud": (7.0, 10.0, 20.0), "+edge": (7.0, 8.0, 8.0)}
_TAIL_STATISTICS = {
    "*/decoder_6/*/kernel": (0.0, 0.15),
    "*/base_conv_last/conv/kernel": (0.0, 0.05),
    "*/soundstream/*/kernel": (0.0, 1.0),
    "*/decoder_[345]/*/bias": (0.0, 1.0),
    "*/soundstream/*/bias": (0.0, 0.02),
}
_ENCODER = "+encoder"
SYNTH_SIZES = tuple(f"{size}{more}" for more in ("", _ENCODER, *_TAILS) for size in ("small", "full"))
_OVERRIDES = {"*/to_logits/kernel": (0.0, 3.0)}

_INPUT_SPREAD = 0.55  # of a frame's temporal input, the mean of 12 tokens, as published
_START_SPREAD = 2.58  # of the first frame's
_START_PEAK = 35.0
_OUTLIER_SCALE = 8.0  # of the one channel in which the stream grows large
_CODEBOOK_SPREAD = 0.3  # of the first level; each further level is finer
_CODEBOOK_DECAY = 0.85


@dataclass(frozen=True, slots=True)
class _Spreads:
    """Pattern, mean and spread as in _STATISTICS, and how much finer each level of codebooks is."""

    statistics: tuple[tuple[str, tuple[float, float]], ...]
    codebook_decay: float


def synth(folder: Path, size: str, seed: int) -> None:
    """Write ``mrt2_small.safetensors`` and ``synth.json`` into ``folder``, which is created. ``size``
    is ``small`` or ``full``, or one of them with ``+encoder``, which also writes ``encoder.safetensors``, or
    with ``+loud`` or ``+edge``, which have other codec decoders; ``seed`` is not negative.

    Raises UsageError for another size or seed.
    """
    check_request(size, SYNTH_SIZES, seed)
    folder.mkdir(parents=True, exist_ok=True)
    config, spreads = SIZES[size.partition("+")[0]], _spreads(size)
    save_file(_tensors(config, shapes(config), seed, spreads), folder / FILE)
    if size.endswith(_ENCODER):
        save_file(_tensors(config, analysis_shapes(config), seed, spreads), folder / ENCODER_FILE)
    write_note(folder, "mrt2", size, seed)


def _spreads(size: str) -> _Spreads:
    usual = (*_OVERRIDES.items(), *_STATISTICS.items())
    gains = next((gains for tail, gains in _TAILS.items() if size.endswith(tail)), None)
    if gains is None:
        return _Spreads(usual, _CODEBOOK_DECAY)
    raised = {f"*/decoder_{block}/*/kernel": (0.0, gain) for block, gain in enumerate(gains, 3)}
    return _Spreads((*raised.items(), *_TAIL_STATISTICS.items(), *usual), 1.0)


def _tensors(config: Config, table: Shapes, seed: int, spreads: _Spreads) -> dict[str, np.ndarray]:
    generator = np.random.Generator(np.random.PCG64(seed))
    return {key: _draw(generator, key, shape, config, spreads) for key, shape in sorted(table.items())}


def _draw(
    generator: np.random.Generator, key: str, shape: tuple[int, ...], config: Config, spreads: _Spreads
) -> np.ndarray:
    drawn = bell(generator, shape)
    if key == TOKEN_EMBEDDING:
        return _embedding(drawn, config)
    if key == QUANTIZER:
        decay = np.cumprod([_CODEBOOK_SPREAD, *[spreads.codebook_decay] * (shape[0] - 1)])
        return (drawn * decay[:, np.newaxis, np.newaxis]).astype(np.float32)
    mean, spread = next(value for pattern, value in spreads.statistics if fnmatchcase(key, pattern))
    if key.endswith("kernel"):
        spread /= math.sqrt(_fan_in(key, shape))
    elif key.endswith("sink_key_embeddings"):
        spread /= math.sqrt(shape[-1])  # the sink's logit is a product over the width of a head
    drawn *= spread
    drawn += mean
    if key.endswith("post_norm/scale"):
        drawn[shape[0] // 3] = _OUTLIER_SCALE
    return drawn.astype(np.float32)


def _embedding(drawn: np.ndarray, config: Config) -> np.ndarray:
    """Rows that reach the temporal body with the published spreads, and a start row with its peak."""
    scale = 1 / math.sqrt(config["width"])
    start = drawn[START_TOKEN] * (_START_SPREAD * scale)
    start[int(np.argmax(np.abs(start)))] = _START_PEAK * scale
    drawn *= _INPUT_SPREAD * math.sqrt(config["levels"]) * scale
    drawn[START_TOKEN] = start
    return drawn.astype(np.float32)


def _fan_in(key: str, shape: tuple[int, ...]) -> int:
    """How many products meet in one output, before a transposed kernel is spread over its stride."""
    if key.endswith("output_projection/kernel"):
        return math.prod(shape[1:])
    return math.prod(shape[:-1]) if len(shape) != 3 else shape[0]
