"""What coremltools makes of forms a port of StyleTTS2 could use: the MIL ops, and what they compute."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

import coreproof
from coreproof.convert.quiet import coremltools
from coreproof.mil.program import Operation
from coreproof.package.reader import open_package

SCALE = 300
NUMBERS = torch.linspace(-2.3, 3.7, 8).reshape(1, 2, 4)
POSITIVE = NUMBERS.abs() + 0.5
FRAMES = torch.arange(12, dtype=torch.float32).reshape(1, 2, 6).sin()
SAMPLES = FRAMES.repeat_interleave(SCALE, dim=2)


def _add_to_first(x: torch.Tensor) -> torch.Tensor:
    x = x * 1.0
    x[:, 0] = x[:, 0] + 1.0
    return x


def _linear(scale: float, **more: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: interpolate(x, scale_factor=scale, mode="linear", **more)


# The form as written, what computes it, on what.
FORMS: tuple[tuple[str, Callable[[torch.Tensor], torch.Tensor], torch.Tensor], ...] = (
    ("`x % 1`", lambda x: x % 1, NUMBERS),
    ("`x % 1.0`", lambda x: x % 1.0, NUMBERS),
    ("`torch.remainder(x, 1.0)`", lambda x: torch.remainder(x, 1.0), NUMBERS),
    ("`x % 2`", lambda x: x % 2, NUMBERS),
    ("`x % y`", lambda x: x % x.abs(), NUMBERS),
    ("`torch.fmod(x, 1.0)`", lambda x: torch.fmod(x, 1.0), NUMBERS),
    ("`x.frac()`", lambda x: x.frac(), NUMBERS),
    ("`x - torch.floor(x)`", lambda x: x - torch.floor(x), NUMBERS),
    ("`1 / x`", lambda x: 1 / x, POSITIVE),
    ("`torch.reciprocal(x)`", lambda x: torch.reciprocal(x), POSITIVE),
    ("`x ** -1.0`", lambda x: x**-1.0, POSITIVE),
    ("`y / x`", lambda x: x.sin() / x, POSITIVE),
    ("linear, `scale_factor=1/300`", _linear(1 / SCALE), SAMPLES),
    ("linear, `scale_factor=300`", _linear(SCALE), FRAMES),
    ("linear, `1/300`, `align_corners=True`", _linear(1 / SCALE, align_corners=True), SAMPLES),
    ("linear, `300`, `align_corners=True`", _linear(SCALE, align_corners=True), FRAMES),
    ("linear, `size=1800`", lambda x: interpolate(x, size=6 * SCALE, mode="linear"), FRAMES),
    ("nearest, `scale_factor=300`", lambda x: interpolate(x, scale_factor=SCALE), FRAMES),
    ("`x[:, :, 150::300]`", lambda x: x[:, :, 150::SCALE], SAMPLES),
    ("`torch.multiply(x, y)`", lambda x: torch.multiply(x, x), NUMBERS),
    ("`x * y`", lambda x: x * x.sin(), NUMBERS),
    ("`torch.cumsum(x, dim=1)`", lambda x: torch.cumsum(x, dim=1), NUMBERS),
    ("`x[:, 0] = x[:, 0] + 1`", _add_to_first, NUMBERS),
    ("`torch.rand(...)`", lambda x: x + torch.rand(1, 2, 4), NUMBERS),
    ("`torch.randn_like(x)`", lambda x: x + torch.randn_like(x), NUMBERS),
    ("`torch.einsum('...n,d->...nd', x, y)`", lambda x: torch.einsum("...n,d->...nd", x, x[0, 0]), NUMBERS),
)  # fmt: skip
Row = tuple[str, str, str]


class _Module(torch.nn.Module):
    def __init__(self, form: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.form(x)


@contextmanager
def quiet() -> Iterator[None]:
    """Without coremltools' and torch's words; what matters is in the exception or the program."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def convert(module: torch.nn.Module, example: torch.Tensor, path: Path, **options: Any) -> Path:
    """One input ``x`` and one output ``y``, both float32; fp32 unless said otherwise. ``path``: the
    package to write. ``shape`` is the input's, if it is not the example's."""
    shape = options.pop("shape", tuple(example.shape))
    ct = coremltools()
    with quiet():
        traced = torch.jit.trace(module.eval(), example, check_trace=False)
        converted = ct.convert(
            traced,
            inputs=[ct.TensorType("x", shape, dtype=np.float32)],
            outputs=[ct.TensorType("y", dtype=np.float32)],
            minimum_deployment_target=ct.target.iOS17,
            skip_model_load=True,
            **{"compute_precision": ct.precision.FLOAT32, **options},
        )
        converted.save(str(path))
    return path


def operations(path: Path) -> list[Operation]:
    """What a package computes, constants left out."""
    block = open_package(path).program.functions["main"].block
    return [operation for operation in block.walk() if operation.type != "const"]


def row(name: str, form: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, folder: Path) -> Row:
    """The form, the ops it becomes, and how far its result is from torch's."""
    try:
        # Within a module of its own, as in a model: torch.jit rewrites only the outermost graph's aliases.
        path = convert(torch.nn.Sequential(_Module(form)), x, folder / "form.mlpackage")
    except Exception as error:
        return name, f"`{type(error).__name__}: {str(error).splitlines()[0]}`", "does not convert"
    types = [operation.type for operation in operations(path)]
    counted = ((key, len(list(group))) for key, group in groupby(types))
    ops = ", ".join(f"{key} x {count}" if count > 1 else key for key, count in counted)
    if any(t.startswith("random_") for t in types):
        return name, ops, "drawn anew at each prediction"
    found = coreproof.load(path, mode="fp32").predict({"x": x.numpy()})["y"]
    return name, ops, _verdict(found, form(x).numpy())


def _verdict(found: np.ndarray, expected: np.ndarray) -> str:
    if found.shape != expected.shape:
        return f"wrong shape {found.shape}"
    if not np.isfinite(found).all():
        return "not finite"
    error = float(np.abs(found - expected).max())
    return "right" if error < 1e-6 else f"off by {error:.1g}"
