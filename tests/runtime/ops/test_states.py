from __future__ import annotations

import torch

from coreproof.runtime.registry import lookup
from coreproof.runtime.state import Slot


def test_states() -> None:
    slot = Slot(torch.zeros(2))
    before = lookup("read_state", "ios18").fn(slot)
    assert lookup("write_state", "ios18").fn(slot, torch.ones(2)) is None
    assert before.tolist() == [0, 0]
    assert lookup("read_state", "ios18").fn(slot).tolist() == [1, 1]
    assert lookup("coreml_update_state", "ios18").fn(slot, torch.full((2,), 5.0)).tolist() == [5, 5]
    assert slot.value.tolist() == [5, 5]


def test_states_are_never_folded() -> None:
    assert not any(lookup(n, "ios18").pure for n in ("read_state", "write_state", "coreml_update_state"))
