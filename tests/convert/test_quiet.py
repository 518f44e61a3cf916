"""coremltools without its known noise, and with everything else it says."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from coreproof.convert.quiet import bars_into, coremltools
from coreproof.errors import ConversionError


def test_importing_it_says_nothing() -> None:
    """In a fresh process, since a second import says nothing anyway."""
    code = "from coreproof.convert.quiet import coremltools; print(coremltools().__version__)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("9.0\n", "")


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("Failed to load _MLModelProxy: No module named 'coremltools.libcoremlpython'", False),
        ("Torch version 2.13.0 has not been tested with coremltools. You may run into errors.", False),
        ("scikit-learn version 1.9.1 is not supported. Disabling scikit-learn conversion API.", False),
        ("Tuple detected at graph output. This will be flattened in the converted model.", False),
        ("Saving value type of int64 into a builtin type of int32, might lose precision!", True),
    ],
)
def test_only_known_noise_is_dropped(text: str, passes: bool) -> None:
    coremltools()
    heard: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("coremltools")
    logger.addHandler(listener)
    try:
        logger.warning(text)
    finally:
        logger.removeHandler(listener)
    assert heard == ([text] if passes else [])


def test_asking_twice_filters_once() -> None:
    coremltools()
    before = list(logging.getLogger("coremltools").filters)
    coremltools()
    assert logging.getLogger("coremltools").filters == before


def convert(width: int = 4) -> None:
    ct = coremltools()
    traced = torch.jit.trace(torch.nn.Linear(width, 3).eval(), torch.ones(1, width))
    inputs = [ct.TensorType("x", (1, width))]
    ct.convert(traced, inputs=inputs, convert_to="mlprogram", skip_model_load=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_its_bars_become_reports_and_are_not_drawn(capfd: pytest.CaptureFixture[str]) -> None:
    reports: list[tuple[str, int, int]] = []
    with bars_into(lambda step, done, total: reports.append((step, done, total))):
        convert()
    streams = capfd.readouterr()
    assert (streams.out, streams.err) == ("", "")
    descriptions = dict.fromkeys(step for step, _, _ in reports)
    assert len(descriptions) >= 3
    for description in descriptions:
        counts = [(done, total) for step, done, total in reports if step == description]
        assert [done for done, _ in counts] == list(range(len(counts)))
        assert all(done < total for done, total in counts)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_outside_the_block_the_bars_are_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    with bars_into(lambda step, done, total: None):
        pass
    convert()
    assert "passes" in capfd.readouterr().err


def test_a_warning_of_the_callers_passes() -> None:
    with pytest.warns(RuntimeWarning, match="overflow encountered in cast"), bars_into(lambda *_: None):
        np.float32([1e9]).astype(np.float16)


@pytest.mark.parametrize("module", ["frontend.torch.ops", "mil.passes.pass_pipeline"])
def test_a_release_without_the_bars_is_refused(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = {"frontend.torch.ops": "_tqdm", "mil.passes.pass_pipeline": "tqdm"}[module]
    coremltools()
    monkeypatch.delattr(f"coremltools.converters.mil.{module}.{name}")
    with (
        pytest.raises(ConversionError, match=f"has no {name}; coreproof is made for coremltools 9.0"),
        bars_into(lambda *_: None),
    ):
        pass


def test_warnings_filters_are_as_before() -> None:
    before = list(warnings.filters)
    with bars_into(lambda *_: None):
        pass
    assert list(warnings.filters) == before
