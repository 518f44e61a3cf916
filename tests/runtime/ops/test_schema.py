"""Every op's arguments, defaults and versions against coremltools' own registry."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil.mil import types
from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

from coreproof.errors import UnsupportedOpError
from coreproof.runtime import left_out
from coreproof.runtime.control import CONTROL
from coreproof.runtime.registry import OPSETS, REQUIRED, lookup, registry

CORE = SSAOpRegistry.core_ops
NOT_IN_CORE = {"write_state", "coreml_update_state"}
"""Ops that reach a package although coremltools' builder has no core op of the name."""
ELSEWHERE = {"const", *CONTROL}
"""Constants, and ops that hold blocks: the engine compiles them itself."""
UNDECLARED = {("gru", "reset_after"): False}
"""Defaults that a definition states in its text alone."""


def _theirs(name: str, opset: str) -> Any:
    """coremltools' class of the op for that opset, None where it does not exist yet."""
    target = getattr(ct.target, opset.replace("ios", "iOS"))
    versions = [v for v in CORE[name] if v.value <= target.value]
    return CORE[name][max(versions, key=lambda v: v.value)] if versions else None


NAMES = sorted(set(registry()) - NOT_IN_CORE)
PAIRS = [(n, o) for n in NAMES for o in OPSETS[:4] if _theirs(n, o)]
TOO_EARLY = [(n, o) for n in NAMES for o in OPSETS[:4] if not _theirs(n, o)]


def _defaults(cls: Any, rank: int) -> dict[str, Any]:
    """The defaults when the op's inputs have that rank, and sizes of that rank too."""
    op = object.__new__(cls)
    for name in cls.input_spec.input_types:
        object.__setattr__(op, name, None)
    for name in ("x", "weight", "boxes"):
        object.__setattr__(op, name, SimpleNamespace(dtype=types.fp32, rank=rank, shape=(rank,) * rank))
    return dict(op.default_inputs().items())


def test_complete() -> None:
    assert (set(registry()) - NOT_IN_CORE) | ELSEWHERE == set(CORE) - set(left_out.OPS)


@pytest.mark.parametrize(("name", "opset"), PAIRS)
def test_arguments(name: str, opset: str) -> None:
    ours = lookup(name, opset).params
    theirs = {n: t for n, t in _theirs(name, opset).input_spec.input_types.items() if not n.startswith("_")}
    assert set(ours) == set(theirs)
    required = {n for n, t in theirs.items() if not t.optional}
    assert {n for n, p in ours.items() if p.default is REQUIRED} == required


@pytest.mark.parametrize(("name", "opset"), TOO_EARLY)
def test_first_opset(name: str, opset: str) -> None:
    with pytest.raises(UnsupportedOpError, match="exists from"):
        lookup(name, opset)


OPTIONAL = [
    (n, o) for n, o in PAIRS if any(t.optional for t in _theirs(n, o).input_spec.input_types.values())
]


@pytest.mark.parametrize(("name", "opset"), OPTIONAL)
def test_defaults(name: str, opset: str) -> None:
    small, large = (_defaults(_theirs(name, opset), rank) for rank in (3, 4))
    for argument, param in lookup(name, opset).params.items():
        if param.default is REQUIRED:
            continue
        stated = UNDECLARED.get((name, argument))
        first, second = small.get(argument, stated), large.get(argument, stated)
        if first is None or np.shape(first) != np.shape(second):
            assert param.default is None, f"{argument} depends on the other inputs"
        elif isinstance(first, str):
            assert param.default == first
        else:
            np.testing.assert_array_equal(np.asarray(param.default, np.asarray(first).dtype), first)
