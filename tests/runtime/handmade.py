"""Programs written by hand, without coremltools."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from coreproof.mil.program import Binding, Blob, Block, Function, Immediate, NamedType, Operation, Ref
from coreproof.mil.types import DType, TensorType
from coreproof.runtime.codegen import Compiled

STRING = TensorType(DType.STRING)


def tensor(dtype: str, *shape: int) -> TensorType:
    return TensorType(DType(dtype), shape)


def const(name: str, array: np.ndarray, dtype: str) -> Operation:
    kind = tensor(dtype, *array.shape)
    return Operation("const", {}, (NamedType(name, kind),), {"val": Immediate(kind, array)})


def weight(name: str, kind: TensorType, offset: int) -> Operation:
    return Operation("const", {}, (NamedType(name, kind),), {"val": Blob(kind, "w", offset)})


def op(kind: str, out: str, result: TensorType, **inputs: str | Sequence[str] | Immediate) -> Operation:
    def bind(value: str | Immediate) -> Binding:
        return Ref(value) if isinstance(value, str) else value

    bound = {
        k: tuple(map(bind, v)) if isinstance(v, list | tuple) else (bind(v),)  # type: ignore[arg-type]
        for k, v in inputs.items()
    }
    return Operation(kind, bound, (NamedType(out, result),), {"name": Immediate(STRING, f"the_{out}")})


def number(value: float, dtype: str = "fp32") -> Immediate:
    return Immediate(tensor(dtype), np.array(value, tensor(dtype).dtype.numpy_name))


def text(value: str) -> Immediate:
    return Immediate(STRING, value)


def function(
    inputs: dict[str, TensorType], operations: list[Operation], *outputs: str, opset: str = "CoreML7"
) -> Function:
    return Function(
        "main",
        tuple(NamedType(n, t) for n, t in inputs.items()),
        opset,
        Block((), outputs, tuple(operations)),
    )


def no_weights(blob: Blob) -> np.ndarray:
    raise AssertionError(f"read {blob}")


def run(compiled: Compiled, *inputs: torch.Tensor) -> torch.Tensor:
    compiled.read_weights(lambda value: value)
    (result,) = compiled.run(*inputs)
    return result


HALF = tensor("fp16", 3)
