"""Decoders whose stream leaves the range of fp16, against what the official code makes of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from loud_decoders import FIXTURES, FRAMES, SEED

from coreproof import catalog
from coreproof.audio.stft import InverseStft
from coreproof.backends import Target, create
from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.convert import convert_stage
from coreproof.package.manifest import checkpoint_digest
from coreproof.parity.comparison import Judgement, compare_case, judge
from coreproof.parity.fixture import find
from coreproof.parity.gates import load_gates
from coreproof.parity.metrics import METRICS
from coreproof.parity.suite import Outcome
from coreproof_exporters.mrt2 import checkpoint, codec, contract, modules, recipe, synth
from coreproof_exporters.mrt2.architecture import LOOKAHEAD_ROWS, STFT_STEP
from coreproof_validation import mrt2 as suite
from coreproof_validation.mrt2_controls import CONTROLS


@dataclass(frozen=True)
class Loud:
    """A checkpoint, the stage with as many frames as are on record, and those."""

    checkpoint: Checkpoint
    stage: str
    embeddings: np.ndarray
    rows: np.ndarray


@pytest.fixture(autouse=True)
def _no_gradients() -> None:
    torch.set_grad_enabled(False)


@pytest.fixture(scope="module", params=FRAMES)
def loud(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loud:
    folder = tmp_path_factory.mktemp("loud")
    synth.synth(folder, request.param, SEED)
    own = checkpoint.load(folder)
    fixture = find([FIXTURES], "mrt2", checkpoint_digest(own.files))
    assert fixture is not None, "python tests/exporters/loud_decoders.py"
    given, rows = (fixture.arrays[name][np.newaxis] for name in ("decoder_embeddings", "decoder_stft"))
    return Loud(own, f"spectrostream_decoder_{FRAMES[request.param]}", given, rows)


def decoded(loud: Loud, folder: Path, *, plain: bool) -> tuple[np.ndarray, Judgement]:
    """What the fp16 package gives, and the shipping gates' judgement of it against the official rows."""
    stage = next(s for s in recipe.stages(loud.checkpoint, "fp16") if s.name == loud.stage)
    undivided = next(c for c in CONTROLS if c.name == "undivided").stage
    assert undivided is not None
    stage = undivided(stage, loud.checkpoint) if plain else stage
    package = convert_stage(stage, loud.checkpoint, folder / "decoder.mlpackage", lambda *_: None)
    runner = create("mil")
    runner.load(Target(package.path, "typed"))
    step = {"decoder_embeddings": loud.embeddings}
    audio = InverseStft(STFT_STEP, 2)(loud.rows[0])
    case = suite.Decoding("loud", loud.stage, (step,), {"decoder_stft": loud.rows}, audio=audio)
    outcome = Outcome(case, runner.predict(step, None))
    outputs: Mapping[str, tuple[tuple[int, ...], str]] = {"decoder_stft": (loud.rows.shape, "float32")}
    gates = load_gates(catalog.find("mrt2").gates)
    found = judge([compare_case(outcome, outputs)], suite.aggregates([outcome]), gates, loud.stage, "fp16")
    return outcome.actual["decoder_stft"], found


def embeddings(checkpoint: Checkpoint, frames: int) -> np.ndarray:
    books, levels = checkpoint.tensors["codebooks"], checkpoint.config["levels"]
    codes = np.random.default_rng(3).integers(0, checkpoint.config["codes"], (frames, levels))
    total: np.ndarray = sum(books[level][codes[:, level]] for level in range(levels))
    return total[np.newaxis]


def test_the_stream_leaves_the_range_and_the_module_in_fp32_is_the_official_one(loud: Loud) -> None:
    assert max(modules.peaks(loud.checkpoint)[:-1]) > 1.5 * modules.HALF_MAX
    made = modules.decoder(loud.checkpoint)(torch.from_numpy(loud.embeddings)).numpy()
    assert METRICS["snr_db"].fn(made, loud.rows) >= 110


def test_plain_fp16_is_rejected_however_good_what_is_finite_looks(loud: Loud, tmp_path: Path) -> None:
    made, judgement = decoded(loud, tmp_path, plain=True)
    finite = np.isfinite(made)
    assert 0 < finite.mean() < 1
    assert np.corrcoef(made[finite], loud.rows[finite])[0, 1] > 0.999
    assert not judgement.passed
    assert ("decoder_stft", "finite_ratio") in {
        (v.name, v.metric) for v in judgement.verdicts if not v.passed
    }


def test_the_divided_stream_passes_the_gates(loud: Loud, tmp_path: Path) -> None:
    made, judgement = decoded(loud, tmp_path, plain=False)
    assert judgement.passed, [v.detail for v in judgement.verdicts]
    assert np.isfinite(made).all()
    assert METRICS["snr_db"].fn(made, loud.rows) >= 56


@pytest.mark.parametrize("chunk", [1, 5, 25])
def test_streaming_is_decoding_the_whole(loud: Loud, chunk: int) -> None:
    own = loud.checkpoint
    given = torch.from_numpy(embeddings(own, 200))
    for build, kind in ((modules.decoder, codec.Decoder), (modules.rescaled_decoder, codec.Decoder)):
        whole = build(own, kind)(given)[0]
        module = build(own, codec.StreamingDecoder)
        memory, rows = [torch.zeros(shape) for shape in contract.carried(own.config).values()], []
        for start in range(0, 200, chunk):
            made, *memory = module(given[:, start : start + chunk], *memory)
            rows.append(made[0])
        streamed = torch.cat(rows)[LOOKAHEAD_ROWS:]
        assert float((streamed - whole).abs().max() / whole.abs().max()) <= 1e-4
