"""The arms of the graphs of ``graphs.py``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from graphs import GRAPHS, arrays
from timing import Predict, onnx_session, predictions

if TYPE_CHECKING:
    import torch


def mil(name: str, variant: str, mode: str, folder: Path) -> dict[str, float]:
    """The runtime in ``mode``, on the package that :func:`prepare` made."""
    import torch  # noqa: F401

    def open_model() -> Predict:
        import coreproof

        model = coreproof.load(folder / f"{name}_{variant}.mlpackage", mode)
        return partial(model.predict, arrays(name), model.make_state() if GRAPHS[name].states else None)

    return predictions(open_model)


def torch_eager(name: str, folder: Path) -> dict[str, float]:
    """The module alone, tensors in and tensors out."""
    import torch
    from graph_modules import build, tensors

    with torch.inference_mode():
        return predictions(lambda: partial(build(name), *tensors(name)))


def onnxruntime(name: str, folder: Path) -> dict[str, float]:
    """States are inputs and outputs here, handed on as onnxruntime's own arrays."""
    import numpy as np
    import onnxruntime as ort

    def open_model() -> Predict:
        session = onnx_session(folder / f"{name}.onnx")
        states = {key: np.zeros(shape, np.float32) for key, shape in GRAPHS[name].states.items()}
        given = {
            key: ort.OrtValue.ortvalue_from_numpy(array) for key, array in (arrays(name) | states).items()
        }
        outputs = [output.name for output in session.get_outputs()]

        def predict() -> object:
            result, *new = session.run_with_ort_values(outputs, given)
            given.update(zip(states, new, strict=True))
            return result.numpy()

        return predict

    return predictions(open_model)


def prepare(name: str, folder: Path) -> dict[str, float]:
    """Packages of both precisions by plain ``ct.convert``, and the ONNX form."""
    import numpy as np
    import torch
    from graph_modules import build, tensors

    from coreproof.convert.quiet import coremltools

    ct = coremltools()
    with torch.no_grad():
        traced = torch.jit.trace(build(name), tensors(name), check_trace=False)
    for variant, precision in (("fp32", ct.precision.FLOAT32), ("fp16", ct.precision.FLOAT16)):
        states = [
            ct.StateType(ct.TensorType(shape=shape, dtype=np.float16), name=key)
            for key, shape in GRAPHS[name].states.items()
        ]
        ct.convert(
            traced,
            inputs=[ct.TensorType(key, array.shape, np.float32) for key, array in arrays(name).items()],
            states=states or None,
            compute_precision=precision,
            minimum_deployment_target=ct.target.iOS18,
            skip_model_load=True,
        ).save(str(folder / f"{name}_{variant}.mlpackage"))
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of torch about itself
        _export_onnx(name, build(name), folder / f"{name}.onnx")
    return {}


def _export_onnx(name: str, module: torch.nn.Module, path: Path) -> None:
    import torch
    from graph_modules import tensors

    states = GRAPHS[name].states

    class Functional(torch.nn.Module):
        """The module with its states as further inputs and outputs."""

        def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
            count = len(given) - len(states)
            buffers = {key: value.clone() for key, value in zip(states, given[count:], strict=True)}
            return (torch.func.functional_call(module, buffers, given[:count]), *buffers.values())

    examples = (*tensors(name), *(torch.zeros(shape) for shape in states.values()))
    torch.onnx.export(
        Functional(),
        examples,
        path,
        input_names=[*GRAPHS[name].inputs, *states],
        external_data=False,
        verbose=False,
    )


_WAYS: Mapping[str, Callable[[str, Path], dict[str, float]]] = {
    "mil fp32": lambda name, folder: mil(name, "fp32", "fp32", folder),
    "mil typed": lambda name, folder: mil(name, "fp16", "typed", folder),
    "torch eager": torch_eager,
    "onnxruntime": onnxruntime,
}
GRAPH_ARMS = {
    **{f"{name} {way}": partial(arm, name) for name in GRAPHS for way, arm in _WAYS.items()},
    **{f"{name} models": partial(prepare, name) for name in GRAPHS},
}
GRAPH_NEEDS = {f"{name} {way}": f"{name} models" for name in GRAPHS for way in _WAYS if way != "torch eager"}
