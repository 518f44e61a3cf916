"""Arrays in and out of files for the command line: .npy, .npz and .json, never pickled."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from coreproof.atomic import atomic_file
from coreproof.errors import InputError, PackageError
from coreproof.files import open_regular
from coreproof.jsonio import json_number, read_json
from coreproof.mil.contract import Contract

MAX_UNPACKED = 8 << 30
_MAX_JSON = 256 << 20
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


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
    with _opened(path) as stream:
        if _is_archive(stream):
            raise InputError(f"{path}: holds several arrays; name it .npz")
        with _refusing(f"{path}: not a readable numpy file"):
            return _array_in(stream, path.stat().st_size)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays in a ``.npz`` file of at most MAX_UNPACKED bytes when unpacked, by name. Raises InputError."""
    with _opened(path) as stream:
        if not _is_archive(stream):
            raise InputError(
                f"{path}: holds one array without a name; save it with numpy.savez(path, NAME=array)"
            )
        with _refusing(f"{path}: not a readable numpy file"):
            archive = zipfile.ZipFile(stream)
        members = archive.infolist()
        size = sum(member.file_size for member in members)
        if size > MAX_UNPACKED:
            raise InputError(f"{path}: unpacks to {size} bytes, the limit is {MAX_UNPACKED}")
        with _refusing(f"{path}: unreadable array"):
            return {member.filename.removesuffix(".npy"): _member(archive, member) for member in members}


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as stream:
        return _array_in(stream, member.file_size)


def _array_in(stream: IO[bytes], size: int) -> np.ndarray:
    """The array in ``stream``, a seekable file of ``size`` bytes: its header is held to the size first."""
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of the format is not read")
    shape, _, dtype = _HEADERS[version](stream)
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes != size - stream.tell() and not dtype.hasobject:
        raise ValueError(f"{size - stream.tell()} bytes for an array of {dtype}{list(shape)}")
    stream.seek(0)
    return np.lib.format.read_array(stream, allow_pickle=False)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    if not path.exists():
        raise InputError(f"{path} does not exist")
    try:
        descriptor = open_regular(path)
    except PackageError as error:
        raise InputError(str(error)) from None
    with os.fdopen(descriptor, "rb") as stream:
        yield stream


def _is_archive(stream: BinaryIO) -> bool:
    start = stream.read(2)
    stream.seek(0)
    return start == b"PK"


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Make an InputError of whatever numpy, zipfile and the parsers below them raise; that can be anything
    from zlib.error to tokenize.TokenError."""
    try:
        yield
    except Exception as error:
        raise InputError(f"{what} ({error})") from None


def _read_json(path: Path, contract: Contract) -> dict[str, np.ndarray]:
    value = read_json(path, max_bytes=_MAX_JSON)
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected an object of NAME: nested lists of numbers")
    dtypes = {f.name: f.dtype for f in contract.inputs}
    return {name: _array(f"{path}: {name!r}", numbers, dtypes.get(name)) for name, numbers in value.items()}


def _array(where: str, numbers: Any, dtype: str | None) -> np.ndarray:
    level = [numbers]
    while level:
        # As an array, texts would all take the room of the longest one.
        if not {type(value) for value in level} <= {list, int, float, bool}:
            raise InputError(f"{where}: expected nested lists of numbers")
        level = list(chain.from_iterable(value for value in level if isinstance(value, list)))
    try:
        given = np.asarray(numbers)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{where}: {error}") from None
    if given.dtype.kind not in "biuf":
        raise InputError(f"{where}: a number is too large")
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
