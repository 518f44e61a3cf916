"""all-MiniLM-L6-v2 as Core ML: 128 tokens in, one sentence embedding of length 1 out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.recipe import Precision, Recipe, Stage, TensorSpec
from coreproof_exporters.minilm.checkpoint import PUBLISHED, SEQUENCE_LENGTH, load
from coreproof_exporters.minilm.synth import synth

if TYPE_CHECKING:
    import torch

VARIANTS = ("fp16", "fp32")


def stages(checkpoint: Checkpoint, variant: str) -> tuple[Stage, ...]:
    """The one package of ``variant``: ``minilm_encoder_fp16`` or ``minilm_encoder_fp32``."""
    tokens = (1, SEQUENCE_LENGTH)
    return (
        Stage(
            name="encoder",
            package=f"minilm_encoder_{variant}",
            module=_encoder,
            inputs=(TensorSpec("input_ids", tokens, "int32"), TensorSpec("attention_mask", tokens, "int32")),
            # fp32 in both variants: hosts store and compare embeddings in float32, Swift on Intel
            # Macs has no Float16, and widening 384 numbers loses and costs nothing.
            outputs=(TensorSpec("embedding", (1, checkpoint.config["hidden_size"]), "fp32"),),
            precision=Precision(variant),
            target="iOS18",
            metadata=_metadata(checkpoint),
        ),
    )


def _encoder(checkpoint: Checkpoint) -> torch.nn.Module:
    from coreproof_exporters.minilm.modules import build

    return build(checkpoint)


def _metadata(checkpoint: Checkpoint) -> dict[str, str]:
    description = f"Sentence encoder: {SEQUENCE_LENGTH} tokens to one embedding of length 1, mean pooling"
    if not checkpoint.published:
        return {"description": description, "weights": checkpoint.kind}
    return {
        "description": description,
        "weights": f"{PUBLISHED.repo} at {PUBLISHED.revision}",
        "license": PUBLISHED.licence,
    }


RECIPE = Recipe(
    name="minilm",
    load=load,
    variants=VARIANTS,
    stages=stages,
    synth=synth,
    published=PUBLISHED,
    side_files=("tokenizer.json",),
)
