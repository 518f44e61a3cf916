"""TangoFlux's sizes, and every key that is read of its files with its shape.

Names follow ``tangoflux.model.TangoFlux`` of the PyPI package tangoflux 0.1.0, whose transformer is
diffusers' ``FluxTransformer2DModel`` and whose text encoder is transformers' ``T5EncoderModel``;
``vae.safetensors`` is diffusers' ``AutoencoderOobleck``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

TEXT_ROWS = 64  # tokens of a prompt; upstream's max_text_seq_len
CONTEXT_ROWS = TEXT_ROWS + 1  # the duration token comes last
SAMPLE_RATE = 44_100  # Hz
AUDIO_CHANNELS = 2
EPS = 1e-6  # of every norm

TIME_WIDTH = 256  # of the sinusoid of a timestep
TIME_SCALE = 1000.0  # sigma to timestep
MAX_PERIOD = 10_000.0  # of the timestep's sinusoid and of the rotary embedding
ROPE_AXES = (16, 56, 56)  # diffusers' default axes_dims_rope, whose sum is the width of a head
DURATION_WAVES = 128  # frequencies of the duration embedder

BUCKETS = 32  # T5's relative_attention_num_buckets, with max distance 128
DILATIONS = (1, 3, 9)  # of the VAE's residual units
UNIT_KERNEL = 7  # and of the first and last convolution

T5 = "text_encoder."
BIAS_TABLE = f"{T5}encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
SHARED = f"{T5}shared.weight"
TIED = f"{T5}encoder.embed_tokens.weight"  # the published file leaves it out
DURATION = "duration_emebdder.time_positional_embedding."  # spelt so upstream
JOINT = "transformer.transformer_blocks."
SINGLE = "transformer.single_transformer_blocks."
VAE_BLOCK = "decoder.block."
VAE_ENCODER = "encoder."

Config = Mapping[str, Any]
Shapes = dict[str, tuple[int, ...]]

SIZES: Mapping[str, Config] = {
    "full": {
        "joint_layers": 6,
        "single_layers": 18,
        "heads": 8,
        "head_width": 128,
        "channels": 64,
        "context_width": 1024,
        "audio_rows": 645,
        "max_duration": 30,
        "text_layers": 24,
        "text_heads": 16,
        "text_head_width": 64,
        "text_inner": 2816,
        "vocabulary": 32128,
        "vae_widths": (2048, 1024, 512, 256, 128, 128),
        "vae_strides": (8, 8, 4, 4, 2),
    },
    # Heads as wide as the published ones, because upstream's rotary axes are; 10 s of audio.
    "small": {
        "joint_layers": 1,
        "single_layers": 1,
        "heads": 2,
        "head_width": 128,
        "channels": 64,
        "context_width": 64,
        "audio_rows": 217,
        "max_duration": 30,
        "text_layers": 2,
        "text_heads": 4,
        "text_head_width": 16,
        "text_inner": 128,
        "vocabulary": 640,
        "vae_widths": (128, 64, 32, 16, 8, 8),
        "vae_strides": (8, 8, 4, 4, 2),
    },
}


def width(config: Config) -> int:
    """Of the transformer's stream."""
    product: int = config["heads"] * config["head_width"]
    return product


def hop(config: Config) -> int:
    """Samples that one latent row becomes."""
    return math.prod(config["vae_strides"])


def tangoflux_shapes(config: Config) -> Shapes:
    """Every key of ``tangoflux.safetensors``, with its shape."""
    return {**_text_shapes(config), **_conditioning_shapes(config), **_transformer_shapes(config)}


def _linear(key: str, outputs: int, inputs: int) -> Shapes:
    return {f"{key}.weight": (outputs, inputs), f"{key}.bias": (outputs,)}


def _text_shapes(config: Config) -> Shapes:
    model, inner = config["context_width"], config["text_inner"]
    heads = config["text_heads"] * config["text_head_width"]
    table: Shapes = {SHARED: (config["vocabulary"], model), BIAS_TABLE: (BUCKETS, config["text_heads"])}
    for layer in range(config["text_layers"]):
        key = f"{T5}encoder.block.{layer}.layer."
        for part in "qkv":
            table[f"{key}0.SelfAttention.{part}.weight"] = (heads, model)
        table[f"{key}0.SelfAttention.o.weight"] = (model, heads)
        table[f"{key}1.DenseReluDense.wi_0.weight"] = (inner, model)
        table[f"{key}1.DenseReluDense.wi_1.weight"] = (inner, model)
        table[f"{key}1.DenseReluDense.wo.weight"] = (model, inner)
        table[f"{key}0.layer_norm.weight"] = table[f"{key}1.layer_norm.weight"] = (model,)
    table[f"{T5}encoder.final_layer_norm.weight"] = (model,)
    return table


def _conditioning_shapes(config: Config) -> Shapes:
    model = config["context_width"]
    return {
        **_linear("fc.0", model, model),
        f"{DURATION}0.weights": (DURATION_WAVES,),
        **_linear(f"{DURATION}1", model, 2 * DURATION_WAVES + 1),
    }


def _transformer_shapes(config: Config) -> Shapes:
    inner, model, head = width(config), config["context_width"], config["head_width"]
    table = {
        **_linear("x_embedder", inner, config["channels"]),
        **_linear("context_embedder", inner, model),
        **_linear("time_text_embed.timestep_embedder.linear_1", inner, TIME_WIDTH),
        **_linear("time_text_embed.timestep_embedder.linear_2", inner, inner),
        **_linear("time_text_embed.text_embedder.linear_1", inner, model),
        **_linear("time_text_embed.text_embedder.linear_2", inner, inner),
        **_linear("norm_out.linear", 2 * inner, inner),
        **_linear("proj_out", config["channels"], inner),
    }
    for layer in range(config["joint_layers"]):
        key = f"transformer_blocks.{layer}."
        for part in (
            "to_q",
            "to_k",
            "to_v",
            "to_out.0",
            "add_q_proj",
            "add_k_proj",
            "add_v_proj",
            "to_add_out",
        ):
            table |= _linear(f"{key}attn.{part}", inner, inner)
        for part in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            table[f"{key}attn.{part}.weight"] = (head,)
        for suffix in ("", "_context"):
            table |= _linear(f"{key}norm1{suffix}.linear", 6 * inner, inner)
            table |= _linear(f"{key}ff{suffix}.net.0.proj", 4 * inner, inner)
            table |= _linear(f"{key}ff{suffix}.net.2", inner, 4 * inner)
    for layer in range(config["single_layers"]):
        key = f"single_transformer_blocks.{layer}."
        for part in ("to_q", "to_k", "to_v"):
            table |= _linear(f"{key}attn.{part}", inner, inner)
        for part in ("norm_q", "norm_k"):
            table[f"{key}attn.{part}.weight"] = (head,)
        table |= _linear(f"{key}norm.linear", 3 * inner, inner)
        table |= _linear(f"{key}proj_mlp", 4 * inner, inner)
        table |= _linear(f"{key}proj_out", inner, 5 * inner)
    return {f"transformer.{key}": shape for key, shape in table.items()}


def vae_shapes(config: Config) -> Shapes:
    """Every key of the decoder in ``vae.safetensors``, with its shape."""
    widths = config["vae_widths"]
    table = {
        **normed("decoder.conv1", (widths[0], config["channels"], UNIT_KERNEL), widths[0]),
        **normed("decoder.conv2", (AUDIO_CHANNELS, widths[-1], UNIT_KERNEL), None),
        **snake("decoder.snake1", widths[-1]),
    }
    for block, stride in enumerate(config["vae_strides"]):
        key, wide, narrow = f"{VAE_BLOCK}{block}.", widths[block], widths[block + 1]
        table |= snake(f"{key}snake1", wide) | units(key, narrow)
        table |= normed(f"{key}conv_t1", (wide, narrow, 2 * stride), narrow)
    return table


def units(key: str, channels: int) -> Shapes:
    """The residual units of a block."""
    table: Shapes = {}
    for unit in range(1, len(DILATIONS) + 1):
        part = f"{key}res_unit{unit}."
        table |= snake(f"{part}snake1", channels) | snake(f"{part}snake2", channels)
        table |= normed(f"{part}conv1", (channels, channels, UNIT_KERNEL), channels)
        table |= normed(f"{part}conv2", (channels, channels, 1), channels)
    return table


def snake(key: str, channels: int) -> Shapes:
    return {f"{key}.alpha": (1, channels, 1), f"{key}.beta": (1, channels, 1)}


def normed(key: str, shape: tuple[int, ...], bias: int | None) -> Shapes:
    """A weight-normed convolution: one magnitude for each row of axis 0."""
    table: Shapes = {f"{key}.weight_v": shape, f"{key}.weight_g": (shape[0], 1, 1)}
    return table if bias is None else table | {f"{key}.bias": (bias,)}
