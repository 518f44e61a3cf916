"""One diffusers source tree, in a process of its own: a small Flux, run in torch and converted.

Usage: ``python flux.py TREE OUT``, with TREE's ``src`` and what diffusers requires on PYTHONPATH. Writes
``OUT/expected.npz`` (inputs and eager output), ``OUT/flux.mlpackage`` or ``OUT/error.txt``, and
``OUT/versions.json``.

The model has one joint and one single block with TangoFlux's head width, sequence lengths and ids.
Weights are drawn a key, so they are the same in every version of diffusers; the q and k norms are
raised, because attention under default weights is so uniform that a wrong rotation hardly shows.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

# transformers is optional for diffusers, and 0.30 would look for what today's no longer has.
sys.modules["transformers"] = None  # type: ignore[assignment]
# ruff: noqa: E402

import coremltools as ct
import diffusers
import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

TEXT, AUDIO, HEAD, HEADS, WIDTH, CHANNELS = 65, 645, 128, 2, 64, 64
RAISED = 1.5  # of the q and k norms


class Positional(torch.nn.Module):
    """The model by the position of its inputs, its output bare."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, hidden_states, timestep, pooled_projections, encoder_hidden_states, txt_ids, img_ids):
        return self.model(
            hidden_states=hidden_states,
            timestep=timestep,
            pooled_projections=pooled_projections,
            encoder_hidden_states=encoder_hidden_states,
            txt_ids=txt_ids,
            img_ids=img_ids,
            return_dict=False,
        )[0]


def model() -> Positional:
    flux = FluxTransformer2DModel(
        in_channels=CHANNELS,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=HEAD,
        num_attention_heads=HEADS,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
    )
    with torch.no_grad():
        for key, weight in flux.named_parameters():
            draw = np.random.default_rng(list(hashlib.sha256(key.encode()).digest()))
            values = draw.standard_normal(weight.shape, dtype=np.float32)
            if ".norm_" in key and "attn" in key:
                weight.copy_(torch.from_numpy(RAISED + 0.1 * values))
            else:
                weight.copy_(torch.from_numpy(values / np.sqrt(weight.shape[-1])))
    return Positional(flux).eval()


def inputs() -> dict[str, np.ndarray]:
    """float32; ids with a batch axis, as diffusers 0.30 wants them, unless a later version reads them."""
    draw = np.random.default_rng(0)
    batch = 2
    positions = np.repeat(np.arange(AUDIO, dtype=np.float32)[:, None], 3, axis=1)
    text = np.zeros((TEXT, 3), np.float32)
    if diffusers.__version__.startswith("0.30."):
        positions, text = np.tile(positions, (batch, 1, 1)), np.tile(text, (batch, 1, 1))
    return {
        "hidden_states": draw.standard_normal((batch, AUDIO, CHANNELS), dtype=np.float32),
        "timestep": np.array([0.72], np.float32),
        "pooled_projections": draw.standard_normal((batch, WIDTH), dtype=np.float32),
        "encoder_hidden_states": draw.standard_normal((batch, TEXT, WIDTH), dtype=np.float32),
        "txt_ids": text,
        "img_ids": positions,
    }


def main(out: Path) -> None:
    flux, given = model(), inputs()
    tensors = {name: torch.from_numpy(array) for name, array in given.items()}
    with torch.no_grad():
        expected = flux(*tensors.values()).numpy()
        nowhere = flux(*{**tensors, "img_ids": torch.zeros_like(tensors["img_ids"])}.values()).numpy()
        traced = torch.jit.trace(flux, tuple(tensors.values()), check_trace=False)
    np.savez(out / "expected.npz", noise_pred=expected, without_positions=nowhere, **given)
    versions = {"diffusers": diffusers.__version__, "numpy": np.__version__, "coremltools": ct.__version__}
    (out / "versions.json").write_text(json.dumps(versions))
    try:
        converted = ct.convert(
            traced,
            inputs=[ct.TensorType(name, array.shape) for name, array in given.items()],
            outputs=[ct.TensorType("noise_pred")],
            minimum_deployment_target=ct.target.iOS18,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
    except Exception as error:
        (out / "error.txt").write_text(f"{type(error).__name__}: {error}")
    else:
        converted.save(str(out / "flux.mlpackage"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
