"""The torch modules with a checkpoint's weights, and which ops of theirs must stay fp32 in fp16 packages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from coreproof.convert.checkpoint import Checkpoint
from coreproof_exporters.tangoflux.architecture import T5
from coreproof_exporters.tangoflux.text import Conditioning, TextEncoder
from coreproof_exporters.tangoflux.transformer import PublishedTransformer, Transformer
from coreproof_exporters.tangoflux.vae import Decoder


def transformer(checkpoint: Checkpoint) -> nn.Module:
    """In eval mode, sharing the checkpoint's arrays, as all here."""
    return _filled(lambda: Transformer(checkpoint.config), checkpoint, "transformer.")


def published_transformer(checkpoint: Checkpoint) -> nn.Module:
    return _filled(lambda: PublishedTransformer(checkpoint.config), checkpoint, "transformer.")


def text_encoder(checkpoint: Checkpoint) -> nn.Module:
    return _filled(lambda: TextEncoder(checkpoint.config), checkpoint, T5)


def conditioning(checkpoint: Checkpoint) -> nn.Module:
    return _filled(lambda: Conditioning(checkpoint.config), checkpoint, "conditioning.")


def vae_decoder(checkpoint: Checkpoint) -> nn.Module:
    return _filled(lambda: Decoder(checkpoint.config), checkpoint, "vae.")


def _filled(make: Callable[[], nn.Module], checkpoint: Checkpoint, prefix: str) -> nn.Module:
    with torch.device("meta"):  # no weights are drawn; constant buffers name the CPU themselves
        module = make()
    state = {name: torch.from_numpy(checkpoint.tensors[f"{prefix}{name}"]) for name in module.state_dict()}
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def makes_angles(op: Any) -> bool:
    """Whether ``op`` of coremltools is a sine or cosine, or makes nothing but what one is taken of."""
    if op.op_type in ("sin", "cos"):
        return True
    if op.op_type == "const":
        return False
    children = [child for output in op.outputs if _may_be_angles(output) for child in output.child_ops]
    return bool(children) and all(map(makes_angles, children))


def _may_be_angles(value: Any) -> bool:
    """Angles are of one timestep or of one table for both halves, and no head has its own: this keeps the
    search out of the blocks."""
    return value.rank < 4 and value.shape[:1] != (2,)


def is_no_product(op: Any) -> bool:
    """Whether ``op`` is none of the matrix products whose results T5 keeps small: those of its
    feed-forward's second half go into the stream at its full size."""
    if op.op_type == "linear":
        return ".wo." in op.inputs["weight"].name
    return op.op_type not in ("matmul", "softmax", "gelu")


def is_not_linear(op: Any) -> bool:
    return op.op_type != "linear"
