"""What tests share: the command in this process, small builds to judge, packages to read."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import Cli, Ended, Made

FILTER = Path(__file__).parent / "streaming_fir"


@pytest.fixture(scope="session", autouse=True)
def _session_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that a shared fixture does reaches the user's own caches, or the network."""
    with pytest.MonkeyPatch.context() as patch:
        _move_home(patch, tmp_path_factory.mktemp("home"))
        yield


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts with empty caches."""
    _move_home(monkeypatch, tmp_path_factory.mktemp("home"))


def _move_home(patch: pytest.MonkeyPatch, home: Path) -> None:
    patch.setenv("HOME", str(home))
    patch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    patch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs ``coreproof ARGUMENTS...`` in this process, on lines wide enough not to be folded."""
    from coreproof.cli import console, main

    monkeypatch.setattr(console.out, "width", 500)
    monkeypatch.setenv("COLUMNS", "500")  # for the help pages
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["coreproof", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        streams = capsys.readouterr()
        code = stop.value.code
        return Ended(code if isinstance(code, int) else 0, streams.out, streams.err)

    return run


@pytest.fixture(scope="session")
def shared_filter(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The streaming filter, small and synthetic, in both variants. Do not write into it."""
    return _make(str(FILTER), tmp_path_factory.mktemp("filter"))


@pytest.fixture(scope="session")
def shared_minilm(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """MiniLM, small and synthetic, in both variants. Do not write into it."""
    return _make("minilm", tmp_path_factory.mktemp("minilm"))


@pytest.fixture(scope="session")
def filter_reference(shared_filter: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture of ``shared_filter``'s checkpoint, by scipy."""
    return _reference(shared_filter, tmp_path_factory.mktemp("fixtures"))


@pytest.fixture(scope="session")
def minilm_reference(shared_minilm: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture of ``shared_minilm``'s checkpoint, by transformers and sentence-transformers."""
    return _reference(shared_minilm, tmp_path_factory.mktemp("fixtures"))


@pytest.fixture
def streaming_fir(shared_filter: Made, tmp_path: Path) -> Made:
    """The streaming filter, with a build to change."""
    return replace(shared_filter, build=shutil.copytree(shared_filter.build, tmp_path / "filter-build"))


@pytest.fixture(scope="session")
def _judged_filter(
    shared_filter: Made, filter_reference: Path, tmp_path_factory: pytest.TempPathFactory
) -> Made:
    from coreproof import catalog
    from coreproof.evidence.receipt import write
    from coreproof.validate import validate

    build = tmp_path_factory.mktemp("judged") / "build"
    shutil.copytree(shared_filter.build, build)
    parts = catalog.find(shared_filter.model)
    write(validate(build, parts, fixture=filter_reference), build)
    return replace(shared_filter, build=build)


@pytest.fixture
def judged_filter(_judged_filter: Made, tmp_path: Path) -> Made:
    """The streaming filter with its receipt, in a build to change."""
    return replace(_judged_filter, build=shutil.copytree(_judged_filter.build, tmp_path / "judged-build"))


@pytest.fixture
def minilm(shared_minilm: Made, tmp_path: Path) -> Made:
    """MiniLM, with a build to change."""
    return replace(shared_minilm, build=shutil.copytree(shared_minilm.build, tmp_path / "minilm-build"))


def _make(model: str, folder: Path) -> Made:
    from coreproof import catalog
    from coreproof.convert.export import export, select

    recipe = catalog.find(model).recipe()
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    recipe.synth(checkpoint, "small", 0)
    loaded = recipe.load(checkpoint)
    build = folder / "build"
    export(recipe, checkpoint, loaded, select(recipe, loaded, (), ()), build, lambda *_: None)
    return Made(model, checkpoint, build)


def _reference(made: Made, parent: Path) -> Path:
    from coreproof import catalog
    from coreproof.package.manifest import load_manifest
    from coreproof.parity.fixture import save

    manifest = load_manifest(made.build)
    computed = catalog.find(made.model).compute_reference()(made.checkpoint)
    return save(computed, manifest.model, manifest.checkpoint.sha256, parent)


@pytest.fixture(scope="session")
def sample_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An iOS 18 program with fp32 weights (two equal), packed uint4 ones and a nested block."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    weight = np.arange(24, dtype=np.float32).reshape(4, 6) / 7
    indices = np.arange(24, dtype=np.uint8).reshape(4, 6) % 16
    table = np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 1, 16, 1)

    @mb.program(input_specs=[mb.TensorSpec((1, 6))], opset_version=ct.target.iOS18)
    def program(x):
        first = mb.linear(x=x, weight=weight, name="first")
        second = mb.linear(x=x, weight=weight + 1, name="second")
        third = mb.linear(x=x, weight=weight.copy(), bias=np.ones(4, np.float32), name="third")
        packed = mb.constexpr_lut_to_dense(
            indices=indices.astype(types.np_uint4_dtype), lut=table, name="palettized"
        )
        fourth = mb.linear(x=x, weight=packed, name="fourth")
        total = mb.add(x=mb.add(x=first, y=second), y=mb.add(x=third, y=fourth))
        positive = mb.greater(x=mb.reduce_sum(x=total, axes=[0, 1]), y=0.0)
        return mb.cond(
            pred=positive,
            _true_fn=lambda: mb.identity(x=total),
            _false_fn=lambda: mb.mul(x=total, y=weight[:1, :4] * 2),
            name="out",
        )

    return _convert(program, ct.target.iOS18, tmp_path_factory)


@pytest.fixture(scope="session")
def weightless_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An iOS 17 program without stored weights; its weights folder is empty."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

    @mb.program(input_specs=[mb.TensorSpec((1, 3))], opset_version=ct.target.iOS17)
    def program(x):
        return mb.relu(x=x, name="out")

    return _convert(program, ct.target.iOS17, tmp_path_factory)


def _convert(program: object, target: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import coremltools as ct

    model = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=target,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    path = tmp_path_factory.mktemp("packages") / "sample.mlpackage"
    model.save(str(path))
    return path


@pytest.fixture(scope="session")
def reported_filter(
    shared_filter: Made, filter_reference: Path, tmp_path_factory: pytest.TempPathFactory
) -> Made:
    """The streaming filter with its reference in the recipe folder and a receipt in the build. Do not
    write into it."""
    from coreproof import catalog
    from coreproof.evidence import receipt
    from coreproof.validate import validate

    folder = shutil.copytree(shared_filter.model, tmp_path_factory.mktemp("reported") / "streaming_fir")
    shutil.copytree(filter_reference, folder / "fixtures" / filter_reference.name)
    made = replace(
        shared_filter, model=str(folder), build=shutil.copytree(shared_filter.build, folder.parent / "build")
    )
    receipt.write(validate(made.build, catalog.find(made.model)), made.build)
    return made


@pytest.fixture
def own_reported_filter(reported_filter: Made, tmp_path: Path) -> Made:
    """``reported_filter``, to change."""
    folder = shutil.copytree(reported_filter.model, tmp_path / "own" / "streaming_fir")
    build = shutil.copytree(reported_filter.build, tmp_path / "own" / "build")
    return replace(reported_filter, model=str(folder), build=build)
