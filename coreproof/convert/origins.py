"""Which checkpoint tensor each weight of a package came from, shown by its bytes.

A weight's origin is found by comparing content, never by trusting a name: the blob must equal a
checkpoint tensor exactly, after rounding to its dtype and possibly a transposition. So an origin
in a manifest can be checked by anyone with numpy, and a weight that some graph pass folded is an
error instead of a silent change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import permutations

import numpy as np

from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.compression import Palette, Steps, compressed, read
from coreproof.convert.large import pieces, release, to_half
from coreproof.convert.later import shape_of
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
_HEAD = 64  # elements; how a tensor begins tells it from most others


def weight_records(stage: Stage, checkpoint: Checkpoint, package: Package) -> tuple[WeightRecord, ...]:
    """A record for each weight of ``package``, in file order.

    Raises ConversionError naming the weights that no checkpoint tensor explains.
    """
    tensors = _Tensors(checkpoint.tensors)
    references = compressed(package.program)
    known: dict[str, _Compressed] = {}
    records, unexplained = [], []
    for name, blob in weights(package.program):
        reference = references.get((blob.file, blob.offset))
        if reference is None or reference.operation is None:
            names, steps = tensors.explain(package.weights.array(blob))
        else:
            operation = reference.operation
            if operation.name not in known:
                stored = read(operation, package)
                known[operation.name] = _Compressed(*tensors.explain_compressed(stored), stored.step)
            whole = known[operation.name]
            names, steps = whole.names, [*whole.steps, whole.step(reference.argument)]
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


@dataclass(frozen=True, slots=True)
class _Compressed:
    """The tensors that a compressed constant is of, the steps before, and that of each of its parts."""

    names: list[str]
    steps: list[str]
    step: Callable[[str], str]


class _Tensors:
    """A checkpoint's tensors, to be found by what they hold."""

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        self._tensors = tensors
        self._of_size: dict[int, list[str]] = {}
        for name in sorted(tensors):
            self._of_size.setdefault(math.prod(shape_of(tensors, name)), []).append(name)
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

    def explain_compressed(self, stored: Palette | Steps) -> tuple[list[str], list[str]]:
        """As :meth:`explain`, of the weight that was compressed: the tensors that give ``stored`` when they
        are compressed again. Those are tried first that begin most like it."""
        size = math.prod(stored.shape)
        head = stored.head(min(size, _HEAD)).astype(np.float64)
        found = []
        for step, rounded in _ROUNDINGS if stored.dtype == np.float16 else _AS_IT_IS:
            for name in self._of_size.get(size, []):
                tensor = self._tensors[name]
                for order in permutations(range(tensor.ndim)) if tensor.ndim <= 4 else []:
                    turned = tensor.transpose(order)
                    with np.errstate(over="ignore"):
                        start = rounded(turned.flat[:_HEAD]).astype(np.float64)
                    found.append((float(np.abs(start - head).sum()), name, order, step, rounded))
        names: list[str] = []
        steps: list[str] = []
        distance = math.inf
        for far, name, order, step, rounded in sorted(found, key=lambda f: f[:3]):
            if far > distance:
                break
            weight = np.ascontiguousarray(self._tensors[name].transpose(order)).reshape(stored.shape)
            if name not in names and stored.is_of(rounded(weight).astype(stored.dtype, copy=False)):
                turn = [f"transposed {list(order)}"] if list(order) != sorted(order) else []
                distance, steps = far, steps or [*turn, *([step] if step else [])]
                names.append(name)
        return names, steps

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
    return rounded(array.flat[:_HEAD]).astype(dtype).tobytes()


def _same(array: np.ndarray, tensor: np.ndarray, rounded: Rounding) -> bool:
    both = zip(pieces(array), pieces(np.ascontiguousarray(tensor)), strict=True)
    same = all(np.array_equal(_bits(a), _bits(rounded(b).astype(a.dtype, copy=False))) for a, b in both)
    release(tensor)  # of another order it was copied whole
    return same


def _bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint8)
