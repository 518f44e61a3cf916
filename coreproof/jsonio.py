"""JSON with one way to write a value, and a reader that trusts nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from coreproof.errors import PackageError
from coreproof.files import read_bytes


def canonical(obj: Any) -> bytes:
    """``obj`` as the one JSON text this project writes for it.

    UTF-8, keys sorted by code point, one space of indentation a level, no trailing spaces, a final
    newline. Equal values give equal bytes. Raises ValueError for NaN, infinities (see
    :func:`json_number`) and text that is not valid Unicode, TypeError for what JSON has no form for.
    """
    text = json.dumps(obj, ensure_ascii=False, allow_nan=False, sort_keys=True, indent=1, separators=(",", ": "))
    return f"{text}\n".encode()


def json_number(x: float) -> float | str:
    """``x`` unchanged when finite, else one of the strings "nan", "inf" and "-inf"."""
    return x if math.isfinite(x) else str(float(x))


def read_json(path: Path, max_bytes: int) -> Any:
    """The value in the JSON file ``path``, of at most ``max_bytes`` bytes.

    Stricter than ``json.loads``: text must be UTF-8, a key may appear once an object, and NaN,
    Infinity and numbers beyond a double are refused, because other readers disagree on what such
    a file says. Raises PackageError naming the file.
    """
    data = read_bytes(path, max_bytes)
    try:
        return json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite
        )
    except RecursionError:
        raise PackageError(f"{path}: JSON nested too deeply") from None
    except ValueError as error:
        raise PackageError(f"{path}: not the JSON that is expected: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"key {key!r} appears twice in one object")
        made[key] = value
    return made


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number
