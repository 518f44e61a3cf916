"""Lean conversion makes the very bytes that plain conversion makes, and would not without its guards."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import CASES, Case, drawn, graph
from plain import plain_package
from support import Made, digests
from torch import nn

from coreproof import catalog
from coreproof.convert import large, patches, tracing
from coreproof.convert.convert import convert_stage
from coreproof.convert.recipe import Precision
from coreproof.errors import ConversionError
from coreproof.package import writer


def quiet(step: str, done: int, total: int) -> None:
    pass


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays of a few elements are read in pieces of a few."""
    monkeypatch.setattr(large, "LARGE", 10)
    monkeypatch.setattr(large, "_PIECE", 64)


def both(case: Case, folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Digests of all files by plain and by lean conversion."""
    plain = plain_package(case.stage(), case.checkpoint(folder), folder)
    lean = convert_stage(case.stage(), case.checkpoint(folder), folder / "lean.mlpackage", quiet)
    return digests(plain), digests(lean.path)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("everything_is_large")
def test_the_same_bytes_as_plain_conversion(name: str, tmp_path: Path) -> None:
    plain, lean = both(CASES[name], tmp_path)
    assert lean == plain


@pytest.mark.parametrize(
    "name",
    [
        "kept",
        "convolved",
        "in groups",
        "upsampled",
        "upsampled in groups",
        "upsampled by functions",
        "weight norm",
    ],
)
def test_nothing_is_computed_to_trace_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first trace, on shapes alone, is the one taken; convolutions too."""
    traces, taken = [], torch.jit.trace
    monkeypatch.setattr(torch.jit, "trace", lambda *a, **k: traces.append(a[1]) or taken(*a, **k))
    tracing.trace(CASES[name].stage(), CASES[name].checkpoint(tmp_path))
    assert [[x.device.type for x in given] for given in traces] == [["meta"]]


@pytest.mark.parametrize("compute", ["fp16", "fp32"])
@pytest.mark.parametrize("model", ["shared_filter", "shared_minilm"])
def test_the_same_bytes_for_a_recipe(
    model: str, compute: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    made: Made = request.getfixturevalue(model)
    recipe = catalog.find(made.model).recipe()
    checkpoint = recipe.load(made.checkpoint)
    (stage,) = recipe.stages(checkpoint, compute)
    assert digests(plain_package(stage, checkpoint, tmp_path)) == digests(made.package(compute))


def test_the_same_bytes_at_real_sizes(tmp_path: Path) -> None:
    """What is large is so by itself, in several pieces, one of them not whole."""
    case = graph(
        lambda g, x: nn.functional.linear(x, g.weight, g.bias) @ g.turned,
        weight=drawn(50_000, 24),
        bias=drawn(50_000),
        turned=drawn(50_000, 24, seed=1),
    )
    assert case.tensors["weight"].size > large._PIECE > large.LARGE > case.tensors["bias"].size
    plain, lean = both(case, tmp_path)
    assert lean == plain


# What the comparison finds when a guard is taken away


def forgets_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies transposed is rounded as it lies, and never turned back."""
    rounded = large.Halves.rounded

    def careless(self: large.Halves, array: np.ndarray) -> np.ndarray:
        return rounded(self, array).ravel("K").reshape(array.shape)

    monkeypatch.setattr(large.Halves, "rounded", careless)


GUARDS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "a constant that passes transposed is turned back": ("permuted", forgets_the_order),
    "numbers beyond fp16 keep their op in fp32": (
        "too large for fp16",
        lambda m: m.setattr(patches, "_overflows", lambda array, conversion: False),
    ),
    "in a small constant nothing vanishes": (
        "few vanishing",
        lambda m: m.setattr(patches, "_UNDERFLOW_LIMIT", 10),
    ),
    "constants that only begin alike are two": (
        "alike in the beginning",
        lambda m: m.setattr(writer._Stored, "digest", b""),
    ),
}


@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.usefixtures("everything_is_large")
def test_without_the_guard_the_bytes_differ(
    guard: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, take_away = GUARDS[guard]
    plain = digests(plain_package(CASES[name].stage(), CASES[name].checkpoint(tmp_path), tmp_path))
    take_away(monkeypatch)
    lean = convert_stage(
        CASES[name].stage(), CASES[name].checkpoint(tmp_path), tmp_path / "lean.mlpackage", quiet
    )
    assert digests(lean.path) != plain


@pytest.mark.skipif(sys.platform != "linux", reason="memory is given back on Linux only")
@pytest.mark.usefixtures("everything_is_large")
def test_what_was_written_to_a_mapped_weight_would_be_lost_by_giving_all_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES["overwritten"]
    plain = digests(plain_package(case.stage(), case.checkpoint(tmp_path), tmp_path))
    checkpoint = case.checkpoint(tmp_path)
    mapping: Any = checkpoint.tensors["weight"]
    while not isinstance(mapping, mmap.mmap):
        mapping = mapping.base
    monkeypatch.setattr(large, "release", lambda array: mapping.madvise(mmap.MADV_DONTNEED))
    lean = convert_stage(case.stage(), checkpoint, tmp_path / "lean.mlpackage", quiet)
    assert digests(lean.path) != plain


@pytest.mark.parametrize("compute", ["fp16", "fp32"])
@pytest.mark.usefixtures("everything_is_large")
def test_a_weight_that_is_no_number_is_refused_as_by_plain_conversion(compute: str, tmp_path: Path) -> None:
    weight = drawn(32, 24)
    weight[5, 6] = np.nan
    case = graph(lambda g, x: nn.functional.linear(x, g.weight), weight=weight)
    case = replace(case, precision=Precision(compute))
    stage = case.stage()
    with pytest.raises(AssertionError, match="tensor value not consistent") as plain:
        plain_package(stage, case.checkpoint(tmp_path), tmp_path)
    with pytest.raises(ConversionError, match=str(plain.value)):
        convert_stage(stage, case.checkpoint(tmp_path), tmp_path / "lean.mlpackage", quiet)
    assert not (tmp_path / "lean.mlpackage").exists()
