"""StyleTTS 2 (LibriTTS) as Core ML: phonemes and a reference clip in, 24 kHz speech out.

The exact layout (variants ``fp32`` and ``fp16``): ``text`` -> ``diffusion_step``, eight times -> ``duration``
with the blended style -> ``f0n_energy`` -> ``decoder`` with the host's ``har_source``, or ``decoder_sourced``
with the source inside. Every padded axis comes with a mask, which makes a bucket compute what the
unpadded model computes, so a bucket costs time and never quality; all buckets of a stage are functions of
one package and share its weights. ``style_encoder`` and ``predictor_encoder`` make ``ref_s`` of a clip.

The compatibility layout has the package and feature names of the conversion that FluidInference published:
one graph for text and duration, which therefore takes a style before the sampler has made one; no masks;
a package a bucket. Two departures: ``f0n_energy`` has a function a bucket where theirs enumerates shapes
(reported to fail on device with error -14), and ``decoder_*`` computes upstream's source with a repeated
second of noise where theirs shifts the phase by 149.5 samples and draws a sine for noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.recipe import Compression, FunctionSpec, Precision, Recipe, Stage, TensorSpec
from coreproof.jsonio import canonical
from coreproof_exporters.styletts2.architecture import (
    FRAME,
    FRAME_BUCKETS,
    MEL_BANDS,
    MEL_BUCKETS,
    SAMPLE_RATE,
    TEXT_BUCKETS,
)
from coreproof_exporters.styletts2.checkpoint import load
from coreproof_exporters.styletts2.synth import synth

if TYPE_CHECKING:
    import torch

VARIANTS = ("fp32", "fp16", "compatibility", "selective_int8")
_LARGE_WEIGHT = 200_000  # elements
HOST_JSON = "styletts2_host.json"
FIXED_EMBEDDING = "fixed_embedding.bin"

# What coreml makes of a layer without an initial state or bias, and of tables that no weight shapes.
_CONSTANTS = ("*zeros*", "*_h0*", "*_c0*", "*initial*", "linear_*_bias_0*", "*harmonics*", "*places*")
# Sizes of the padded axis in a trace. Any would do, since a graph holds none, and a trace keeps every
# activation: 6.6 GiB for the decoder of the published size at 256 frames.
_TRACED_TOKENS, _TRACED_FRAMES, _TRACED_MEL = 16, 32, 96

Features = tuple[TensorSpec, ...]
Shaped = Callable[[int], tuple[Features, Features]]


def stages(checkpoint: Checkpoint, variant: str) -> tuple[Stage, ...]:
    """The packages of ``variant``."""
    if variant == "compatibility":
        return _compatibility(checkpoint)
    if variant == "selective_int8":
        return tuple(
            _compressed(s) for s in _compatibility(checkpoint) if s.name.startswith("text_predictor")
        )
    return (
        *(_bucketed(checkpoint, variant, name) for name in _EXACT),
        _encoder(checkpoint, variant, "style_encoder"),
        _encoder(checkpoint, variant, "predictor_encoder"),
    )


def host_files(checkpoint: Checkpoint) -> Mapping[str, bytes]:
    """What the host loop needs of the weights beside the packages: ``styletts2_host.json`` with the source's
    weights and sigma_data, and ``fixed_embedding.bin``, float32 little-endian (512, W), the denoiser's
    unconditional embedding for guidance."""
    from coreproof_exporters.styletts2.harmonics import weights_of

    table = checkpoint.tensors["diffusion.unet.fixed_embedding.embedding.weight"]
    weight, bias = weights_of(checkpoint)
    host = {
        "sample_rate": SAMPLE_RATE,
        "source_weight": weight.tolist(),
        "source_bias": bias,
        "sigma_data": checkpoint.config["sigma_data"],
        "fixed_embedding": list(table.shape),
        "ref_s": "style_encoder's 128 values, then predictor_encoder's",
    }
    return {HOST_JSON: canonical(host), FIXED_EMBEDDING: np.ascontiguousarray(table, "<f4").tobytes()}


def _row(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, (1, *shape), "fp32")


def _text(config: Mapping[str, Any], size: int) -> tuple[Features, Features]:
    return (TensorSpec("tokens", (1, size), "int32"), _row("mask", size)), (
        _row("t_en", config["hidden"], size),
        _row("bert_dur", size, config["bert"]),
        _row("d_en", config["hidden"], size),
    )


def _duration(config: Mapping[str, Any], size: int) -> tuple[Features, Features]:
    inputs = (_row("d_en", config["hidden"], size), _row("s", config["style"]), _row("mask", size))
    return inputs, (
        _row("d", size, config["hidden"] + config["style"]),
        _row("pred_dur_log", size, config["max_dur"]),
    )


def _diffusion(config: Mapping[str, Any], size: int, *, mask: bool = True) -> tuple[Features, Features]:
    width = 2 * config["style"]
    inputs = (
        _row("x_noisy", 1, width),
        TensorSpec("sigma", (1,), "fp32"),
        _row("embedding", size, config["bert"]),
        _row("features", width),
        *([_row("mask", size)] if mask else []),
    )
    return inputs, (_row("denoised", 1, width),)


def _curves(config: Mapping[str, Any], size: int, *, mask: bool = True) -> tuple[Features, Features]:
    inputs = (
        _row("en", config["hidden"] + config["style"], size),
        _row("s", config["style"]),
        *([_row("mask", size)] if mask else []),
    )
    return inputs, (_row("F0", 2 * size), _row("N", 2 * size))


def _decoder(config: Mapping[str, Any], size: int, *more: TensorSpec) -> tuple[Features, Features]:
    inputs = (
        _row("asr", config["hidden"], size),
        _row("F0_curve", 2 * size),
        _row("N", 2 * size),
        _row("s", config["style"]),
        *more,
    )
    return inputs, (_row("waveform", 1, FRAME * size),)


def _with_source(config: Mapping[str, Any], size: int) -> tuple[Features, Features]:
    return _decoder(config, size, _row("mask", size), _row("har_source", 1, FRAME * size))


def _with_noise(config: Mapping[str, Any], size: int) -> tuple[Features, Features]:
    return _decoder(config, size, _row("mask", size), _row("source_noise", 1, FRAME * size))


def scope_of(op: Any) -> tuple[str, ...]:
    """The names of the modules inside which ``op`` was traced, from the outside in."""
    from coremltools.converters.mil.mil.scope import ScopeSource

    return tuple(str(name) for name in op.scopes.get(ScopeSource.TORCHSCRIPT_MODULE_NAME, ()))


def _inside(*modules: str) -> Callable[[Any], bool]:
    return lambda op: any(name in modules for name in scope_of(op))


# Stage: buckets, features at a bucket, module of modules.py, compute units, what stays fp32 in fp16.
_EXACT: Mapping[str, tuple[tuple[int, ...], Any, str, str, Precision, str]] = {
    "text": (
        TEXT_BUCKETS,
        _text,
        "Text",
        "ALL",
        Precision("fp16"),
        "Phoneme tokens to text features and PL-BERT's, in buckets of tokens",
    ),
    "duration": (
        TEXT_BUCKETS,
        _duration,
        "Duration",
        "ALL",
        Precision("fp16"),
        "Text features and the blended prosodic style to durations, in buckets of tokens",
    ),
    "diffusion_step": (
        TEXT_BUCKETS,
        _diffusion,
        "DiffusionStep",
        "CPU_AND_GPU",
        Precision(
            "fp16",
            _inside("scaling", "to_time"),
            "noise levels go down to 1e-4, and their waves turn through many periods",
        ),
        "One evaluation of the style denoiser, in buckets of tokens",
    ),
    "f0n_energy": (
        FRAME_BUCKETS,
        _curves,
        "Curves",
        "ALL",
        # Phases are sums of F0 over the whole speech, and instance norms amplify the rounding of LSTM outputs that
        # hardly move: where a checkpoint has those, the energy's cosine in fp16 is 1 - 1.3e-4.
        Precision("fp32"),
        "Aligned features to F0 in Hz and energy, in buckets of 25 ms frames",
    ),
    "decoder": (
        FRAME_BUCKETS,
        _with_source,
        "Vocoder",
        "CPU_AND_GPU",
        Precision("fp16"),
        "Aligned features and the host's harmonic source to 24 kHz, in buckets of 25 ms frames",
    ),
    "decoder_sourced": (
        FRAME_BUCKETS,
        _with_noise,
        "SourcedVocoder",
        "CPU_AND_GPU",
        Precision(
            "fp16",
            _inside("source"),
            "phases of the harmonics add up over the whole speech, which fp16 cannot hold",
        ),
        "The decoder with the harmonic source inside, in buckets of 25 ms frames",
    ),
}


def _bucketed(checkpoint: Checkpoint, variant: str, name: str) -> Stage:
    buckets, shaped, kind, units, precision, what = _EXACT[name]
    return _stage(
        checkpoint,
        name=name,
        package=f"styletts2_{name}_{variant}",
        module=_module(kind),
        features=lambda size: shaped(checkpoint.config, size),
        buckets=buckets,
        traced=_TRACED_TOKENS if buckets is TEXT_BUCKETS else _TRACED_FRAMES,
        precision=Precision("fp32") if variant == "fp32" else precision,
        compute_units=units,
        what=what,
    )


def _encoder(checkpoint: Checkpoint, variant: str, part: str) -> Stage:
    def features(size: int) -> tuple[Features, Features]:
        return (_row("mel", 1, MEL_BANDS, size), _row("mask", size)), (
            _row("style", checkpoint.config["style"]),
        )

    def build(loaded: Checkpoint) -> torch.nn.Module:
        from coreproof_exporters.styletts2 import modules

        return modules.encoder(part)(loaded)

    return _stage(
        checkpoint,
        name=part,
        package=f"styletts2_{part}_{variant}",
        module=build,
        features=features,
        buckets=MEL_BUCKETS,
        traced=_TRACED_MEL,
        precision=Precision(variant),
        compute_units="ALL",
        what="A reference clip's mel spectrogram to one half of its style, in buckets of mel frames",
    )


def _compatibility(checkpoint: Checkpoint) -> tuple[Stage, ...]:
    config = checkpoint.config
    common: dict[str, Any] = {
        "checkpoint": checkpoint,
        "compute_units": "ALL",
        "precision": Precision("fp16"),
    }

    def text(size: int) -> tuple[Features, Features]:
        (tokens, _), (t_en, bert, d_en) = _text(config, size)
        _, durations = _duration(config, size)
        fixed = replace(bert, name="fixed_embedding")
        return (tokens, _row("style", config["style"])), (t_en, d_en, *durations, fixed, bert)

    texts = [
        _stage(
            name=f"text_predictor_{size}",
            package=f"styletts2_text_predictor_{size}",
            module=_module("TextPredictor"),
            features=text,
            buckets=(size,),
            traced=_TRACED_TOKENS,
            what=f"{size} phoneme tokens and a style to text features and durations, without a mask",
            **common,
        )
        for size in TEXT_BUCKETS
    ]
    step = _stage(
        name="diffusion_step_512",
        package="styletts2_diffusion_step_512",
        module=_module("DiffusionStep"),
        features=lambda size: _diffusion(config, size, mask=False),
        buckets=(TEXT_BUCKETS[-1],),
        traced=_TRACED_TOKENS,
        what="One evaluation of the style denoiser over 512 tokens, without a mask",
        **common | {"compute_units": "CPU_AND_GPU", "precision": _EXACT["diffusion_step"][4]},
    )
    curves = _stage(
        name="f0n_energy_unmasked",
        package="styletts2_f0n_energy",
        module=_module("Curves", gated=False),
        features=lambda size: _curves(config, size, mask=False),
        buckets=FRAME_BUCKETS,
        traced=_TRACED_FRAMES,
        what="Aligned features to F0 in Hz and energy, without a mask, in buckets of 25 ms frames",
        **common,
    )
    decoders = [
        _stage(
            name=f"decoder_{size}",
            package=f"styletts2_decoder_{size}",
            module=_module("LoneVocoder"),
            features=lambda size: _decoder(config, size),
            buckets=(size,),
            traced=_TRACED_FRAMES,
            constants=("*noise*",),
            what=f"{size} aligned frames to 24 kHz, with the source and its noise inside, without a mask",
            **common | {"compute_units": "CPU_AND_GPU", "precision": Precision("fp32")},
        )
        for size in FRAME_BUCKETS
    ]
    return (*texts, step, curves, *decoders)


def _compressed(stage: Stage) -> Stage:
    """``stage`` with int8 for weights of over 200,000 elements, which are most of its size; smaller ones are
    reported to cost more quality than bytes. Half the bytes, and other durations: on record, not advised."""
    chosen = Compression("linear", 8, threshold=_LARGE_WEIGHT)
    return replace(stage, package=f"{stage.package}_int8", compression=chosen, target="iOS18")


def _module(kind: str, **options: Any) -> Callable[[Checkpoint], torch.nn.Module]:
    """The class ``kind`` of modules.py with a checkpoint's weights, imported when it is built."""

    def build(checkpoint: Checkpoint) -> torch.nn.Module:
        from coreproof_exporters.styletts2 import modules

        return modules.built(getattr(modules, kind), **options)(checkpoint)

    return build


def function_name(size: int) -> str:
    """The function of a package for a bucket of ``size``."""
    return f"b{size}"


def _stage(
    checkpoint: Checkpoint,
    *,
    name: str,
    package: str,
    module: Callable[[Checkpoint], torch.nn.Module],
    features: Shaped,
    buckets: Sequence[int],
    traced: int,
    precision: Precision,
    compute_units: str,
    what: str,
    constants: tuple[str, ...] = (),
) -> Stage:
    inputs, outputs = features(buckets[0])
    functions = tuple(FunctionSpec(function_name(size), *features(size)) for size in buckets)
    return Stage(
        name=name,
        package=package,
        module=module,
        inputs=inputs,
        outputs=outputs,
        precision=precision,
        target="iOS18" if len(buckets) > 1 else "iOS17",
        compute_units=compute_units,
        constants=(*_CONSTANTS, *constants),
        metadata={"description": what, "license": "MIT", "weights": checkpoint.kind},
        functions=functions if len(buckets) > 1 else (),
        trace_inputs=features(traced)[0],
    )


RECIPE = Recipe(
    name="styletts2", load=load, variants=VARIANTS, stages=stages, synth=synth, host_files=host_files
)
