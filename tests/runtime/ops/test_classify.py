from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import coreproof
from coreproof.errors import InputError
from coreproof.runtime.registry import lookup

CLASSIFY = lookup("classify", "ios15").fn


@pytest.mark.parametrize(
    ("shape", "given", "classes", "expected"),
    [
        ((3,), [0.25, 0.5, 0.125], ("a", "b", "c"), ("b", {"a": 0.25, "b": 0.5, "c": 0.125})),
        ((1, 3), [1.0, 0.0, 0.0], ("a", "b", "c"), ("a", {"a": 1.0, "b": 0.0, "c": 0.0})),
        ((2, 2), [0.0, -1.0, 4.0, 4.0], ("a", "b", "c", "d"), ("c", {"a": 0, "b": -1, "c": 4, "d": 4})),
        ((1,), [0.5], ("only",), ("only", {"only": 0.5})),
    ],
)
def test_strings(shape: tuple[int, ...], given: list[float], classes: tuple[str, ...], expected: Any) -> None:
    assert CLASSIFY(torch.tensor(given).reshape(shape), classes) == expected


def test_integers() -> None:
    label, probabilities = CLASSIFY(torch.tensor([0.25, 0.5]), (np.array(7), torch.tensor(-3)))
    assert (label, probabilities) == (-3, {7: 0.25, -3: 0.5})
    assert {type(key) for key in (label, *probabilities)} == {int}


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_classes(count: int) -> None:
    with pytest.raises(InputError, match=f"2 probabilities for {count} classes"):
        CLASSIFY(torch.tensor([0.25, 0.5]), ("a", "b", "c")[:count])


@pytest.mark.parametrize("classes", [["cat", "dog", "bird"], [4, 0, -2]])
def test_in_a_package(classes: list[Any], tmp_path: Path) -> None:
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

    @mb.program(input_specs=[mb.TensorSpec((1, 3))], opset_version=ct.target.iOS15)
    def program(x: Any) -> Any:
        return mb.relu(x=x, name="out")

    path = tmp_path / "m.mlpackage"
    ct.convert(
        program,
        classifier_config=ct.ClassifierConfig(classes),
        minimum_deployment_target=ct.target.iOS15,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    ).save(str(path))

    outputs = coreproof.load(path).predict({"x": np.array([[-1.0, 0.5, 2.0]], np.float32)})
    assert outputs == {
        "classLabel": classes[2],
        "classLabel_probs": dict(zip(classes, [0.0, 0.5, 2.0], strict=True)),
    }
