"""The outputs of a classifier (coremltools 9.0 ops/defs/iOS15/classify.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from coreproof.errors import InputError
from coreproof.runtime.registry import REQUIRED, Param, add


def classify(
    probabilities: Tensor, classes: Sequence[Any]
) -> tuple[str | int, dict[str, float] | dict[int, float]]:
    """The class of the largest probability, the first of equal ones, and every class with its own.

    ``probabilities`` of any shape count in C order. ``classes`` are all str or all integers. Raises
    InputError when they are not as many.
    """
    labels = [c if isinstance(c, str) else int(c) for c in classes]
    values = probabilities.reshape(-1)
    if len(labels) != len(values):
        raise InputError(f"{len(values)} probabilities for {len(labels)} classes")
    return labels[int(values.argmax())], dict(zip(labels, values.tolist(), strict=True))  # type: ignore[return-value]


_CLASSES = Param("classes", "tensor", REQUIRED)
add("classify", classify, (Param("probabilities", "tensor", REQUIRED), _CLASSES))
