"""Cases whose predictions hand something to the next one, or only warm up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from coreproof.parity.comparison import compare_case
from coreproof.parity.suite import Arrays, Case, Outcome
from coreproof.validate import run_case


class Sums:
    """A backend whose output is its input plus what is carried, in float16 throughout."""

    name = "sums"

    def load(self, target: Any) -> None:
        pass

    def predict(self, inputs: Mapping[str, np.ndarray], state: Any = None) -> dict[str, np.ndarray]:
        assert {a.dtype.name for a in inputs.values()} == {"float16"}
        return {"total": inputs["x"] + inputs["total_in"]}

    def make_state(self) -> None:
        return None

    def close(self) -> None:
        pass


def hand_on(inputs: Arrays, outputs: Arrays) -> Arrays:
    return {"total_in": outputs["total"]}


def case(warmup: int) -> Case:
    steps = [{"x": np.full(1, n, np.float32)} for n in (1, 2, 3)]
    steps[0]["total_in"] = np.zeros(1, np.float32)
    totals = np.array([[1], [3], [6]], np.float16)[warmup:]
    expected = {"total": totals[0] if warmup == 2 else totals}
    return Case("c", "sums", steps, expected, carry=hand_on, warmup=warmup)


def test_outputs_reach_the_next_step_and_warmup_is_not_compared() -> None:
    contract = {"total": ((1,), "float16")}
    for warmup in (0, 1, 2):
        own = case(warmup)
        made = run_case(Sums(), own, {"x", "total_in"})
        np.testing.assert_array_equal(made["total"], own.expected["total"])
        assert not compare_case(Outcome(own, made), contract).problems
        assert own.compared == 3 - warmup
