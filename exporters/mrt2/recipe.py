"""Magenta RealTime 2 (mrt2_small) as Core ML: control tokens in, 48 kHz stereo out, 40 ms a frame.

A frame goes through ``conditioning_encoder`` (when the controls change), ``temporal_carry`` or
``temporal_stateful``, ``depth_rollout``, the host's sum of codebook rows, a ``spectrostream_decoder`` and
the host's inverse STFT. ``depth_logits`` serves comparison.

``temporal_burst_2`` to ``_25``, in the variant ``bursts``, are the stateful graph for as many known frames
at once, such as a prompt's. See BURST_REPORT before shipping one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.recipe import Compression, Precision, Recipe, Stage, StateSpec, TensorSpec
from coreproof.jsonio import canonical
from coreproof_exporters.mrt2.architecture import (
    BINS,
    CONTROL_CHANNELS,
    HALF_CHANNELS,
    LOOKAHEAD_ROWS,
    ROWS_PER_FRAME,
    WINDOW,
    vocabulary,
)
from coreproof_exporters.mrt2.checkpoint import load
from coreproof_exporters.mrt2.contract import (
    ANALYSIS_FRAMES,
    STEP,
    STREAM_FRAMES,
    cache_shape,
    carried,
    stems,
)
from coreproof_exporters.mrt2.synth import SYNTH_SIZES, synth

if TYPE_CHECKING:
    import torch

VARIANTS = ("fp16", "fp32", "published_contract")
BURSTS = range(2, 26)  # frames
BURST_REPORT = (
    "Reported by ports of this model, not measured here: stateful graphs of 2 to 25 frames, unrolled frame by "
    "frame, converted on a Mac in 20.5 s to 671 s and compiled there, but failed to compile for an iPhone's "
    "Neural Engine (Core ML error -14); 25 frames took 7.6 s a prediction on CPU and GPU. This graph is not "
    "unrolled: the frames of a call share every op."
)
# The compression ladder of the fp16 temporal body and rollout, on record. Uncompressed is the default.
LADDER = {
    "int8": Compression("linear", 8),
    "palette6": Compression("palette", 6),
    "palette6_grouped": Compression("palette", 6, group_size=16),
    "palette4": Compression("palette", 4),
    "palette4_grouped": Compression("palette", 4, group_size=16),
}
# Stages with a program for backend mlx: those that MLX runs quickly on a CPU.
MLX_PROGRAMS = ("temporal_carry", "temporal_stateful", "depth_logits", "conditioning_encoder")
CHUNKS = (5, 25)  # token frames of the decoders without memory

_TARGET = "iOS18"  # what the published packages ask for, and the least that has states
_NO_BIAS = "linear_*_bias_0*"  # the zeros that coremltools gives a linear op without bias


def stages(checkpoint: Checkpoint, variant: str) -> tuple[Stage, ...]:
    """The packages of ``variant``; ``published_contract`` is the stateful graph behind the published
    inputs and states, with the state ``step`` as its one departure."""
    if variant == "published_contract":
        return (_stateful(checkpoint, published=True),)
    if variant == "bursts":
        return tuple(_burst(checkpoint, frames) for frames in BURSTS)
    if variant in LADDER:
        plain = (_carry(checkpoint, "fp16"), _rollout(checkpoint, "fp16"))
        return tuple(
            replace(stage, package=f"mrt2_{stage.name}_{variant}", compression=LADDER[variant])
            for stage in plain
        )
    both = (
        _carry(checkpoint, variant),
        _rollout(checkpoint, variant),
        *(_decoder(checkpoint, variant, frames) for frames in CHUNKS),
        _streaming_decoder(checkpoint, variant),
    )
    if variant == "fp16":
        return (*both, _stateful(checkpoint))
    return (*both, _depth_logits(checkpoint), _conditioning(checkpoint), *_analysis(checkpoint))


def host_files(checkpoint: Checkpoint) -> Mapping[str, bytes]:
    """What the host loop needs beside the packages: ``rvq_codebooks`` [levels, codes, features], whose
    rows the host sums, and ``temporal_start`` [width], the first frame's temporal input. Each is a
    flat little-endian float32 file with its contract in JSON."""
    files: dict[str, bytes] = {}
    for name, source in (("rvq_codebooks", "codebooks"), ("temporal_start", "start")):
        array = checkpoint.tensors[source]
        files[f"{name}.bin"] = np.ascontiguousarray(array, "<f4").tobytes()
        contract = {"dtype": "float32", "byte_order": "little", "order": "C", "shape": list(array.shape)}
        files[f"{name}.json"] = canonical(contract)
    return files


def _carry(checkpoint: Checkpoint, variant: str) -> Stage:
    config, dtype = checkpoint.config, variant
    caches = tuple(TensorSpec(f"{stem}_in", cache_shape(config), dtype) for stem in stems(config))
    updates = tuple(TensorSpec(f"{stem}_updates", cache_shape(config, 1), dtype) for stem in stems(config))
    return _stage(
        checkpoint,
        variant,
        name="temporal_carry",
        what="One frame of the temporal body; the host carries 41 frames of keys and values",
        module=_built("temporal"),
        inputs=(*_frame_inputs(config), _bias(dtype), *caches),
        outputs=(TensorSpec("temporal_outputs", (1, 1, config["width"]), "fp32"), *updates),
    )


def _stateful(checkpoint: Checkpoint, *, published: bool = False) -> Stage:
    config = checkpoint.config
    states = tuple(StateSpec(stem, cache_shape(config)) for stem in stems(config))
    name = "temporal_published_contract" if published else "temporal_stateful"
    return _stage(
        checkpoint,
        "fp16",
        name=name,
        what="One frame of the temporal body with 41 frames of keys and values in states",
        module=_built("temporal", "TemporalPublished" if published else "TemporalStateful"),
        inputs=(*_frame_inputs(config), *(() if published else (_bias("fp16"),))),
        outputs=(TensorSpec("temporal_outputs", (1, 1, config["width"]), "fp32"),),
        states=(*states, *((StateSpec(STEP, (1,)),) if published else ())),
        constants=("needed*",) if published else (),
    )


def _burst(checkpoint: Checkpoint, frames: int) -> Stage:
    config = checkpoint.config

    def module(checkpoint: Checkpoint) -> torch.nn.Module:
        from coreproof_exporters.mrt2 import modules, temporal

        return modules.temporal(checkpoint, lambda config: temporal.TemporalStateful(config, frames))

    stage = _stage(
        checkpoint,
        "fp16",
        name=f"temporal_burst_{frames}",
        what=f"{frames} frames of the temporal body with 41 frames of keys and values in states",
        module=module,
        inputs=(*_frame_inputs(config, frames), _bias("fp16", frames)),
        outputs=(TensorSpec("temporal_outputs", (1, frames, config["width"]), "fp32"),),
        states=tuple(StateSpec(stem, cache_shape(config)) for stem in stems(config)),
    )
    return replace(stage, metadata={**stage.metadata, "reported": BURST_REPORT})


def _frame_inputs(config: Mapping[str, int], frames: int = 1) -> tuple[TensorSpec, ...]:
    return (
        TensorSpec("temporal_inputs", (1, frames, config["width"]), "fp32"),
        TensorSpec("source_encoded", (1, frames, config["source_width"]), "fp32"),
    )


def _bias(dtype: str, frames: int = 1) -> TensorSpec:
    return TensorSpec("cache_valid_bias", (1, 1, frames, 1 + WINDOW + frames), dtype)


def _depth_logits(checkpoint: Checkpoint) -> Stage:
    config = checkpoint.config
    return _stage(
        checkpoint,
        "fp32",
        name="depth_logits",
        what="Soft-capped logits of all levels of a frame whose tokens are given",
        module=_built("depth_logits"),
        inputs=(TensorSpec("depth_inputs", (1, config["levels"], config["width"]), "fp32"),),
        outputs=(TensorSpec("depth_logits", (1, config["levels"], vocabulary(config)), "fp32"),),
        constants=("later*",),
        compute_units="CPU_AND_GPU",
    )


def _rollout(checkpoint: Checkpoint, variant: str) -> Stage:
    config = checkpoint.config
    levels, codes = config["levels"], config["codes"]
    return _stage(
        checkpoint,
        variant,
        name="depth_rollout",
        what="The codes of one frame, drawn level after level with the host's Gumbel noise",
        module=_built("depth_rollout"),
        inputs=(
            TensorSpec("temporal_frame", (1, 1, config["width"]), "fp32"),
            TensorSpec("gumbel_noise", (levels, codes), "fp32"),
            TensorSpec("inverse_temperature", (1,), "fp32"),
        ),
        outputs=(
            TensorSpec("sampled_codes", (levels,), "int32"),
            TensorSpec("temporal_feedback", (1, config["width"]), "fp32"),
        ),
        constants=("*_after_broadcast*",),  # the score of what is not among the best 40, once a code
        compute_units="CPU_ONLY",
    )


def _decoder(checkpoint: Checkpoint, variant: str, frames: int) -> Stage:
    rows = ROWS_PER_FRAME * frames - LOOKAHEAD_ROWS
    return _stage(
        checkpoint,
        variant,
        name=f"spectrostream_decoder_{frames}",
        what=f"STFT rows of {frames} token frames, of which the first 14 are context",
        module=_built("rescaled_decoder" if variant == "fp16" else "decoder"),
        inputs=(_embeddings(checkpoint, frames),),
        outputs=(TensorSpec("decoder_stft", (1, rows, BINS, 2 * HALF_CHANNELS), "fp32"),),
        compute_units="CPU_AND_NE" if variant == "fp16" else "CPU_AND_GPU",
    )


def _streaming_decoder(checkpoint: Checkpoint, variant: str) -> Stage:
    rows, table = ROWS_PER_FRAME * STREAM_FRAMES, carried(checkpoint.config)
    return _stage(
        checkpoint,
        variant,
        name="spectrostream_decoder_streaming",
        what="STFT rows of the next token frame; the host carries the rows that reach into it",
        module=_built("rescaled_streaming_decoder" if variant == "fp16" else "streaming_decoder"),
        inputs=(
            _embeddings(checkpoint, STREAM_FRAMES),
            *(TensorSpec(f"{name}_in", shape, variant) for name, shape in table.items()),
        ),
        outputs=(
            TensorSpec("decoder_stft", (1, rows, BINS, 2 * HALF_CHANNELS), "fp32"),
            *(TensorSpec(f"{name}_out", shape, variant) for name, shape in table.items()),
        ),
        compute_units="CPU_AND_NE" if variant == "fp16" else "CPU_AND_GPU",
    )


def _embeddings(checkpoint: Checkpoint, frames: int) -> TensorSpec:
    return TensorSpec("decoder_embeddings", (1, frames, checkpoint.config["features"]), "fp32")


def _conditioning(checkpoint: Checkpoint) -> Stage:
    config = checkpoint.config
    return _stage(
        checkpoint,
        "fp32",
        name="conditioning_encoder",
        what="Style, piano roll, drums and guidance tokens of a frame to one vector",
        module=_built("conditioning"),
        inputs=(TensorSpec("conditioning_tokens", (1, config["levels"] + CONTROL_CHANNELS), "int32"),),
        outputs=(TensorSpec("source_encoded", (1, 1, config["source_width"]), "fp32"),),
        constants=("*offsets*",),
        compute_units="CPU_ONLY",
    )


def _analysis(checkpoint: Checkpoint) -> tuple[Stage, ...]:
    """The codec's other half, where the checkpoint has it."""
    if "analysis.first.weight" not in checkpoint.tensors:
        return ()
    frames, features = ANALYSIS_FRAMES, checkpoint.config["features"]
    shape = (1, ROWS_PER_FRAME * frames, BINS, 2 * HALF_CHANNELS)
    stage = _stage(
        checkpoint,
        "fp32",
        name="spectrostream_encoder",
        what=f"Codec embeddings of the STFT rows of {frames} token frames, of which the first 14 are context",
        module=_built("analysis"),
        inputs=(TensorSpec("encoder_stft", shape, "fp32"),),
        outputs=(TensorSpec("encoder_embeddings", (1, frames, features), "fp32"),),
        compute_units="CPU_AND_GPU",
    )
    return (stage,)


def _stage(
    checkpoint: Checkpoint,
    compute: str,
    *,
    name: str,
    what: str,
    module: Callable[[Checkpoint], torch.nn.Module],
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    states: tuple[StateSpec, ...] = (),
    constants: tuple[str, ...] = (),
    compute_units: str = "CPU_AND_NE",
) -> Stage:
    return Stage(
        name=name,
        package=f"mrt2_{name}_{compute}",
        module=module,
        inputs=inputs,
        outputs=outputs,
        precision=Precision(compute),
        states=states,
        target=_TARGET,
        compute_units=compute_units,
        constants=(_NO_BIAS, *constants),
        metadata={"description": what, "weights": checkpoint.kind},
        mlx=_in_mlx(name) if name in MLX_PROGRAMS else None,
    )


def _in_mlx(name: str) -> Callable[[Checkpoint], object]:
    def build(checkpoint: Checkpoint) -> object:
        from coreproof_exporters.mrt2 import mlx_programs

        return getattr(mlx_programs, name)(checkpoint)

    return build


def _built(name: str, kind: str | None = None) -> Callable[[Checkpoint], torch.nn.Module]:
    """The function ``name`` of modules.py, imported when it is called, with a class of temporal.py."""

    def build(checkpoint: Checkpoint) -> torch.nn.Module:
        from coreproof_exporters.mrt2 import modules, temporal

        function = getattr(modules, name)
        return function(checkpoint, getattr(temporal, kind)) if kind else function(checkpoint)

    return build


# Compute ops of packages of the full-size model by the exporters of a port of it (mrt2-iphone), built with
# coremltools 9.0 to compare with.
PEER_OPS = {
    "temporal_carry": 1107,
    "temporal_stateful": 1252,
    "depth_logits": 112,
    "depth_rollout": 1574,  # fp16; 1535 in fp32
    "spectrostream_decoder_25": 232,  # fp16, rescaled; 169 in fp32
}

RECIPE = Recipe(
    name="mrt2",
    load=load,
    variants=VARIANTS,
    stages=stages,
    synth=synth,
    on_request=("bursts", *LADDER),
    sizes=SYNTH_SIZES,
    peer_ops=PEER_OPS,
    host_files=host_files,
)
