"""The same op on the same arguments: run by the runtime (`ours`), inferred by coremltools (`inferred`)."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

from coreproof.mil.types import DType, TensorType
from coreproof.runtime.numerics import WIDE, Numerics
from coreproof.runtime.registry import OpDef, lookup

_WIDER = {"float16": "float32", "uint16": "int32", "uint32": "int64", "uint64": "int64"}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return rng(seed).standard_normal(shape, dtype=np.float32)


def ours(
    name: str, opset: str = "ios15", *, num: Numerics = WIDE, out: DType = DType.FP32, **arguments: Any
) -> Any:
    """The op's result as numpy arrays; arguments as the engine would pass them."""
    definition = lookup(name, opset)
    given = {n: _argument(definition, n, value) for n, value in arguments.items()}
    positional = []
    names = list(definition.params)
    while names and names[0] in given:
        positional.append(given.pop(names.pop(0)))
    engine = {"num": num, "out": (TensorType(out),)}
    result = definition.fn(*positional, **given, **{k: engine[k] for k in definition.wants})
    return [_held(r) for r in result] if isinstance(result, tuple) else _held(result)


def _held(result: torch.Tensor) -> np.ndarray:
    """As numpy, in a container that the engine knows what to do with."""
    assert result.dtype not in (torch.float64, torch.int64, torch.float16), f"held as {result.dtype}"
    return result.numpy()


def _argument(definition: OpDef, name: str, value: Any) -> Any:
    kind = definition.params[name].kind
    if kind == "tensor":
        return tensor(value)
    if kind == "tensors":
        return [tensor(v) for v in value]
    if kind.endswith("s"):
        return tuple(np.ravel(value).tolist())
    return value.item() if isinstance(value, np.generic | np.ndarray) else value


def tensor(value: Any) -> torch.Tensor:
    array = np.asarray(value)
    return torch.from_numpy(array.astype(_WIDER.get(array.dtype.name, array.dtype)).copy())


def inferred(name: str, opset: str = "ios15", **arguments: Any) -> Any:
    """The value coremltools 9.0 infers for the op on constants."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    import coremltools as ct
    from coremltools.converters.mil.mil import Builder, Function

    with Function({}, opset_version=getattr(ct.target, opset.replace("ios", "iOS"))):
        result = getattr(Builder, name)(**arguments)
    if isinstance(result, tuple | list):
        return [np.asarray(r.val) for r in result]
    assert result.val is not None, f"coremltools infers no value for {name}"
    return np.asarray(result.val)


def inferred_shape(name: str, opset: str, x: tuple[int, ...], **arguments: Any) -> tuple[int, ...]:
    """The shape coremltools 9.0 infers for the op when x is not constant."""
    import coremltools as ct
    from coremltools.converters.mil.mil import Builder, Function

    with Function(
        {"x": Builder.placeholder(x)}, opset_version=getattr(ct.target, opset.replace("ios", "iOS"))
    ) as f:
        return tuple(getattr(Builder, name)(x=f.inputs["x"], **arguments).shape)


def assert_same(ours: np.ndarray, expected: np.ndarray, rtol: float = 2e-6, atol: float = 1e-6) -> None:
    """Same kind, shape and values; integers and booleans exactly."""
    assert ours.dtype.kind == expected.dtype.kind
    assert ours.shape == expected.shape
    if expected.dtype.kind == "f":
        np.testing.assert_allclose(ours, expected, rtol=rtol, atol=atol)
    else:
        np.testing.assert_array_equal(ours, expected)
