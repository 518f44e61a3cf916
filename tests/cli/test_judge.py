"""``coreproof compare``; for ``validate`` and ``models`` see test_validate.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import Cli

X = np.array([[0.5, -1.0, 2.0]], np.float32)
INDICES = np.array([2, 0], np.int32)
GATES = """
schema = "coreproof.gates/1"
[[gate]]
output = "picked"
metric = "max_abs_error"
max = 0.0009765625
"""


def compare(
    cli: Cli, package: Path, folder: Path, gates: str = GATES, **arrays: object
) -> tuple[int, str, str]:
    np.savez(folder / "case.npz", **{k.replace("__", "/"): np.asarray(v) for k, v in arrays.items()})
    (folder / "gates.toml").write_text(gates)
    ended = cli("compare", package, "-r", folder / "case.npz", "-g", folder / "gates.toml", "--json")
    return ended.status, ended.out, ended.err


@pytest.mark.parametrize(("error", "status"), [(0.0, 0), (2.0**-10, 0), (2.0**-9, 1), (np.nan, 1)])
def test_compare_one_case(error: float, status: int, picking: Path, tmp_path: Path, cli: Cli) -> None:
    """0.5 and 2 in fp32, and a reference that is ``error`` away from one of them."""
    expected = np.array([[2.0, 0.5 + error]])
    ended = compare(cli, picking, tmp_path, input__x=X, input__indices=INDICES, expected__picked=expected)
    assert (ended[0], ended[2]) == (status, "")
    judged = json.loads(ended[1])
    assert (judged["cases"], judged["passed"]) == (1, status == 0)
    assert judged["verdicts"][0]["passed"] is (status == 0)


def test_compare_several_cases_names_the_worst(picking: Path, tmp_path: Path, cli: Cli) -> None:
    inputs = np.stack([X, X + 1, X + 2])
    expected = inputs[:, :, [2, 0]].copy()
    expected[1] += 0.25
    status, out, _ = compare(
        cli,
        picking,
        tmp_path,
        input__x=inputs,
        input__indices=np.stack([INDICES] * 3),
        expected__picked=expected,
    )
    judged = json.loads(out)
    assert (status, judged["cases"]) == (1, 3)
    assert (judged["verdicts"][0]["case"], judged["verdicts"][0]["value"]) == ("case 1", 0.25)


def test_compare_prints_a_table(picking: Path, tmp_path: Path, cli: Cli) -> None:
    compare(cli, picking, tmp_path, input__x=X, input__indices=INDICES, expected__picked=X[:, [2, 0]])
    options = ("-r", tmp_path / "case.npz", "-g", tmp_path / "gates.toml", "--mode", "fp32")
    ended = cli("compare", picking, *options)
    assert (ended.status, ended.err) == (0, "")
    (line,) = [line for line in ended.out.splitlines() if line.startswith("picked max_abs_error")]
    assert line.split()[2:] == ["0", "<=", "0.0009766", "case", "pass"]


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"expected__picked": None}, 2, "needs input/x, input/indices and at least one expected/NAME"),
        ({"input__x": None}, 2, "needs input/x, input/indices and at least one expected/NAME; it has"),
        ({"input__x": X.astype(np.float64)}, 2, "input 'x': dtype float64, expected float32"),
        ({"input__more": X}, 2, "unknown input 'more'"),
        ({"expected__other": X}, 1, "output 'other': not an output of the package's contract"),
        ({"expected__picked": X}, 1, "shape (1, 2) where the reference has (1, 3)"),
        ({"input__x": np.stack([X, X])}, 2, "hold different numbers of cases"),
        ({"sample_rate": [16000, 1]}, 2, "sample_rate is [16000     1]; give one whole number of Hz"),
        ({"sample_rate": 16000.5}, 2, "sample_rate is 16000.5; give one whole number of Hz"),
        ({"sample_rate": "16 kHz"}, 2, "sample_rate is 16 kHz; give one whole number of Hz"),
    ],
)
def test_compare_fails_closed_on_odd_references(
    changes: dict[str, Any], status: int, message: str, picking: Path, tmp_path: Path, cli: Cli
) -> None:
    arrays = {"input__x": X, "input__indices": INDICES, "expected__picked": X[:, [2, 0]]} | changes
    given = {name: array for name, array in arrays.items() if array is not None}
    ended = compare(cli, picking, tmp_path, **given)
    assert ended[0] == status
    assert message in (ended[2] if status == 2 else ended[1])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (GATES, "", "the gate file is empty"),
        ("max_abs_error", "max_abs_eror", "unknown metric 'max_abs_eror'; did you mean 'max_abs_error'?"),
        (
            "max = 0.0009765625",
            "min = 0.0009765625",
            "min on max_abs_error, where lower is better, passes the worst; use max",
        ),
        ("output =", 'variant = "fp16"\noutput =', "unknown variant 'fp16'"),
        ('output = "picked"', 'output = "pick"', "no case expects an output 'pick'"),
    ],
)
def test_compare_fails_closed_on_odd_gates(
    old: str, new: str, message: str, picking: Path, tmp_path: Path, cli: Cli
) -> None:
    arrays = {"input__x": X, "input__indices": INDICES, "expected__picked": X[:, [2, 0]]}
    status, out, err = compare(cli, picking, tmp_path, GATES.replace(old, new), **arrays)
    assert status == 1
    assert message in out + err
