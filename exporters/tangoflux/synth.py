"""Write a synthetic snapshot: the published files, keys and shapes, with drawn weights.

The spreads are chosen so that what must be tested matters. Norms of queries and keys are about 2, because
attention that is near uniform hides a wrong position; the timestep reaches the condition through wide
weights; T5's stream leaves the range of fp16, as the published one is known to. Every number is an integer
draw times a factor: the same seed gives the same bytes on every CPU.
"""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from coreproof.convert.synthetic import bell, check_request, write_json, write_note
from coreproof_exporters.tangoflux.architecture import (
    AUDIO_CHANNELS,
    SIZES,
    UNIT_KERNEL,
    VAE_ENCODER,
    Config,
    Shapes,
    normed,
    snake,
    tangoflux_shapes,
    units,
    vae_shapes,
)
from coreproof_exporters.tangoflux.checkpoint import CONFIG, TOKENIZER, VAE, WEIGHTS
from coreproof_exporters.tangoflux.tokenizer import stand_in

_STREAM = 3000.0  # T5's stream has any size; this one makes fp16 overflow

# Key pattern: mean, spread; the first that fits. A matrix's spread is a gain, divided by the square root of
# the number of inputs that meet in one output.
_STATISTICS = {
    "*.norm_q.weight": (2.0, 0.3),
    "*.norm_k.weight": (2.0, 0.3),
    "*.norm_added_?.weight": (2.0, 0.3),
    "transformer.proj_out.weight": (0.0, 0.3),
    "*.norm1*.linear.weight": (0.0, 1.0),
    "*.norm.linear.weight": (0.0, 1.0),
    "*.norm_out.linear.weight": (0.0, 1.0),
    "transformer.*.bias": (0.0, 0.1),
    "text_encoder.shared.weight": (0.0, _STREAM),
    "*.relative_attention_bias.weight": (0.0, 1.5),
    "*layer_norm.weight": (1.0, 0.1),
    "*.SelfAttention.[qk].weight": (0.0, 0.6),
    "*.SelfAttention.o.weight": (0.0, 2.0 * _STREAM),
    "*.DenseReluDense.wo.weight": (0.0, 10.0 * _STREAM),
    "fc.0.bias": (0.3, 0.1),
    "duration_emebdder.*.weights": (0.0, 1.0),
    "*.alpha": (0.0, 0.3),
    "*.beta": (0.0, 0.3),
    "*.bias": (0.0, 0.05),
    "*.weight_v": (0.0, 1.0),
}
_MATRIX = (0.0, 1.0)
# A weight-normed convolution's magnitudes: how large a row's output is for inputs of size 1.
_GAINS = {"*res_unit?.conv1": 0.6, "*res_unit?.conv2": 0.4, "*.conv_t1": 1.0, "*.conv1": 1.0, "*.conv2": 0.1}


def synth(folder: Path, size: str, seed: int) -> None:
    """Write ``config.json``, ``tangoflux.safetensors``, ``vae.safetensors``, ``tokenizer.json`` and
    ``synth.json`` into ``folder``, which is created. ``size`` is ``small`` or ``full``; ``seed`` is not
    negative.

    Raises UsageError for another size or seed.
    """
    check_request(size, SIZES, seed)
    config = SIZES[size]
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.Generator(np.random.PCG64(seed))
    save_file(_drawn(generator, tangoflux_shapes(config)), folder / WEIGHTS)
    save_file(_drawn(generator, vae_shapes(config) | _encoder_shapes(config)), folder / VAE)
    write_json(folder / CONFIG, _config(config))
    write_json(folder / TOKENIZER, stand_in(config["vocabulary"]))
    write_note(folder, "tangoflux", size, seed)


def _config(config: Config) -> dict[str, object]:
    return {
        "num_layers": config["joint_layers"],
        "num_single_layers": config["single_layers"],
        "in_channels": config["channels"],
        "attention_head_dim": config["head_width"],
        "joint_attention_dim": config["context_width"],
        "num_attention_heads": config["heads"],
        "audio_seq_len": config["audio_rows"],
        "max_duration": config["max_duration"],
        "uncondition": False,
        "text_encoder_name": "google/flan-t5-large",
    }


def _encoder_shapes(config: Config) -> Shapes:
    """The VAE's encoder, which mirrors its decoder. No stage reads it; a reader must leave it out."""
    widths, key = tuple(reversed(config["vae_widths"])), f"{VAE_ENCODER}block."
    table = {
        **normed(f"{VAE_ENCODER}conv1", (widths[0], AUDIO_CHANNELS, UNIT_KERNEL), widths[0]),
        **snake(f"{VAE_ENCODER}snake1", widths[-1]),
        **normed(f"{VAE_ENCODER}conv2", (widths[0], widths[-1], 3), widths[0]),
    }
    for block, stride in enumerate(reversed(config["vae_strides"])):
        narrow, wide = widths[block], widths[block + 1]
        table |= units(f"{key}{block}.", narrow) | snake(f"{key}{block}.snake1", narrow)
        table |= normed(f"{key}{block}.conv1", (wide, narrow, 2 * stride), wide)
    return table


def _drawn(generator: np.random.Generator, table: Shapes) -> dict[str, np.ndarray]:
    return {key: _draw(generator, key, shape) for key, shape in sorted(table.items())}


def _draw(generator: np.random.Generator, key: str, shape: tuple[int, ...]) -> np.ndarray:
    drawn = bell(generator, shape)
    if key.endswith("weight_g"):
        mean = next(v for p, v in _GAINS.items() if fnmatchcase(key.removesuffix(".weight_g"), p))
        return (mean * (1.0 + 0.1 * drawn)).astype(np.float32)
    mean, spread = next((v for p, v in _STATISTICS.items() if fnmatchcase(key, p)), _MATRIX)
    if len(shape) == 2 and "shared" not in key and "bias" not in key:
        spread /= math.sqrt(shape[1])
    drawn *= spread
    drawn += mean
    return drawn.astype(np.float32)
