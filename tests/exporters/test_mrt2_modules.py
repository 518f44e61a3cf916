"""The torch modules of Magenta RealTime 2 against the official JAX code, as recorded in the fixture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch

from coreproof.audio.noise import GumbelNoise
from coreproof.convert.checkpoint import Checkpoint
from coreproof.errors import ConversionError
from coreproof.parity.metrics import METRICS
from coreproof_exporters.mrt2 import codec, contract, modules, temporal
from coreproof_exporters.mrt2.architecture import CONTEXT_FRAMES, LOOKAHEAD_ROWS
from coreproof_exporters.mrt2.naming import STREAM_SCALE

Arrays = Mapping[str, np.ndarray]


@pytest.fixture
def checkpoint(mrt2_loaded: Checkpoint) -> Checkpoint:
    return mrt2_loaded


@pytest.fixture
def official(mrt2_official: Arrays) -> Arrays:
    return mrt2_official


@pytest.fixture(autouse=True)
def _no_gradients() -> None:
    torch.set_grad_enabled(False)


def snr(actual: np.ndarray, expected: np.ndarray) -> float:
    return METRICS["snr_db"].fn(actual, expected)


def run(module: torch.nn.Module, *arrays: np.ndarray) -> np.ndarray:
    return module(*(torch.from_numpy(a) for a in arrays)).numpy()


def test_conditioning(checkpoint: Checkpoint, official: Arrays) -> None:
    module = modules.conditioning(checkpoint)
    rows = [run(module, tokens[np.newaxis])[0, 0] for tokens in official["conditioning_tokens"]]
    np.testing.assert_allclose(rows, official["source_encoded_float64"], rtol=0, atol=1e-6)


def stream(checkpoint: Checkpoint, official: Arrays, bias: Callable[[int], torch.Tensor]) -> np.ndarray:
    module, names = modules.temporal(checkpoint), contract.stems(checkpoint.config)
    caches = [torch.zeros(contract.cache_shape(checkpoint.config)) for _ in names]
    sources = official["source_encoded"][official["frame_conditioning"]]
    outputs = []
    for frame, (x, source) in enumerate(zip(official["temporal_inputs"], sources, strict=True)):
        y, *new = module(
            torch.from_numpy(x)[None, None], torch.from_numpy(source)[None, None], bias(frame), *caches
        )
        caches = [torch.cat([old[:, 1:], update], dim=1) for old, update in zip(caches, new, strict=True)]
        outputs.append(y[0, 0].numpy())
    return np.array(outputs)


def shown(seen: int) -> torch.Tensor:
    bias = torch.zeros(1, 1, 1, contract.COLUMNS)
    bias[..., 1 : 42 - min(seen, 41)] = contract.HIDDEN_SCORE
    return bias


def test_130_frames_of_the_temporal_body(checkpoint: Checkpoint, official: Arrays) -> None:
    outputs = stream(checkpoint, official, shown)
    frames = zip(outputs, official["temporal_outputs"], strict=True)
    assert min(snr(ours, theirs) for ours, theirs in frames) >= 100


@pytest.mark.parametrize("seen", [lambda _: 0, lambda frame: min(frame, 40), lambda frame: frame + 1])
def test_a_wrong_window_is_heard(
    checkpoint: Checkpoint, official: Arrays, seen: Callable[[int], int]
) -> None:
    """No history, one frame of it too few, one cached frame too early."""
    outputs = stream(checkpoint, official, lambda frame: shown(seen(frame)))
    assert snr(outputs, official["temporal_outputs"]) < 60


def test_logits(checkpoint: Checkpoint, official: Arrays) -> None:
    module = modules.depth_logits(checkpoint)
    rows = [run(module, given[np.newaxis])[0] for given in official["depth_inputs"]]
    np.testing.assert_allclose(rows, official["depth_logits"], atol=5e-5)


def test_rollout_draws_the_official_codes(checkpoint: Checkpoint, official: Arrays) -> None:
    module, config = modules.depth_rollout(checkpoint), checkpoint.config
    count = len(official["codes"])
    noise = GumbelNoise(int(official["noise_seed"])).draw(count, config["levels"], config["codes"])
    inverse = torch.from_numpy(1 / np.atleast_1d(official["temperature"]))
    for frame in range(0, count, 5):
        given = torch.from_numpy(official["temporal_outputs"][frame])[None, None]
        codes, feedback = module(given, torch.from_numpy(noise[frame]), inverse)
        np.testing.assert_array_equal(codes, official["codes"][frame])
        np.testing.assert_allclose(feedback[0], official["temporal_feedback"][frame], atol=1e-6)


def test_rollout_without_noise_takes_the_greatest_logit(checkpoint: Checkpoint, official: Arrays) -> None:
    module, config = modules.depth_rollout(checkpoint), checkpoint.config
    frame = torch.from_numpy(official["temporal_outputs"][0])[None, None]
    codes, _ = module(frame, torch.zeros(config["levels"], config["codes"]), torch.ones(1))
    first = official["depth_logits"][
        0, 0, 6 : 6 + config["codes"]
    ]  # the first level depends on the frame alone
    assert int(codes[0]) == int(first.argmax())


@pytest.mark.parametrize("build", [modules.decoder, modules.rescaled_decoder])
def test_decoder(checkpoint: Checkpoint, official: Arrays, build: Callable[..., torch.nn.Module]) -> None:
    rows = run(build(checkpoint), official["decoder_embeddings"][np.newaxis])[0]
    assert snr(rows, official["decoder_stft"]) >= 110


def embeddings(checkpoint: Checkpoint, frames: int) -> torch.Tensor:
    books, config = checkpoint.tensors["codebooks"], checkpoint.config
    codes = np.random.Generator(np.random.PCG64(3)).integers(0, config["codes"], (frames, config["levels"]))
    return torch.from_numpy(sum(books[i][codes[:, i]] for i in range(config["levels"])))[None]


def softened(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with a decoder that stays small: fp16 holds it as it is."""
    factors = {3: 0.7, 4: 0.06, 5: 0.3}
    tensors = dict(checkpoint.tensors)
    for name, tensor in checkpoint.tensors.items():
        block = next((b for b in factors if f"codec.blocks.{b}." in name), None)
        if block is not None:
            tensors[name] = tensor * np.float32(factors[block])
    return replace(checkpoint, tensors=tensors)


@pytest.mark.parametrize("loud", [True, False], ids=["overflow-prone", "ordinary"])
def test_streaming_is_decoding_the_whole(checkpoint: Checkpoint, loud: bool) -> None:
    own = checkpoint if loud else softened(checkpoint)
    assert (modules.hot_from(modules.peaks(own)) is not None) == loud
    given = embeddings(own, 200)
    whole = modules.decoder(own)(given)[0]
    module, shapes = modules.streaming_decoder(own), contract.carried(own.config).values()
    for chunk in (1, 5, 25):
        memory, rows = [torch.zeros(shape) for shape in shapes], []
        for start in range(0, 200, chunk):
            made, *memory = module(given[:, start : start + chunk], *memory)
            rows.append(made[0])
        streamed = torch.cat(rows)[LOOKAHEAD_ROWS:]
        assert float((streamed - whole).abs().max() / whole.abs().max()) <= 1e-4, chunk


def test_14_frames_of_context_make_a_chunk_exact(checkpoint: Checkpoint) -> None:
    module, given = modules.decoder(checkpoint).double(), embeddings(checkpoint, 40).double()
    whole = module(given)[0, -4:]
    with_context = module(given[:, -CONTEXT_FRAMES - 2 :])[0, -4:]
    without = module(given[:, -2:])[0, -4:]
    assert float((with_context - whole).abs().max() / whole.abs().max()) <= 1e-12
    assert float((without - whole).abs().max() / whole.abs().max()) >= 1e-2


def half(module: torch.nn.Module, given: torch.Tensor) -> np.ndarray:
    return module.half()(given.half()).float().numpy()


def test_fp16_needs_the_divided_stream(checkpoint: Checkpoint) -> None:
    given = embeddings(checkpoint, 25)
    exact = modules.decoder(checkpoint)(given).numpy()
    plain = half(modules.decoder(checkpoint), given)
    rescaled = half(modules.rescaled_decoder(checkpoint), given)
    assert METRICS["finite_ratio"].fn(plain, exact) < 0.5
    assert METRICS["finite_ratio"].fn(rescaled, exact) == 1
    assert snr(rescaled, exact) >= 54


def test_dividing_only_elus_alpha_is_wrong(checkpoint: Checkpoint) -> None:
    class AlphaOnly(codec.Elu):
        def forward(self, y: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.elu(y, alpha=1.0 / self.scale)

    given = embeddings(checkpoint, 25)
    exact = modules.decoder(checkpoint)(given).numpy()
    assert snr(modules.rescaled_decoder(checkpoint, elu=AlphaOnly)(given).numpy(), exact) < 50
    assert snr(modules.rescaled_decoder(checkpoint)(given).numpy(), exact) >= 110


def test_the_divided_elu_is_elu() -> None:
    y = torch.linspace(-9.0, 3.0, 4001, dtype=torch.float64)
    divided = codec.Elu(STREAM_SCALE)(y)
    exact = torch.nn.functional.elu(y * STREAM_SCALE) / STREAM_SCALE
    assert float((divided - exact).abs().max()) <= 3e-9 / STREAM_SCALE


@pytest.mark.parametrize(
    ("highest", "first"), [([1.0] * 8, None), ([1, 1, 9e4, 1, 1, 1, 1, 1], 1), ([9e4, *[1.0] * 7], 0)]
)
def test_where_the_stream_is_divided(highest: list[float], first: int | None) -> None:
    assert modules.hot_from(highest) == first


@pytest.mark.parametrize("highest", [[1, 1, 1, 1, 1, 1, 9e6, 1], [1, 1, 1, 1, 1, 1, 1, 9e4]])
def test_a_decoder_that_fp16_cannot_hold_is_refused(highest: list[float]) -> None:
    with pytest.raises(ConversionError, match="export the variant fp32"):
        modules.hot_from(highest)


def test_the_published_step_shows_what_the_bias_row_shows(checkpoint: Checkpoint) -> None:
    shared = modules.temporal(checkpoint, temporal.TemporalStateful)
    published = modules.temporal(checkpoint, temporal.TemporalPublished)
    generator = torch.Generator().manual_seed(1)
    for frame in range(45):
        x = torch.randn(1, 1, checkpoint.config["width"], generator=generator)
        source = torch.randn(1, 1, checkpoint.config["source_width"], generator=generator)
        torch.testing.assert_close(
            published(x, source), shared(x, source, shown(frame)), rtol=0, atol=0, msg=str(frame)
        )
