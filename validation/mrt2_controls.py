"""The planted defects of the Magenta RealTime 2 suite: faults that ports of this model have had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.recipe import Stage
from coreproof.mil.weights import weights
from coreproof.package.reader import open_package
from coreproof.parity.defects import plant_nan
from coreproof.parity.suite import Control


def _changed(change: Callable[[Any], None]) -> Callable[[Stage, Checkpoint], Stage]:
    """A control that applies ``change`` to the built torch module."""

    def control(stage: Stage, _: Checkpoint) -> Stage:
        def build(checkpoint: Checkpoint) -> Any:
            module = stage.module(checkpoint)
            change(module)
            return module

        return replace(stage, module=build)

    return control


def _each(module: Any, kind: str) -> list[Any]:
    return [m for m in module.modules() if type(m).__name__ == kind]


def _memoryless(module: Any) -> None:
    """The published stateful graph: every cached slot is written and then hidden."""
    import torch

    from coreproof_exporters.mrt2.architecture import WINDOW
    from coreproof_exporters.mrt2.contract import HIDDEN_SCORE
    from coreproof_exporters.mrt2.temporal import Attention

    def forward(own: Any, x: Any, source: Any, keys: Any, values: Any, bias: Any) -> Any:
        hidden = torch.zeros(1 + WINDOW + own.frames)
        hidden[1 : 1 + WINDOW] = HIDDEN_SCORE
        return Attention.forward(own, x, source, keys, values, bias + hidden)

    for attention in _each(module, "Attention"):
        attention.forward = partial(forward, attention)


def _scale_sink(module: Any) -> None:
    for attention in _each(module, "Attention"):
        attention.sink_key.mul_(attention.row[-1] ** -0.5)


def _norm_plus_one(module: Any) -> None:
    for norm in _each(module, "RmsNorm"):
        norm.weight = type(norm.weight)(norm.weight + 1.0, requires_grad=False)


def _no_pre_norm(module: Any) -> None:
    from torch import nn

    for part in module.modules():
        if hasattr(part, "pre_norm"):
            part.pre_norm = nn.Identity()


def _noise_scaled(module: Any) -> None:
    """Temperature on the logits and on the noise: every draw is the one at temperature 1."""
    choose = type(module).choose
    module.choose = lambda logits, noise, inverse: choose(module, logits, noise * inverse, inverse)


def _token_offset(module: Any) -> None:
    """Token ids counted from 5 instead of 6: every code reads its neighbour's embedding."""
    for table in module.tokens:
        table.weight = type(table.weight)(table.weight.roll(1, 0), requires_grad=False)


def _narrow_style(module: Any) -> None:
    """Style levels 1024 rows apart, as if they had no reserved rows."""
    levels = module.levels
    for level in range(levels):
        module.offsets[0, level] -= 7 * level


def _guidance_fours(module: Any) -> None:
    forward = type(module).forward

    def guided(tokens: Any) -> Any:
        import torch

        return forward(module, torch.cat([tokens[:, :-3], tokens[:, -3:] * 0 + 4], dim=1))

    module.forward = guided


def _unflipped(module: Any) -> None:
    for block in module.blocks:
        weight = block.transposed.weight
        block.transposed.weight = type(weight)(weight.flip(2, 3), requires_grad=False)


def _forget_rows(module: Any) -> None:
    forward = type(module).forward
    module.forward = lambda embeddings, *given: forward(module, embeddings, *(row * 0.0 for row in given))


def _row_late(module: Any) -> None:
    """Strided convolutions see one row fewer at the end, as plainly causal ones would."""
    from torch.nn import functional

    def forward(own: Any, x: Any) -> Any:
        return type(own).forward(own, functional.pad(x[:, :, :-1], (0, 0, 1, 0)))

    for conv in _each(module, "StridedConv"):
        if conv.stride[0] > 1:
            conv.forward = partial(forward, conv)


def _unpooled(module: Any) -> None:
    """Shortcuts take one bin in a stride instead of the mean of all."""

    def pool(own: Any, x: Any) -> Any:
        return x[:, :, :: own.stride[0], :: own.stride[1]]

    for block in module.blocks:
        block.pool = partial(pool, block)


def _halves_swapped(module: Any) -> None:
    forward = type(module).forward
    module.forward = lambda rows: forward(module, rows[..., [2, 3, 0, 1]])


def _alpha_only(module: Any) -> None:
    """ELU's alpha divided, its argument not."""
    import torch

    def forward(own: Any, y: Any) -> Any:
        return torch.nn.functional.elu(y, alpha=1.0 / own.scale)

    for elu in _each(module, "Elu"):
        elu.forward = partial(forward, elu)


def _undivided(stage: Stage, _: Checkpoint) -> Stage:
    """The plain fp16 decoder, which overflows."""

    def build(checkpoint: Checkpoint) -> Any:
        from coreproof_exporters.mrt2 import codec, modules

        kind = codec.StreamingDecoder if "streaming" in stage.name else codec.Decoder
        return modules.decoder(checkpoint, kind)

    return replace(stage, module=build)


def _plant_nan(package: Path) -> None:
    """NaN in the package's largest weight."""
    opened = open_package(package)
    sizes = {name: opened.weights.entry(blob).nbytes for name, blob in weights(opened.program)}
    plant_nan(package, max(sizes, key=sizes.__getitem__))


def _stage(name: str, what: str, change: Callable[[Any], None]) -> Control:
    return Control(name, what, stage=_changed(change))


CONTROLS = (
    Control("nan_weight", "one element of the largest weight is NaN", package=_plant_nan),
    _stage("memoryless", "every cached frame is hidden from the attention", _memoryless),
    _stage("sink_scaled", "the sink's key is multiplied by the query scale", _scale_sink),
    _stage("norm_plus_one", "RMS norms multiply by 1 + scale", _norm_plus_one),
    _stage("no_pre_norm", "sub-layers read the stream without their norm", _no_pre_norm),
    _stage("noise_scaled", "the temperature scales logits and noise both", _noise_scaled),
    _stage("token_offset_5", "token ids count from 5", _token_offset),
    _stage("style_offset_1024", "style levels lie 1024 rows apart", _narrow_style),
    _stage("guidance_fours", "the guidance tokens are 4, 4, 4", _guidance_fours),
    _stage("kernels_unflipped", "transposed kernels are read in JAX order", _unflipped),
    _stage("forgetful_rows", "the streaming decoder forgets the rows before", _forget_rows),
    _stage("row_late", "the encoder's strided convolutions end one row early", _row_late),
    _stage("shortcut_unpooled", "the encoder's shortcuts pick a bin instead of averaging", _unpooled),
    _stage("halves_swapped", "the encoder takes the right channel for the left", _halves_swapped),
    _stage("alpha_only", "in the divided stream only ELU's alpha is divided", _alpha_only),
    Control("undivided", "the fp16 decoder's stream is not divided", stage=_undivided),
)
