"""Features other than plain arrays: images, flexible shapes, defaults, classifiers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10  # (height, width, red green blue)


def _weighted(ct: Any, layout: Any, dtype: Any = None) -> Any:
    """An image in, the program's channels weighted 1, 10, 100 out."""
    from coremltools.converters.mil import Builder as mb

    channels = 3 if layout in (ct.colorlayout.RGB, ct.colorlayout.BGR) else 1
    weights = np.array([1, 10, 100], np.float32)[:channels].reshape(1, channels, 1, 1)
    program = mb.program(
        input_specs=[mb.TensorSpec((1, channels, 2, 3), *([dtype] if dtype else []))],
        opset_version=ct.target.iOS17,
    )(lambda x: mb.mul(x=x, y=weights.astype(np.float16 if dtype else np.float32), name="out"))
    return ct.convert(
        program,
        inputs=[ct.ImageType("x", (1, channels, 2, 3), color_layout=layout)],
        compute_precision=None if dtype else ct.precision.FLOAT32,
        minimum_deployment_target=ct.target.iOS17,
    )


@pytest.mark.parametrize("layout", ["RGB", "BGR"])
def test_color_images_reach_the_program_in_its_order(ct: Any, layout: str):
    result = _weighted(ct, ct.colorlayout[layout]).predict({"x": Image.fromarray(PIXELS)})["out"]
    ordered = PIXELS if layout == "RGB" else PIXELS[..., ::-1]
    expected = ordered.transpose(2, 0, 1)[None] * np.array([1, 10, 100]).reshape(1, 3, 1, 1)
    np.testing.assert_array_equal(result, expected)


def test_gray_images(ct: Any):
    gray = PIXELS[..., 0]
    result = _weighted(ct, ct.colorlayout.GRAYSCALE).predict({"x": Image.fromarray(gray)})["out"]
    np.testing.assert_array_equal(result, gray[None, None])


def test_half_precision_gray_images(ct: Any):
    from coremltools.converters.mil.mil import types

    gray = np.array([[0.1, 0.2, 0.3], [1000, -2, 0]], np.float32)
    model = _weighted(ct, ct.colorlayout.GRAYSCALE_FLOAT16, types.fp16)
    result = model.predict({"x": Image.fromarray(gray)})["out"]
    np.testing.assert_array_equal(result, gray.astype(np.float16)[None, None])


def test_images_that_do_not_fit(ct: Any):
    model = _weighted(ct, ct.colorlayout.RGB)
    with pytest.raises(RuntimeError, match="Image size 2 x 2 not in allowed set of image sizes"):
        model.predict({"x": Image.fromarray(PIXELS[:, :2])})
    with pytest.raises(TypeError, match=r"must be of type PIL\.Image\.Image"):
        model.predict({"x": PIXELS})
    compiled = ct.models.CompiledMLModel(model.get_compiled_model_path())
    with pytest.raises(
        RuntimeError, match="expects input feature x to be an image, but the input is a ndarray"
    ):
        compiled.predict({"x": PIXELS.astype(np.float32)})
    with pytest.raises(RuntimeError, match="mode L, expected RGB or RGBA"):
        compiled.predict({"x": Image.fromarray(PIXELS[..., 0])})
    alpha = Image.fromarray(PIXELS).convert("RGBA")
    np.testing.assert_array_equal(
        compiled.predict({"x": alpha})["out"], model.predict({"x": Image.fromarray(PIXELS)})["out"]
    )


@pytest.mark.parametrize(
    ("layout", "mode"), [("RGB", "RGBA"), ("BGR", "RGBA"), ("GRAYSCALE", "L"), ("GRAYSCALE_FLOAT16", "F")]
)
def test_image_outputs_are_pillow_images(ct: Any, layout: str, mode: str):
    import torch

    channels = 3 if mode == "RGBA" else 1
    values = np.array([-5, 0.4, 0.6, 254.6, 255.4, 300], np.float32)  # clamped and rounded in 8 bits
    planes = np.stack([values.reshape(2, 3) + c for c in range(channels)])[None]
    model = ct.convert(
        torch.jit.trace(torch.nn.Hardtanh(-1e4, 1e4), torch.tensor(planes)),
        inputs=[ct.TensorType("x", planes.shape)],
        outputs=[ct.ImageType("out", color_layout=ct.colorlayout[layout])],
        compute_precision=ct.precision.FLOAT32,
        minimum_deployment_target=ct.target.iOS17,
    )
    image = model.predict({"x": planes})["out"]
    assert isinstance(image, Image.Image)
    assert (image.mode, image.size) == (mode, (3, 2))
    exact = planes[0].transpose(1, 2, 0)
    if mode == "F":
        np.testing.assert_array_equal(np.asarray(image), exact[..., 0].astype(np.float16))
        return
    bytes_ = np.clip(np.round(exact), 0, 255).astype(np.uint8)
    if mode == "L":
        np.testing.assert_array_equal(np.asarray(image), bytes_[..., 0])
        return
    found = np.asarray(image)
    np.testing.assert_array_equal(found[..., :3], bytes_ if layout == "RGB" else bytes_[..., ::-1])
    assert (found[..., 3] == 255).all()


def _flexible(ct: Any, shape: Any) -> Any:
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import get_new_symbol

    program = mb.program(input_specs=[mb.TensorSpec((1, get_new_symbol()))])(
        lambda x: mb.relu(x=x, name="out")
    )
    return ct.convert(program, inputs=[ct.TensorType("x", shape)])


def test_range_shapes(ct: Any):
    model = _flexible(ct, (1, ct.RangeDim(2, 4)))
    for size in (2, 4):
        assert model.predict({"x": np.ones((1, size), np.float32)})["out"].shape == (1, size)
    with pytest.raises(
        RuntimeError, match=r"Size \(5\) of dimension \(1\) is not in allowed range \(2\.\.4\)"
    ):
        model.predict({"x": np.ones((1, 5), np.float32)})


def test_enumerated_shapes(ct: Any):
    model = _flexible(ct, ct.EnumeratedShapes([(1, 2), (1, 4)]))
    for size in (2, 4):
        assert model.predict({"x": np.ones((1, size), np.float32)})["out"].shape == (1, size)
    message = r"MultiArray Shape \(1 x 3\) was not in enumerated set of allowed shapes"
    with pytest.raises(RuntimeError, match=message):
        model.predict({"x": np.ones((1, 3), np.float32)})


def test_an_optional_input_has_its_default(ct: Any):
    import torch

    class Sum(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x + y

    model = ct.convert(
        torch.jit.trace(Sum(), (torch.zeros(2), torch.zeros(2))),
        inputs=[
            ct.TensorType("x", (2,)),
            ct.TensorType("y", (2,), default_value=np.full(2, 1.5, np.float32)),
        ],
        outputs=[ct.TensorType("out")],
    )
    x = np.array([1, 2], np.float32)
    assert model.predict({"x": x})["out"].tolist() == [2.5, 3.5]
    assert model.predict({"x": x, "y": x})["out"].tolist() == [2, 4]
    with pytest.raises(RuntimeError, match="Feature x is required"):
        model.predict({"y": x})


@pytest.mark.parametrize("labels", [["cat", "dog", "emu"], [7, 8, 9]])
def test_a_classifier_gives_its_label_and_probabilities(ct: Any, labels: list[Any]):
    from coremltools.converters.mil import Builder as mb

    program = mb.program(input_specs=[mb.TensorSpec((3,))])(lambda x: mb.identity(x=x, name="p"))
    model = ct.convert(program, classifier_config=ct.ClassifierConfig(labels), convert_to="mlprogram")
    result = model.predict({"x": np.array([0.25, 0.5, 0.125], np.float32)})
    assert result == {
        "classLabel": labels[1],
        "classLabel_probs": dict(zip(labels, (0.25, 0.5, 0.125), strict=True)),
    }
    assert type(result["classLabel"]) is type(labels[0])
