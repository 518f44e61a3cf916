"""The planted defects of the StyleTTS 2 suite: faults that ports of this model have had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.recipe import Precision, Stage
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

        return replace(stage, module=build, constants=("*",))

    return control


def _stage(name: str, what: str, change: Callable[[Any], None]) -> Control:
    return Control(name, what, stage=_changed(change))


def _on_inputs(module: Any, change: Callable[..., tuple[Any, ...]]) -> None:
    """Run ``module`` on what ``change`` makes of its inputs."""
    forward = module.forward
    module.forward = lambda *given: forward(*change(*given))


def _unmasked(module: Any) -> None:
    """The mask says that everything is real; it is the first row (1, B) of floats that only marks."""
    place = {"Text": 1, "Duration": 2, "DiffusionStep": 4, "Curves": 2, "StyleEncoder": 1}
    index = place.get(type(module).__name__, 4)
    _on_inputs(module, lambda *given: tuple(x * 0.0 + 1.0 if i == index else x for i, x in enumerate(given)))


def _unshifted(module: Any) -> None:
    """Aligned features a frame early, as when the host forgets to shift them."""
    import torch

    def early(aligned: Any, *rest: Any) -> tuple[Any, ...]:
        return torch.cat([aligned[..., 1:], aligned[..., -1:]], dim=-1), *rest

    _on_inputs(module, early)


def _halves_swapped(module: Any) -> None:
    """``features`` with the prosodic half first."""
    import torch

    def swapped(x: Any, sigma: Any, embedding: Any, features: Any, *rest: Any) -> tuple[Any, ...]:
        half = features.shape[-1] // 2
        return x, sigma, embedding, torch.cat([features[..., half:], features[..., :half]], dim=-1), *rest

    _on_inputs(module, swapped)


def _gate_order(module: Any) -> None:
    """LSTM weights read as i, f, o, g."""
    import torch

    for part in module.modules():
        if isinstance(part, torch.nn.LSTM):
            for name in list(part._parameters):
                stored: Any = part._parameters[name]
                i, f, g, o = stored.detach().chunk(4)
                setattr(part, name, torch.nn.Parameter(torch.cat([i, f, o, g]), requires_grad=False))


def _modulo_one(module: Any) -> None:
    """Phases wrapped with ``% 1``, which coremltools 9.0 turns into ``x - x``."""
    import math

    import torch
    import torch.nn.functional as F

    from coreproof_exporters.styletts2.architecture import SINE_AMPLITUDE, VOICED, VOICED_NOISE

    def forward(own: Any, f0: Any, noise: Any) -> Any:
        voiced = F.interpolate((f0 > VOICED).float().unsqueeze(1), scale_factor=300.0, mode="nearest")
        sines = torch.sin(own.phase(f0) % 1 * (2 * math.pi)) * SINE_AMPLITUDE
        level = voiced * VOICED_NOISE + (1.0 - voiced) * (SINE_AMPLITUDE / 3)
        merged = own.l_linear((sines * voiced).transpose(1, 2)).transpose(1, 2)
        return torch.tanh(merged + level * noise)

    module.source.forward = partial(forward, module.source)


def _aligned_corners(module: Any) -> None:
    """The sums of phases spread over the samples from corner to corner."""
    import torch.nn.functional as F

    def forward(own: Any, f0: Any) -> Any:
        from coreproof_exporters.styletts2.source import wrapped

        # Over the real length, not the bucket's, corners would lie elsewhere again; either way is wrong.
        turns = f0.unsqueeze(1) * own.harmonics / 80.0
        sums = own.sums(wrapped(turns))
        jumps = turns - wrapped(turns)
        whole = sums + jumps * 0.0
        return F.interpolate(whole, scale_factor=300.0, mode="linear", align_corners=True)

    module.source.phase.forward = partial(forward, module.source.phase)


def _half_sums(stage: Stage, _: Checkpoint) -> Stage:
    """The source in fp16 with the rest: its running sum of phases too."""
    return replace(stage, precision=Precision("fp16"))


def _other_style(stage: Stage, _: Checkpoint) -> Stage:
    """The style encoder of the other half."""

    def build(checkpoint: Checkpoint) -> Any:
        from coreproof_exporters.styletts2 import modules

        other = {"style_encoder": "predictor_encoder", "predictor_encoder": "style_encoder"}
        return modules.encoder(other[stage.name])(checkpoint)

    return replace(stage, module=build)


def _template_sigma(stage: Stage, _: Checkpoint) -> Stage:
    """sigma_data 0.2, as in upstream's repository, instead of what the checkpoint's config says."""

    def build(checkpoint: Checkpoint) -> Any:
        module: Any = stage.module(checkpoint)
        module.scaling.sigma_data = 0.2
        return module

    return replace(stage, module=build)


def _plant_nan(package: Path) -> None:
    """NaN in a weight of PL-BERT where there is one, which all but one output of the text stages follow; else in
    the package's largest weight."""
    opened = open_package(package)
    sizes = {name: opened.weights.entry(blob).nbytes for name, blob in weights(opened.program)}
    bert = [name for name in sizes if name.endswith(("ffn_weight", "ffn_weight_to_fp16"))]
    plant_nan(package, bert[0] if bert else max(sizes, key=sizes.__getitem__))


def _plant_nan_table(package: Path) -> None:
    plant_nan(package, "fixed_embedding*")


CONTROLS = (
    Control("nan_weight", "one element of a large weight is NaN", package=_plant_nan),
    Control("nan_table", "one element of the unconditional embedding is NaN", package=_plant_nan_table),
    _stage("unmasked", "padding is taken for real", _unmasked),
    _stage("unshifted", "aligned features come one frame early", _unshifted),
    _stage("halves_swapped", "the denoiser reads the style's halves in the other order", _halves_swapped),
    _stage("gate_order", "LSTM gates are read in the order i, f, o, g", _gate_order),
    _stage("modulo_one", "phases are wrapped with % 1, which conversion makes zero", _modulo_one),
    _stage("aligned_corners", "phases are spread from corner to corner", _aligned_corners),
    Control("half_sums", "the source's sums of phases run in fp16", stage=_half_sums),
    Control("other_style", "the encoder is that of the style's other half", stage=_other_style),
    Control("template_sigma", "sigma_data is the repository's 0.2", stage=_template_sigma),
)
