"""A decoder whose stream leaves the range of fp16: a plain random one with the gains of its tail raised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from coreproof import catalog
from coreproof.audio.stft import InverseStft
from coreproof.backends import Target, create
from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.convert import convert_stage
from coreproof.parity.comparison import Judgement, compare_case, judge
from coreproof.parity.gates import load_gates
from coreproof.parity.metrics import METRICS
from coreproof.parity.suite import Outcome
from coreproof_exporters.mrt2 import codec, contract, modules, recipe
from coreproof_exporters.mrt2.architecture import LOOKAHEAD_ROWS, STFT_STEP
from coreproof_exporters.mrt2.naming import STREAM_SCALE
from coreproof_validation import mrt2 as suite
from coreproof_validation.mrt2_controls import CONTROLS

STAGE = "spectrostream_decoder_25"
# Factors of the kernels of blocks 3, 4 and 5. With the first, the stream peaks near 6e5 and the output near
# 3e3, and hardly a number of plain fp16 is finite; with the second, about half are.
GAINS = ((7.0, 10.0, 20.0), (9.0, 9.0, 9.0))
BIAS_GAIN, LATE_GAIN, LAST_GAIN = 50.0, 0.15, 0.05


@pytest.fixture(autouse=True)
def _no_gradients() -> None:
    torch.set_grad_enabled(False)


def raised(checkpoint: Checkpoint, gains: tuple[float, ...]) -> Checkpoint:
    """The checkpoint with a drawn decoder: kernels of deviation 1 / sqrt(inputs), biases 0.02, then
    the gains."""
    generator, tensors = np.random.default_rng(11), dict(checkpoint.tensors)
    for name, old in checkpoint.tensors.items():
        if name.startswith("codec."):
            block = int(name.split(".")[2]) if ".blocks." in name else None
            new = generator.standard_normal(old.shape) * _spread(name, old.shape, block, gains)
            tensors[name] = new.astype(np.float32)
            if name.endswith("bias"):
                tensors[f"scaled.{name}"] = tensors[name] / np.float32(STREAM_SCALE)
    return replace(checkpoint, tensors=tensors)


def _spread(name: str, shape: tuple[int, ...], block: int | None, gains: tuple[float, ...]) -> float:
    loud = block in (3, 4, 5)
    if name.endswith("bias"):
        return 0.02 * (BIAS_GAIN if loud else 1.0)
    inputs = shape[0 if "transposed" in name else 1] * int(np.prod(shape[2:]))
    gain = gains[block - 3] if loud and block is not None else {6: LATE_GAIN}.get(block or 0, 1.0)
    return float((LAST_GAIN if name.startswith("codec.last") else gain) / np.sqrt(inputs))


def embeddings(checkpoint: Checkpoint, frames: int) -> np.ndarray:
    books, levels = checkpoint.tensors["codebooks"], checkpoint.config["levels"]
    codes = np.random.default_rng(3).integers(0, checkpoint.config["codes"], (frames, levels))
    total: np.ndarray = sum(books[level][codes[:, level]] for level in range(levels))
    return total[np.newaxis]


@pytest.fixture(params=GAINS, ids=["hardly finite", "half finite"])
def loud(request: pytest.FixtureRequest, mrt2_loaded: Checkpoint) -> Checkpoint:
    own = raised(mrt2_loaded, request.param)
    assert max(modules.peaks(own)[:-1]) > 2 * modules.HALF_MAX
    return own


def decoded(loud: Checkpoint, folder: Path, *, plain: bool) -> tuple[np.ndarray, np.ndarray, Judgement]:
    """What the fp16 package gives, what the float32 module does, and the shipping gates' judgement of it."""
    stage = next(s for s in recipe.stages(loud, "fp16") if s.name == STAGE)
    undivided = next(c for c in CONTROLS if c.name == "undivided").stage
    assert undivided is not None
    stage = undivided(stage, loud) if plain else stage
    package = convert_stage(stage, loud, folder / "decoder.mlpackage", lambda *_: None)
    runner = create("mil")
    runner.load(Target(package.path, "typed"))
    step = {"decoder_embeddings": embeddings(loud, 25)}
    exact = modules.decoder(loud)(torch.from_numpy(step["decoder_embeddings"])).numpy()
    case = suite.Decoding(
        "loud", STAGE, (step,), {"decoder_stft": exact}, audio=InverseStft(STFT_STEP, 2)(exact[0])
    )
    outcome = Outcome(case, runner.predict(step, None))
    outputs: Mapping[str, tuple[tuple[int, ...], str]] = {"decoder_stft": (exact.shape, "float32")}
    gates = load_gates(catalog.find("mrt2").gates)
    found = judge([compare_case(outcome, outputs)], suite.aggregates([outcome]), gates, STAGE, "fp16")
    return outcome.actual["decoder_stft"], exact, found


def test_plain_fp16_is_rejected_however_good_what_is_finite_looks(loud: Checkpoint, tmp_path: Path) -> None:
    made, exact, judgement = decoded(loud, tmp_path, plain=True)
    finite = np.isfinite(made)
    assert 0 < finite.mean() < 0.9
    assert np.corrcoef(made[finite], exact[finite])[0, 1] > 0.999
    assert not judgement.passed
    assert ("decoder_stft", "finite_ratio") in {
        (v.name, v.metric) for v in judgement.verdicts if not v.passed
    }


def test_the_divided_stream_passes_the_gates(loud: Checkpoint, tmp_path: Path) -> None:
    made, exact, judgement = decoded(loud, tmp_path, plain=False)
    assert judgement.passed, [v.detail for v in judgement.verdicts]
    assert np.isfinite(made).all()
    assert METRICS["snr_db"].fn(made, exact) >= 53


@pytest.mark.parametrize("chunk", [1, 5, 25])
def test_streaming_is_decoding_the_whole(loud: Checkpoint, chunk: int) -> None:
    given = torch.from_numpy(embeddings(loud, 200))
    for build, kind in ((modules.decoder, codec.Decoder), (modules.rescaled_decoder, codec.Decoder)):
        whole = build(loud, kind)(given)[0]
        module = build(loud, codec.StreamingDecoder)
        memory, rows = [torch.zeros(shape) for shape in contract.carried(loud.config).values()], []
        for start in range(0, 200, chunk):
            made, *memory = module(given[:, start : start + chunk], *memory)
            rows.append(made[0])
        streamed = torch.cat(rows)[LOOKAHEAD_ROWS:]
        assert float((streamed - whole).abs().max() / whole.abs().max()) <= 1e-4
