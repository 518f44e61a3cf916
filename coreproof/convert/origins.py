"""Which checkpoint tensor each weight of a package came from, shown by its bytes.

A weight's origin is found by comparing content, never by trusting a name: the blob must equal a
checkpoint tensor exactly, after rounding to its dtype and possibly a transposition. So an origin
in a manifest can be checked by anyone with numpy, and a weight that some graph pass folded is an
error instead of a silent change.
"""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from itertools import permutations

import numpy as np

from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.recipe import Stage
from coreproof.errors import ConversionError
from coreproof.mil.weights import weights
from coreproof.package.manifest import WeightRecord
from coreproof.package.reader import Package


def weight_records(stage: Stage, checkpoint: Checkpoint, package: Package) -> tuple[WeightRecord, ...]:
    """A record for each weight of ``package``, in file order.

    Raises ConversionError naming the weights that no checkpoint tensor explains.
    """
    by_size: dict[int, list[str]] = {}
    for name, tensor in sorted(checkpoint.tensors.items()):
        by_size.setdefault(tensor.size, []).append(name)
    records, unexplained = [], []
    for name, blob in weights(package.program):
        array = package.weights.array(blob)
        names, steps = _explain(array, [(n, checkpoint.tensors[n]) for n in by_size.get(array.size, [])])
        if names:
            origins = [checkpoint.origins[n] for n in names]
            keys = tuple(dict.fromkeys(k for o in origins for k in o.keys))
            transform = (
                "; ".join([t for t in (origins[0].transform, *steps) if t != "identity"]) or "identity"
            )
        elif any(fnmatchcase(name, pattern) for pattern in stage.constants):
            keys, transform = (), "constant of the stage"
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


def _explain(array: np.ndarray, candidates: list[tuple[str, np.ndarray]]) -> tuple[list[str], list[str]]:
    """Names of the candidates that ``array`` equals bit for bit, and the steps that make them so."""
    for step, rounded in _ROUNDINGS if array.dtype == np.float16 else [("", lambda t: t)]:
        steps = [step] if step else []
        equal = [n for n, tensor in candidates if _same(array, tensor.reshape(-1), rounded)]
        if equal:
            return equal, steps
        for name, tensor in candidates:
            for order in list(permutations(range(tensor.ndim)))[1:] if tensor.ndim <= 4 else []:
                if _same(array, tensor.transpose(order).reshape(-1), rounded):
                    return [name], [f"transposed {list(order)}", *steps]
    return [], []


def _nearest(tensor: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return tensor.astype(np.float16)


def _nearest_nonzero(tensor: np.ndarray) -> np.ndarray:
    """As coremltools 9.0 rounds arrays of fewer than 400 elements (``passes/defs/quantization.py``):
    what would become zero becomes the fp16 number next to zero."""
    rounded = _nearest(tensor)
    least = np.copysign(np.nextafter(np.float16(0), np.float16(1)), tensor).astype(np.float16)
    return np.where((rounded == 0) & (tensor != 0), least, rounded)


_ROUNDINGS: tuple[tuple[str, Callable[[np.ndarray], np.ndarray]], ...] = (
    ("rounded to float16", _nearest),
    ("rounded to float16 but never to zero", _nearest_nonzero),
)


def _same(array: np.ndarray, tensor: np.ndarray, rounded: Callable[[np.ndarray], np.ndarray]) -> bool:
    flat = array.reshape(-1)
    return all(
        np.array_equal(_bits(flat[part]), _bits(rounded(tensor[part]).astype(array.dtype, copy=False)))
        for part in (slice(0, 64), slice(64, None))  # most candidates differ at once
    )


def _bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint8)
