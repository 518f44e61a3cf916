"""Images, optional inputs and classifiers through ``coreproof.load``, which converts nothing by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import coreproof
from coreproof.errors import InputError

PIXELS = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 14  # (height, width, red green blue)


class Twice(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x * 2 - 100, y[:, :1].sum() + x[:, 0].max()


def _load(path: Path, layout: str, shape: Any, channels: int) -> coreproof.Model:
    import coremltools as ct

    color = ct.colorlayout[layout]
    example = (torch.zeros(1, channels, 2, 3), torch.zeros(1, 2))
    model = ct.convert(
        torch.jit.trace(Twice(), example),
        inputs=[
            ct.ImageType("x", shape, color_layout=color),
            ct.TensorType("y", (1, 2), default_value=np.full((1, 2), 0.5, np.float32)),
        ],
        outputs=[ct.ImageType("image", color_layout=color), ct.TensorType("first")],
        minimum_deployment_target=ct.target.iOS17,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    model.save(str(path / "model.mlpackage"))
    return coreproof.load(path / "model.mlpackage")


@pytest.mark.parametrize(("layout", "first"), [("RGB", 0), ("BGR", 2)])
def test_color_images_are_red_first_outside(tmp_path: Path, layout: str, first: int):
    model = _load(tmp_path, layout, (1, 3, 2, 3), 3)
    result = model.predict({"x": PIXELS})
    expected = np.clip(PIXELS.astype(int) * 2 - 100, 0, 255)
    assert result["image"].dtype == np.uint8
    np.testing.assert_array_equal(result["image"], expected)
    assert result["first"].item() == 0.5 + PIXELS[..., first].max()


@pytest.mark.parametrize("layout", ["GRAYSCALE", "GRAYSCALE_FLOAT16"])
def test_gray_images_have_no_channel(tmp_path: Path, layout: str):
    model = _load(tmp_path, layout, (1, 1, 2, 3), 1)
    half = layout == "GRAYSCALE_FLOAT16"
    gray = PIXELS[..., 0].astype(np.float16 if half else np.uint8)
    result = model.predict({"x": gray, "y": np.array([[1.5, 9]], np.float32)})
    exact = gray.astype(int) * 2 - 100
    assert result["image"].dtype == gray.dtype
    np.testing.assert_array_equal(result["image"], exact if half else np.clip(exact, 0, 255))
    assert result["first"].item() == 1.5 + gray.max()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (PIXELS.astype(np.float32), r"input 'x': dtype float32, expected uint8; convert it with"),
        (PIXELS.transpose(2, 0, 1), r"input 'x': shape \[3, 2, 3\], expected \[2, 3, 3\]"),
        (PIXELS[:1], r"input 'x': shape \[1, 3, 3\], expected \[2, 3, 3\]"),
    ],
)
def test_images_are_not_converted(tmp_path: Path, image: np.ndarray, message: str):
    with pytest.raises(InputError, match=message):
        _load(tmp_path, "RGB", (1, 3, 2, 3), 3).predict({"x": image})


def test_only_optional_inputs_may_be_left_out(tmp_path: Path):
    model = _load(tmp_path, "RGB", (1, 3, 2, 3), 3)
    with pytest.raises(InputError, match="missing input 'x'"):
        model.predict({"y": np.zeros((1, 2), np.float32)})
    with pytest.raises(InputError, match="input 'y': dtype float64"):
        model.predict({"x": PIXELS, "y": np.zeros((1, 2))})


def test_images_of_several_sizes(tmp_path: Path):
    import coremltools as ct

    ranged = _load(tmp_path, "RGB", (1, 3, ct.RangeDim(2, 4), ct.RangeDim(3, 3)), 3)
    (feature, _) = ranged.contract.inputs
    assert feature.ranges == ((2, 4), (3, 3), (3, 3))
    tall = np.concatenate([PIXELS, PIXELS])
    assert ranged.predict({"x": tall})["image"].shape == (4, 3, 3)
    with pytest.raises(InputError, match=r"shape \[6, 3, 3\], expected \[2..4, 3..3, 3..3\]"):
        ranged.predict({"x": np.concatenate([tall, PIXELS])})
    listed = _load(tmp_path, "RGB", ct.EnumeratedShapes([(1, 3, 2, 3), (1, 3, 4, 3)]), 3)
    assert set(listed.contract.inputs[0].choices) == {(2, 3, 3), (4, 3, 3)}
    assert listed.predict({"x": tall})["image"].shape == (4, 3, 3)


@pytest.mark.parametrize("labels", [["cat", "dog"], [7, 8]])
def test_a_classifier_returns_a_label_and_probabilities(tmp_path: Path, labels: list[Any]):
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

    program = mb.program(input_specs=[mb.TensorSpec((2,))])(lambda x: mb.identity(x=x, name="p"))
    model = ct.convert(
        program, classifier_config=ct.ClassifierConfig(labels), convert_to="mlprogram", skip_model_load=True
    )
    model.save(str(tmp_path / "model.mlpackage"))
    result = coreproof.load(tmp_path / "model.mlpackage").predict({"x": np.array([0.25, 0.75], np.float32)})
    assert result == {"classLabel": labels[1], "classLabel_probs": {labels[0]: 0.25, labels[1]: 0.75}}
