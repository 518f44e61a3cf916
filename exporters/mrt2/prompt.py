"""What a stream is asked for, as the user gives it: files and strengths to ``source_encoded``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from coreproof.arrays import read_npy
from coreproof.errors import InputError, PackageError, UsageError
from coreproof.files import read_bytes
from coreproof.jsonio import read_json
from coreproof_exporters.mrt2.architecture import CONTROL_CHANNELS, CONTROLS
from coreproof_exporters.mrt2.guidance import (
    DEFAULT_STRENGTHS,
    GUIDANCE,
    MASKED,
    check_style,
    conditioning_tokens,
)

_FILE_LIMIT = 1 << 20
_RAW = (".bin", ".f32")
# Least and greatest token of each kind of control, in the order of CONTROLS.
_RANGES = {
    "piano_roll": (MASKED, 3),
    "drums": (MASKED, 1),
    "guidance": (MASKED, GUIDANCE["style"][1]),
    "guidance_drums": (MASKED, GUIDANCE["drums"][1]),
}

Encode = Callable[[np.ndarray], np.ndarray]


def source(
    wanted: Path | Sequence[int] | None,
    encode: Encode,
    shape: tuple[int, ...],
    levels: int,
    codes: int,
    strengths: Mapping[str, float] | None = None,
) -> np.ndarray:
    """``source_encoded`` float32 of ``shape`` (1, 1, S).

    ``wanted``: up to ``levels`` MusicCoCa codes (0 to ``codes`` - 1, or -1 for a masked level), or a
    ``.npy`` or ``.json`` file of such codes or of all control tokens, or a ``.npy`` of floats or a
    ``.bin`` of little-endian float32, the vector itself; None masks every control. ``encode`` runs the
    conditioning encoder on control tokens int32 (1, 144). ``strengths``: of guidance, where the file
    leaves them open; the official ones otherwise.

    Raises InputError for a file that cannot be read, of another width, not finite, or with a token out
    of range, UsageError for strengths beside a file that fixes them.
    """
    path = wanted if isinstance(wanted, Path) else "the prompt"
    given = _read(wanted) if isinstance(wanted, Path) else np.array(wanted or (), np.int32)
    fixed = given.dtype.kind == "f" or given.size > levels
    if fixed and strengths is not None:
        raise UsageError(f"{path} fixes the guidance already; leave out {', '.join(sorted(strengths))}")
    if given.dtype.kind == "f":
        return _vector(given, shape, path)
    if given.dtype.kind not in "iu" or levels < given.size != levels + CONTROL_CHANNELS:
        raise InputError(
            f"{path}: {given.dtype} of {given.size}; expected up to {levels} style codes, "
            f"{levels + CONTROL_CHANNELS} control tokens, or a float32 vector of {shape[-1]}"
        )
    check_style(given[:levels].tolist(), codes)
    if given.size > levels:
        _check_controls(given[levels:], path)
        return encode(given[np.newaxis].astype(np.int32))
    guidance = {**DEFAULT_STRENGTHS, **(strengths or {})}
    return encode(conditioning_tokens(given.tolist(), levels, strengths=guidance))


def _read(path: Path) -> np.ndarray:
    """The file's numbers in one row."""
    try:
        if path.suffix == ".json":
            return _integers(path)
        if path.suffix in _RAW:
            data = read_bytes(path, _FILE_LIMIT)
            if len(data) % 4:
                raise InputError(f"{path}: {len(data)} bytes are no float32 numbers; it may be cut off")
            return np.frombuffer(data, "<f4")
    except PackageError as error:  # how the readers of packages say it
        raise InputError(str(error)) from None
    return read_npy(path).reshape(-1)


def _integers(path: Path) -> np.ndarray:
    found = read_json(path, max_bytes=_FILE_LIMIT)
    if not isinstance(found, list) or not all(type(n) is int and abs(n) < 1 << 31 for n in found):
        raise InputError(f"{path}: expected a list of integers, the MusicCoCa codes of the prompt")
    return np.array(found, np.int32)


def _vector(given: np.ndarray, shape: tuple[int, ...], path: object) -> np.ndarray:
    if given.size != shape[-1]:
        raise InputError(f"{path}: a vector of {given.size}; this build's source_encoded has {shape[-1]}")
    if not np.isfinite(given).all():
        raise InputError(f"{path}: the vector holds NaN or infinity")
    return given.reshape(shape).astype(np.float32)


def _check_controls(tokens: np.ndarray, path: object) -> None:
    first = 0
    for name, count, _ in CONTROLS:
        low, high = _RANGES[name]
        own = tokens[first : first + count]
        if own.min() < low or own.max() > high:
            raise InputError(f"{path}: {name} tokens {own.min()} to {own.max()}; expected {low} to {high}")
        first += count
