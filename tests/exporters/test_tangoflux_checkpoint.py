"""The checkpoint of TangoFlux: what is read, what is refused, what is synthesised."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from coreproof.convert.synthetic import NOTE
from coreproof.errors import CheckpointError, UsageError
from coreproof_exporters.tangoflux import checkpoint as reader
from coreproof_exporters.tangoflux import synth
from coreproof_exporters.tangoflux.architecture import (
    BIAS_TABLE,
    SHARED,
    SIZES,
    TIED,
    tangoflux_shapes,
    vae_shapes,
)
from coreproof_exporters.tangoflux.naming import buckets
from coreproof_exporters.tangoflux.tokenizer import stand_in


@pytest.fixture
def own(tangoflux_folder: Path, tmp_path: Path) -> Path:
    """A copy of the small snapshot to change."""
    for name in (*reader.FILES, NOTE):
        shutil.copy(tangoflux_folder / name, tmp_path / name)
    return tmp_path


def change(path: Path, edit: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def test_every_key_is_read_or_named_as_unused(tangoflux_folder: Path) -> None:
    loaded = reader.load(tangoflux_folder)
    assert loaded.kind == "synthetic"
    assert dict(loaded.config) == dict(SIZES["small"])
    stored = set(load_file(tangoflux_folder / reader.WEIGHTS)) | set(load_file(tangoflux_folder / reader.VAE))
    used = {key for origin in loaded.origins.values() for key in origin.keys}
    assert used == {key for key in stored if not key.startswith("encoder.")}
    assert list(loaded.unused) == ["encoder.*"]
    assert loaded.tensors.keys() == loaded.origins.keys()
    assert all(tensor.dtype == np.float32 for tensor in loaded.tensors.values())
    assert list(reader.load(tangoflux_folder / reader.WEIGHTS).files) == list(loaded.files)


def test_the_published_model_has_the_known_number_of_parameters() -> None:
    counts = {}
    for key, shape in {**tangoflux_shapes(SIZES["full"]), **vae_shapes(SIZES["full"])}.items():
        part = key.partition(".")[0]
        counts[part] = counts.get(part, 0) + int(np.prod(shape))
    assert counts == {
        "text_encoder": 341_231_104,
        "fc": 1_049_600,
        "duration_emebdder": 264_320,
        "transformer": 516_695_616,
        "decoder": 78_122_626,
    }
    transformer = [key for key in tangoflux_shapes(SIZES["full"]) if key.startswith("transformer.")]
    assert len(transformer) == 460


def test_folded_weights_are_what_their_origin_says(tangoflux_folder: Path) -> None:
    loaded = reader.load(tangoflux_folder)
    vae = load_file(tangoflux_folder / reader.VAE)
    conv = torch.nn.utils.weight_norm(torch.nn.Conv1d(64, 128, 7))  # as diffusers makes it
    conv.load_state_dict(
        {n: torch.from_numpy(vae[f"decoder.conv1.{n}"]) for n in ("weight_g", "weight_v", "bias")}
    )
    conv(torch.zeros(1, 64, 7))
    np.testing.assert_allclose(loaded.tensors["vae.conv1.weight"], conv.weight.detach(), rtol=1e-6)
    gamma = loaded.tensors["transformer.single_transformer_blocks.0.attn.norm_q.gamma"]
    np.testing.assert_array_equal(gamma[:128], gamma[128:])


def test_buckets_are_those_of_transformers() -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    rows = torch.arange(128)
    official = T5Attention._relative_position_bucket(rows[None] - rows[:, None])
    np.testing.assert_array_equal(buckets(128), official.numpy())


def test_a_tied_embedding_may_be_there(own: Path) -> None:
    change(own / reader.WEIGHTS, lambda t: t.update({TIED: t[SHARED].copy()}))
    assert TIED in reader.load(own).unused
    change(own / reader.WEIGHTS, lambda t: t.update({TIED: t[SHARED] + 1}))
    with pytest.raises(CheckpointError, match="T5 ties the two"):
        reader.load(own)


@pytest.mark.parametrize("name", list(reader.FILES))
def test_a_missing_file_is_named_with_its_publication(own: Path, name: str) -> None:
    (own / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing; put the file of {reader.FILES[name]}"):
        reader.load(own)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_layers", 2, r"num_layers is 2, tangoflux\.safetensors has 1 blocks"),
        ("num_single_layers", 18, "num_single_layers is 18, .* has 1 blocks"),
        ("num_attention_heads", 4, "not as config.json"),
        ("in_channels", 32, "not as config.json"),
        ("attention_head_dim", 64, "expected 128, the sum of the rotary axes"),
        ("audio_seq_len", 0, "expected an integer of 1 to"),
        ("max_duration", "30", "expected an integer of 1 to"),
    ],
)
def test_a_config_that_disagrees_with_the_keys_is_refused(
    own: Path, key: str, value: object, message: str
) -> None:
    config = json.loads((own / reader.CONFIG).read_text()) | {key: value}
    (own / reader.CONFIG).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        reader.load(own)


def test_absent_config_keys_have_upstream_s_defaults(own: Path) -> None:
    (own / reader.CONFIG).write_text("{}")
    with pytest.raises(CheckpointError, match=r"num_layers is 6, .* has 1 blocks"):
        reader.load(own)


QUERY = "transformer.transformer_blocks.0.attn.to_q.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(QUERY), f"missing {QUERY}; expected the"),
        (lambda t: t.pop(SHARED), f"{SHARED} is missing"),
        (lambda t: t.pop(BIAS_TABLE), "is missing"),
        (lambda t: t.update(more=np.zeros(2, np.float32)), "unknown more"),
        (lambda t: t.update({QUERY: t[QUERY].astype(np.float16)}), r"to_q\.weight \(float16"),
        (
            lambda t: t.update({QUERY: t[QUERY][:-1]}),
            r"to_q\.weight \(float32 \(255, 256\), expected float32",
        ),
        (lambda t: t[QUERY].__setitem__((0, 0), np.nan), f"NaN or infinity in {QUERY}"),
        (lambda t: t.update({BIAS_TABLE: np.zeros((32, 7), np.float32)}), "rows for the 7 heads"),
    ],
)
def test_other_weights_are_refused(
    own: Path, edit: Callable[[dict[str, np.ndarray]], object], message: str
) -> None:
    change(own / reader.WEIGHTS, edit)
    with pytest.raises(CheckpointError, match=message):
        reader.load(own)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("decoder.conv2.weight_g"), r"missing decoder\.conv2\.weight_g"),
        (lambda t: [t.pop(k) for k in list(t) if "conv_t1.weight_v" in k], "is missing"),
        (lambda t: [t.pop(k) for k in list(t) if k.startswith("decoder.block")], "expected even lengths"),
    ],
)
def test_another_vae_is_refused(
    own: Path, edit: Callable[[dict[str, np.ndarray]], object], message: str
) -> None:
    change(own / reader.VAE, edit)
    with pytest.raises(CheckpointError, match=message):
        reader.load(own)


def test_a_truncated_file_is_refused(own: Path) -> None:
    data = (own / reader.WEIGHTS).read_bytes()
    (own / reader.WEIGHTS).write_bytes(data[:-4])
    with pytest.raises(CheckpointError, match="cannot be read"):
        reader.load(own)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected a JSON object"),
        ("{}", "no tokenizer"),
        (json.dumps(stand_in(5000)), "beyond the 640 rows"),
    ],
)
def test_another_tokenizer_is_refused(own: Path, text: str, message: str) -> None:
    (own / reader.TOKENIZER).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        reader.load(own)


def test_a_tokenizer_with_other_special_ids_is_refused(own: Path) -> None:
    table = stand_in(640)
    vocabulary = table["model"]["vocab"]
    vocabulary[0], vocabulary[1] = vocabulary[1], vocabulary[0]
    (own / reader.TOKENIZER).write_text(json.dumps(table))
    with pytest.raises(CheckpointError, match="expected T5's"):
        reader.load(own)


def test_the_stand_in_tokenizer_has_t5_s_ids(tangoflux_folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tangoflux_folder / reader.TOKENIZER))
    assert tokenizer.encode("").ids == [reader.END]
    ids = tokenizer.encode("rain  with\tdistant thunder").ids
    assert ids == tokenizer.encode("rain with distant thunder").ids
    assert ids[-1] == reader.END
    assert reader.UNKNOWN not in ids
    assert tokenizer.decode(ids) == "rain with distant thunder"
    assert tokenizer.token_to_id("<extra_id_0>") == 640 - 28 - 1
    full = stand_in(32128)["model"]["vocab"]
    assert (len(full), full[32099][0]) == (32100, "<extra_id_0>")
    assert len({name for name, _ in full}) == 32100


def test_synth_is_the_same_every_time(tangoflux_folder: Path, tmp_path: Path) -> None:
    synth.synth(tmp_path / "again", "small", 0)
    synth.synth(tmp_path / "other", "small", 1)
    for name in reader.FILES:
        first = (tangoflux_folder / name).read_bytes()
        assert (tmp_path / "again" / name).read_bytes() == first
    assert (tmp_path / "other" / reader.WEIGHTS).read_bytes() != (
        tangoflux_folder / reader.WEIGHTS
    ).read_bytes()


@pytest.mark.parametrize(("size", "seed"), [("medium", 0), ("small", -1)])
def test_another_size_or_seed_is_refused(tmp_path: Path, size: str, seed: int) -> None:
    with pytest.raises(UsageError):
        synth.synth(tmp_path / "x", size, seed)
