"""How well SineGen's sines survive conversion in each state of repair, measured against upstream in float64."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from op_forms import convert
from sinegen import HARMONICS, SCALE, Change, Voiced, contour, correlation, phase_error, phases, source

import coreproof
from coreproof.convert.quiet import coremltools

SINES = ("modulo", "downsampling", "upsampling")
SHORT, LONG = 512, 8192  # frames: 6.4 s and 102.4 s
BOTH_ENDS = (1, HARMONICS)  # harmonics, where all nine would take too much memory
CORNERS: tuple[Change, ...] = (
    ('mode="linear").transpose(1, 2)\n    \n', 'mode="linear", align_corners=True).transpose(1, 2)\n    \n'),
    ('self.upsample_scale, mode="linear")', 'self.upsample_scale, mode="linear", align_corners=True)'),
)
FROM_START: tuple[Change, ...] = (
    ("+ 0.5) / scale", ") / scale"),
    ("[:, scale // 2:-(scale // 2)]", "[:, scale:]"),
)
STEPS_WHOLE: tuple[Change, ...] = (("step - torch.floor(step)", "step"),)
UNWRAPPED: tuple[Change, ...] = (*STEPS_WHOLE, ("            turns = turns - torch.floor(turns)\n", ""))


@dataclass(frozen=True)
class Repair:
    """A state of the source, how it is converted and in which mode it is run. ``precision``: see
    :func:`_precision`."""

    name: str
    parts: tuple[str, ...]
    changes: tuple[Change, ...] = ()
    precision: str = "fp32"
    mode: str = "fp32"
    long: bool = False


@dataclass(frozen=True)
class Measured:
    """Phase errors in radians at the ninth harmonic, ``long`` of 102.4 s; correlation of the worst
    harmonic, voiced samples only. NaN: no such sine came out."""

    phase: float
    correlation: float
    long: float | None = None


def _parts(several: Iterable[str]) -> str:
    return ", ".join(several) or "none"


REPAIRS = (
    *(Repair(_parts(p), p, long=True) for n in range(4) for p in combinations(SINES, n)),
    Repair("modulo; both interpolations with `align_corners=True`", ("modulo",), CORNERS),
    Repair("all, but each frame's phase at its first sample", SINES, FROM_START),
    Repair("all, but steps not wrapped before the sum", SINES, STEPS_WHOLE, long=True),
    Repair("all, but nothing wrapped", SINES, UNWRAPPED, long=True),
    Repair("modulo; fp16 program, `typed`", ("modulo",), (), "fp16", "typed"),
    Repair("all; fp16 program, `typed`", SINES, (), "fp16", "typed"),
    Repair("all; fp16 program, `fp16acc`", SINES, (), "fp16", "fp16acc"),
    Repair("all; fp16 but ops on the nine harmonics, `typed`", SINES, (), "nine", "typed"),
    Repair("all; fp16 but all from F0 to the sines, `typed`", SINES, (), "source", "typed"),
)


def measure(repair: Repair, modules: Path, folder: Path) -> Measured:
    """``modules``: upstream's folder of that name. ``folder``: an empty one to work in."""
    upstream = source(modules, folder / "upstream", ())
    repaired = source(modules, folder / "repaired", repair.parts, repair.changes)
    ours, phase, voiced = _run(repair, upstream, repaired, SHORT, range(1, HARMONICS + 1), folder)
    long = None
    if repair.long:
        far, *reference = _run(repair, upstream, repaired, LONG, BOTH_ENDS, folder)
        long = phase_error(far[:, -1], reference[0][:, -1], reference[1])
    return Measured(phase_error(ours[:, -1], phase[:, -1], voiced), correlation(ours, phase, voiced), long)


def _run(
    repair: Repair, upstream: Any, repaired: Any, frames: int, harmonics: Iterable[int], folder: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sines of the converted program, phases of upstream in float64, which samples are voiced."""
    few = torch.from_numpy(contour(16))  # one trace serves every length
    path = convert(
        Voiced(repaired, harmonics),
        few,
        folder / f"{frames}.mlpackage",
        shape=(1, frames),
        compute_precision=_precision(repair.precision, frames),
    )
    f0 = contour(frames)
    found = coreproof.load(path, mode=repair.mode).predict({"x": f0})["y"][0]
    return found, *phases(upstream, f0, harmonics)


def _precision(name: str, frames: int) -> Any:
    """``fp32``; ``fp16``; ``nine``: fp16 but for ops on a tensor whose last axis is the harmonics';
    ``source``: but for those and the ops that hold F0, by their shapes."""
    ct = coremltools()
    if name in ("fp32", "fp16"):
        return {"fp32": ct.precision.FLOAT32, "fp16": ct.precision.FLOAT16}[name]

    def kept(shape: tuple[int, ...]) -> bool:
        harmonics = len(shape) >= 3 and shape[-1] == HARMONICS
        return harmonics or (name == "source" and not {frames, frames * SCALE}.isdisjoint(shape))

    def to_fp16(op: Any) -> bool:
        operands = [
            v
            for given in op.inputs.values()
            for v in (given if isinstance(given, (list, tuple)) else [given])
        ]
        return not any(kept(tuple(v.shape)) for v in operands if v is not None and v.rank)

    return ct.transform.FP16ComputePrecision(op_selector=to_fp16)
