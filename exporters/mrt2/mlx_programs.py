"""The graphs of Magenta RealTime 2 in MLX, for the backend ``mlx``: what its fused kernels make of them.

Our own expression of the official arithmetic, as the torch modules are; the judge stays the official
JAX code. Without the codec, whose convolutions are slow in MLX on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.activations import gelu_approx

from coreproof.convert.checkpoint import Checkpoint
from coreproof_exporters.mrt2.architecture import CONTROLS, LOGIT_CAP, NORM_EPS, TOKEN_SHIFT, Config
from coreproof_exporters.mrt2.contract import stems

Arrays = Mapping[str, Any]
Program = Callable[[Arrays, Arrays], tuple[dict[str, Any], dict[str, Any]]]


class _Weights:
    """Tensors below a prefix, as MLX arrays."""

    def __init__(self, tensors: Mapping[str, np.ndarray], prefix: str) -> None:
        self._arrays = {
            name.removeprefix(prefix): mx.array(np.ascontiguousarray(tensor))
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }

    def __getitem__(self, name: str) -> Any:
        return self._arrays[name]

    def below(self, prefix: str) -> _Weights:
        part = _Weights({}, "")
        part._arrays = {
            name.removeprefix(prefix): array
            for name, array in self._arrays.items()
            if name.startswith(prefix)
        }
        return part


def temporal_carry(checkpoint: Checkpoint) -> Program:
    """One frame; caches in, their updates out."""
    step = _temporal(checkpoint)

    def run(inputs: Arrays, _: Arrays) -> tuple[dict[str, Any], dict[str, Any]]:
        caches = {name: inputs[f"{name}_in"] for name in stems(checkpoint.config)}
        x, new = step(inputs, caches)
        return {"temporal_outputs": x, **{f"{name}_updates": array for name, array in new.items()}}, {}

    return run


def temporal_stateful(checkpoint: Checkpoint) -> Program:
    """One frame; chronological caches as states."""
    step = _temporal(checkpoint)

    def run(inputs: Arrays, state: Arrays) -> tuple[dict[str, Any], dict[str, Any]]:
        x, new = step(inputs, state)
        moved = {n: mx.concatenate([state[n][:, 1:], array], axis=1) for n, array in new.items()}
        return {"temporal_outputs": x}, moved

    return run


def _temporal(checkpoint: Checkpoint) -> Callable[[Arrays, Arrays], tuple[Any, dict[str, Any]]]:
    config, weights = checkpoint.config, _Weights(checkpoint.tensors, "temporal.")
    names = stems(config)

    def step(inputs: Arrays, caches: Arrays) -> tuple[Any, dict[str, Any]]:
        x, source, bias = (inputs[n] for n in ("temporal_inputs", "source_encoded", "cache_valid_bias"))
        new: dict[str, Any] = {}
        for layer in range(config["layers"]):
            own = weights.below(f"layers.{layer}.")
            for place, kind in enumerate(("self", "cross")):
                part = own.below(f"{kind}.")
                seen = None if kind == "self" else source
                query, key, value = _project(part, x, seen, config["heads"])
                stem = names[4 * layer + 2 * place :]
                new |= {stem[0]: key, stem[1]: value}
                keys = mx.concatenate([part["sink_key"], caches[stem[0]], key], axis=1)
                values = mx.concatenate([part["sink_value"], caches[stem[1]], value], axis=1)
                x = _attend(part, x, query, keys, values, bias)
            x = _feed_forward(own.below("ffn."), x)
        return x, new

    return step


def depth_logits(checkpoint: Checkpoint) -> Program:
    """Soft-capped logits of all levels."""
    config, weights = checkpoint.config, _Weights(checkpoint.tensors, "depth.")

    def run(inputs: Arrays, _: Arrays) -> tuple[dict[str, Any], dict[str, Any]]:
        x = inputs["depth_inputs"] @ weights["adapter.weight"].T
        for layer in range(config["depth_layers"]):
            part = weights.below(f"layers.{layer}.self.")
            x = _attend(part, x, *_project(part, x, None, config["depth_heads"]), "causal")
            x = _feed_forward(weights.below(f"layers.{layer}.ffn."), x)
        x = mx.fast.layer_norm(x, weights["norm.weight"], weights["norm.bias"], NORM_EPS)
        logits = mx.addmm(weights["logits.bias"], x, weights["logits.weight"].T)
        return {"depth_logits": LOGIT_CAP * mx.tanh(logits / LOGIT_CAP)}, {}

    return run


def conditioning_encoder(checkpoint: Checkpoint) -> Program:
    """Control tokens to one vector."""
    weights, rows = _Weights(checkpoint.tensors, "conditioning."), mx.array(_rows(checkpoint.config))
    levels = checkpoint.config["levels"]

    def run(inputs: Arrays, _: Arrays) -> tuple[dict[str, Any], dict[str, Any]]:
        at = inputs["conditioning_tokens"] + rows
        style = weights["style.weight"][at[:, :levels]].sum(axis=1, keepdims=True)
        controls = weights["controls.weight"][at[:, levels:]].mean(axis=1, keepdims=True)
        both = (style + controls) / 2
        return {
            "source_encoded": mx.fast.layer_norm(both, weights["norm.weight"], weights["norm.bias"], NORM_EPS)
        }, {}

    return run


def _rows(config: Config) -> np.ndarray:
    """The row of each token's value 0 in its table."""
    style = np.arange(config["levels"]) * (config["style_codes"] + TOKEN_SHIFT)
    sizes = np.concatenate([np.full(count, size) for _, count, size in CONTROLS])
    controls = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return (np.concatenate([style, controls]) + TOKEN_SHIFT).astype(np.int32)


def _project(part: _Weights, x: Any, source: Any, heads: int) -> tuple[Any, Any, Any]:
    """Query, key and value (1, T, H, W) of x, or the last two of ``source``."""
    normed = mx.fast.rms_norm(x, part["pre_norm.weight"], NORM_EPS)
    seen = normed if source is None else source
    pairs = ((normed, "query"), (seen, "key"), (seen, "value"))
    made = [given @ part[f"{name}.weight"].T for given, name in pairs]
    query, key, value = (m.reshape(1, m.shape[1], heads, -1) for m in made)
    return query, key, value


def _attend(part: _Weights, x: Any, query: Any, keys: Any, values: Any, mask: Any) -> Any:
    """x and its attention; the query's scale is in its projection."""
    by_head = [a.transpose(0, 2, 1, 3) for a in (query, keys, values)]
    context = mx.fast.scaled_dot_product_attention(*by_head, scale=1.0, mask=mask)
    joined = context.transpose(0, 2, 1, 3).reshape(1, x.shape[1], -1)
    return x + mx.fast.rms_norm(joined @ part["output.weight"].T, part["post_norm.weight"], NORM_EPS)


def _feed_forward(part: _Weights, x: Any) -> Any:
    normed = mx.fast.rms_norm(x, part["pre_norm.weight"], NORM_EPS)
    wide = gelu_approx(mx.addmm(part["up.bias"], normed, part["up.weight"].T))
    narrow = mx.addmm(part["down.bias"], wide, part["down.weight"].T)
    return x + mx.fast.rms_norm(narrow, part["post_norm.weight"], NORM_EPS)
