"""Arrays in and out of files for the command line: .npy, .npz and .json, never pickled."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coreproof.atomic import atomic_file
from coreproof.errors import InputError
from coreproof.jsonio import json_number, read_json
from coreproof.mil.contract import Contract

_MAX_JSON = 256 << 20
# What numpy and zipfile raise on files that are not what they claim to be.
_UNREADABLE = (
    ValueError,
    OSError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    zlib.error,
    zipfile.BadZipFile,
)


def read_inputs(arguments: Sequence[str], contract: Contract) -> dict[str, np.ndarray]:
    """The arrays that ``NAME=FILE.npy``, ``FILE.npz`` and ``FILE.json`` arguments name.

    JSON numbers become the dtype the contract declares, and must fit it: no fraction for an integer,
    nothing that overflows. Raises InputError naming the argument.
    """
    arrays: dict[str, np.ndarray] = {}
    for argument in arguments:
        name, equals, file = argument.partition("=")
        if equals and file.endswith(".npy"):
            arrays[name] = read_npy(Path(file))
        elif argument.endswith(".npz"):
            arrays.update(read_npz(Path(argument)))
        elif argument.endswith(".json"):
            arrays.update(_read_json(Path(argument), contract))
        else:
            raise InputError(f"--input {argument}: give NAME=FILE.npy, FILE.npz or FILE.json")
    return arrays


def read_npy(path: Path) -> np.ndarray:
    """The array in a ``.npy`` file. Raises InputError, also for one that holds Python objects."""
    array = _load(path)
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: holds several arrays; name it .npz")
    return array


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays in a ``.npz`` file, by name. Raises InputError."""
    stored = _load(path)
    if isinstance(stored, np.ndarray):
        raise InputError(
            f"{path}: holds one array without a name; save it with numpy.savez(path, NAME=array)"
        )
    with stored:
        try:
            return {name: stored[name] for name in stored.files}
        except MemoryError as error:
            raise InputError(f"{path}: too large ({error})") from None
        except _UNREADABLE as error:
            raise InputError(f"{path}: unreadable array ({error})") from None


def _load(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except MemoryError as error:
        raise InputError(f"{path}: too large ({error})") from None
    except _UNREADABLE as error:
        raise InputError(f"{path}: not a readable numpy file ({error})") from None


def _read_json(path: Path, contract: Contract) -> dict[str, np.ndarray]:
    value = read_json(path, max_bytes=_MAX_JSON)
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected an object of NAME: nested lists of numbers")
    dtypes = {f.name: f.dtype for f in contract.inputs}
    return {name: _array(f"{path}: {name!r}", numbers, dtypes.get(name)) for name, numbers in value.items()}


def _array(where: str, numbers: Any, dtype: str | None) -> np.ndarray:
    try:
        given = np.asarray(numbers)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    if given.dtype.kind not in "biuf":
        raise InputError(f"{where}: expected nested lists of numbers")
    with np.errstate(over="ignore", invalid="ignore"):
        array = given.astype(dtype or given.dtype)
    fits = np.isfinite(array).all() if array.dtype.kind == "f" else np.array_equal(array, given)
    if not fits:
        raise InputError(f"{where}: a number does not fit dtype {dtype}")
    return array


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write ``arrays`` to ``path``, whole or not at all."""
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def summary(array: np.ndarray) -> dict[str, Any]:
    """dtype, shape, min, max, mean and finite_ratio of an array, as JSON values. Min, max and mean
    are of the finite elements, NaN when there is none."""
    finite = array[np.isfinite(array)].astype(np.float64)
    low, high, mean = (finite.min(), finite.max(), finite.mean()) if finite.size else (np.nan, np.nan, np.nan)
    return {
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "min": json_number(float(low)),
        "max": json_number(float(high)),
        "mean": json_number(float(mean)),
        "finite_ratio": json_number(finite.size / array.size if array.size else float("nan")),
    }


def listed(array: np.ndarray) -> Any:
    """``array`` as nested lists of JSON values, non-finite numbers as strings."""
    return _jsonable(array.tolist())


def _jsonable(value: Any) -> Any:
    if isinstance(value, list):
        return [_jsonable(v) for v in value]
    return json_number(value) if isinstance(value, float) else value
