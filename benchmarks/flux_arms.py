"""The arms that run one step of TangoFlux's transformer at full size: the fp32 package, and diffusers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from timing import Predict, predictions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHECKPOINT, BUILD = "flux", "flux-build"
RUNS = 3
TOKENS = 16  # of a prompt; the package's other text rows are masked, diffusers is given these alone


def mil(folder: Path) -> dict[str, float]:
    import torch  # noqa: F401

    from coreproof_exporters.tangoflux.contract import key_mask

    def open_model() -> Predict:
        import coreproof

        given = _examples()
        given["key_mask"] = key_mask(TOKENS, given["hidden_states"].shape[1])
        return partial(
            coreproof.load(folder / BUILD / "tangoflux_transformer_fp32.mlpackage", "fp32").predict, given
        )

    return predictions(open_model, warm_up=1, runs=RUNS)


def diffusers_eager(folder: Path) -> dict[str, float]:
    """The official module, tensors in and tensors out, on 65 text rows as the package."""
    import torch
    from diffusers import FluxTransformer2DModel

    from coreproof_exporters.tangoflux.architecture import SIZES
    from coreproof_exporters.tangoflux.checkpoint import WEIGHTS

    def open_model() -> Predict:
        from safetensors import safe_open

        config = SIZES["full"]
        with torch.device("meta"):
            module = FluxTransformer2DModel(
                in_channels=config["channels"],
                num_layers=config["joint_layers"],
                num_single_layers=config["single_layers"],
                num_attention_heads=config["heads"],
                joint_attention_dim=config["context_width"],
                pooled_projection_dim=config["context_width"],
            )
        with safe_open(folder / CHECKPOINT / WEIGHTS, framework="pt") as file:
            keys = [key for key in file.keys() if key.startswith("transformer.")]  # noqa: SIM118
            state = {key.removeprefix("transformer."): file.get_tensor(key) for key in keys}
        module.load_state_dict(state, assign=True)
        given = {name: torch.from_numpy(array) for name, array in _examples().items()}
        rows, audio = given["encoder_hidden_states"].shape[1], given["hidden_states"].shape[1]
        ids = torch.arange(audio, dtype=torch.float32)[:, None].repeat(1, 3)
        return partial(module.eval(), **given, txt_ids=torch.zeros(rows, 3), img_ids=ids, return_dict=False)

    with torch.inference_mode():
        return predictions(open_model, warm_up=1, runs=RUNS)


def _examples() -> dict[str, NDArray[np.float32]]:
    import numpy as np

    from coreproof_exporters.tangoflux.architecture import CONTEXT_ROWS, SIZES

    config, generator = SIZES["full"], np.random.default_rng(1)
    shapes = {
        "hidden_states": (2, config["audio_rows"], config["channels"]),
        "timestep": (1,),
        "pooled_projections": (2, config["context_width"]),
        "encoder_hidden_states": (2, CONTEXT_ROWS, config["context_width"]),
    }
    return {name: generator.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def prepare(folder: Path) -> dict[str, float]:
    from coreproof.catalog import find
    from coreproof.convert.export import export, select

    recipe, path = find("tangoflux").recipe(), folder / CHECKPOINT
    recipe.synth(path, "full", 0)
    checkpoint = recipe.load(path)
    pairs = select(recipe, checkpoint, ["fp32"], ["transformer"])
    export(recipe, path, checkpoint, pairs, folder / BUILD, lambda *_: None)
    return {}


FLUX_ARMS: Mapping[str, Callable[[Path], dict[str, float]]] = {
    "flux mil fp32": mil,
    "flux diffusers": diffusers_eager,
    "flux build": prepare,
}
FLUX_NEEDS = {"flux mil fp32": "flux build", "flux diffusers": "flux build"}
