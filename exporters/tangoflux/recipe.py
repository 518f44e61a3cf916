"""TangoFlux as Core ML: a prompt and a duration in, stereo at 44.1 kHz out.

``text_encoder`` makes 64 rows of a prompt, once for the prompt and once for the empty one. From both,
``conditioning`` makes what ``transformer`` is given at each of 25 steps, two rows at a time:
[unconditional, conditional]. ``vae_decoder`` makes audio of all latent rows at once,
``vae_decoder_chunk`` of 96 at a time, which overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.recipe import Precision, Recipe, Stage, TensorSpec
from coreproof.jsonio import canonical
from coreproof_exporters.tangoflux.architecture import (
    AUDIO_CHANNELS,
    CONTEXT_ROWS,
    SAMPLE_RATE,
    TEXT_ROWS,
    hop,
)
from coreproof_exporters.tangoflux.checkpoint import TOKENIZER, load
from coreproof_exporters.tangoflux.contract import CHUNK_ROWS, HOST_FILE, HOST_SCHEMA, overlap
from coreproof_exporters.tangoflux.synth import synth

if TYPE_CHECKING:
    import torch

VARIANTS = ("fp16", "fp32", "published-contract")

_TARGET = "iOS18"  # macOS 15, the first with attention as one op
_NO_BIAS = "linear_*_bias_0*"  # the zeros that coremltools gives a linear op without bias
_ANGLES = "angles in fp16 are off by up to 0.45 rad: 1000 sigma and positions to 644 need more bits"
_STREAM = "T5's stream and the products that enter it leave the range of fp16"
_CONDITION = "sums over 64 rows, and the duration's angles of many turns"


def stages(checkpoint: Checkpoint, variant: str) -> tuple[Stage, ...]:
    """The packages of ``variant``; ``published-contract`` is the transformer alone, in fp16."""
    if variant == "published-contract":
        return (_published(checkpoint),)
    rows = checkpoint.config["audio_rows"]
    return (
        _text_encoder(checkpoint, variant),
        _conditioning(checkpoint, variant),
        _transformer(checkpoint, variant),
        _decoder(checkpoint, variant, "vae_decoder", rows),
        _decoder(checkpoint, variant, "vae_decoder_chunk", min(CHUNK_ROWS, rows)),
    )


def host_files(checkpoint: Checkpoint) -> Mapping[str, bytes]:
    """``tangoflux.json``: what the host loop needs and no package's contract says."""
    config = checkpoint.config
    return {
        HOST_FILE: canonical(
            {
                "schema": HOST_SCHEMA,
                "hop": hop(config),
                "max_duration": config["max_duration"],
                "overlap_rows": overlap(config),
                "sample_rate": SAMPLE_RATE,
            }
        )
    }


def _text_encoder(checkpoint: Checkpoint, variant: str) -> Stage:
    tokens = (1, TEXT_ROWS)
    return _stage(
        checkpoint,
        variant,
        name="text_encoder",
        what=f"flan-t5's encoder: {TEXT_ROWS} tokens of a prompt to one row each",
        inputs=(TensorSpec("input_ids", tokens, "int32"), TensorSpec("attention_mask", tokens, "int32")),
        outputs=(TensorSpec("text_hidden", (*tokens, checkpoint.config["context_width"]), "fp32"),),
        keep=("is_no_product", _STREAM),
    )


def _conditioning(checkpoint: Checkpoint, variant: str) -> Stage:
    model = checkpoint.config["context_width"]
    return _stage(
        checkpoint,
        variant,
        name="conditioning",
        what="Two texts and a duration in seconds to what the transformer is conditioned on",
        inputs=(
            TensorSpec("text_hidden", (2, TEXT_ROWS, model), "fp32"),
            TensorSpec("attention_mask", (2, TEXT_ROWS), "int32"),
            TensorSpec("duration", (1,), "fp32"),
        ),
        outputs=(
            TensorSpec("pooled_projections", (2, model), "fp32"),
            TensorSpec("encoder_hidden_states", (2, CONTEXT_ROWS, model), "fp32"),
        ),
        keep=("is_not_linear", _CONDITION),
        compute_units="CPU_ONLY",
    )


def _transformer(checkpoint: Checkpoint, variant: str) -> Stage:
    rows = CONTEXT_ROWS + checkpoint.config["audio_rows"]
    return _stage(
        checkpoint,
        variant,
        name="transformer",
        what="One flow-matching step of the Flux transformer, [unconditional, conditional]",
        inputs=(*_step_inputs(checkpoint, "fp32"), TensorSpec("key_mask", (1, 1, 1, rows), "fp32")),
        outputs=(_velocity(checkpoint, "fp32"),),
        constants=("*pairs*", "cos*", "sin*", "*frequencies*"),
        keep=("makes_angles", _ANGLES),
    )


def _published(checkpoint: Checkpoint) -> Stage:
    rows = checkpoint.config["audio_rows"]
    return _stage(
        checkpoint,
        "fp16",
        name="transformer_published_contract",
        module="published_transformer",
        what="One flow-matching step behind the six fp16 inputs of the first conversion",
        inputs=(
            *_step_inputs(checkpoint, "fp16"),
            TensorSpec("txt_ids", (2, CONTEXT_ROWS, 3), "fp16"),
            TensorSpec("img_ids", (2, rows, 3), "fp16"),
        ),
        outputs=(_velocity(checkpoint, "fp16"),),
        constants=("*pairs*", "omega*", "*frequencies*", "*_bias_0*"),
        keep=("makes_angles", _ANGLES),
    )


def _step_inputs(checkpoint: Checkpoint, dtype: str) -> tuple[TensorSpec, ...]:
    config = checkpoint.config
    return (
        TensorSpec("hidden_states", (2, config["audio_rows"], config["channels"]), dtype),
        TensorSpec("timestep", (1,), dtype),
        TensorSpec("pooled_projections", (2, config["context_width"]), dtype),
        TensorSpec("encoder_hidden_states", (2, CONTEXT_ROWS, config["context_width"]), dtype),
    )


def _velocity(checkpoint: Checkpoint, dtype: str) -> TensorSpec:
    return TensorSpec(
        "noise_pred", (2, checkpoint.config["audio_rows"], checkpoint.config["channels"]), dtype
    )


def _decoder(checkpoint: Checkpoint, variant: str, name: str, rows: int) -> Stage:
    config = checkpoint.config
    return _stage(
        checkpoint,
        variant,
        name=name,
        module="vae_decoder",
        what=f"{rows} latent rows to stereo at {SAMPLE_RATE} Hz",
        inputs=(TensorSpec("latents", (1, rows, config["channels"]), "fp32"),),
        outputs=(TensorSpec("audio", (1, AUDIO_CHANNELS, hop(config) * rows), "fp32"),),
    )


def _stage(
    checkpoint: Checkpoint,
    compute: str,
    *,
    name: str,
    what: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    module: str = "",
    constants: tuple[str, ...] = (),
    keep: tuple[str, str] | None = None,
    compute_units: str = "ALL",
) -> Stage:
    return Stage(
        name=name,
        package=f"tangoflux_{name}_{compute}",
        module=_built(module or name),
        inputs=inputs,
        outputs=outputs,
        precision=_precision(compute, keep),
        target=_TARGET,
        compute_units=compute_units,
        constants=(_NO_BIAS, *constants),
        metadata={"description": what, "weights": checkpoint.kind},
    )


def _precision(compute: str, keep: tuple[str, str] | None) -> Precision:
    """fp16 with the ops that ``keep``, a function of modules.py and the reason, leaves in fp32."""
    if compute == "fp32" or keep is None:
        return Precision(compute)

    def keeps(op: Any) -> bool:
        from coreproof_exporters.tangoflux import modules

        kept: bool = getattr(modules, keep[0])(op)
        return kept

    return Precision(compute, keeps, keep[1])


def _built(name: str) -> Callable[[Checkpoint], torch.nn.Module]:
    """The function ``name`` of modules.py, imported when it is called."""

    def build(checkpoint: Checkpoint) -> torch.nn.Module:
        from coreproof_exporters.tangoflux import modules

        return getattr(modules, name)(checkpoint)

    return build


RECIPE = Recipe(
    name="tangoflux",
    load=load,
    variants=VARIANTS,
    stages=stages,
    synth=synth,
    side_files=(TOKENIZER,),
    host_files=host_files,
)
