"""The planted defects of the TangoFlux suite: faults that ports of this model have had, or could have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.recipe import Precision, Stage
from coreproof.mil.weights import weights
from coreproof.package.reader import open_package
from coreproof.parity.defects import plant_nan
from coreproof.parity.suite import Control

GUIDANCE = 4.5


def _changed(change: Callable[[Any], None]) -> Callable[[Stage, Checkpoint], Stage]:
    """A control that applies ``change`` to the built torch module."""

    def control(stage: Stage, _: Checkpoint) -> Stage:
        def build(checkpoint: Checkpoint) -> Any:
            module = stage.module(checkpoint)
            change(module)
            return module

        return replace(stage, module=build)

    return control


def _fed(change: Callable[..., tuple[Any, ...]]) -> Callable[[Any], None]:
    """The module given ``change(*inputs)`` in place of its inputs."""

    def apply(module: Any) -> None:
        forward = type(module).forward
        module.forward = lambda *inputs: forward(module, *change(*inputs))

    return apply


def _unmasked(first: Any, mask: Any, *rest: Any) -> tuple[Any, ...]:
    return first, mask * 0 + 1, *rest


def _other_half(x: Any) -> Any:
    import torch

    return torch.cat([x[1:], x[:1]])


def _halves_swapped(latents: Any, time: Any, pooled: Any, context: Any, *rest: Any) -> tuple[Any, ...]:
    return latents, time, _other_half(pooled), _other_half(context), *rest


def _no_positions(module: Any) -> None:
    import torch

    if hasattr(module, "cos"):
        module.cos, module.sin = torch.ones_like(module.cos), torch.zeros_like(module.sin)
    else:
        _fed(lambda *inputs: (*inputs[:-1], inputs[-1] * 0.0))(module)


def _wrong_guidance(module: Any) -> None:
    """What c + g (c - u) makes of the prediction, as u + g (c - u) of the halves that are left here."""
    forward = type(module).forward

    def guided(*inputs: Any) -> Any:
        import torch

        both = forward(module, *inputs)
        difference = both[1:] - both[:1]
        return torch.cat([both[:1], both[:1] + difference * ((1 + GUIDANCE) / GUIDANCE)])

    module.forward = guided


def _norm_out_swapped(module: Any) -> None:
    forward = type(module.norm_out).forward
    module.norm_out.forward = lambda condition: forward(module.norm_out, condition)[::-1]


def _skip_block(module: Any) -> None:
    del module.single_transformer_blocks[-1]


def _all_fp16(stage: Stage, _: Checkpoint) -> Stage:
    return replace(stage, precision=Precision("fp16"))


def _stream_fp16(stage: Stage, _: Checkpoint) -> Stage:
    """The norms still compute in fp32, but what they are given has become infinite. (With all in fp16 it has
    not: squares overflow first, and a norm of anything is then zero.)"""
    keep = stage.precision.keep_fp32
    assert keep is not None

    def keeps(op: Any) -> bool:
        return keep(op) and not (op.op_type == "add" and op.x.val is None and op.y.val is None)

    return replace(stage, precision=Precision("fp16", keeps, "all but the stream's sums"))


def _no_position_bias(module: Any) -> None:
    module.position_bias = type(module.position_bias)(module.position_bias * 0.0, requires_grad=False)


def _cosine_first(module: Any) -> None:
    weight = module.duration.weight
    waves = (weight.shape[1] - 1) // 2
    columns = [0, *range(1 + waves, 1 + 2 * waves), *range(1, 1 + waves)]
    module.duration.weight = type(weight)(weight[:, columns], requires_grad=False)


def _snake_not_exponential(module: Any) -> None:
    for part in module.modules():
        if type(part).__name__ == "Snake":
            part.alpha = type(part.alpha)(part.alpha.log(), requires_grad=False)


def _dilated_further(module: Any) -> None:
    """Beyond what the overlap of chunks is made for."""
    conv = module.block[0].res_unit3.conv1
    conv.dilation, conv.padding = (27,), (81,)


def _plant_nan(package: Path) -> None:
    """NaN in the package's largest weight of floating point."""
    opened = open_package(package)
    sizes = {
        name: opened.weights.entry(blob).nbytes
        for name, blob in weights(opened.program)
        if opened.weights.array(blob).dtype.kind == "f"
    }
    plant_nan(package, max(sizes, key=sizes.__getitem__))


def _stage(name: str, what: str, change: Callable[[Any], None]) -> Control:
    return Control(name, what, stage=_changed(change))


CONTROLS = (
    Control("nan_weight", "one element of the largest weight is NaN", package=_plant_nan),
    _stage("no_positions", "the rotary ids are all zero", _no_positions),
    _stage("halves_swapped", "the conditional text comes first", _fed(_halves_swapped)),
    _stage("guidance_from_conditional", "guidance is c + g (c - u)", _wrong_guidance),
    _stage("norm_out_swapped", "the last norm's shift is read before its scale", _norm_out_swapped),
    _stage("block_skipped", "the last single block is left out", _skip_block),
    _stage("mask_dropped", "padding of the text is attended", _fed(lambda *x: (*x[:-1], x[-1] * 0.0))),
    Control("timestep_fp16", "the angles of timesteps and positions are formed in fp16", stage=_all_fp16),
    Control("all_fp16", "no op is left in fp32", stage=_all_fp16),
    Control("stream_fp16", "T5's stream is summed in fp16", stage=_stream_fp16),
    _stage("no_position_bias", "T5 without its relative positions", _no_position_bias),
    _stage("padding_seen", "padding of the prompt counts as text", _fed(_unmasked)),
    _stage("cosine_first", "the duration's cosines come before its sines", _cosine_first),
    _stage("snake_not_exponential", "Snake's alpha is used as it is stored", _snake_not_exponential),
    _stage("dilated_further", "one convolution reaches three times as far", _dilated_further),
)
