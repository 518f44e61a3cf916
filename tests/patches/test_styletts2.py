"""patches/styletts2 on the sources it is for: what plain conversion does, what each part of the diff does."""

from __future__ import annotations

import hashlib
import inspect
import math
import shutil
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pages
import pytest
import torch
from op_forms import FORMS, convert, operations, row
from repairs import LONG, REPAIRS, Measured, measure
from sinegen import (
    DIFF,
    HARMONICS,
    PARTS,
    RATE,
    SCALE,
    Voiced,
    contour,
    correlation,
    load,
    phase_error,
    phases,
    source,
)
from upstream import apply, unpack

from coreproof.lint import lint
from coreproof.package.reader import open_package

VERSIONS = ("0.1.3", "0.1.4", "0.1.5", "0.1.6")
# Of yl4579/StyleTTS2 at 5cedc71c333f: the same files.
PUBLISHED = {
    "hifigan": "1ce902afae4882c9dfb9f8a85141eeb4ae3e6de7002ae9212efb484a68d00ad7",
    "istftnet": "22ad68ea744fc6ba6035948f90fefc18c42f9bc26324dd7ab23df6e2231e1512",
}
FIGURES = pages.figures()


class Whole(torch.nn.Module):
    """All of SineGen, its noise too."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.generator = module.SineGen(RATE, SCALE, HARMONICS - 1, voiced_threshold=10)

    def forward(self, f0: torch.Tensor) -> torch.Tensor:
        return self.generator(f0)[0]


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack("styletts2", VERSIONS[-1], tmp_path_factory.mktemp("styletts2")) / "src/styletts2/Modules"


@pytest.mark.parametrize("version", VERSIONS)
def test_the_diff_applies_to_every_release(version, tmp_path):
    folder = unpack("styletts2", version, tmp_path) / "src/styletts2"
    for name, sha256 in PUBLISHED.items():
        found = (folder / f"Modules/{name}.py").read_bytes()
        assert hashlib.sha256(found).hexdigest() == sha256
    apply(DIFF, folder)
    patched = [load(folder / "Modules", name) for name in PUBLISHED]
    sources = [inspect.getsource(module.SineGen._f02sine) for module in patched]
    assert sources[0] == sources[1]
    with pytest.raises(AssertionError, match="previously applied"):
        apply(DIFF, folder)


def test_parts_of_the_diff_make_the_whole(modules, tmp_path):
    by_parts = source(modules, tmp_path / "parts", PARTS)
    shutil.copytree(modules, tmp_path / "whole/Modules")
    apply(DIFF, tmp_path / "whole")
    assert (tmp_path / "whole/Modules/hifigan.py").read_text() == Path(by_parts.__file__).read_text()


def test_torch_computes_the_same_sines_patched(modules, tmp_path):
    """In float64, where neither the order of sums nor whole turns matter; below 0 Hz too."""
    f0 = contour(800)
    assert f0.min() < -1
    voiced = float((f0 > 10).mean())
    assert 0.3 < voiced < 0.8
    before = Voiced(source(modules, tmp_path / "before", ()))
    after = Voiced(source(modules, tmp_path / "after", PARTS))
    with torch.no_grad():
        expected, found = (module(torch.from_numpy(f0).double()) for module in (before, after))
    assert found.dtype == torch.float64
    assert (found - expected).abs().max() < 1e-8


def test_the_random_phase_never_reached_the_sines(modules, tmp_path):
    module = source(modules, tmp_path, ())
    f0 = torch.from_numpy(contour(80))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = Voiced(module)(f0)
        torch.manual_seed(2)
        assert torch.equal(first, Voiced(module)(f0))


def test_pulse_mode_is_as_it_was(modules, tmp_path):
    pulses = []
    for name, parts in (("before", ()), ("after", PARTS)):
        module = source(modules, tmp_path / name, parts)
        generator = module.SineGen(RATE, SCALE, HARMONICS - 1, flag_for_pulse=True)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            pulses.append(generator._f02sine(torch.full((1, 900, HARMONICS), 120.0)))
    assert torch.equal(*pulses)


def test_plain_conversion_of_the_modulo(modules, tmp_path):
    """coremltools 9.0 removes a division by 1 under a floor. Where it no longer does, README.md's table
    is to be made again, and hunk 1 is a matter of taste."""
    path = convert(
        Voiced(source(modules, tmp_path / "source", ())),
        torch.from_numpy(contour(16)),
        tmp_path / "v.mlpackage",
    )
    selves = [f for f in lint(open_package(path).program) if f.check == "identical-operands"]
    if not selves:
        assert ct.__version__ != "9.0"
        _, _, verdict = row("`x % 1`", lambda x: x % 1, FORMS[0][2], tmp_path)
        assert verdict == "right", "x % 1 is neither x - x nor right"


def test_lint_knows_the_sum_in_fp16(modules, tmp_path):
    """Wrapped or not: the patched source in an fp16 program still adds its phase up in fp16."""
    module, few = Voiced(source(modules, tmp_path / "source", PARTS)), torch.from_numpy(contour(16))
    for precision, expected in (
        (ct.precision.FLOAT16, {"half-precision-phase"}),
        (ct.precision.FLOAT32, set()),
    ):
        path = convert(module, few, tmp_path / f"{precision.value}.mlpackage", compute_precision=precision)
        assert {f.check for f in lint(open_package(path).program)} == expected


def test_all_of_sinegen_converts_only_without_torch_multiply(modules, tmp_path):
    f0 = torch.full((1, 4 * SCALE, 1), 120.0)
    without = source(modules, tmp_path / "without", set(PARTS) - {"multiply"})
    with pytest.raises(NotImplementedError, match="'multiply' not implemented"):
        convert(Whole(without), f0, tmp_path / "without.mlpackage")
    path = convert(Whole(source(modules, tmp_path / "all", PARTS)), f0, tmp_path / "all.mlpackage")
    types = {operation.type for operation in operations(path)}
    assert {t for t in types if t.startswith("random_")} == {"random_normal"}
    assert not types & {"scatter", "upsample_bilinear"}


@pytest.mark.parametrize("repair", REPAIRS, ids=lambda r: r.name)
def test_repairs_measure_as_written(repair, modules, tmp_path):
    """Figures within a factor of two: sums and sines differ a little from one processor to the next."""
    measured, written = measure(repair, modules, tmp_path), FIGURES[repair.name]
    for field in ("phase", "long"):
        found, expected = getattr(measured, field), getattr(written, field)
        assert (found is None) == (expected is None)
        if found is not None:
            assert math.isnan(found) == math.isnan(expected)
            assert math.isnan(found) or expected / 2 < found < expected * 2
    assert math.isnan(measured.correlation) == math.isnan(written.correlation)
    if not math.isnan(measured.correlation):
        assert abs(measured.correlation - written.correlation) < 0.05 * (1 - written.correlation) + 1e-6


def test_the_whole_diff_is_exact_and_its_parts_are_as_needed_as_it_says():
    def of(*parts: str) -> Measured:
        return FIGURES[", ".join(parts) or "none"]

    whole = of("modulo", "downsampling", "upsampling")
    assert whole.long is not None and whole.long < 0.05
    assert whole.correlation > 0.999999
    for parts in ((), ("downsampling",), ("upsampling",), ("downsampling", "upsampling")):
        assert math.isnan(of(*parts).phase), "the modulo is needed whatever else is done"
    assert of("modulo", "downsampling") == of("modulo"), "downsampling is not needed"
    assert of("modulo", "upsampling") == whole
    lone = of("modulo")
    assert lone.long is not None and lone.long > 0.1 > lone.phase, "upsampling is needed for long audio"


def test_upstream_in_fp32_drifts_from_its_own_float64(modules, tmp_path):
    module, f0, ends = source(modules, tmp_path, ()), contour(LONG), (1, HARMONICS)
    phase, voiced = phases(module, f0, ends)
    assert 3e6 < phase.max() < 4e6
    with torch.no_grad():
        sines = Voiced(module, ends)(torch.from_numpy(f0))[0].numpy()
    assert 0.2 < phase_error(sines[:, -1], phase[:, -1], voiced) < 0.9


def test_the_measure_sees_a_small_error_and_a_missing_sine(modules, tmp_path):
    phase, voiced = phases(source(modules, tmp_path, ()), contour(160), range(1, HARMONICS + 1))
    assert phase_error(np.sin(phase[:, -1]), phase[:, -1], voiced) < 1e-9
    assert phase_error(np.sin(phase[:, -1] + 0.01), phase[:, -1], voiced) == pytest.approx(0.01, rel=0.02)
    assert math.isnan(phase_error(0 * phase[:, -1], phase[:, -1], voiced))
    assert math.isnan(correlation(0 * phase, phase, voiced))
    assert correlation(np.sin(phase), phase, voiced) == pytest.approx(1)


def test_the_readme_lists_op_forms_as_coremltools_converts_them(tmp_path):
    rows = []
    for number, form in enumerate(FORMS):
        (tmp_path / str(number)).mkdir()
        rows.append(row(*form, tmp_path / str(number)))
    assert pages.op_forms(rows) in pages.PAGE.read_text(), "run python tests/patches/pages.py"
