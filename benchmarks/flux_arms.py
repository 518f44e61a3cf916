"""The arms of TangoFlux's transformer at full size, with synthetic weights: exported, from the checkpoint on
disk to an fp16 package flushed to disk; and one step of the fp32 package and of diffusers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timing import Predict, conversion, predictions, seconds

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

CHECKPOINT, BUILD = "flux", "flux-build"
RUNS = 3
TOKENS = 16  # of a prompt; the package's other text rows are masked, diffusers is given these alone


def coreproof_export(folder: Path) -> dict[str, float]:
    """The stage's build: the whole snapshot checked and hashed, the package flushed to disk."""
    import torch  # noqa: F401

    from coreproof.convert.quiet import coremltools

    coremltools()
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        return {"seconds": seconds(partial(_export, folder / CHECKPOINT, "fp16", Path(temporary) / "build"))}


def _export(path: Path, variant: str, build: Path) -> None:
    from coreproof.convert.export import export, select
    from coreproof_exporters.tangoflux.recipe import RECIPE

    checkpoint = RECIPE.load(path)
    pairs = select(RECIPE, checkpoint, [variant], ["transformer"])
    export(RECIPE, path, checkpoint, pairs, build, lambda *_: None)


def plain_export(folder: Path) -> dict[str, float]:
    """What ``ct.convert`` saves by default (fp16) of the same module, loaded as a script would load it: the
    transformer's weights alone, neither checked nor hashed."""
    import torch

    from coreproof.convert.quiet import coremltools

    ct = coremltools()

    def convert() -> Any:
        module, shapes = _module(folder), {name: array.shape for name, array in _step().items()}
        with torch.no_grad():
            examples = tuple(torch.ones(shape) for shape in shapes.values())
            traced = torch.jit.trace(module, examples, check_trace=False)
        types = [ct.TensorType(name, shape) for name, shape in shapes.items()]
        return ct.convert(traced, inputs=types, minimum_deployment_target=ct.target.iOS18)

    return conversion(folder, convert)


def _module(folder: Path) -> torch.nn.Module:
    """The exporter's module with the checkpoint's weights."""
    import torch

    from coreproof_exporters.tangoflux.architecture import SIZES
    from coreproof_exporters.tangoflux.transformer import Transformer

    with torch.device("meta"):
        module = Transformer(SIZES["full"])
    found = _weights(folder)
    own = {
        name: torch.cat([found[f"{name.removesuffix('gamma')}weight"]] * 2)
        if name.endswith("gamma")
        else found[name]
        for name in module.state_dict()
    }
    module.load_state_dict(own, assign=True)
    return module.eval()


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    """The transformer's, under diffusers' names."""
    from safetensors import safe_open

    from coreproof_exporters.tangoflux.checkpoint import WEIGHTS

    with safe_open(folder / CHECKPOINT / WEIGHTS, framework="pt") as file:
        keys = [key for key in file.keys() if key.startswith("transformer.")]  # noqa: SIM118
        return {key.removeprefix("transformer."): file.get_tensor(key) for key in keys}


def mil(folder: Path) -> dict[str, float]:
    import torch  # noqa: F401

    def open_model() -> Predict:
        import coreproof

        package = folder / BUILD / "tangoflux_transformer_fp32.mlpackage"
        return partial(coreproof.load(package, "fp32").predict, _step())

    return predictions(open_model, warm_up=1, runs=RUNS)


def diffusers_eager(folder: Path) -> dict[str, float]:
    """The official module, tensors in and tensors out, on 65 text rows as the package."""
    import torch
    from diffusers import FluxTransformer2DModel

    from coreproof_exporters.tangoflux.architecture import SIZES

    def open_model() -> Predict:
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
        module.load_state_dict(_weights(folder), assign=True)
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


def _step() -> dict[str, NDArray[np.float32]]:
    """All inputs of the package, in order."""
    from coreproof_exporters.tangoflux.contract import key_mask

    given = _examples()
    return {**given, "key_mask": key_mask(TOKENS, given["hidden_states"].shape[1])}


def prepare(folder: Path) -> dict[str, float]:
    from coreproof_exporters.tangoflux.recipe import RECIPE

    if not (folder / CHECKPOINT).exists():
        RECIPE.synth(folder / CHECKPOINT, "full", 0)
    return {}


def prepare_build(folder: Path) -> dict[str, float]:
    prepare(folder)
    _export(folder / CHECKPOINT, "fp32", folder / BUILD)
    return {}


FLUX_ARMS: Mapping[str, Callable[[Path], dict[str, float]]] = {
    "flux coreproof": coreproof_export,
    "flux ct.convert": plain_export,
    "flux mil fp32": mil,
    "flux diffusers": diffusers_eager,
    "flux weights": prepare,
    "flux build": prepare_build,
}
FLUX_NEEDS = {
    **dict.fromkeys(("flux coreproof", "flux ct.convert"), "flux weights"),
    **dict.fromkeys(("flux mil fp32", "flux diffusers"), "flux build"),
}
