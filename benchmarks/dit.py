"""A diffusion transformer of half a thousand million parameters to measure exporting on, as a recipe.

The size and shape of a published one (6 joint and 18 single blocks of width 1024, 645 latent rows and 65 of
text, two at a time for guidance), with weights that mean nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coreproof.convert.checkpoint import Checkpoint, FileDigest, Origin
from coreproof.convert.mapped import is_finite, read_safetensors
from coreproof.convert.recipe import Precision, Recipe, Stage, TensorSpec
from coreproof.errors import CheckpointError

if TYPE_CHECKING:
    import torch

FILE = "model.safetensors"
TARGET = "iOS18"
CONFIG = {
    "width": 1024,
    "heads": 8,
    "channels": 64,
    "text_rows": 65,
    "audio_rows": 645,
    "joint": 6,
    "single": 18,
}
_PIECE = 1 << 20  # elements


def inputs(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the transformer's inputs, in order."""
    return {
        "latents": (2, config["audio_rows"], config["channels"]),
        "context": (2, config["text_rows"], config["width"]),
        "vector": (2, config["width"]),
    }


def load(path: Path) -> Checkpoint:
    """The checkpoint in the folder ``path``, mapped, with all weights finite."""
    file = path / FILE
    tensors = read_safetensors(file)
    bad = [key for key, tensor in tensors.items() if not is_finite(tensor)]
    if bad:
        raise CheckpointError(f"{file}: NaN or infinity in {', '.join(bad)}")
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        files = (FileDigest(FILE, stream.tell(), digest),)
    return Checkpoint(files, CONFIG, tensors, {key: Origin((key,)) for key in tensors}, seed=0)


def stages(checkpoint: Checkpoint, variant: str) -> tuple[Stage, ...]:
    shapes = inputs(CONFIG)
    return (
        Stage(
            name="transformer",
            package=f"dit_{variant}",
            module=_transformer,
            inputs=tuple(TensorSpec(name, shape, "fp32") for name, shape in shapes.items()),
            outputs=(TensorSpec("velocity", shapes["latents"], "fp32"),),
            precision=Precision(variant),
            target=TARGET,
            constants=("cos*", "sin*"),
        ),
    )


def _transformer(checkpoint: Checkpoint) -> torch.nn.Module:
    from dit_modules import build

    return build(checkpoint)


def synth(folder: Path, size: str, seed: int) -> None:
    """Write the weights into ``folder`` a piece at a time."""
    from dit_modules import shapes

    table = shapes(CONFIG)
    header, end = {}, 0
    for key, shape in table.items():
        start, end = end, end + 4 * math.prod(shape)
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = np.random.default_rng(seed)
    with (folder / FILE).open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for shape in table.values():
            left = math.prod(shape)
            while left:
                piece = generator.standard_normal(min(left, _PIECE), dtype=np.float32)
                stream.write(piece * np.float32(0.02))
                left -= piece.size


RECIPE = Recipe("dit", load, ("fp16",), stages, synth)
