"""Which checkpoint tensor each weight of a package came from, shown by its bytes.

A weight's origin is found by comparing content, never by trusting a name: the blob must equal a
checkpoint tensor exactly, after rounding to its dtype and possibly a transposition. So an origin
in a manifest can be checked by anyone with numpy, and a weight that some graph pass folded is an
error instead of a silent change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from itertools import permutations

import numpy as np

from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.large import pieces, to_half
from coreproof.convert.recipe import Stage
from coreproof.errors import ConversionError
from coreproof.mil.weights import weights
from coreproof.package.manifest import WeightRecord
from coreproof.package.reader import Package

# How a transform says it, in coreproof.json.
CONSTANT = "constant of the stage"
NEAREST = "rounded to float16"
NEAREST_NONZERO = "rounded to float16 but never to zero"

Rounding = Callable[[np.ndarray], np.ndarray]


def weight_records(stage: Stage, checkpoint: Checkpoint, package: Package) -> tuple[WeightRecord, ...]:
    """A record for each weight of ``package``, in file order.

    Raises ConversionError naming the weights that no checkpoint tensor explains.
    """
    tensors = _Tensors(checkpoint.tensors)
    records, unexplained = [], []
    for name, blob in weights(package.program):
        names, steps = tensors.explain(package.weights.array(blob))
        if names:
            origins = [checkpoint.origins[n] for n in names]
            keys = tuple(dict.fromkeys(k for o in origins for k in o.keys))
            transform = (
                "; ".join([t for t in (origins[0].transform, *steps) if t != "identity"]) or "identity"
            )
        elif any(fnmatchcase(name, pattern) for pattern in stage.constants):
            keys, transform = (), CONSTANT
        else:
            unexplained.append(name)
            continue
        records.append(package.weights.record(name, blob, keys, transform))
    if unexplained:
        raise ConversionError(
            f"stage {stage.name!r}: no checkpoint tensor explains {len(unexplained)} weights "
            f"({', '.join(unexplained[:5])}); a graph pass may have folded them: fold in checkpoint.py with an "
            "Origin, or list a true constant in Stage.constants"
        )
    return tuple(records)


class _Tensors:
    """A checkpoint's tensors, to be found by what they hold."""

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        self._tensors = tensors
        self._of_size: dict[int, list[str]] = {}
        for name in sorted(tensors):
            self._of_size.setdefault(tensors[name].size, []).append(name)
        # How those of one size begin, made of one dtype in one way.
        self._by_head: dict[tuple[int, np.dtype, str], dict[bytes, list[str]]] = {}

    def explain(self, array: np.ndarray) -> tuple[list[str], list[str]]:
        """Names of the tensors that ``array`` equals bit for bit, and the steps that make them so."""
        head = _head(array, array.dtype, _unchanged)
        for step, rounded in _ROUNDINGS if array.dtype == np.float16 else _AS_IT_IS:
            steps = [step] if step else []
            alike = self._beginnings(array, step, rounded).get(head, [])
            if equal := [n for n in alike if _same(array, self._tensors[n], rounded)]:
                return equal, steps
            for name in self._of_size.get(array.size, []):
                tensor = self._tensors[name]
                for order in list(permutations(range(tensor.ndim)))[1:] if tensor.ndim <= 4 else []:
                    turned = tensor.transpose(order)
                    if _head(turned, array.dtype, rounded) == head and _same(array, turned, rounded):
                        return [name], [f"transposed {list(order)}", *steps]
        return [], []

    def _beginnings(self, array: np.ndarray, step: str, rounded: Rounding) -> dict[bytes, list[str]]:
        key = array.size, array.dtype, step
        if key not in self._by_head:
            heads = self._by_head[key] = {}
            for name in self._of_size.get(array.size, []):
                heads.setdefault(_head(self._tensors[name], array.dtype, rounded), []).append(name)
        return self._by_head[key]


def _nearest(tensor: np.ndarray) -> np.ndarray:
    return to_half(tensor) if tensor.dtype == np.float32 else tensor.astype(np.float16)


def nearest_nonzero(tensor: np.ndarray, nearest: Rounding = _nearest) -> np.ndarray:
    """As coremltools 9.0 rounds arrays of fewer than 400 elements (``passes/defs/quantization.py``):
    what would become zero becomes the fp16 number next to zero."""
    rounded = nearest(tensor)
    least = np.copysign(np.nextafter(np.float16(0), np.float16(1)), tensor).astype(np.float16)
    return np.where((rounded == 0) & (tensor != 0), least, rounded)


def _unchanged(tensor: np.ndarray) -> np.ndarray:
    return tensor


_ROUNDINGS: tuple[tuple[str, Rounding], ...] = (
    (NEAREST, _nearest),
    (NEAREST_NONZERO, nearest_nonzero),
)
_AS_IT_IS: tuple[tuple[str, Rounding], ...] = (("", _unchanged),)


def _head(array: np.ndarray, dtype: np.dtype, rounded: Rounding) -> bytes:
    """How ``array``, rounded, begins in C order."""
    return rounded(array.flat[:64]).astype(dtype).tobytes()


def _same(array: np.ndarray, tensor: np.ndarray, rounded: Rounding) -> bool:
    both = zip(pieces(array), pieces(np.ascontiguousarray(tensor)), strict=True)
    return all(np.array_equal(_bits(a), _bits(rounded(b).astype(a.dtype, copy=False))) for a, b in both)


def _bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint8)
