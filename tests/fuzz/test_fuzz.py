"""A slice of the fuzzer's mutants, and that it sees what it looks for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import forked
import numpy as np
import pytest

from coreproof.errors import PackageError

FUZZ = Path(__file__).with_name("fuzz.py")
SLICE = 60


def judge(index: int) -> str:
    """One reader that goes wrong in every way there is."""
    match index:
        case 1:
            raise PackageError("as it should be")
        case 2:
            raise ValueError("not on purpose")
        case 3:
            np.ones(1 << 32, np.uint8)
        case 4:
            os.abort()
        case 5:
            while True:
                pass
    return "opened"


def test_a_slice_of_every_target_has_no_findings():
    ran = subprocess.run(
        [sys.executable, FUZZ, "--count", str(SLICE), "--seed", "1"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "0 findings" in ran.stderr
    rows = [line.split() for line in ran.stdout.splitlines()[1:]]
    assert len(rows) >= 10
    assert {row[1] for row in rows} == {str(SLICE)}
    # A target whose mutants are all refused, or all taken, has lost its seeds or its teeth.
    assert all("refused" in row for row in rows)
    assert all({"opened", "predicted"} & {word.rstrip(",") for word in row} for row in rows)


def test_every_way_to_go_wrong_is_a_finding(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(forked, "CPU_SECONDS", 0.5)
    verdicts = {v.index: v for v in forked.run(judge, 7, memory=1 << 28)}
    assert [verdicts[i].finding for i in (0, 1, 6)] == ["", "", ""]
    assert verdicts[1].outcome == "refused"
    for index, words in (
        (2, "ValueError"),
        (3, "MemoryError"),
        (4, "SIGABRT"),
        (5, "more time than it may take"),
    ):
        assert words in verdicts[index].finding
