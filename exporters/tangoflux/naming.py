"""From published keys to the tensors of the torch modules, and how each was made.

Most keep their key as their name. What is folded is folded in float64 and rounded once, so that anyone
can make it again with numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from coreproof.convert.checkpoint import Origin
from coreproof.convert.large import release
from coreproof.convert.later import Folding
from coreproof_exporters.tangoflux.architecture import (
    BIAS_TABLE,
    BUCKETS,
    DURATION,
    T5,
    TEXT_ROWS,
    Config,
)

_NORMS = (".norm_q.weight", ".norm_k.weight", ".norm_added_q.weight", ".norm_added_k.weight")


class _Names:
    """Collects tensors and their origins under the modules' names."""

    def __init__(self, stored: Mapping[str, np.ndarray]) -> None:
        self._stored = stored
        self.tensors: dict[str, np.ndarray] = {}
        self.makers: dict[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]] = {}
        self.origins: dict[str, Origin] = {}

    def put(self, name: str, key: str) -> None:
        self.tensors[name], self.origins[name] = self._stored[key], Origin((key,))

    def fold(self, name: str, keys: tuple[str, ...], how: str, make: Callable[..., np.ndarray]) -> None:
        made = make(*(self._stored[key].astype(np.float64) for key in keys))
        self.tensors[name] = np.ascontiguousarray(made, np.float32)
        self.origins[name] = _folded(keys, how)

    def fold_rows(self, name: str, keys: tuple[str, ...], how: str, make: Callable[..., np.ndarray]) -> None:
        """As ``fold``, for what is large: made when it is asked for, each row of axis 0 by itself."""
        stored = [self._stored[key] for key in keys]

        def rows() -> np.ndarray:
            made = np.empty(stored[-1].shape, np.float32)
            for row in range(len(made)):
                made[row] = make(*(array[row].astype(np.float64) for array in stored))
            for array in stored:
                release(array)
            return made

        self.makers[name], self.origins[name] = (stored[-1].shape, rows), _folded(keys, how)


def _folded(keys: tuple[str, ...], how: str) -> Origin:
    return Origin(keys, f"{how}, in float64, rounded once")


def named(
    stored: Mapping[str, np.ndarray], config: Config
) -> tuple[Mapping[str, np.ndarray], dict[str, Origin]]:
    """State dict tensors and their origins, from tensors under the published keys."""
    names = _Names(stored)
    for key in stored:
        if key.startswith("decoder."):
            _vae(names, key)
        elif key.startswith("transformer.") and key.endswith(_NORMS):
            doubled = f"{key.removesuffix('weight')}gamma"
            names.fold(doubled, (key,), "twice, one after the other", lambda w: np.concatenate([w, w]))
        elif key.startswith("transformer."):
            names.put(key, key)
        elif key.startswith(T5):
            _text(names, key)
    _conditioning(names)
    return Folding(names.tensors, names.makers), names.origins


def _text(names: _Names, key: str) -> None:
    if key == BIAS_TABLE:
        names.fold(
            f"{T5}position_bias",
            (key,),
            f"[head, i, j] = table[bucket(j - i), head] for {TEXT_ROWS} positions, T5's buckets of "
            f"{BUCKETS} and distances to 128",
            lambda table: table[buckets(TEXT_ROWS)].transpose(2, 0, 1)[np.newaxis],
        )
    else:
        names.put(key.replace(f"{T5}encoder.", T5), key)


def buckets(rows: int) -> np.ndarray:
    """T5's bucket of the key at column j for the query at row i, int64 (rows, rows), rows at most 128.

    Half of the 32 buckets are for keys that come later. In a half, distances below 8 have buckets of
    their own, and from there on two buckets share each doubling: ``8 + floor(2 log2(d / 8))``, in integers.
    Source: transformers' ``T5Attention._relative_position_bucket``.
    """
    half = BUCKETS // 2
    exact = half // 2
    near = [d if d < exact else exact + (d * d // exact**2).bit_length() - 1 for d in range(rows)]
    offset = np.arange(rows)[np.newaxis] - np.arange(rows)[:, np.newaxis]
    return np.minimum(near, half - 1)[np.abs(offset)] + half * (offset > 0)


def _conditioning(names: _Names) -> None:
    for part in ("weight", "bias"):
        names.put(f"conditioning.projection.{part}", f"fc.0.{part}")
        names.put(f"conditioning.duration.{part}", f"{DURATION}1.{part}")
    names.fold(
        "conditioning.angles", (f"{DURATION}0.weights",), "times 2 pi", lambda w: 2 * np.pi * w[np.newaxis]
    )


def _vae(names: _Names, key: str) -> None:
    name = f"vae.{key.removeprefix('decoder.')}"
    stem, part = key.rpartition(".")[0], key.rpartition(".")[2]
    owner = name.rpartition(".")[0]
    if part == "weight_v":
        names.fold_rows(
            f"{owner}.weight",
            (f"{stem}.weight_g", key),
            "each row the first key's times the second's over its norm",
            lambda g, v: v * (g / np.sqrt((v * v).sum())),
        )
    elif part == "alpha":
        names.fold(f"{owner}.alpha", (key,), "exp", np.exp)
    elif part == "beta":
        names.fold(f"{owner}.inverse_beta", (key,), "1 / (exp + 1e-9)", lambda b: 1 / (np.exp(b) + 1e-9))
    elif part == "bias":
        names.put(name, key)
