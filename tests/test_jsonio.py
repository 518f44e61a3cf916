"""Canonical JSON, and the strict reader."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from coreproof.errors import PackageError
from coreproof.jsonio import canonical, json_number, read_json


def test_canonical_bytes():
    value = {"b": [1, 2.5, None], "a": {"é": True}, "empty": []}
    expected = '{\n "a": {\n  "é": true\n },\n "b": [\n  1,\n  2.5,\n  null\n ],\n "empty": []\n}\n'
    assert canonical(value) == expected.encode("utf-8")


def test_canonical_does_not_depend_on_insertion_order():
    assert canonical({"x": 1, "y": 2}) == canonical({"y": 2, "x": 1})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800"])
def test_canonical_refuses(value):
    with pytest.raises(ValueError):
        canonical([value])


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (1.5, 1.5),
        (0, 0),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (-np.inf, "-inf"),
        (np.float64("inf"), "inf"),
    ],
)
def test_json_number(number, expected):
    assert json_number(number) == expected


def test_read_json_reads_what_canonical_wrote(tmp_path: Path):
    value = {"text": "naïve \u2028", "n": [1, -2.5e-7, None, True], "nested": {"a": {}}}
    path = tmp_path / "x.json"
    path.write_bytes(canonical(value))
    assert read_json(path, 1000) == value == json.loads(path.read_text("utf-8"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1, "a": 2}', "key 'a' appears twice"),
        (b'{"outer": {"b": 1, "b": 1}}', "key 'b' appears twice"),
        (b"[NaN]", "NaN is not a finite number"),
        (b"[-Infinity]", "-Infinity is not a finite number"),
        (b"[1e999]", "1e999 is not a finite number"),
        (b"[" * 20_000, "nested too deeply"),
        (b"\xff\xfe[]", "utf-8"),
        (b"[1,", "Expecting value"),
        (b"", "Expecting value"),
        (b"[" + b"9" * 5000 + b"]", "digits"),
    ],
)
def test_read_json_refuses(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(PackageError, match=message) as caught:
        read_json(path, 1 << 20)
    assert str(path) in str(caught.value)


def test_size_limit_is_exact(tmp_path: Path):
    path = tmp_path / "x.json"
    path.write_bytes(b'"12345"')
    assert read_json(path, 7) == "12345"
    with pytest.raises(PackageError, match="larger than the 6 bytes"):
        read_json(path, 6)


def test_special_files_are_refused(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(PackageError, match="not a regular file"):
            read_json(path, 1000)
    with pytest.raises(PackageError, match="No such file"):
        read_json(tmp_path / "absent", 1000)
    with pytest.raises(PackageError, match="null byte"):
        read_json(tmp_path / "nul\0", 1000)
