"""SineGen of StyleTTS2: upstream's source in any state of repair, converted, run and held to float64."""

from __future__ import annotations

import importlib
import itertools
import re
import shutil
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from upstream import REPOSITORY, apply

DIFF = REPOSITORY / "patches/styletts2/sinegen.diff"
PARTS = ("modulo", "downsampling", "upsampling", "multiply")  # of a file, in the diff's order
RATE, SCALE, HARMONICS = 24000, 300, 9
Change = tuple[str, str]
_names = (f"styletts2_source_{n}" for n in itertools.count())


def hunks(file: str) -> Mapping[str, str]:
    """The diff's parts for one file, each a diff of its own."""
    (section,) = re.findall(rf"^--- a/Modules/{file}\.py\n.*?(?=^--- |\Z)", DIFF.read_text(), re.M | re.S)
    head, *parts = re.split(r"^(?=@@ )", section, flags=re.M)
    return {name: head + part for name, part in zip(PARTS, parts, strict=True)}


def source(modules: Path, folder: Path, parts: Iterable[str], changes: Iterable[Change] = ()) -> Any:
    """hifigan.py of the folder ``modules``, copied into ``folder``, with parts of the diff applied and
    texts replaced: the module."""
    shutil.copytree(modules, folder / "Modules")
    for part in parts:
        apply(hunks("hifigan")[part], folder, whole=False)
    path = folder / "Modules/hifigan.py"
    text = path.read_text()
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path.write_text(text)
    return load(folder / "Modules", "hifigan")


def load(modules: Path, file: str) -> Any:
    """A module of upstream's package ``Modules`` that knows nothing of others loaded before."""
    package = types.ModuleType(next(_names))
    package.__path__ = [str(modules)]
    sys.modules[package.__name__] = package
    return importlib.import_module(f"{package.__name__}.{file}")


class Voiced(torch.nn.Module):
    """The harmonics of F0, 0 where it is not voiced, without the noise that SineGen adds.

    F0 (1, frames) in Hz -> (1, 300 * frames, harmonics).
    """

    def __init__(self, module: Any, harmonics: Iterable[int] = range(1, HARMONICS + 1)) -> None:
        super().__init__()
        self.hold = torch.nn.Upsample(scale_factor=SCALE)
        self.generator = module.SineGen(RATE, SCALE, HARMONICS - 1, voiced_threshold=10)
        self.harmonics = torch.tensor([[list(harmonics)]], dtype=torch.float32)

    def forward(self, f0: torch.Tensor) -> torch.Tensor:
        f0 = self.hold(f0[:, None]).transpose(1, 2)
        return self.generator._f02sine(f0 * self.harmonics) * self.generator._f02uv(f0)


def contour(frames: int) -> np.ndarray:
    """F0 (1, frames), float32: glides from 80 to 350 Hz, about two thirds voiced; between them what a
    network puts out for silence, a few Hz about zero."""
    time = np.arange(frames) / 80
    f0 = 215 + 120 * np.sin(2 * np.pi * 0.31 * time) + 15 * np.sin(2 * np.pi * 2.3 * time)
    silent = np.sin(2 * np.pi * 0.9 * time) < -0.5
    return np.where(silent, 3 * np.cos(time * 40), f0).astype(np.float32)[None]


def phases(module: Any, f0: np.ndarray, harmonics: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
    """Upstream's own phase in float64, radians (samples, harmonics), and which samples are voiced."""
    kept = []
    sine: Callable[[torch.Tensor], torch.Tensor] = torch.sin
    with mock.patch.object(torch, "sin", lambda phase: kept.append(phase) or sine(phase)), torch.no_grad():
        voiced = Voiced(module, harmonics)(torch.from_numpy(f0).double())
    (phase,) = kept
    assert phase.dtype == voiced.dtype == torch.float64
    return phase[0].numpy(), np.repeat(f0[0] > 10, SCALE)


def phase_error(sines: np.ndarray, phase: np.ndarray, voiced: np.ndarray) -> float:
    """Largest error of the phase of ``sines`` (samples,), radians: fitted a frame, voiced frames only. NaN
    where a frame holds no sine of about that amplitude and frequency."""
    frames = voiced.reshape(-1, SCALE)[:, 0]
    x = sines.reshape(-1, SCALE)[frames].astype(np.float64)
    angle = phase.reshape(-1, SCALE)[frames]
    if not np.isfinite(x).all():
        return float("nan")
    basis = np.stack([np.sin(angle), np.cos(angle)], axis=-1)
    fits = np.array([np.linalg.lstsq(b, y, rcond=None)[0] for b, y in zip(basis, x, strict=True)])
    if np.hypot(*fits.T).min() < 0.5:
        return float("nan")
    return float(np.abs(np.arctan2(fits[:, 1], fits[:, 0])).max())


def correlation(sines: np.ndarray, phase: np.ndarray, voiced: np.ndarray) -> float:
    """The least correlation of a harmonic with upstream's, over voiced samples; NaN when there is none."""
    ours, theirs = sines[voiced].astype(np.float64), np.sin(phase[voiced])
    if not np.isfinite(ours).all():
        return float("nan")
    norms = np.linalg.norm(ours, axis=0) * np.linalg.norm(theirs, axis=0)
    with np.errstate(invalid="ignore"):
        return float(np.min((ours * theirs).sum(axis=0) / norms))
