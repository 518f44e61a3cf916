"""The tight tolerance, beside the arithmetic that defines it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from coreproof.dropin.results import TIGHT
from coreproof.dropin.watch import WORST, ratio

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("actual", "expected", "want"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0),
        ([1.5], [1.0], 0.5 / (0.25 + 0.125)),
        ([-7.0, 0.0], [-8.0, 1.0], 1 / (0.25 + 0.125)),
        ([0.25], [0.0], 1),
        ([NAN, INF, -INF], [NAN, INF, -INF], 0),
        ([NAN], [1.0], WORST),
        ([1.0], [NAN], WORST),
        ([INF], [1.0], WORST),
        ([1.0], [INF], WORST),
        ([INF], [-INF], WORST),
        ([1.0, 2.0], [1.0, 2.0, 3.0], WORST),
        ([[1.0], [2.0]], [1.0], 1 / (0.25 + 0.125)),
        ([], [], 0),
        (3.0, 2.0, 1 / (0.25 + 0.25)),
        ([True, False], [1.0, 0.0], 0),
    ],
)
def test_the_ratio_is_error_over_tolerance(actual: Any, expected: Any, want: float):
    assert ratio(np.array(actual), expected, 0.25, 0.125) == want


@pytest.mark.parametrize(("precision", "dtype", "units"), [("fp16", np.float16, 2), ("fp32", np.float32, 16)])
def test_a_result_may_be_some_units_in_the_last_place_off(precision: str, dtype: type, units: int):
    absolute, relative = TIGHT[precision]
    for value in (1.0, 1.5, 1024.0, 60000.0):
        unit = float(np.spacing(dtype(value)))
        assert ratio([value + units * unit], [value], 0, relative) <= 1
        assert ratio([value + 4 * units * unit], [value], absolute, relative) > 1
    assert ratio([absolute], [0], absolute, relative) == 1
