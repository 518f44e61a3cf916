"""Dimensions of Magenta RealTime 2 and the key, shape and role of every published tensor.

Keys and shapes are those of the parameter tree of magenta-rt 2.0.3's JAX model ``mrt2_small`` and of
its SpectroStream decoder, flattened with ``/``. ``mrt2_small.safetensors`` has no config file, so the
dimensions are a table; the window of 41 frames is a constant of the model class and in no tensor.
"""

from __future__ import annotations

from collections.abc import Mapping

Config = Mapping[str, int]
Shapes = dict[str, tuple[int, ...]]

RESERVED = 6  # token ids 0..5; id of code c at level q: RESERVED + codes * q + c
START_TOKEN = 0  # fills all levels before the first frame
WINDOW = 41  # past frames that each attention of the temporal body sees beside the current one
LOGIT_CAP = 30.0
NORM_EPS = 1e-6

SAMPLE_RATE = 48_000
FRAME_SECONDS = 0.04
STFT_STEP = 480  # samples; frame and FFT length are twice that, DC is kept and Nyquist is not
BINS = 480
ROWS_PER_FRAME = 4  # STFT rows of a token frame
LOOKAHEAD_ROWS = 4  # the first rows of a stream, which come before the first frame's own
CONTEXT_FRAMES = 14  # token frames on the left that make a chunk of the decoder exact

# Channels of the conditioning beside the style: count and vocabulary of each (reserved tokens, and a
# dropout token where the channel has one, included).
CONTROLS = (("piano_roll", 128, 11), ("drums", 1, 9), ("guidance", 2, 47), ("guidance_drums", 1, 15))
CONTROL_CHANNELS = sum(count for _, count, _ in CONTROLS)
TOKEN_SHIFT = 7  # reserved tokens and the dropout token, which is what -1 (masked) becomes

# Per decoder block: stride (time, frequency), kernel, channels in and out as multiples of the base
# depth, after the split into stereo halves where it happens. The first block's output is split.
BLOCKS: tuple[tuple[tuple[int, int], tuple[int, int], int, int], ...] = (
    ((2, 1), (4, 3), 8, 16),
    ((2, 2), (4, 4), 8, 4),
    ((1, 2), (3, 4), 4, 4),
    ((1, 2), (3, 4), 4, 4),
    ((1, 3), (3, 6), 4, 2),
    ((1, 2), (3, 4), 2, 2),
    ((1, 2), (3, 4), 2, 1),
)
# The codec's analysis encoder, the other way round: stride, kernel, channels in and out as multiples of
# its base depth, half the decoder's. The halves are joined before the last block.
ANALYSIS_BLOCKS: tuple[tuple[tuple[int, int], tuple[int, int], int, int], ...] = (
    ((1, 2), (3, 4), 1, 2),
    ((1, 2), (3, 4), 2, 2),
    ((1, 3), (3, 6), 2, 4),
    ((1, 2), (3, 4), 4, 4),
    ((1, 2), (3, 4), 4, 4),
    ((2, 2), (4, 4), 4, 8),
    ((2, 1), (4, 3), 16, 8),
)
INPUT_BINS = 5
HALF_CHANNELS = 2  # re and im of one stereo half
LAST_KERNEL = 7

SIZES: dict[str, Config] = {
    "full": {
        "levels": 12,
        "codes": 1024,
        "width": 1024,
        "layers": 12,
        "heads": 8,
        "head_width": 128,
        "ffn": 4096,
        "depth_width": 768,
        "depth_layers": 2,
        "depth_heads": 6,
        "depth_ffn": 3072,
        "source_width": 256,
        "style_width": 768,
        "style_codes": 1024,
        "features": 256,
        "quantizers": 64,
        "base_depth": 64,
    },
    # For tests: every dimension differs from its neighbours, so that no transposition goes unseen.
    "small": {
        "levels": 12,
        "codes": 64,
        "width": 64,
        "layers": 3,
        "heads": 2,
        "head_width": 24,
        "ffn": 112,
        "depth_width": 40,
        "depth_layers": 2,
        "depth_heads": 3,
        "depth_ffn": 88,
        "source_width": 32,
        "style_width": 56,
        "style_codes": 48,
        "features": 20,
        "quantizers": 16,
        "base_depth": 4,
    },
}

DEPTHFORMER = "params/depthformer/"
DECODER = f"{DEPTHFORMER}decoder/"
ENCODER = f"{DEPTHFORMER}encoder/body/"
CODEC = "params/soundstream/decoder/"

ANALYSIS = "params/encoder/"  # in a file of its own

TOKEN_EMBEDDING = f"{DECODER}decoder_embedding/embedding/embedding"
TEMPORAL_LAYER = f"{DECODER}temporal_body/transformer/x_layers_{{}}/"
DEPTH_BODY = f"{DECODER}depth_body/"
DEPTH_LAYER = f"{DEPTH_BODY}transformer/x_layers_{{}}/"
QUANTIZER = "params/soundstream/quantizer/embedding"
STYLE = f"{ENCODER}layers_1/branched_mulan_embedder/mulan_embedder/"
CONTROL_EMBEDDING = f"{ENCODER}layers_1/branched_regular_embedder/regular_embedder/embedding"


def vocabulary(config: Config) -> int:
    """Unique token ids: the reserved ones and ``codes`` for each level."""
    return RESERVED + config["levels"] * config["codes"]


def control_rows() -> int:
    """Rows of the control embedding: the vocabularies of all channels, rounded up to 128."""
    rows = sum(count * size for _, count, size in CONTROLS)
    return -(-rows // 128) * 128


def transpose_name(kernel: tuple[int, int]) -> str:
    return f"conv2dtranspose_{kernel[0]}x{kernel[1]}"


def strided_name(kernel: tuple[int, int]) -> str:
    return f"conv2d_{kernel[0]}x{kernel[1]}_a"


def shapes(config: Config) -> Shapes:
    """Every key that is read, with its shape; separate projections, as published."""
    return {**_depthformer(config), **_codec(config)}


def _depthformer(config: Config) -> Shapes:
    width, narrow, source = config["width"], config["depth_width"], config["source_width"]
    heads, head_width, rows = config["heads"], config["head_width"], vocabulary(config)
    table: Shapes = {TOKEN_EMBEDDING: (rows, width)}
    for layer in range(config["layers"]):
        prefix = TEMPORAL_LAYER.format(layer)
        for name, inputs in (("self_attention/", width), ("cross_attention/", source)):
            table |= _attention(f"{prefix}{name}", width, inputs, heads, head_width, sinks=True)
        table |= _feed_forward(f"{prefix}ffn/", width, config["ffn"])
    table[f"{DEPTH_BODY}depth_input_adapter/kernel"] = (width, narrow)
    for layer in range(config["depth_layers"]):
        prefix, heads = DEPTH_LAYER.format(layer), config["depth_heads"]
        table |= _attention(f"{prefix}self_attention/", narrow, narrow, heads, head_width, sinks=False)
        table |= _feed_forward(f"{prefix}ffn/", narrow, config["depth_ffn"])
    table |= {f"{DEPTH_BODY}final_ln/{name}": (narrow,) for name in ("scale", "bias")}
    table |= {f"{DEPTH_BODY}to_logits/kernel": (narrow, rows), f"{DEPTH_BODY}to_logits/bias": (rows,)}
    table |= {f"{ENCODER}encoder_ln/{name}": (source,) for name in ("scale", "bias")}
    style_rows = config["levels"] * (config["style_codes"] + TOKEN_SHIFT)
    table[f"{STYLE}mulan_dequantizer/embedding"] = (style_rows, config["style_width"])
    table[f"{STYLE}depth_input_adapter/kernel"] = (config["style_width"], source)
    table[CONTROL_EMBEDDING] = (control_rows(), source)
    return table


def _attention(prefix: str, width: int, inputs: int, heads: int, head_width: int, *, sinks: bool) -> Shapes:
    table: Shapes = {f"{prefix}{name}/scale": (width,) for name in ("pre_norm", "post_norm")}
    inner = f"{prefix}attention/"
    table[f"{inner}query_projection/kernel"] = (width, heads, head_width)
    table |= {f"{inner}{name}_projection/kernel": (inputs, heads, head_width) for name in ("key", "value")}
    table[f"{inner}per_dim_scale"] = (head_width,)
    table[f"{prefix}output_projection/kernel"] = (width, heads, head_width)
    if sinks:
        table |= {f"{inner}sink_{name}_embeddings": (1, heads, head_width) for name in ("key", "value")}
    return table


def _feed_forward(prefix: str, width: int, inner: int) -> Shapes:
    table: Shapes = {f"{prefix}{name}/scale": (width,) for name in ("pre_norm", "post_norm")}
    for name, ends in (("ffn_layer1", (width, inner)), ("ffn_layer2", (inner, width))):
        table |= {f"{prefix}{name}/kernel": ends, f"{prefix}{name}/bias": ends[1:]}
    return table


def _codec(config: Config) -> Shapes:
    features, base = config["features"], config["base_depth"]
    first = INPUT_BINS * 8 * base
    table: Shapes = {QUANTIZER: (config["quantizers"], config["codes"], features)}
    table |= _conv(f"{CODEC}input_layer/conv1x1_first/conv/", (1, 1, features, first))
    table |= _conv(f"{CODEC}input_layer/shortcut_layer/conv1x1_b1/conv/", (1, 1, features, first))
    table |= _conv(f"{CODEC}input_layer/shortcut_layer/conv1x1_b2/conv/", (1, 1, first, first))
    for name in ("conv2d_3x3_a", "conv2d_3x3"):
        table |= _conv(f"{CODEC}input_layers_residual_unit/{name}/conv/", (3, 3, 8 * base, 8 * base))
    for index, (_, kernel, narrow, wide) in enumerate(BLOCKS):
        prefix, inputs, outputs = f"{CODEC}decoder_{index}/", narrow * base, wide * base
        table |= _conv(f"{prefix}{transpose_name(kernel)}/conv/", (*kernel, inputs, outputs))
        table |= _conv(f"{prefix}conv2d_3x3/conv/", (3, 3, outputs, outputs))
        if narrow != wide:
            table |= _conv(f"{prefix}shortcut_layer/conv1x1/conv/", (1, 1, inputs, outputs))
    last = (LAST_KERNEL, LAST_KERNEL, base, HALF_CHANNELS)
    return table | _conv(f"{CODEC}output_layer/base_conv_last/conv/", last)


def analysis_shapes(config: Config) -> Shapes:
    """Every key of ``encoder.safetensors``, with its shape."""
    base, features = config["base_depth"] // 2, config["features"]
    first = (LAST_KERNEL, LAST_KERNEL, HALF_CHANNELS, base)
    table = _conv(f"{ANALYSIS}base_conv_first/conv/", first)
    for index, (_, kernel, narrow, wide) in enumerate(ANALYSIS_BLOCKS):
        prefix, inputs, outputs = f"{ANALYSIS}encoder_{index}/", narrow * base, wide * base
        table |= _conv(f"{prefix}conv2d_3x3/conv/", (3, 3, inputs, inputs))
        table |= _conv(f"{prefix}{strided_name(kernel)}/conv/", (*kernel, inputs, outputs))
        if narrow != wide:
            table |= _conv(f"{prefix}shortcut_layer/conv1x1/conv/", (1, 1, inputs, outputs))
    inner = ANALYSIS_BLOCKS[-1][-1] * base
    for name in ("conv2d_3x3", "conv2d_3x3_a"):
        table |= _conv(f"{ANALYSIS}bottleneck/{name}/conv/", (3, 3, inner, inner))
    last, flat = f"{ANALYSIS}output_convs/", INPUT_BINS * inner
    table |= _conv(f"{last}conv1x1_last/conv/", (1, 1, flat, features))
    table |= _conv(f"{last}shortcut_layer/conv1x1_b1/conv/", (1, 1, flat, flat))
    return table | _conv(f"{last}shortcut_layer/conv1x1_b2/conv/", (1, 1, flat, features))


def _conv(prefix: str, kernel: tuple[int, int, int, int]) -> Shapes:
    return {f"{prefix}kernel": kernel, f"{prefix}bias": kernel[3:]}
