"""The torch modules with a checkpoint's weights, and where the fp16 decoder must be rescaled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from coreproof.convert.checkpoint import Checkpoint
from coreproof.errors import ConversionError
from coreproof_exporters.mrt2.analysis import AnalysisEncoder
from coreproof_exporters.mrt2.architecture import BLOCKS
from coreproof_exporters.mrt2.codec import Decoder, Elu, StreamingDecoder
from coreproof_exporters.mrt2.conditioning import ConditioningEncoder
from coreproof_exporters.mrt2.depth import DepthLogits, DepthRollout
from coreproof_exporters.mrt2.naming import STREAM_SCALE
from coreproof_exporters.mrt2.temporal import TemporalCarry

HALF_MAX = 65504.0  # the greatest fp16 number
HEADROOM = 2.0  # how much louder than the calibration input music may be
CALIBRATION_FRAMES = 25
_CALIBRATION_SEED = 25


def temporal(checkpoint: Checkpoint, kind: Callable[..., nn.Module] = TemporalCarry) -> nn.Module:
    """A temporal module of class ``kind`` in eval mode, sharing the checkpoint's arrays."""
    return _filled(lambda: kind(checkpoint.config), checkpoint, "temporal.")


def depth_logits(checkpoint: Checkpoint, kind: Callable[..., nn.Module] = DepthLogits) -> nn.Module:
    return _filled(lambda: kind(checkpoint.config), checkpoint, "depth.")


def depth_rollout(checkpoint: Checkpoint, kind: Callable[..., nn.Module] = DepthRollout) -> nn.Module:
    return _filled(lambda: kind(checkpoint.config), checkpoint, "depth.")


def conditioning(checkpoint: Checkpoint, kind: Callable[..., nn.Module] = ConditioningEncoder) -> nn.Module:
    return _filled(lambda: kind(checkpoint.config), checkpoint, "conditioning.")


def decoder(
    checkpoint: Checkpoint,
    kind: type[Decoder] = Decoder,
    scaled_from: int | None = None,
    elu: type[nn.Module] = Elu,
) -> nn.Module:
    return _filled(lambda: kind(checkpoint.config, scaled_from, elu), checkpoint, "codec.", scaled_from)


def analysis(checkpoint: Checkpoint, kind: Callable[..., nn.Module] = AnalysisEncoder) -> nn.Module:
    return _filled(lambda: kind(checkpoint.config), checkpoint, "analysis.")


def rescaled_decoder(
    checkpoint: Checkpoint, kind: type[Decoder] = Decoder, elu: type[nn.Module] = Elu
) -> nn.Module:
    """The decoder for fp16: divided from the first block that could leave the range of fp16."""
    return decoder(checkpoint, kind, hot_from(peaks(checkpoint)), elu)


def streaming_decoder(checkpoint: Checkpoint) -> nn.Module:
    return decoder(checkpoint, StreamingDecoder)


def rescaled_streaming_decoder(checkpoint: Checkpoint) -> nn.Module:
    return rescaled_decoder(checkpoint, StreamingDecoder)


def peaks(checkpoint: Checkpoint) -> list[float]:
    """The greatest magnitude that enters or arises in each block and, last, of the output, for 25 frames of codes drawn
    uniformly, each level from its own codebook, in float32."""
    config, books = checkpoint.config, checkpoint.tensors["codebooks"]
    shape = (CALIBRATION_FRAMES, config["levels"])
    codes = np.random.Generator(np.random.PCG64(_CALIBRATION_SEED)).integers(0, config["codes"], shape)
    embeddings = sum(books[level][codes[:, level]] for level in range(config["levels"]))
    module: Any = decoder(checkpoint)
    highest = [0.0] * (len(BLOCKS) + 1)

    def watch(place: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            highest[place] = max(highest[place], *(float(t.abs().max()) for t in (*inputs, output)))

        return hook

    for index, block in enumerate(module.blocks):
        for part in (block.elu, block.shortcut):
            part.register_forward_hook(watch(index))
    module.last_elu.register_forward_hook(watch(len(BLOCKS) - 1))
    with torch.no_grad():
        highest[-1] = float(module(torch.from_numpy(embeddings)[None]).abs().max())
    return highest


def hot_from(highest: list[float]) -> int | None:
    """The block from which the stream must be divided, None when fp16 holds all of it: the one before
    the first that is too loud, because a block's input is the sum that its predecessor made.

    Raises ConversionError when dividing by STREAM_SCALE is not enough, or when the output, which
    leaves the stream undivided, would not fit.
    """
    limit = HALF_MAX / HEADROOM
    if highest[-1] > limit or max(highest[:-1]) > limit * STREAM_SCALE:
        raise ConversionError(
            f"the codec decoder peaks at {max(highest[:-1]):.3g} inside and {highest[-1]:.3g} at its output; "
            f"fp16 with the stream divided by {STREAM_SCALE} holds {limit * STREAM_SCALE:.3g} and {limit:.3g}: "
            "export the variant fp32"
        )
    loud = [index for index, peak in enumerate(highest[:-1]) if peak > limit]
    return max(loud[0] - 1, 0) if loud else None


def _filled(
    make: Callable[[], nn.Module], checkpoint: Checkpoint, prefix: str, scaled_from: int | None = None
) -> nn.Module:
    """A module with the checkpoint's arrays, shared; biases divided from block ``scaled_from`` on."""
    with torch.device("meta"):  # no weights are drawn; constant buffers name the CPU themselves
        module = make()
    state = {}
    for name in module.state_dict():
        divided = scaled_from is not None and name.endswith("bias") and _place(name) >= scaled_from
        state[name] = torch.from_numpy(checkpoint.tensors[f"{'scaled.' if divided else ''}{prefix}{name}"])
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def _place(name: str) -> int:
    """The block that a decoder parameter belongs to, -1 before the first; the last convolution's is
    beyond all."""
    if name.startswith("blocks."):
        return int(name.split(".")[1])
    return len(BLOCKS) if name.startswith("last") else -1
