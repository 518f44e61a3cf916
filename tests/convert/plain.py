"""Plain conversion, to compare with: the module traced with its weights, ``ct.convert``, ``save``."""

from __future__ import annotations

from pathlib import Path

import coremltools as ct
import numpy as np
import torch

from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.recipe import NUMPY, Stage
from coreproof.package.reader import open_package
from coreproof.package.writer import write_canonical

TORCH = {"fp16": torch.float32, "fp32": torch.float32, "int32": torch.int32}


def plain_package(stage: Stage, checkpoint: Checkpoint, folder: Path) -> Path:
    """``stage`` as coremltools alone converts and saves it, then in canonical form."""

    def tensor(feature: object) -> ct.TensorType:
        return ct.TensorType(feature.name, feature.shape, np.dtype(NUMPY[feature.dtype]).type)

    precision = ct.precision.FLOAT32
    if stage.precision.compute == "fp16":
        keep = stage.precision.keep_fp32 or (lambda op: False)
        precision = ct.transform.FP16ComputePrecision(op_selector=lambda op: not keep(op))
    module = stage.module(checkpoint).eval()
    examples = tuple(torch.ones(i.shape, dtype=TORCH[i.dtype]) for i in stage.inputs)
    with torch.no_grad():
        traced = torch.jit.trace(module, examples, check_trace=False)
    states = [
        ct.StateType(ct.TensorType(shape=s.shape, dtype=np.dtype(NUMPY[s.dtype]).type), name=s.name)
        for s in stage.states
    ]
    model = ct.convert(
        traced,
        inputs=[tensor(i) for i in stage.inputs],
        outputs=[ct.TensorType(o.name, dtype=np.dtype(NUMPY[o.dtype]).type) for o in stage.outputs],
        states=states or None,
        minimum_deployment_target=getattr(ct.target, stage.target),
        compute_precision=precision,
    )
    for key, value in stage.metadata.items():
        if key in ("author", "license", "version"):
            setattr(model, key, value)
        elif key == "description":
            model.short_description = value
        else:
            model.user_defined_metadata[key] = value
    saved = folder / "saved.mlpackage"
    model.save(str(saved))
    opened = open_package(saved)
    write_canonical(opened.spec, opened.weights, folder / "plain.mlpackage")
    return folder / "plain.mlpackage"
