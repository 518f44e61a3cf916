"""The drop-in, enabled for one test module and taken out again, and the packages it runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

import coreproof

_TOLD = ("_IS_MACOS", "_is_macos", "_macos_version")


def _attributes() -> dict[tuple[str, str], Any]:
    """Everything in coremltools' modules that enabling may replace."""
    return {
        (name, attribute): value
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] == "coremltools"
        for attribute, value in list(vars(module).items())
        if attribute in _TOLD or attribute.startswith("_ML")
    }


@pytest.fixture(scope="module")
def ct() -> Iterator[Any]:
    """coremltools with prediction enabled."""
    import coremltools
    import coremltools.models.compute_device
    import coremltools.models.compute_plan

    before = _attributes()
    assert coreproof.enable_predict()
    yield coremltools
    del sys.modules["coremltools.libcoremlpython"], coremltools.libcoremlpython
    for (name, attribute), value in before.items():
        setattr(sys.modules[name], attribute, value)
