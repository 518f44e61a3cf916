"""Defects for negative controls, planted in an exported package's weight file in place.

A weight is given as a glob pattern that fits exactly one of the names in ``coreproof.json``, such as
``encoder_layer_0_output_dense_weight*`` (an fp16 package appends ``_to_fp16``). Only the weight file
changes: program, manifest and sizes stay what they were.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from coreproof.errors import UsageError
from coreproof.mil.program import Blob
from coreproof.mil.weights import weights
from coreproof.package.reader import Package, open_package


def plant_nan(package: Path, weight: str) -> None:
    """Make the first element of ``weight`` NaN.

    Raises UsageError when no or several weights fit, or when the weight is not fp16 or fp32.
    """
    opened = open_package(package)
    name, blob = _find(opened, weight)
    values = _stored(opened, blob)
    if values.dtype.kind != "f":
        raise UsageError(f"{package}: weight {name!r} is {blob.type}; NaN needs fp16 or fp32")
    values[0] = np.nan
    values.flush()


def swap_weights(package: Path, first: str, second: str) -> None:
    """Exchange the values of two weights of equal type.

    Raises UsageError when no or several weights fit, when the types differ, or when both patterns
    name the same values, so that nothing would change.
    """
    opened = open_package(package)
    (name, blob), (other_name, other_blob) = _find(opened, first), _find(opened, second)
    if blob.type != other_blob.type:
        raise UsageError(
            f"{package}: {name!r} is {blob.type}, {other_name!r} {other_blob.type}; they cannot swap"
        )
    values, others = _stored(opened, blob), _stored(opened, other_blob)
    if np.array_equal(values.view(np.uint8), others.view(np.uint8)):
        raise UsageError(
            f"{package}: {name!r} and {other_name!r} hold the same values; choose two that differ"
        )
    kept = values.copy()
    values[:] = others
    others[:] = kept
    values.flush()
    others.flush()


def _find(package: Package, pattern: str) -> tuple[str, Blob]:
    stored = dict(weights(package.program))
    found = [name for name in stored if fnmatchcase(name, pattern)]
    if len(found) != 1:
        known = found or sorted(stored)
        raise UsageError(
            f"{package.path}: {len(found)} weights fit {pattern!r}, expected one of: {', '.join(known[:5])}"
        )
    return found[0], stored[found[0]]


def _stored(package: Package, blob: Blob) -> np.memmap:
    """The stored values, flat and writable through to the file."""
    entry = package.weights.entry(blob)
    dtype = np.dtype(entry.dtype.numpy_name or "uint8").newbyteorder("<")
    path = package.weights.file(blob.file).path
    return np.memmap(path, dtype, "r+", entry.data_offset, (entry.nbytes // dtype.itemsize,))
