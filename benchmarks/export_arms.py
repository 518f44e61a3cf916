"""The arms of the transformer of ``dit.py``: exported, from the checkpoint on disk to a package flushed to
disk; opened and run."""

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

CHECKPOINT = "dit"
BUILD = "dit-build"
RUNS = 3  # of seconds each


def coreproof_export(folder: Path) -> dict[str, float]:
    """The whole build: all checked, hashed and flushed to disk."""
    import torch  # noqa: F401

    from coreproof.convert.quiet import coremltools

    coremltools()

    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        return {"seconds": seconds(partial(_export, folder, Path(temporary) / "build"))}


def _export(folder: Path, build: Path) -> None:
    from dit import RECIPE

    from coreproof.convert.export import export, select

    path = folder / CHECKPOINT
    checkpoint = RECIPE.load(path)
    export(RECIPE, path, checkpoint, select(RECIPE, checkpoint, (), ()), build, lambda *_: None)


def plain_export(folder: Path) -> dict[str, float]:
    """What ``ct.convert`` saves by default (fp16), of a module loaded as a script would load it: neither
    checked nor hashed."""
    import torch
    from dit import CONFIG, FILE, inputs
    from dit_modules import Transformer
    from safetensors.torch import load_file

    from coreproof.convert.quiet import coremltools

    ct = coremltools()

    def convert() -> Any:
        with torch.device("meta"):
            module = Transformer(CONFIG)
        module.load_state_dict(load_file(folder / CHECKPOINT / FILE), assign=True)
        shapes = inputs(CONFIG)
        with torch.no_grad():
            examples = tuple(torch.ones(shape) for shape in shapes.values())
            traced = torch.jit.trace(module.eval(), examples, check_trace=False)
        types = [ct.TensorType(name, shape) for name, shape in shapes.items()]
        return ct.convert(traced, inputs=types, minimum_deployment_target=ct.target.iOS18)

    return conversion(folder, convert)


def mil(folder: Path) -> dict[str, float]:
    """The package of 1 GB in mode ``typed``, mapped from a warm page cache."""
    import torch  # noqa: F401

    def open_model() -> Predict:
        import coreproof

        return partial(coreproof.load(folder / BUILD / "dit_fp16.mlpackage").predict, _examples())

    return predictions(open_model, warm_up=1, runs=RUNS)


def torch_eager(folder: Path) -> dict[str, float]:
    """The fp32 module over the mapped checkpoint, tensors in and tensors out."""
    import torch
    from dit import CONFIG, FILE
    from dit_modules import Transformer
    from safetensors.torch import load_file

    def open_model() -> Predict:
        with torch.device("meta"):
            module = Transformer(CONFIG)
        module.load_state_dict(load_file(folder / CHECKPOINT / FILE), assign=True)
        return partial(module.eval(), *(torch.from_numpy(array) for array in _examples().values()))

    with torch.inference_mode():
        return predictions(open_model, warm_up=1, runs=RUNS)


def read_once(folder: Path) -> dict[str, float]:
    """The weight file read through once, from a warm page cache into a buffer."""
    buffer = bytearray(1 << 23)

    def read() -> None:
        (path,) = (folder / BUILD).rglob("weight.bin")
        with path.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass

    return {"seconds": seconds(read)}


def _examples() -> dict[str, NDArray[np.float32]]:
    import numpy as np
    from dit import CONFIG, inputs

    generator = np.random.default_rng(1)
    return {
        name: generator.standard_normal(shape, dtype=np.float32) for name, shape in inputs(CONFIG).items()
    }


def prepare_build(folder: Path) -> dict[str, float]:
    prepare(folder)
    _export(folder, folder / BUILD)
    return {}


def prepare(folder: Path) -> dict[str, float]:
    from dit import synth

    (folder / CHECKPOINT).mkdir(exist_ok=True)
    synth(folder / CHECKPOINT, "full", 0)
    return {}


EXPORT_ARMS: Mapping[str, Callable[[Path], dict[str, float]]] = {
    "dit coreproof": coreproof_export,
    "dit ct.convert": plain_export,
    "dit mil typed": mil,
    "dit torch eager": torch_eager,
    "dit read once": read_once,
    "dit weights": prepare,
    "dit build": prepare_build,
}
EXPORT_NEEDS = {
    **dict.fromkeys(("dit coreproof", "dit ct.convert"), "dit weights"),
    **dict.fromkeys(("dit mil typed", "dit torch eager", "dit read once"), "dit build"),
}
