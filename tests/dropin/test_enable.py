"""``enable_predict``: when it acts, when it refuses, and what it leaves alone."""

from __future__ import annotations

import logging
import subprocess
import sys
from importlib import metadata
from typing import Any

import numpy as np
import pytest

import coreproof
from coreproof.errors import BackendError, UsageError

_FIRST = """
import coreproof
assert coreproof.enable_predict()
import coremltools as ct
from coremltools.converters.mil import Builder as mb
program = mb.program(input_specs=[mb.TensorSpec((2,))])(lambda x: mb.relu(x=x, name="out"))
model = ct.convert(program, convert_to="mlprogram")
print(model.predict({"x": [-1.0, 2.0]})["out"].tolist(), ct.utils._macos_version() >= (15, 0))
"""


def test_before_coremltools_is_imported():
    ended = subprocess.run([sys.executable, "-c", _FIRST], capture_output=True, text=True, check=True)
    assert ended.stdout == "[0.0, 2.0] True\n"
    assert "Failed to load _MLModelProxy" not in ended.stderr


def test_on_a_mac_it_changes_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(sys, "platform", "darwin")
    with caplog.at_level(logging.WARNING, "coreproof"):
        assert coreproof.enable_predict() is False
    assert "changed nothing: this is a Mac" in caplog.text
    assert "coremltools.libcoremlpython" not in sys.modules


def test_another_coremltools_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metadata, "version", lambda name: "9.1")
    with pytest.raises(BackendError, match=r"coremltools 9\.1 is installed.*made for 9\.0"):
        coreproof.enable_predict()
    assert "coremltools.libcoremlpython" not in sys.modules


def test_no_coremltools_is_refused(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(BackendError, match="coremltools is not installed"):
        coreproof.enable_predict()


def test_an_unknown_mode_is_refused():
    with pytest.raises(
        UsageError, match="numeric mode 'fp64' does not exist; choose one of typed, fp32, fp16acc"
    ):
        coreproof.enable_predict("fp64")


def test_again_it_keeps_the_module_and_changes_the_mode(ct: Any):
    from coremltools.converters.mil import Builder as mb

    module = sys.modules["coremltools.libcoremlpython"]
    program = mb.program(input_specs=[mb.TensorSpec((1,))])(
        lambda x: mb.mul(x=mb.mul(x=x, y=x), y=np.float32(0.5), name="out")
    )
    results = []
    for mode in ("fp32", "typed"):
        assert coreproof.enable_predict(mode)
        model = ct.convert(program, convert_to="mlprogram")
        results.append(model.predict({"x": np.array([300.0])})["out"].tolist())
    assert sys.modules["coremltools.libcoremlpython"] is module
    assert results == [[45000.0], [np.inf]]  # 300 * 300 is beyond float16
