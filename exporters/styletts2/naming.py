"""Upstream's keys, from the modules here: what each needs, and what is folded from it.

The modules are built without data and walked once, so that a key, its shape and what becomes of it are
said in one place, by the kind of layer it belongs to. What is folded is computed in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from coreproof.convert.checkpoint import Origin
from coreproof_exporters.styletts2.architecture import POSITIONS, TEXT_BUCKETS, Config
from coreproof_exporters.styletts2.denoiser import StyleTransformer1d
from coreproof_exporters.styletts2.layers import (
    CLOSED,
    BiLSTM,
    NormedConv1d,
    NormedConvTranspose1d,
    Snake,
    SpectralConv2d,
)
from coreproof_exporters.styletts2.prosody import Predictor
from coreproof_exporters.styletts2.source import Source
from coreproof_exporters.styletts2.style import StyleEncoder
from coreproof_exporters.styletts2.text import Albert, TextEncoder, _Embeddings
from coreproof_exporters.styletts2.vocoder import Decoder

Arrays = Mapping[str, np.ndarray]
Folded = Iterator[tuple[str, np.ndarray, Origin]]

POOLER = ("bert.pooler.weight", "bert.pooler.bias")
POSITION_IDS = "bert.embeddings.position_ids"
DENOISER = "diffusion.unet"  # upstream stores it a second time under diffusion.diffusion.net
DENOISER_AGAIN = "diffusion.diffusion.net"

_TEXT_TABLES = "bert.embeddings"
_GATES = [0, 1, 3, 2]  # i, f, g, o as Core ML's lstm op orders them: i, f, o, g
_GATE_ORDER = "rows in gate order i, f, o, g"


class _Everything(nn.Module):
    """One module of each kind, under upstream's names."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.bert = Albert(config)
        self.bert_encoder = nn.Linear(config["bert"], config["hidden"])
        self.text_encoder = TextEncoder(config, gated=False)
        self.predictor = Predictor(config, gated=False)
        self.decoder = Decoder(config)
        self.decoder.generator.m_source = Source()
        self.style_encoder = StyleEncoder(config)
        self.predictor_encoder = StyleEncoder(config)
        self.diffusion = nn.Module()
        self.diffusion.unet = StyleTransformer1d(config)


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Every key that the model has, with its shape: ``part.rest`` for the key ``rest`` of ``net[part]``.
    The denoiser's second copy is left out, the unused pooler of PL-BERT is in."""
    return _shapes(tuple(sorted((k, v) for k, v in config.items())))


@lru_cache(maxsize=4)
def _shapes(items: tuple[tuple[str, object], ...]) -> dict[str, tuple[int, ...]]:
    config: dict[str, Any] = dict(items)
    found: dict[str, tuple[int, ...]] = {}
    for place, module in _modules(config):
        found |= {f"{place}{rest}": shape for rest, shape in _keys(module)}
    width: int = config["bert"]
    return found | {POOLER[0]: (width, width), POOLER[1]: (width,)}


def _modules(config: Config) -> list[tuple[str, nn.Module]]:
    with torch.device("meta"):
        whole = _Everything(config)
    return [(name, module) for name, module in whole.named_modules() if name]


def _keys(module: nn.Module) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Upstream's keys of ``module`` itself, without those of its parts, and their shapes."""
    own = {name: tuple(value.shape) for name, value in module._parameters.items() if value is not None}
    if isinstance(module, Snake):
        yield "", own["alpha"]
        return
    if isinstance(module, _Embeddings):
        width = own["positions"][1]
        yield ".position_embeddings.weight", (POSITIONS, width)
        yield ".token_type_embeddings.weight", (2, width)
        return
    for name, shape in own.items():
        if name == "weight" and isinstance(module, (NormedConv1d, NormedConvTranspose1d)):
            yield ".weight_g", (shape[0], 1, 1)
            yield ".weight_v", shape
        elif name == "weight" and isinstance(module, SpectralConv2d):
            yield ".weight_orig", shape
            yield ".weight_u", (shape[0],)
            yield ".weight_v", (int(np.prod(shape[1:])),)
        else:
            yield f".{name}", shape


def named(stored: Arrays, config: Config) -> tuple[dict[str, np.ndarray], dict[str, Origin]]:
    """Tensors by the names of this folder's modules, and their origins.

    Beside them: an LSTM's weights as Core ML's op takes them (``….mil.…``), gated and not, and the first
    rows of the tables that a shorter text bucket reads.
    """
    tensors: dict[str, np.ndarray] = {}
    origins: dict[str, Origin] = {}
    for place, module in _modules(config):
        for name, array, origin in _fold(place, module, stored):
            tensors[name], origins[name] = array, origin
    return tensors, origins


def _fold(place: str, module: nn.Module, stored: Arrays) -> Folded:
    if isinstance(module, BiLSTM):
        yield from _lstm(place, stored)
    elif isinstance(module, (NormedConv1d, NormedConvTranspose1d)):
        yield from _normed(place, module, stored)
    elif isinstance(module, SpectralConv2d):
        yield from _spectral(place, module, stored)
    elif isinstance(module, Snake):
        yield f"{place}.alpha", stored[place], Origin((place,))
        inverse = (1.0 / stored[place].astype(np.float64)).astype(np.float32)
        yield f"{place}.inverse", inverse, Origin((place,), "reciprocal, in float64")
    elif isinstance(module, _Embeddings):
        yield from _tables(place, stored)
    else:
        for rest, _ in _keys(module):
            yield f"{place}{rest}", stored[f"{place}{rest}"], Origin((f"{place}{rest}",))
    if place.endswith("fixed_embedding.embedding"):
        key = f"{place}.weight"
        yield from _rows(key, stored[key], Origin((key,)))
    if place == f"{DENOISER}.to_out.1":  # a convolution of width 1, applied as a linear layer
        key = f"{place}.weight"
        yield f"{key}.flat", stored[key][..., 0], Origin((key,), "last axis dropped")


def _normed(place: str, module: nn.Module, stored: Arrays) -> Folded:
    gain, direction = (stored[f"{place}.weight_{part}"].astype(np.float64) for part in "gv")
    norm = np.sqrt((direction**2).sum(axis=(1, 2), keepdims=True))
    keys = (f"{place}.weight_g", f"{place}.weight_v")
    weight = (gain * direction / norm).astype(np.float32)
    yield f"{place}.weight", weight, Origin(keys, "g v / |v| for each index of the first axis, in float64")
    yield from _bias(place, module, stored)


def _spectral(place: str, module: nn.Module, stored: Arrays) -> Folded:
    keys = tuple(f"{place}.weight_{part}" for part in ("orig", "u", "v"))
    weight, left, right = (stored[key].astype(np.float64) for key in keys)
    sigma = left @ weight.reshape(len(left), -1) @ right
    folded = (weight / sigma).astype(np.float32)
    yield f"{place}.weight", folded, Origin(keys, "W / (u W v), in float64")
    yield from _bias(place, module, stored)


def _bias(place: str, module: nn.Module, stored: Arrays) -> Folded:
    if module._parameters.get("bias") is not None:
        yield f"{place}.bias", stored[f"{place}.bias"], Origin((f"{place}.bias",))


def _tables(place: str, stored: Arrays) -> Folded:
    keys = (f"{place}.position_embeddings.weight", f"{place}.token_type_embeddings.weight")
    rows, kinds = (stored[key].astype(np.float64) for key in keys)
    summed = (rows + kinds[:1]).astype(np.float32)
    yield from _rows(f"{place}.positions", summed, Origin(keys, "positions plus token type 0, in float64"))


def _rows(name: str, table: np.ndarray, origin: Origin) -> Folded:
    yield name, table, origin
    for count in TEXT_BUCKETS[:-1]:
        said = f"rows 0..{count - 1}"
        before = "" if origin.transform == "identity" else f"{origin.transform}; "
        yield f"{name}[:{count}]", table[:count], Origin(origin.keys, before + said)


def _lstm(place: str, stored: Arrays) -> Folded:
    for side in ("", "_reverse"):
        into, again, ours, theirs = (
            f"{place}.{kind}_l0{side}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        closing = np.zeros((len(stored[into]), 1), np.float32)
        closing[: len(closing) // 4] = CLOSED
        gated = np.concatenate([stored[into], closing], axis=1)
        bias = (stored[ours].astype(np.float64) + stored[theirs].astype(np.float64)).astype(np.float32)
        found: list[tuple[str, np.ndarray, tuple[str, ...], str]] = [
            (into, stored[into], (into,), ""),
            (f"{into}.gated", gated, (into,), f"one more column: {CLOSED:g} for the input gate, else 0"),
            (again, stored[again], (again,), ""),
            (ours, bias, (ours, theirs), "sum, in float64"),
        ]
        for name, array, keys, how in found:
            yield name, array, Origin(keys, how or "identity")
            rows = np.concatenate([np.split(array, 4)[gate] for gate in _GATES])
            steps = "; ".join(part for part in (how, _GATE_ORDER) if part)
            yield f"{name}.mil", rows, Origin(keys, steps)


def tensor_name(module: nn.Module, place: str, parameter: str) -> str | None:
    """Under which name :func:`named` keeps ``parameter`` of ``module`` at ``place``; None for what a folded
    sum has made zero."""
    if isinstance(module, BiLSTM):
        if parameter.startswith("bias_hh"):
            return None
        gated = module.gated and parameter.startswith("weight_ih")
        return f"{place}.{parameter}.gated" if gated else f"{place}.{parameter}"
    return f"{place}.{parameter}"


Namer = Callable[[nn.Module, str, str], str | None]
