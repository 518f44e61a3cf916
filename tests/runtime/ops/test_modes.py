"""What each numeric mode makes of every op that has a float result, against its float64 definition."""

from __future__ import annotations

import modes_elementwise
import modes_moves
import modes_sums
import numpy as np
import pytest
from half import halves
from modes import MODES, Row, exact, halved, row, run, ulps, units_apart
from pages import DOCS, NO_FLOATS, OTHER_REASONS, numeric_modes

from coreproof.runtime.registry import registry

ROWS: list[Row] = [*modes_moves.ROWS, *modes_elementwise.ROWS, *modes_sums.ROWS]
RUNS = [(r, since) for r in ROWS for since in r.since]
IDS = [f"{r.op}-{since}-{i}" for i, (r, since) in enumerate(RUNS)]


def test_every_op_has_a_row_or_a_reason() -> None:
    rows = {(r.op, since) for r in ROWS for since in r.since}
    reasons = NO_FLOATS | set(OTHER_REASONS)
    known = {(op, since) for op, versions in registry().items() for since in versions}
    wanted = {(op, since) for op, since in known if op not in reasons}
    assert wanted == rows, "a new op needs a row in a table modes_*.py, or a reason in pages.py"
    assert reasons <= set(registry())


@pytest.mark.parametrize(("row", "since"), RUNS, ids=IDS)
def test_modes(row: Row, since: str) -> None:
    found = {mode: run(row, since, mode) for mode in MODES}
    floats = []
    for place, (kind, wanted) in enumerate(zip(row.outputs, exact(row), strict=True)):
        fp32, typed, narrow = (found[mode][place] for mode in MODES)
        if not kind.startswith("fp"):
            for got in (fp32, typed, narrow):
                np.testing.assert_array_equal(got, wanted)
            continue
        floats.append(place)
        size = np.abs(wanted[np.isfinite(wanted)]).max()
        within_fp32 = np.abs(wanted) < 3e38
        np.testing.assert_allclose(
            fp32[within_fp32], wanted[within_fp32], rtol=2e-6, atol=2e-6 * min(size, 9)
        )
        assert np.array_equal(typed, halved(typed).astype(np.float32), equal_nan=True), "not rounded to fp16"
        assert ulps(halved(typed), halved(fp32)) <= (row.kind == "sums"), "typed is not fp32 rounded once"
        assert ulps(halved(typed), halved(wanted)) <= row.ulps
        if row.kind != "sums":
            assert np.array_equal(narrow, typed, equal_nan=True), "fp16acc differs from typed"
    if row.kind == "sums":
        apart = units_apart(*([found[mode][p] for p in floats] for mode in ("fp16acc", "typed")))
        assert row.apart / 4 < apart <= row.apart


def test_what_moves_is_said_to_move() -> None:
    """The engine leaves out a rounding there, which the samples show to be right."""
    for r, since in RUNS:
        moves = registry()[r.op][since].moves
        assert moves == (r.kind == "moves"), r.op


@pytest.mark.parametrize("name", ["random_bernoulli", "random_normal", "random_uniform"])
def test_seeded_values_are_rounded_once(name: str) -> None:
    drawn = row(name, "rounded", lambda: None, shape=[4000], seed=3)
    fp32, typed, narrow = (run(drawn, "ios15", mode)[0] for mode in MODES)
    np.testing.assert_array_equal(typed, halved(fp32))
    np.testing.assert_array_equal(typed, narrow)


WIDE_SQUARES = np.float32([[300, -300, 300, -300]])


@pytest.mark.parametrize(
    ("overflowing", "typed", "narrow"),
    [
        (row("layer_norm", "sums", lambda x: x, x=WIDE_SQUARES, axes=[1]), [1, -1, 1, -1], [0, 0, 0, 0]),
        (row("reduce_l2_norm", "sums", lambda x: x, x=WIDE_SQUARES, axes=[1]), [600], [np.inf]),
        (
            row("reduce_mean", "sums", lambda x: x, x=np.full((1, 70000), 2, np.float32), axes=[1]),
            [2],
            [np.inf],
        ),
    ],
)
def test_sums_that_fp16_cannot_hold(overflowing: Row, typed: list[float], narrow: list[float]) -> None:
    assert run(overflowing, "ios15", "typed")[0].ravel() == pytest.approx(typed)
    assert run(overflowing, "ios15", "fp16acc")[0].ravel().tolist() == narrow


@pytest.mark.parametrize(
    ("a", "b", "apart"),
    [(1.0, 1.0, 0), (1.0, 1 + 2**-10, 1), (-(2**-24), 2**-24, 2), (0.0, -0.0, 0), (65504.0, np.inf, 1)],
)
def test_ulps(a: float, b: float, apart: int) -> None:
    assert ulps(np.float16([a]), np.float16([b])) == apart


def test_ulps_of_nan() -> None:
    assert ulps(np.float16([np.nan]), np.float16([np.nan])) == 0
    assert ulps(np.float16([np.nan]), np.float16([1])) > 100


def test_units_apart() -> None:
    assert units_apart([np.array([1.0, 4.0])], [np.array([1.0, 4 + 2.0**-9])]) == pytest.approx(1, rel=1e-3)
    assert units_apart([halves(3)], [halves(3)]) == 0


def test_the_page_is_up_to_date() -> None:
    written = (DOCS / "numeric-modes.md").read_text(encoding="utf-8")
    assert written == numeric_modes(ROWS), "run python tests/runtime/ops/pages.py"
