"""What a checkpoint need not have when it is read: the sha256 of its files, and tensors made of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, overload

import numpy as np

from coreproof.convert.checkpoint import FileDigest, digest


class Hashed(Sequence[FileDigest]):
    """The digests of the files ``names`` of ``folder``, by name. They are made by a thread of their own while
    others work; whoever asks for one waits until all are there, and gets the OSError of a file that went."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        pool = ThreadPoolExecutor(1)
        self._made = pool.submit(lambda: tuple(digest(folder / name) for name in sorted(names)))
        pool.shutdown(wait=False)

    def __len__(self) -> int:
        return len(self._made.result())

    @overload
    def __getitem__(self, index: int) -> FileDigest: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[FileDigest]: ...
    def __getitem__(self, index: int | slice) -> FileDigest | Sequence[FileDigest]:
        return self._made.result()[index]


class Folding(Mapping[str, np.ndarray]):
    """``tensors``, and those of ``makers``: their shape, and what makes one when it is first asked for. It is
    kept then."""

    def __init__(
        self,
        tensors: Mapping[str, np.ndarray],
        makers: Mapping[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]],
    ) -> None:
        self._tensors, self._makers = dict(tensors), dict(makers)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._tensors and name in self._makers:
            self._tensors[name] = self._makers[name][1]()
        return self._tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tensors or name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter({**self._tensors, **self._makers})

    def __len__(self) -> int:
        return len(self._tensors.keys() | self._makers.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not made for it. Raises KeyError."""
        made: Any = self._tensors.get(name)
        return self._makers[name][0] if made is None else made.shape


def shape_of(tensors: Mapping[str, np.ndarray], name: str) -> tuple[int, ...]:
    """The shape of ``tensors[name]``."""
    return tensors.shape(name) if isinstance(tensors, Folding) else tensors[name].shape
