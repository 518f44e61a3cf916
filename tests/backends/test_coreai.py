"""Core AI as a second opinion: Apple's own wheels where they are installed, a stand-in where not.

The stand-in knows their interface and nothing of models: it tests what we hand over and how we answer.
"""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from support import Made

from coreproof import catalog
from coreproof.backends import Target, available, coreai, create
from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.recipe import Stage
from coreproof.errors import BackendError, InputError

REAL = available()["coreai"] is None
CHUNK = np.linspace(-1, 1, 320, dtype=np.float32).reshape(1, 1, 320)


def parts(made: Made) -> tuple[Stage, Checkpoint]:
    recipe = catalog.find(made.model).recipe()
    checkpoint = recipe.load(made.checkpoint)
    (stage,) = recipe.stages(checkpoint, "fp32")
    return stage, checkpoint


class Array:
    """``coreai.runtime.NDArray``: what it was made of, by ``numpy()``."""

    def __init__(self, data: np.ndarray) -> None:
        assert data.flags.c_contiguous
        self.data = data

    def numpy(self) -> np.ndarray:
        return self.data


class Converter:
    """``coreai_torch.TorchConverter``, which here runs the exported program by torch."""

    Mode = SimpleNamespace(RELEASE="release")
    made: ClassVar[list[Any]] = []

    def __init__(self, *, mode: str) -> None:
        assert mode == "release"

    def add_exported_program(self, exported: Any, **names: Any) -> Converter:
        self.exported, self.names = exported, names
        Converter.made.append(self)
        return self

    def to_coreai(self) -> Converter:
        return self

    def save_asset(self, path: Path) -> Converter:
        assert path.suffix == ".aimodel" and path.parent.is_dir()
        print("a bar")
        return self

    @asynccontextmanager
    async def executable(self) -> Any:
        yield self
        self.closed = True

    def load_function(self, name: str) -> Any:
        assert name == "main"
        module = self.exported.module()

        async def function(inputs: dict[str, Array], state: dict[str, Array]) -> dict[str, Array]:
            if any(np.isnan(a.data).any() for a in inputs.values() if a.data.dtype.kind == "f"):
                raise RuntimeError("no such number")
            buffers = dict(module.named_buffers())
            with torch.no_grad():
                for name, array in state.items():
                    buffers[name].copy_(torch.from_numpy(array.data))
                results = module(*(torch.from_numpy(inputs[n].data) for n in self.names["input_names"]))
                for name, array in state.items():
                    array.data[...] = buffers[name].numpy()
            results = results if isinstance(results, tuple) else (results,)
            return {n: Array(r.numpy()) for n, r in zip(self.names["output_names"], results, strict=True)}

        return function


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[Converter]:
    converter, runtime, top = ModuleType("coreai_torch"), ModuleType("coreai.runtime"), ModuleType("coreai")
    converter.TorchConverter, converter.get_decomp_table = Converter, dict  # type: ignore[attr-defined]
    runtime.NDArray = Array  # type: ignore[attr-defined]
    for module in (converter, runtime, top):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(coreai, "absent", lambda: None)
    monkeypatch.setattr(Converter, "made", [])
    return Converter


@pytest.fixture(
    params=["stand-in", pytest.param("real", marks=[] if REAL else pytest.mark.skip("not installed"))]
)
def core_ai(request: pytest.FixtureRequest) -> str:
    if request.param == "stand-in":
        request.getfixturevalue("stand_in")
    return str(request.param)


def test_a_stream_as_torch_computes_it(core_ai: str, shared_filter: Made, capfd: Any) -> None:
    """Two streams of two chunks each, interleaved."""
    stage, checkpoint = parts(shared_filter)
    target = Target(Path("unused"), "fp32", None, stage, checkpoint)
    ours, theirs = create("coreai"), create("torch")
    ours.load(target)
    theirs.load(target)
    states = [(ours.make_state(), theirs.make_state()) for _ in range(2)]
    for chunk in (CHUNK, CHUNK[..., ::-1]):
        for sign, (mine, yours) in zip((1, -1), states, strict=True):
            found = ours.predict({"audio": sign * chunk}, mine)["filtered"]
            expected = theirs.predict({"audio": sign * chunk}, yours)["filtered"]
            assert (found.dtype, found.shape) == (np.float32, (1, 1, 320))
            np.testing.assert_allclose(found, expected, atol=5e-6)
            assert np.abs(expected).max() > 0.5
    ours.close()
    assert capfd.readouterr() == ("", "")
    with pytest.raises(BackendError, match="has no stage loaded"):
        ours.make_state()


def test_a_stateless_stage(core_ai: str, shared_minilm: Made) -> None:
    stage, checkpoint = parts(shared_minilm)
    ones = np.ones((1, 128), np.int32)
    found = []
    for name in ("coreai", "torch"):
        runner = create(name)
        runner.load(Target(Path("unused"), "fp32", None, stage, checkpoint))
        assert runner.make_state() is None
        found.append(runner.predict({"input_ids": ones, "attention_mask": ones})["embedding"])
        runner.close()
    np.testing.assert_allclose(*found, atol=1e-5)


def test_what_it_is_not_given(core_ai: str, shared_filter: Made) -> None:
    stage, checkpoint = parts(shared_filter)
    runner = create("coreai")
    with pytest.raises(BackendError, match="it needs --checkpoint"):
        runner.load(Target(shared_filter.package("fp32")))
    runner.load(Target(Path("unused"), "fp32", None, stage, checkpoint))
    with pytest.raises(InputError, match="missing input 'audio'"):
        runner.predict({}, runner.make_state())
    with pytest.raises(InputError, match="is stateful: pass state=make_state"):
        runner.predict({"audio": CHUNK})
    runner.close()


def test_the_stand_in_gets_names_and_gives_errors(stand_in: type[Converter], shared_filter: Made) -> None:
    stage, checkpoint = parts(shared_filter)
    runner = create("coreai")
    runner.load(Target(Path("unused"), "fp32", None, stage, checkpoint))
    (made,) = stand_in.made
    assert made.names == {"input_names": ["audio"], "output_names": ["filtered"], "state_names": ["history"]}
    with pytest.raises(BackendError, match="Core AI could not predict: no such number"):
        runner.predict({"audio": CHUNK * np.nan}, runner.make_state())
    runner.close()
    assert made.closed


def test_a_stage_it_cannot_take(core_ai: str, shared_filter: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it raises becomes one error that names the stage; nothing is left open."""
    stage, checkpoint = parts(shared_filter)

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("no lowering of aten.unheard_of\nand much more")

    monkeypatch.setattr(torch.export, "export", refuse)
    runner = create("coreai")
    with pytest.raises(BackendError) as caught:
        runner.load(Target(Path("unused"), "fp32", None, stage, checkpoint))
    assert str(caught.value) == (
        "Core AI could not take stage 'filter': ValueError: no lowering of aten.unheard_of"
    )
    with pytest.raises(BackendError, match="has no stage loaded"):
        runner.make_state()


def test_absent_it_is_listed_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coreai, "installed", lambda name: None)
    reason = "Apple's coreai-core and coreai-torch (beta) is not installed: pip install 'coreproof[coreai]'"
    assert available()["coreai"] == reason
    with pytest.raises(BackendError, match="backend 'coreai' is absent here: Apple's coreai-core and"):
        create("coreai")
