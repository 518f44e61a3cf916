"""The arms of Magenta RealTime 2 at full size, with synthetic weights: stages exported, from the checkpoint
on disk to a package flushed to disk; and a step of the temporal body."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timing import Predict, conversion, predictions, seconds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from coreproof.convert.checkpoint import Checkpoint
    from coreproof.convert.recipe import Stage

CHECKPOINT = "mrt2"
BUILD = "mrt2-build"
# Name -> variant and stage.
_BOTH = (
    "temporal_carry",
    "depth_rollout",
    "spectrostream_decoder_5",
    "spectrostream_decoder_25",
    "spectrostream_decoder_streaming",
)
STAGES = {
    **{stage: ("fp16", stage) for stage in (*_BOTH, "temporal_stateful")},
    **{f"{stage} fp32": ("fp32", stage) for stage in _BOTH},
    **{stage: ("fp32", stage) for stage in ("depth_logits", "conditioning_encoder")},
    "temporal_published_contract": ("published_contract", "temporal_published_contract"),
}
RUNS = 20


def coreproof_export(name: str, folder: Path) -> dict[str, float]:
    """One stage's build: all checked, hashed and flushed to disk."""
    import torch  # noqa: F401

    from coreproof.convert.quiet import coremltools

    coremltools()
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        return {"seconds": seconds(partial(_export, folder, *STAGES[name], Path(temporary) / "build"))}


def _export(folder: Path, variant: str, stage: str, build: Path) -> None:
    from coreproof.convert.export import export, select
    from coreproof_exporters.mrt2.recipe import RECIPE

    path = folder / CHECKPOINT
    checkpoint = RECIPE.load(path)
    export(RECIPE, path, checkpoint, select(RECIPE, checkpoint, (variant,), (stage,)), build, lambda *_: None)


def plain_export(name: str, folder: Path) -> dict[str, float]:
    """What ``ct.convert`` saves by default of the same module, loaded as a script would load it: neither
    checked nor hashed."""
    import numpy as np
    import torch

    from coreproof.convert.quiet import coremltools
    from coreproof.convert.recipe import NUMPY

    ct = coremltools()

    def convert() -> Any:
        checkpoint, stage = _plain(folder, *STAGES[name])
        precision = ct.precision.FLOAT32 if stage.precision.compute == "fp32" else ct.precision.FLOAT16
        with torch.no_grad():
            whole = {"int32": torch.int32}
            examples = tuple(torch.ones(i.shape, dtype=whole.get(i.dtype)) for i in stage.inputs)
            traced = torch.jit.trace(stage.module(checkpoint).eval(), examples, check_trace=False)

        def tensor(spec: Any, **more: Any) -> Any:
            return ct.TensorType(dtype=np.dtype(NUMPY[spec.dtype]).type, **more)

        return ct.convert(
            traced,
            inputs=[tensor(i, name=i.name, shape=i.shape) for i in stage.inputs],
            outputs=[tensor(o, name=o.name) for o in stage.outputs],
            states=[ct.StateType(tensor(s, shape=s.shape), name=s.name) for s in stage.states] or None,
            minimum_deployment_target=getattr(ct.target, stage.target),
            compute_precision=precision,
        )

    return conversion(folder, convert)


def _plain(folder: Path, variant: str, name: str) -> tuple[Checkpoint, Stage]:
    from safetensors.numpy import load_file

    from coreproof.convert.checkpoint import Checkpoint
    from coreproof_exporters.mrt2.architecture import SIZES
    from coreproof_exporters.mrt2.checkpoint import FILE
    from coreproof_exporters.mrt2.naming import Stored, named
    from coreproof_exporters.mrt2.recipe import stages

    config = SIZES["full"]
    stored = {key: Stored(array, key) for key, array in load_file(folder / CHECKPOINT / FILE).items()}
    tensors, origins = named(stored, config)
    checkpoint = Checkpoint((), config, tensors, origins)
    return checkpoint, next(s for s in stages(checkpoint, variant) if s.name == name)


def mil(variant: str, mode: str, folder: Path) -> dict[str, float]:
    """A step of the carry graph in the runtime, arrays in and arrays out."""
    import torch  # noqa: F401

    def open_model() -> Predict:
        import coreproof

        model = coreproof.load(folder / BUILD / variant / f"mrt2_temporal_carry_{variant}.mlpackage", mode)
        return partial(model.predict, _inputs(variant))

    return predictions(open_model, runs=RUNS)


def torch_eager(folder: Path) -> dict[str, float]:
    """The fp32 module over the mapped checkpoint, tensors in and tensors out."""
    import torch

    def open_model() -> Predict:
        from coreproof_exporters.mrt2.modules import temporal

        module = temporal(_plain(folder, "fp32", "temporal_carry")[0])
        return partial(module, *(torch.from_numpy(a) for a in _inputs("fp32").values()))

    with torch.inference_mode():
        return predictions(open_model, runs=RUNS)


def _inputs(variant: str) -> dict[str, NDArray[np.floating]]:
    """A frame after the window has filled, its caches of the spread that keys and values have."""
    import numpy as np

    from coreproof.convert.recipe import NUMPY
    from coreproof_exporters.mrt2.architecture import SIZES
    from coreproof_exporters.mrt2.contract import burst_bias, cache_shape, stems

    config, generator = SIZES["full"], np.random.default_rng(1)

    def drawn(*shape: int) -> NDArray[np.float32]:
        return generator.standard_normal(shape, dtype=np.float32)

    half = np.dtype(NUMPY[variant])
    caches = {f"{stem}_in": drawn(*cache_shape(config)).astype(half) for stem in stems(config)}
    return {
        "temporal_inputs": drawn(1, 1, config["width"]),
        "source_encoded": drawn(1, 1, config["source_width"]),
        "cache_valid_bias": burst_bias(60, 1).astype(half),
        **caches,
    }


def prepare(folder: Path) -> dict[str, float]:
    from coreproof_exporters.mrt2.synth import synth

    synth(folder / CHECKPOINT, "full", 0)
    return {}


def prepare_build(folder: Path) -> dict[str, float]:
    if not (folder / CHECKPOINT).exists():
        prepare(folder)
    for variant in ("fp32", "fp16"):
        _export(folder, variant, "temporal_carry", folder / BUILD / variant)
    return {}


MRT2_ARMS: Mapping[str, Callable[[Path], dict[str, float]]] = {
    **{f"mrt2 {stage} coreproof": partial(coreproof_export, stage) for stage in STAGES},
    **{f"mrt2 {stage} ct.convert": partial(plain_export, stage) for stage in STAGES},
    "mrt2 mil fp32": partial(mil, "fp32", "fp32"),
    "mrt2 mil typed": partial(mil, "fp16", "typed"),
    "mrt2 torch eager": torch_eager,
    "mrt2 weights": prepare,
    "mrt2 build": prepare_build,
}
MRT2_NEEDS = {
    **{f"mrt2 {stage} {way}": "mrt2 weights" for stage in STAGES for way in ("coreproof", "ct.convert")},
    **dict.fromkeys(("mrt2 mil fp32", "mrt2 mil typed", "mrt2 torch eager"), "mrt2 build"),
}
