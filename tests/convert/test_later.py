"""What a checkpoint need not have when it is read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from coreproof.convert.checkpoint import FileDigest
from coreproof.convert.later import Folding, Hashed, shape_of


def test_files_are_hashed_by_name(tmp_path: Path) -> None:
    contents = {"b": b"second", "a": b"", "c": bytes(1 << 20)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    found = Hashed(tmp_path, list(contents))
    expected = [FileDigest(n, len(c), hashlib.sha256(c).hexdigest()) for n, c in sorted(contents.items())]
    assert list(found) == expected
    assert len(found) == 3
    assert list(found[1:]) == expected[1:]


def test_a_file_that_went_is_named_by_whoever_asks(tmp_path: Path) -> None:
    found = Hashed(tmp_path, ["gone"])
    with pytest.raises(FileNotFoundError, match="gone"):
        len(found)


def test_a_tensor_is_made_once_and_only_when_it_is_asked_for() -> None:
    calls: list[str] = []

    def make() -> np.ndarray:
        calls.append("made")
        return np.full((2, 3), 7.0, np.float32)

    tensors = Folding({"kept": np.zeros(4, np.float32)}, {"folded": ((2, 3), make)})
    assert list(tensors) == ["kept", "folded"]
    assert len(tensors) == 2
    assert "folded" in tensors.keys()  # noqa: SIM118
    assert [shape_of(tensors, name) for name in tensors] == [(4,), (2, 3)]
    assert not calls
    assert tensors["folded"] is tensors["folded"]
    assert calls == ["made"]
    assert shape_of(tensors, "folded") == (2, 3)
    assert list(tensors) == ["kept", "folded"]
    with pytest.raises(KeyError):
        tensors["other"]
    with pytest.raises(KeyError):
        shape_of(tensors, "other")
