"""A streaming FIR filter: chunks of 16 kHz audio in and out, the past kept in one state.

The smallest model that has a state, audio and two variants; as a folder of its own it also shows
what a reader's recipe looks like.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file, save_file

from coreproof.convert.checkpoint import Checkpoint, FileDigest, Origin
from coreproof.convert.recipe import Precision, Recipe, Stage, StateSpec, TensorSpec
from coreproof.errors import CheckpointError

if TYPE_CHECKING:
    import torch

CHUNK = 320  # samples, 20 ms
TAPS = {"small": 33, "full": 129}


def load(path: Path) -> Checkpoint:
    file = path / "filter.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist")
    data = file.read_bytes()
    tensors = load_file(file)
    if sorted(tensors) != ["taps"] or tensors["taps"].ndim != 1:
        raise CheckpointError(f"{file}: expected one vector 'taps', found {', '.join(tensors)}")
    marker = file.parent / "synth.json"
    seed = json.loads(marker.read_text())["seed"] if marker.is_file() else None
    return Checkpoint(
        files=(FileDigest("filter.safetensors", len(data), hashlib.sha256(data).hexdigest()),),
        config={"taps": len(tensors["taps"])},
        tensors={"taps": tensors["taps"][::-1].reshape(1, 1, -1).copy()},
        origins={"taps": Origin(("taps",), "reversed, as (1, 1, taps)")},
        seed=seed,
    )


def stages(checkpoint: Checkpoint, variant: str) -> tuple[Stage, ...]:
    audio = (1, 1, CHUNK)
    return (
        Stage(
            name="filter",
            package=f"streaming_fir_{variant}",
            module=_filter,
            inputs=(TensorSpec("audio", audio, "fp32"),),
            outputs=(TensorSpec("filtered", audio, "fp32"),),
            states=(StateSpec("history", (1, 1, checkpoint.config["taps"] - 1)),),
            precision=Precision(variant),
            target="iOS18",
            mlx=_in_mlx,
        ),
    )


def _filter(checkpoint: Checkpoint) -> torch.nn.Module:
    from .modules import build

    return build(checkpoint)


def _in_mlx(checkpoint: Checkpoint) -> Callable[..., object]:
    import mlx.core as mx

    taps = mx.array(checkpoint.tensors["taps"]).transpose(0, 2, 1)  # (1, taps, 1)

    def run(inputs: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        seen = mx.concatenate([state["history"], inputs["audio"]], axis=2)
        filtered = mx.conv1d(seen.transpose(0, 2, 1), taps).transpose(0, 2, 1)
        return {"filtered": filtered}, {"history": seen[:, :, CHUNK:]}

    return run


def synth(folder: Path, size: str, seed: int) -> None:
    taps = np.random.Generator(np.random.PCG64(seed)).uniform(-0.5, 0.5, TAPS[size])
    save_file({"taps": taps.astype(np.float32)}, folder / "filter.safetensors")
    (folder / "synth.json").write_text(json.dumps({"size": size, "seed": seed}))


RECIPE = Recipe("streaming_fir", load, ("fp16", "fp32"), stages, synth)
