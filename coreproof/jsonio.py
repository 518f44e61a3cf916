"""JSON with one way to write a value, and a reader that trusts nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from itertools import chain
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from coreproof.errors import PackageError
from coreproof.files import read_bytes

MAX_DEPTH = 64  # as many dimensions as an array may have
_BYTES_A_VALUE = 32


def canonical(obj: Any) -> bytes:
    """``obj`` as the one JSON text this project writes for it.

    UTF-8, keys sorted by code point, one space of indentation a level, no trailing spaces, a final
    newline. Equal values give equal bytes. Raises ValueError for NaN, infinities (see
    :func:`json_number`) and text that is not valid Unicode, TypeError for what JSON has no form for.
    """
    text = json.dumps(
        obj, ensure_ascii=False, allow_nan=False, sort_keys=True, indent=1, separators=(",", ": ")
    )
    return f"{text}\n".encode()


def json_number(x: float) -> float | str:
    """``x`` unchanged when finite, else one of the strings "nan", "inf" and "-inf"."""
    return x if math.isfinite(x) else str(float(x))


def read_json(path: Path, max_bytes: int) -> Any:
    """The value in the JSON file ``path``, of at most ``max_bytes`` bytes, nested at most MAX_DEPTH deep
    and with at most a value for every 32 bytes allowed, because a value takes much more memory than text.

    Stricter than ``json.loads``: text must be UTF-8 and without halves of surrogate pairs, a key may
    appear once an object, and NaN, Infinity and numbers beyond a double are refused, because other
    readers disagree on what such a file says. Raises PackageError naming the file.
    """
    data = read_bytes(path, max_bytes)
    if data.count(b",") + data.count(b"[") + data.count(b"{") > max_bytes // _BYTES_A_VALUE:
        raise PackageError(
            f"{path}: more than {max_bytes // _BYTES_A_VALUE} values, too many for such a file"
        )
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite
        )
        _check(value)
    except RecursionError:
        raise PackageError(f"{path}: JSON nested too deeply") from None
    except ValueError as error:
        raise PackageError(f"{path}: not the JSON that is expected: {error}") from None
    return value


def decode(kind: Any, value: Any, where: str) -> Any:
    """``value``, as :func:`read_json` gives it, as an instance of the annotated type ``kind``.

    ``kind``: a dataclass (every field must be there, and nothing else), ``tuple[X, ...]``,
    ``Mapping[str, X]``, ``X | None``, ``str``, ``int`` or ``bool``. Nothing is converted: ``true`` is no
    int. Raises PackageError naming the key, as a path that starts with ``where``.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return None if value is None else decode(arguments[0], value, where)
    if is_dataclass(kind):
        return _decode_dataclass(kind, _expect(dict, value, where), where)
    if origin is tuple:
        items = enumerate(_expect(list, value, where))
        return tuple(decode(arguments[0], item, f"{where}[{index}]") for index, item in items)
    if origin is Mapping:
        members = _expect(dict, value, where).items()
        return {key: decode(arguments[1], member, f"{where}.{key}") for key, member in members}
    return _expect(kind, value, where)


def _decode_dataclass(kind: Any, value: dict[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    names = {f.name for f in fields(kind)}
    if names != value.keys():
        raise PackageError(f"{where}: has the keys {sorted(value)}, expected exactly {sorted(names)}")
    return kind(**{name: decode(hints[name], value[name], f"{where}.{name}") for name in sorted(names)})


def _expect(kind: type, value: Any, where: str) -> Any:
    if type(value) is not kind:
        raise PackageError(f"{where}: is a {type(value).__name__}, expected {kind.__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"key {key!r} appears twice in one object")
        made[key] = value
    return made


def _check(value: Any) -> None:
    """Raise ValueError where ``value`` is nested too deeply or holds text that no file can."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        if not level:
            return
        for text in (text for text in level if isinstance(text, str) and not text.isascii()):
            text.encode()
        lists = [one for one in level if isinstance(one, list)]
        objects = [one for one in level if isinstance(one, dict)]
        level = [*chain.from_iterable(lists), *chain.from_iterable(chain(o, o.values()) for o in objects)]
    raise ValueError(f"nested more than {MAX_DEPTH} deep")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number
