"""The arms that export the transformer of ``dit.py``, from the checkpoint on disk to a package flushed to disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from timing import seconds

CHECKPOINT = "dit"


def coreproof_export(folder: Path) -> dict[str, float]:
    """The whole build: all checked, hashed and flushed to disk."""
    import torch  # noqa: F401

    from coreproof.convert.quiet import coremltools

    coremltools()

    def work(build: Path) -> None:
        from dit import RECIPE

        from coreproof.convert.export import export, select

        path = folder / CHECKPOINT
        checkpoint = RECIPE.load(path)
        export(RECIPE, path, checkpoint, select(RECIPE, checkpoint, (), ()), build, lambda *_: None)

    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        return {"seconds": seconds(partial(work, Path(temporary) / "build"))}


def plain_export(folder: Path) -> dict[str, float]:
    """What ``ct.convert`` saves by default (fp16), of a module loaded as a script would load it: neither
    checked nor hashed."""
    import torch
    from dit import CONFIG, FILE, inputs
    from dit_modules import Transformer
    from safetensors.torch import load_file

    from coreproof.convert.quiet import coremltools

    ct = coremltools()

    def work(package: Path) -> None:
        with torch.device("meta"):
            module = Transformer(CONFIG)
        module.load_state_dict(load_file(folder / CHECKPOINT / FILE), assign=True)
        shapes = inputs(CONFIG)
        with torch.no_grad():
            examples = tuple(torch.ones(shape) for shape in shapes.values())
            traced = torch.jit.trace(module.eval(), examples, check_trace=False)
        types = [ct.TensorType(name, shape) for name, shape in shapes.items()]
        ct.convert(traced, inputs=types, minimum_deployment_target=ct.target.iOS18).save(str(package))
        for path in (package, *package.rglob("*")):
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        return {"seconds": seconds(partial(work, Path(temporary) / "dit.mlpackage"))}


def prepare(folder: Path) -> dict[str, float]:
    from dit import synth

    (folder / CHECKPOINT).mkdir()
    synth(folder / CHECKPOINT, "full", 0)
    return {}


EXPORT_ARMS: Mapping[str, Callable[[Path], dict[str, float]]] = {
    "dit coreproof": coreproof_export,
    "dit ct.convert": plain_export,
    "dit weights": prepare,
}
EXPORT_NEEDS = {"dit coreproof": "dit weights", "dit ct.convert": "dit weights"}
