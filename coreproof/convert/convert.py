"""One Stage through coremltools: trace, convert, and check that the result is what was asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.compression import pipeline
from coreproof.convert.functions import check_functions, together
from coreproof.convert.patches import lean
from coreproof.convert.quiet import bars_into, coremltools
from coreproof.convert.recipe import NUMPY, Precision, Stage, StateSpec, TensorSpec
from coreproof.errors import ConversionError
from coreproof.mil.contract import Feature, read_contract
from coreproof.package.reader import Package, open_package
from coreproof.package.writer import write_canonical

Report = Callable[[str, int, int], None]


def convert_stage(stage: Stage, checkpoint: Checkpoint, destination: Path, report: Report) -> Package:
    """Write ``stage`` as the canonical package ``destination`` and return it opened.

    ``report(step, done, total)`` is called as the work goes on. Raises ConversionError when the
    Stage asks for something that does not exist, when coremltools fails, or when the package's
    contract is not the Stage's.
    """
    from coreproof.convert.tracing import trace

    ct = coremltools()
    _check_dtypes(stage)
    check_functions(stage)
    report("tracing", 0, 1)
    traced = trace(stage, checkpoint)
    with lean(next(p for p in destination.absolute().parents if p.is_dir())) as conversion:
        with bars_into(report):
            specs = [_spec(ct, traced, stage.at(f.name)) for f in stage.functions] or [
                _spec(ct, traced, stage)
            ]
        report("writing", 0, 1)
        spec = together(specs, [f.name for f in stage.functions]) if stage.functions else specs[0]
        _describe(spec, stage)
        write_canonical(spec, conversion.weights, destination)
    package = open_package(destination)
    if not stage.functions:
        _check_contract(stage, package, "main")
    for function in stage.functions:
        _check_contract(stage.at(function.name), package, function.name)
    return package


def _spec(ct: Any, traced: Any, stage: Stage) -> Any:
    """The model spec of ``stage``, which has one function."""
    try:
        model = ct.convert(
            traced,
            inputs=[ct.TensorType(i.name, i.shape, _dtype(i)) for i in stage.inputs],
            outputs=[ct.TensorType(o.name, dtype=_dtype(o)) for o in stage.outputs],
            states=_states(ct, stage),
            convert_to="mlprogram",
            minimum_deployment_target=_target(ct, stage),
            compute_precision=_precision(ct, stage.precision),
            pass_pipeline=pipeline(ct, stage),
            skip_model_load=True,
        )
    except (ValueError, TypeError, NotImplementedError, RuntimeError, AssertionError, KeyError) as error:
        raise ConversionError(f"stage {stage.name!r}: coremltools could not convert it: {error}") from error
    return model._spec


def _check_dtypes(stage: Stage) -> None:
    own = [feature for f in stage.functions for feature in (*f.inputs, *f.outputs)]
    features: tuple[TensorSpec | StateSpec, ...] = (*stage.inputs, *stage.outputs, *stage.states, *own)
    for feature in features:
        if feature.dtype not in NUMPY:
            raise ConversionError(
                f"stage {stage.name!r}, feature {feature.name!r}: dtype {feature.dtype!r}, "
                f"choose one of {', '.join(NUMPY)}"
            )


def _dtype(feature: TensorSpec | StateSpec) -> Any:
    return np.dtype(NUMPY[feature.dtype]).type


def _states(ct: Any, stage: Stage) -> Any:
    if not stage.states:
        return None
    return [ct.StateType(ct.TensorType(shape=s.shape, dtype=_dtype(s)), name=s.name) for s in stage.states]


def _target(ct: Any, stage: Stage) -> Any:
    try:
        return getattr(ct.target, stage.target)
    except AttributeError:
        raise ConversionError(
            f"stage {stage.name!r}: coremltools has no deployment target {stage.target!r}"
        ) from None


def _precision(ct: Any, precision: Precision) -> Any:
    if precision.compute == "fp32":
        return ct.precision.FLOAT32
    if precision.compute != "fp16":
        raise ConversionError(f"precision {precision.compute!r} does not exist; choose fp16 or fp32")
    keep = precision.keep_fp32
    if keep is None:
        return ct.precision.FLOAT16
    return ct.transform.FP16ComputePrecision(op_selector=lambda op: not keep(op))


def _describe(spec: Any, stage: Stage) -> None:
    """Put the Stage's metadata into the spec: Core ML's four own fields, then user-defined ones."""
    own = {
        "author": "author",
        "license": "license",
        "version": "versionString",
        "description": "shortDescription",
    }
    for key, value in stage.metadata.items():
        if key in own:
            setattr(spec.description.metadata, own[key], value)
        else:
            spec.description.metadata.userDefined[key] = value


def _check_contract(stage: Stage, package: Package, function: str) -> None:
    contract = read_contract(package.description, function)
    for kind, wanted, found in (
        ("inputs", stage.inputs, contract.inputs),
        ("outputs", stage.outputs, contract.outputs),
        ("states", stage.states, contract.states),
    ):
        asked = {w.name: (tuple(w.shape), NUMPY[w.dtype]) for w in wanted}
        made = {f.name: _signature(f) for f in found}
        if asked != made:
            raise ConversionError(
                f"stage {stage.name!r}: the package's {kind} are {made}, the Stage asks for {asked}"
            )


def _signature(feature: Feature) -> tuple[tuple[int, ...], str | None]:
    return feature.shape, feature.dtype
