"""Fixtures: what is saved comes back, and nothing else does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from coreproof import arrays
from coreproof.errors import CoreproofError, FixtureError
from coreproof.parity import fixture
from coreproof.parity.suite import Reference

DIGEST = "ab" * 32
ARRAYS = {
    "audio": np.linspace(-1, 1, 7, dtype=np.float32),
    "half": np.array([[1, np.inf], [np.nan, -0.0]], np.float16),
    "ids": np.arange(6, dtype=np.int32).reshape(2, 3)[:, ::-1],
    "scalar": np.float64(0.1),
    "empty": np.zeros((0, 3), np.float32),
    "big endian": np.arange(3, dtype=">i4"),
}
PROVENANCE = {"packages": {"scipy": "1.0"}, "dtype": "float64", "seed": 7}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fixture.save(Reference(ARRAYS, PROVENANCE), "toy", DIGEST, tmp_path)


def test_what_is_saved_comes_back(folder: Path) -> None:
    found = fixture.load(folder, "toy", DIGEST)
    assert folder.name == DIGEST[:12]
    assert found.arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found.arrays[name], array, strict=name != "big endian")
    assert found.provenance == PROVENANCE
    assert found.sha256 == hashlib.sha256((folder / "fixture.json").read_bytes()).hexdigest()


def test_the_record_can_be_checked_with_numpy_alone(folder: Path) -> None:
    record = json.loads((folder / "fixture.json").read_bytes())
    assert record["schema"] == "coreproof.fixture/1"
    assert record["command"] == "coreproof reference toy --checkpoint CHECKPOINT -o DIR"
    assert record["arrays"]["ids"] == {
        "dtype": "int32",
        "shape": [2, 3],
        "sha256": hashlib.sha256(np.array([[2, 1, 0], [5, 4, 3]], "<i4").tobytes()).hexdigest(),
    }
    with np.load(folder / "reference.npz", allow_pickle=False) as stored:
        assert sorted(stored.files) == sorted(ARRAYS)


def test_the_same_reference_gives_the_same_record(folder: Path, tmp_path: Path) -> None:
    backwards = dict(reversed(ARRAYS.items()))
    again = fixture.save(Reference(backwards, PROVENANCE), "toy", DIGEST, tmp_path / "again")
    assert (again / "fixture.json").read_bytes() == (folder / "fixture.json").read_bytes()


def test_saving_replaces_an_earlier_fixture_and_nothing_else(folder: Path) -> None:
    fixture.save(Reference({"one": np.ones(1)}, {}), "toy", DIGEST, folder.parent)
    assert list(fixture.load(folder, "toy", DIGEST).arrays) == ["one"]
    (folder / "fixture.json").unlink()
    with pytest.raises(CoreproofError, match="not something to overwrite"):
        fixture.save(Reference({"one": np.ones(1)}, {}), "toy", DIGEST, folder.parent)


def test_find_takes_the_first_folder_that_has_it(folder: Path, tmp_path: Path) -> None:
    second = fixture.save(Reference({"one": np.ones(1)}, {}), "toy", DIGEST, tmp_path / "second")
    nowhere = tmp_path / "nowhere"
    assert fixture.find((nowhere,), "toy", DIGEST) is None
    found = fixture.find((nowhere, second.parent, folder.parent), "toy", DIGEST)
    assert found is not None
    assert list(found.arrays) == ["one"]


@pytest.mark.parametrize(
    ("model", "digest", "message"),
    [
        ("other", DIGEST, "made for model toy, the build under test is of other; make its own with coreproof ref"),
        ("toy", "cd" * 32, f"made for checkpoint sha256 {DIGEST}, the build under test is of {'cd' * 32}"),
    ],
)  # fmt: skip
def test_one_of_another_model_or_checkpoint_is_refused(
    model: str, digest: str, message: str, folder: Path
) -> None:
    with pytest.raises(FixtureError, match=message):
        fixture.load(folder, model, digest)


def _rewrite_array(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        with np.load(folder / "reference.npz") as stored:
            arrays = dict(stored)
        arrays[name] = change(arrays[name])
        np.savez_compressed(folder / "reference.npz", **arrays)

    return apply


def _rewrite_record(**changes: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "fixture.json"
        path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))

    return apply


def _rename_array(folder: Path) -> None:
    with np.load(folder / "reference.npz") as stored:
        arrays = dict(stored)
    arrays["sound"] = arrays.pop("audio")
    np.savez_compressed(folder / "reference.npz", **arrays)


def _pickle(folder: Path) -> None:
    np.savez(folder / "reference.npz", **{n: np.array([{}], object) for n in ARRAYS})


def _damage(position: int) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        data = bytearray((folder / "reference.npz").read_bytes())
        data[position] ^= 0xFF
        (folder / "reference.npz").write_bytes(data)

    return apply


def _truncate(folder: Path) -> None:
    (folder / "reference.npz").write_bytes((folder / "reference.npz").read_bytes()[:-30])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_rewrite_array("audio", lambda a: np.nextafter(a, np.float32(2))), "array 'audio' is not the one recorded"),
        (_rewrite_array("audio", lambda a: a.astype(np.float64)), "array 'audio' is not the one recorded"),
        (_rewrite_array("ids", lambda a: a.reshape(3, 2)), "array 'ids' is not the one recorded"),
        (_rename_array, "reference.npz and fixture.json name different arrays"),
        (_rewrite_record(arrays={}), "reference.npz and fixture.json name different arrays"),
        (_rewrite_record(arrays=[]), "not a coreproof.fixture/1 file"),
        (_rewrite_record(schema="coreproof.fixture/2"), "not a coreproof.fixture/1 file"),
        (_pickle, r"reference.npz: unreadable \(.*allow_pickle=False.*\); make the fixture again"),
        (_damage(60), r"reference.npz: unreadable"),
        (_truncate, r"reference.npz: unreadable"),
        (lambda folder: (folder / "reference.npz").unlink(), r"reference.npz: unreadable"),
        (lambda folder: (folder / "fixture.json").unlink(), "holds no fixture.json"),
        (lambda folder: (folder / "fixture.json").write_text("{"), "fixture.json: not the JSON that is expected"),
    ],
)  # fmt: skip
def test_a_tampered_or_damaged_one_is_refused(
    change: Callable[[Path], None], message: str, folder: Path
) -> None:
    change(folder)
    with pytest.raises(CoreproofError, match=message):
        fixture.load(folder, "toy", DIGEST)


def test_one_that_unpacks_to_too_much_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "MAX_UNPACKED", 100)
    with pytest.raises(FixtureError, match=r"unpacks to .* bytes, the limit is 100"):
        fixture.load(folder, "toy", DIGEST)
