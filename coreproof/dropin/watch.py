"""What a test did with Core ML: how many models it made, and how near their predictions came.

Tests hold predictions to tolerances that are wide on purpose: coremltools 9.0 lets fp16 ones be off by
0.5 (``converters/mil/testing_utils.py``). They do so with ``numpy.testing.assert_allclose``. Every such
comparison of a predicted array is also judged at a tight tolerance here, without a say in the outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any
from unittest import mock
from weakref import WeakKeyDictionary

import numpy as np

from coreproof.convert.quiet import coremltools
from coreproof.dropin.proxy import _MLModelProxy
from coreproof.dropin.results import TIGHT
from coreproof.mil.types import DType, TensorType
from coreproof.package.reader import open_package
from coreproof.runtime.model import Model

WORST = 1e9
"""Stands for any larger ratio, and for shapes, NaN and infinities that do not agree."""
_PRECISIONS: WeakKeyDictionary[_MLModelProxy, str] = WeakKeyDictionary()
"""Taken when a model is loaded: a test may have removed its files before it predicts."""


@dataclass(slots=True)
class Seen:
    """``models``: how many were made, MLModels and compiled ones, loaded, not loaded or refused.
    ``predictions``: how many succeeded.
    ``compared``: by precision, the largest error of each comparison in units of the tight tolerance."""

    models: int = 0
    predictions: int = 0
    compared: dict[str, list[float]] = field(default_factory=dict)


@contextmanager
def watch(tight: bool) -> Iterator[Seen]:
    """What happens inside the block; comparisons only if ``tight``, and of models loaded inside one.

    Raises AttributeError where coremltools or numpy lack what is watched.
    """
    seen = Seen()
    predicted: list[tuple[np.ndarray, str]] = []

    def count(_: Any, *arguments: Any, **named: Any) -> None:
        seen.models += 1

    def note(_: Any, proxy: _MLModelProxy, *arguments: Any, **named: Any) -> None:
        if hasattr(proxy, "_model"):  # it was not refused
            _PRECISIONS[proxy] = precision(proxy._model)

    def remember(outputs: Any, proxy: _MLModelProxy, *arguments: Any, **named: Any) -> None:
        seen.predictions += outputs is not None
        if kind := _PRECISIONS.get(proxy):
            arrays = [value for value in (outputs or {}).values() if isinstance(value, np.ndarray)]
            predicted.extend((_owner(array), kind) for array in arrays)

    def judge(_: Any, actual: Any, desired: Any, *arguments: Any, **named: Any) -> None:
        for ours, theirs in ((actual, desired), (desired, actual)):
            for array, kind in predicted:
                if array is _owner(ours):
                    seen.compared.setdefault(kind, []).append(ratio(ours, theirs, *TIGHT[kind]))
                    return

    models = coremltools().models
    with ExitStack() as stack:
        stack.enter_context(_observed(models.MLModel, "__init__", count))
        stack.enter_context(_observed(models.CompiledMLModel, "__init__", count))
        stack.enter_context(_observed(_MLModelProxy, "predict", remember))
        if tight:
            stack.enter_context(_observed(_MLModelProxy, "__init__", note))
            stack.enter_context(_observed(np.testing, "assert_allclose", judge))
        yield seen


def _observed(owner: Any, name: str, observe: Callable[..., None]) -> Any:
    """``owner.name``, followed by ``observe`` with its result (None if it raises) and its arguments."""
    original = getattr(owner, name)

    @wraps(original)
    def call(*arguments: Any, **named: Any) -> Any:
        result = None
        try:
            result = original(*arguments, **named)
            return result
        finally:
            observe(result, *arguments, **named)

    return mock.patch.object(owner, name, call)


def _owner(array: Any) -> Any:
    """The array whose memory ``array`` is a view of."""
    while isinstance(array, np.ndarray) and isinstance(array.base, np.ndarray):
        array = array.base
    return array


def precision(model: Model) -> str:
    """``fp16`` if the program computes anything in it, else ``fp32``."""
    function = open_package(Path(model.path)).program.functions[model.function_name]
    types = (output.type for operation in function.block.walk() for output in operation.outputs)
    return "fp16" if any(isinstance(t, TensorType) and t.dtype is DType.FP16 for t in types) else "fp32"


def ratio(actual: Any, expected: Any, absolute: float, relative: float) -> float:
    """The largest error in units of ``absolute + relative * |expected|``, at most WORST."""
    with np.errstate(all="ignore"):
        ours, theirs = (np.asarray(values, np.float64) for values in (actual, expected))
        try:
            error = np.abs(ours - theirs) / (absolute + relative * np.abs(theirs))
        except ValueError:  # shapes that do not broadcast
            return WORST
    agree = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    return float(np.where(agree, 0, np.nan_to_num(error, nan=WORST)).clip(max=WORST).max(initial=0))
