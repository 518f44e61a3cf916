"""From published keys to the names, layouts and folded values of the torch modules.

Folding is done here, in float64 and rounded once, and each result says how it was made: what an
export then contains can be recomputed by anyone with numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from coreproof.convert.checkpoint import Origin
from coreproof.convert.later import Folding
from coreproof_exporters.mrt2.architecture import (
    ANALYSIS,
    ANALYSIS_BLOCKS,
    BLOCKS,
    CODEC,
    CONTROL_EMBEDDING,
    DEPTH_BODY,
    DEPTH_LAYER,
    ENCODER,
    QUANTIZER,
    RESERVED,
    START_TOKEN,
    STYLE,
    TEMPORAL_LAYER,
    TOKEN_EMBEDDING,
    Config,
    strided_name,
    transpose_name,
)

# The factor by which the fp16 decoder's stream is made smaller: a power of two, so that dividing a
# bias by it is exact.
STREAM_SCALE = 128

# What makes the published per-dimension scale 1 / sqrt(width) at 0: sequence_layers, as it stands there.
_SOFTPLUS_ZERO = 1.442695041
_ROWS = 1024  # of a product made at a time


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor that a key is read from: ``key`` is the file's own, ``part`` what of it was taken."""

    array: np.ndarray
    key: str
    part: str = ""


class _Names:
    """Collects tensors and their origins under the modules' names."""

    def __init__(self, stored: Mapping[str, Stored]) -> None:
        self._stored = stored
        self.tensors: dict[str, np.ndarray] = {}
        self.makers: dict[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]] = {}
        self.origins: dict[str, Origin] = {}

    def shape(self, key: str) -> tuple[int, ...]:
        return self._stored[key].array.shape

    def put(
        self,
        name: str,
        keys: str | tuple[str, ...],
        make: Callable[..., np.ndarray] = lambda array: array,
        how: str = "",
        later: tuple[int, ...] | None = None,
    ) -> None:
        """``later``: the shape of a tensor that is only made when it is asked for, as most stages never do."""
        found = [self._stored[key] for key in ((keys,) if isinstance(keys, str) else keys)]
        made = partial(make, *(f.array for f in found))
        if later is None:
            self.tensors[name] = made()
        else:
            self.makers[name] = later, made
        parts = " and ".join(f.part for f in found if f.part)
        steps = "; ".join(step for step in (parts, how) if step)
        self.origins[name] = Origin(tuple(f.key for f in found), steps or "identity")


def named(stored: Mapping[str, Stored], config: Config) -> tuple[Folding, dict[str, Origin]]:
    """State dict tensors and their origins, from tensors under the published keys."""
    names = _Names(stored)
    _temporal(names, config)
    _depth(names, config)
    _conditioning(names)
    _codec(names, config)
    if any(key.startswith(ANALYSIS) for key in stored):
        _analysis(names)
    return Folding(names.tensors, names.makers), names.origins


def _temporal(names: _Names, config: Config) -> None:
    for layer in range(config["layers"]):
        key, name = TEMPORAL_LAYER.format(layer), f"temporal.layers.{layer}."
        for kind in ("self", "cross"):
            _attention(names, f"{name}{kind}.", f"{key}{kind}_attention/", sinks=True)
        _feed_forward(names, f"{name}ffn.", f"{key}ffn/")


def _depth(names: _Names, config: Config) -> None:
    names.put("depth.adapter.weight", f"{DEPTH_BODY}depth_input_adapter/kernel", _turned, "transposed")
    for layer in range(config["depth_layers"]):
        key, name = DEPTH_LAYER.format(layer), f"depth.layers.{layer}."
        _attention(names, f"{name}self.", f"{key}self_attention/", sinks=False)
        _feed_forward(names, f"{name}ffn.", f"{key}ffn/")
    names.put("depth.norm.weight", f"{DEPTH_BODY}final_ln/scale")
    names.put("depth.norm.bias", f"{DEPTH_BODY}final_ln/bias")
    kernel, bias = f"{DEPTH_BODY}to_logits/kernel", f"{DEPTH_BODY}to_logits/bias"
    names.put("depth.logits.weight", kernel, _turned, "transposed")
    names.put("depth.logits.bias", bias)
    for level in range(config["levels"]):
        first = RESERVED + level * config["codes"]
        rows = slice(first, first + config["codes"])
        text = f"{rows.start}:{rows.stop}"
        names.put(
            f"depth.heads.{level}.weight", kernel, lambda k, r=rows: k[:, r].T, f"[:, {text}]; transposed"
        )
        names.put(f"depth.heads.{level}.bias", bias, lambda b, r=rows: b[r], f"[{text}]")
        names.put(f"depth.tokens.{level}.weight", TOKEN_EMBEDDING, lambda e, r=rows: e[r], f"[{text}]")
    scale = math.sqrt(config["width"])
    names.put(
        "start",
        TOKEN_EMBEDDING,
        lambda e: (e[START_TOKEN].astype(np.float64) * scale).astype(np.float32),
        f"row {START_TOKEN} times sqrt({config['width']}), in float64, rounded once",
    )


def _attention(names: _Names, name: str, key: str, *, sinks: bool) -> None:
    for norm in ("pre_norm", "post_norm"):
        names.put(f"{name}{norm}.weight", f"{key}{norm}/scale")
    inner = f"{key}attention/"
    scale = f"{inner}per_dim_scale"
    inputs, heads, width = names.shape(f"{inner}query_projection/kernel")
    names.put(
        f"{name}query.weight",
        (f"{inner}query_projection/kernel", scale),
        lambda kernel, raw: _turned((kernel * _query_scale(raw)).astype(np.float32)),
        "first key times 1.442695041 log(1 + exp(second key)) / sqrt(its length), in float64, rounded once; "
        "as [heads * width, inputs]",
        later=(heads * width, inputs),
    )
    for part in ("key", "value"):
        kernel = f"{inner}{part}_projection/kernel"
        names.put(f"{name}{part}.weight", kernel, _turned, "as [heads * width, inputs]")
    names.put(
        f"{name}output.weight",
        f"{key}output_projection/kernel",
        lambda kernel: kernel.reshape(kernel.shape[0], -1),
        "as [outputs, heads * width]",
    )
    if not sinks:
        return
    # The sink's logit is the product with the query before its scale, so the key undoes that scale.
    names.put(
        f"{name}sink_key",
        (f"{inner}sink_key_embeddings", scale),
        lambda sink, raw: (sink / _query_scale(raw)).astype(np.float32)[np.newaxis],
        "first key over 1.442695041 log(1 + exp(second key)) / sqrt(its length), in float64, rounded once",
    )
    names.put(f"{name}sink_value", f"{inner}sink_value_embeddings", lambda sink: sink[np.newaxis])


def _query_scale(raw: np.ndarray) -> np.ndarray:
    """What the query is multiplied by, float64 [width of a head]: sequence_layers'
    ``attention.common`` for ``per_dim_scale`` ``raw``."""
    scale: np.ndarray = _SOFTPLUS_ZERO / math.sqrt(len(raw)) * np.logaddexp(raw.astype(np.float64), 0.0)
    return scale


def product(rows: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """``rows`` [n, inputs] times ``kernel`` [inputs, outputs], float32: exact sums, rounded to float64 and
    once more, so that no processor's order of adding shows. Plain float64 sums tell what most of them
    become; those that lie too near to the middle of two float32 numbers are added exactly."""
    wide = kernel.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=0)
    made = np.empty((len(rows), kernel.shape[1]), np.float32)
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS].astype(np.float64)
        sums = part @ wide
        # Twice what any order of adding can be off by, after Cauchy and Schwarz.
        error = len(kernel) * 2.0**-52 * np.linalg.norm(part, axis=1)[:, np.newaxis] * lengths
        unclear = (sums - error).astype(np.float32) != (sums + error).astype(np.float32)
        for row, column in np.argwhere(unclear):
            sums[row, column] = math.fsum(part[row] * wide[:, column])
        made[start : start + _ROWS] = sums
    return made


def _turned(kernel: np.ndarray) -> np.ndarray:
    """[inputs, ...] as a torch linear weight [outputs, inputs], a view."""
    return kernel.reshape(kernel.shape[0], -1).T


def _feed_forward(names: _Names, name: str, key: str) -> None:
    for norm in ("pre_norm", "post_norm"):
        names.put(f"{name}{norm}.weight", f"{key}{norm}/scale")
    for part, layer in (("up", "ffn_layer1"), ("down", "ffn_layer2")):
        names.put(f"{name}{part}.weight", f"{key}{layer}/kernel", _turned, "transposed")
        names.put(f"{name}{part}.bias", f"{key}{layer}/bias")


def _conditioning(names: _Names) -> None:
    table, adapter = f"{STYLE}mulan_dequantizer/embedding", f"{STYLE}depth_input_adapter/kernel"
    names.put(
        "conditioning.style.weight",
        (table, adapter),
        product,
        "first key times second key, rounded once",
        later=(names.shape(table)[0], names.shape(adapter)[1]),
    )
    names.put("conditioning.controls.weight", CONTROL_EMBEDDING)
    names.put("conditioning.norm.weight", f"{ENCODER}encoder_ln/scale")
    names.put("conditioning.norm.bias", f"{ENCODER}encoder_ln/bias")


def _codec(names: _Names, config: Config) -> None:
    levels = config["levels"]
    names.put("codebooks", QUANTIZER, lambda books: books[:levels], f"[:{levels}]")
    _conv(names, "codec.input.first.", f"{CODEC}input_layer/conv1x1_first/")
    for i in (1, 2):
        _conv(names, f"codec.input.shortcut_{i}.", f"{CODEC}input_layer/shortcut_layer/conv1x1_b{i}/")
    for part, layer in (("first", "conv2d_3x3_a"), ("second", "conv2d_3x3")):
        _conv(names, f"codec.unit.{part}.", f"{CODEC}input_layers_residual_unit/{layer}/")
    for index, (_, kernel, narrow, wide) in enumerate(BLOCKS):
        name, key = f"codec.blocks.{index}.", f"{CODEC}decoder_{index}/"
        _conv(names, f"{name}transposed.", f"{key}{transpose_name(kernel)}/", flip=True)
        _conv(names, f"{name}conv.", f"{key}conv2d_3x3/")
        if narrow != wide:
            _conv(names, f"{name}shortcut.", f"{key}shortcut_layer/conv1x1/")
    _conv(names, "codec.last.", f"{CODEC}output_layer/base_conv_last/")


def _analysis(names: _Names) -> None:
    _conv(names, "analysis.first.", f"{ANALYSIS}base_conv_first/")
    for index, (_, kernel, narrow, wide) in enumerate(ANALYSIS_BLOCKS):
        name, key = f"analysis.blocks.{index}.", f"{ANALYSIS}encoder_{index}/"
        _conv(names, f"{name}conv.", f"{key}conv2d_3x3/")
        _conv(names, f"{name}strided.", f"{key}{strided_name(kernel)}/")
        if narrow != wide:
            _conv(names, f"{name}shortcut.", f"{key}shortcut_layer/conv1x1/")
    for part, layer in (("first", "conv2d_3x3"), ("second", "conv2d_3x3_a")):
        _conv(names, f"analysis.unit.{part}.", f"{ANALYSIS}bottleneck/{layer}/")
    for part, layer in (
        ("last", "conv1x1_last"),
        ("shortcut_1", "shortcut_layer/conv1x1_b1"),
        ("shortcut_2", "shortcut_layer/conv1x1_b2"),
    ):
        _conv(names, f"analysis.output.{part}.", f"{ANALYSIS}output_convs/{layer}/")


def _conv(names: _Names, name: str, key: str, *, flip: bool = False) -> None:
    """A kernel [height, width, in, out] as torch has it: [out, in, height, width], or for a transposed
    convolution [in, out, height, width] with both axes reversed, as JAX stores it unreversed."""
    kernel = f"{key}conv/kernel"
    if flip:
        order, how = (2, 3, 0, 1), "reversed along axes 0 and 1, transposed [2, 3, 0, 1]"
    else:
        order, how = (3, 2, 0, 1), "transposed [3, 2, 0, 1]"
    names.put(
        f"{name}weight",
        kernel,
        # torch takes no negative strides, so only what is reversed is copied.
        lambda k: k[::-1, ::-1].transpose(order).copy() if flip else k.transpose(order),
        how,
        later=tuple(names.shape(kernel)[axis] for axis in order) if flip else None,
    )
    names.put(f"{name}bias", f"{key}conv/bias")
    if not name.startswith("codec."):
        return
    names.put(
        f"scaled.{name}bias",
        f"{key}conv/bias",
        lambda b: b / np.float32(STREAM_SCALE),
        f"divided by {STREAM_SCALE}",
    )
