"""Which operation of one list stands where one of another does."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

from coreproof.mil.program import Operation

_LARGEST = 10_000_000  # pairs of operations compared by their types; beyond, they are paired by position


def align(first: Sequence[Operation], second: Sequence[Operation]) -> dict[int, int]:
    """Which operation of the second list stands where one of the first does, by their types' order."""
    ours, theirs = ([o.type for o in operations] for operations in (first, second))
    start = 0
    while start < min(len(ours), len(theirs)) and ours[start] == theirs[start]:
        start += 1
    end = 0
    while end < min(len(ours), len(theirs)) - start and ours[-1 - end] == theirs[-1 - end]:
        end += 1
    partners = {i: i for i in range(start)}
    partners.update({len(ours) - 1 - i: len(theirs) - 1 - i for i in range(end)})
    middle, other = ours[start : len(ours) - end], theirs[start : len(theirs) - end]
    if len(middle) * len(other) > _LARGEST:
        return {**partners, **{start + i: start + i for i in range(min(len(middle), len(other)))}}
    for _, a, until, b, last in SequenceMatcher(None, middle, other, autojunk=False).get_opcodes():
        if until - a == last - b:  # equal, or replaced one for one
            partners.update({start + a + i: start + b + i for i in range(until - a)})
    return partners
