"""TangoFlux's modules against the official ones, part by part."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxPosEmbed

from coreproof.audio.chunks import chunks
from coreproof.convert.checkpoint import Checkpoint
from coreproof_exporters.tangoflux import checkpoint as reader
from coreproof_exporters.tangoflux import modules
from coreproof_exporters.tangoflux.architecture import CONTEXT_ROWS, SIZES
from coreproof_exporters.tangoflux.contract import key_mask, overlap
from coreproof_exporters.tangoflux.text import T5Norm
from coreproof_exporters.tangoflux.transformer import RmsNorm, Turn, frequencies, rotation

Arrays = Mapping[str, np.ndarray]


@pytest.fixture(scope="module")
def loaded(tangoflux_folder: Path) -> Checkpoint:
    return reader.load(tangoflux_folder)


def norm(weight: torch.Tensor) -> RmsNorm:
    made = RmsNorm(len(weight))
    made.gamma.data = torch.cat([weight, weight])
    return made


def test_rms_norm_is_torch_s() -> None:
    x = torch.randn(2, 5, 3, 128, generator=torch.Generator().manual_seed(1)) * 7
    weight = torch.linspace(0.5, 3, 128)
    expected = torch.nn.functional.rms_norm(x, (128,), weight, 1e-6)
    torch.testing.assert_close(norm(weight)(x), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("made", [norm(torch.ones(8)), T5Norm(8)])
def test_a_row_of_zeros_stays_zeros(made: torch.nn.Module) -> None:
    for parameter in made.parameters():
        parameter.data = torch.ones_like(parameter)
    assert (made(torch.zeros(2, 8)) == 0).all()


def test_rotation_is_that_of_diffusers() -> None:
    rows = 645
    ids = torch.cat([torch.zeros(CONTEXT_ROWS, 3), torch.arange(rows)[:, None].repeat(1, 3).float()])
    tables = [torch.from_numpy(table) for table in rotation(rows)]
    for mine, official in zip(tables, FluxPosEmbed(theta=10000, axes_dim=[16, 56, 56])(ids), strict=True):
        torch.testing.assert_close(mine[0, :, 0], official, rtol=0, atol=1e-7)
    assert (tables[0][:, :CONTEXT_ROWS] == 1).all()
    assert (tables[1][:, :CONTEXT_ROWS] == 0).all()


def test_neighbours_are_turned_as_by_diffusers() -> None:
    from diffusers.models.embeddings import apply_rotary_emb

    x = torch.randn(1, CONTEXT_ROWS + 9, 2, 128, generator=torch.Generator().manual_seed(2))
    cos, sin = (torch.from_numpy(table) for table in rotation(9))
    official = apply_rotary_emb(x, (cos[0, :, 0], sin[0, :, 0]), sequence_dim=1)
    torch.testing.assert_close(Turn()(x, (cos, sin)), official, rtol=0, atol=1e-6)


def test_frequencies_are_those_of_diffusers_to_the_last_bit_but_one() -> None:
    import math

    official = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32) / 128)
    np.testing.assert_allclose(frequencies()[0], official.numpy(), rtol=1.2e-7)


def step(loaded: Checkpoint, official: Arrays, mask: np.ndarray) -> np.ndarray:
    given = {
        "hidden_states": np.stack([official["latents"][11]] * 2),
        "timestep": official["timesteps"][12:13],
        "pooled_projections": official["pooled_projections"][0],
        "encoder_hidden_states": official["encoder_hidden_states"][0],
        "key_mask": mask,
    }
    with torch.no_grad():
        made = modules.transformer(loaded)(**{n: torch.from_numpy(a) for n, a in given.items()})
    return made.numpy()


def test_masked_padding_equals_the_prompt_s_own_length(
    loaded: Checkpoint, tangoflux_official: Arrays
) -> None:
    """The official model had as many text rows as the prompt has tokens, and no mask."""
    tokens = int(tangoflux_official["attention_mask"][1].sum())
    expected = tangoflux_official["noise_pred"][2]
    mask = key_mask(tokens, expected.shape[1])
    assert np.abs(step(loaded, tangoflux_official, mask) - expected).max() <= 1e-5
    for wrong in (mask * 0, key_mask(tokens - 1, expected.shape[1]), key_mask(tokens + 1, expected.shape[1])):
        assert np.abs(step(loaded, tangoflux_official, wrong) - expected).max() > 1e-3


def test_the_overlap_is_the_decoder_s_reach(loaded: Checkpoint) -> None:
    """Changing a latent row moves audio that is ``overlap`` rows away, and none further."""
    reach, hop, rows = overlap(loaded.config), 2048, 48
    assert reach == overlap(SIZES["full"]) == 10
    decoder = modules.vae_decoder(loaded).double()
    plain = torch.zeros(1, rows, 64, dtype=torch.float64)
    changed = plain.clone()
    changed[:, rows // 2] += 100.0
    with torch.no_grad():
        moved = (decoder(changed) - decoder(plain))[0].abs().amax(0).nonzero().flatten()
    first, last = int(moved[0]) // hop, int(moved[-1]) // hop
    assert max(rows // 2 - first, last - rows // 2) == reach


@pytest.mark.parametrize(("short", "agrees"), [(0, True), (1, False), (3, False)])
def test_chunks_join_to_the_whole_and_a_shorter_overlap_does_not(
    loaded: Checkpoint, tangoflux_official: Arrays, short: int, agrees: bool
) -> None:
    latents, hop = torch.from_numpy(tangoflux_official["latents"][-1:]), 2048
    decoder = modules.vae_decoder(loaded).double()
    with torch.no_grad():
        whole = decoder(latents.double())[0]
        parts = [
            decoder(latents[:, c.start : c.stop].double())[
                0, :, hop * (c.first - c.start) : hop * (c.last - c.start)
            ]
            for c in chunks(latents.shape[1], 48, overlap(loaded.config) - short)
        ]
    error = float((torch.cat(parts, 1) - whole).abs().max())
    assert (error < 1e-12) == agrees
