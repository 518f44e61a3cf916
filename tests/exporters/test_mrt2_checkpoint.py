"""The checkpoint of Magenta RealTime 2: what is read, what is refused, what is synthesised."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from coreproof.convert.synthetic import NOTE
from coreproof.errors import CheckpointError, UsageError
from coreproof_exporters.mrt2 import architecture, checkpoint, naming, synth

Tensors = dict[str, np.ndarray]
SELF = "params/depthformer/decoder/temporal_body/transformer/x_layers_1/self_attention/attention/"
CROSS = SELF.replace("self_attention", "cross_attention")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mrt2")
    synth.synth(folder, "small", 0)
    return folder


def changed(made: Path, folder: Path, change: Callable[[Tensors], None]) -> Path:
    tensors = dict(load_file(made / checkpoint.FILE))
    change(tensors)
    save_file(tensors, folder / checkpoint.FILE)
    return folder


def test_the_full_shapes_are_the_published_ones() -> None:
    table = architecture.shapes(architecture.SIZES["full"])
    assert len(table) == 374
    assert sum(math.prod(shape) for shape in table.values()) == 282_194_376


def test_every_key_has_an_origin_or_a_reason(made: Path) -> None:
    loaded = checkpoint.load(made)
    used = {key for origin in loaded.origins.values() for key in origin.keys}
    assert used == set(load_file(made / checkpoint.FILE))
    assert loaded.tensors.keys() == loaded.origins.keys()
    assert list(loaded.unused) == [f"{architecture.QUANTIZER}[12:16]"]
    assert (loaded.kind, loaded.seed) == ("synthetic", 0)


def test_what_needs_no_folding_is_the_mapped_file(made: Path) -> None:
    tensors = checkpoint.load(made).tensors
    for name in ("temporal.layers.0.self.key.weight", "depth.heads.3.weight", "codec.last.weight"):
        base = tensors[name]
        while isinstance(base.base, np.ndarray):
            base = base.base
        assert isinstance(base, np.memmap), name


def test_the_query_scale_is_folded_into_query_and_sink(made: Path) -> None:
    raw = load_file(made / checkpoint.FILE)
    tensors = checkpoint.load(made).tensors
    scale = 1.442695041 * np.log1p(np.exp(raw[f"{SELF}per_dim_scale"].astype(np.float64))) / math.sqrt(24)
    kernel = raw[f"{SELF}query_projection/kernel"]
    query = (kernel * scale).reshape(len(kernel), -1).T
    np.testing.assert_allclose(tensors["temporal.layers.1.self.query.weight"], query, rtol=2e-7)
    sink = raw[f"{SELF}sink_key_embeddings"] / scale
    np.testing.assert_allclose(tensors["temporal.layers.1.self.sink_key"][0], sink, rtol=2e-7)


def test_the_style_table_is_folded_with_its_projection(made: Path) -> None:
    raw, loaded = load_file(made / checkpoint.FILE), checkpoint.load(made)
    keys = tuple(
        f"{architecture.STYLE}{n}" for n in ("mulan_dequantizer/embedding", "depth_input_adapter/kernel")
    )
    assert loaded.origins["conditioning.style.weight"].keys == keys
    rows, kernel = (raw[key].astype(np.float64) for key in keys)
    np.testing.assert_allclose(
        loaded.tensors["conditioning.style.weight"], rows @ kernel, rtol=1.2e-7, atol=1e-12
    )


def test_a_folded_product_does_not_depend_on_the_order_of_adding() -> None:
    """Eight addends, each too small for a float64 sum near 1, decide between two float32 numbers."""
    row = np.array([1.0, 2.0**-24, *[2.0**-54] * 8], np.float32)
    rows = np.stack([row, np.roll(row, 3), row[::-1]])
    made = naming.product(rows, np.ones((10, 1), np.float32))
    assert made[:, 0].tolist() == [1.0 + 2.0**-23] * 3


def test_combined_projections_are_the_separate_ones(made: Path, tmp_path: Path) -> None:
    def combine(tensors: Tensors) -> None:
        parts = [tensors.pop(f"{SELF}{n}_projection/kernel") for n in ("query", "key", "value")]
        tensors[f"{SELF}query_key_value_projection/kernel"] = np.stack(parts, axis=1)
        parts = [tensors.pop(f"{CROSS}{n}_projection/kernel") for n in ("key", "value")]
        tensors[f"{CROSS}key_value_projection/kernel"] = np.stack(parts, axis=1)

    separate, combined = checkpoint.load(made), checkpoint.load(changed(made, tmp_path, combine))
    for name, tensor in separate.tensors.items():
        np.testing.assert_array_equal(combined.tensors[name], tensor, name)
    origin = combined.origins["temporal.layers.1.cross.value.weight"]
    assert origin.keys == (f"{CROSS}key_value_projection/kernel",)
    assert origin.transform.startswith("[:, 1]; ")


def remove(tensors: Tensors) -> None:
    del tensors[f"{SELF}per_dim_scale"]


def add(tensors: Tensors) -> None:
    tensors["params/other"] = np.zeros(2, np.float32)


def combine_wrongly(tensors: Tensors) -> None:
    kernel = tensors.pop(f"{CROSS}key_projection/kernel")
    tensors[f"{CROSS}key_value_projection/kernel"] = np.stack([kernel] * 3, axis=1)


def reshape(tensors: Tensors) -> None:
    tensors[f"{SELF}per_dim_scale"] = np.zeros(25, np.float32)


def drop_reserved_rows(tensors: Tensors) -> None:
    key = f"{architecture.STYLE}mulan_dequantizer/embedding"
    tensors[key] = tensors[key][: 12 * 48]


def halve(tensors: Tensors) -> None:
    tensors[f"{SELF}per_dim_scale"] = tensors[f"{SELF}per_dim_scale"].astype(np.float16)


def poison(tensors: Tensors) -> None:
    tensors[architecture.QUANTIZER][0, 0, 0] = np.inf


def widen(tensors: Tensors) -> None:
    tensors[architecture.TOKEN_EMBEDDING] = np.zeros((774, 96), np.float32)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (remove, "missing .*x_layers_1/self_attention/attention/per_dim_scale; expected the 158 keys"),
        (add, "unknown params/other"),
        (combine_wrongly, "missing .*key_projection.*; unknown .*key_value_projection"),
        (reshape, r"per_dim_scale \(25,\), expected \(24,\)"),
        (drop_reserved_rows, "7 rows before its codes, so levels lie 55 rows apart, not 48"),
        (halve, r"expected float32 throughout, found .*per_dim_scale \(F16\)"),
        (poison, "NaN or infinity in params/soundstream/quantizer/embedding"),
        (widen, "mrt2_base and other sizes are not read"),
    ],
)
def test_another_checkpoint_is_refused(
    made: Path, tmp_path: Path, change: Callable[[Tensors], None], says: str
) -> None:
    with pytest.raises(CheckpointError, match=says):
        checkpoint.load(changed(made, tmp_path, change))


def test_bfloat16_is_refused_by_name(made: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    tensors = {k: torch.from_numpy(v).bfloat16() for k, v in load_file(made / checkpoint.FILE).items()}
    save_torch(tensors, tmp_path / checkpoint.FILE)
    with pytest.raises(CheckpointError, match=r"\(BF16\).* and 155 more; take the file as published"):
        checkpoint.load(tmp_path)


def test_a_truncated_file_is_refused(made: Path, tmp_path: Path) -> None:
    data = (made / checkpoint.FILE).read_bytes()
    (tmp_path / checkpoint.FILE).write_bytes(data[:-4])
    with pytest.raises(CheckpointError, match=r"cannot be read: .*download it again"):
        checkpoint.load(tmp_path / checkpoint.FILE)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"mrt2_small\.safetensors is no file"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    ("note", "reason"),
    [
        ("{", "is not JSON"),
        ("[]", "expected a JSON object"),
        (json.dumps({"schema": "coreproof.synth/1", "model": "mrt2"}), "model 'mrt2' and an integer seed"),
    ],
)
def test_another_note_is_refused(made: Path, tmp_path: Path, note: str, reason: str) -> None:
    changed(made, tmp_path, lambda tensors: None)
    (tmp_path / NOTE).write_text(note)
    with pytest.raises(CheckpointError, match=reason):
        checkpoint.load(tmp_path)


def test_a_seed_gives_the_same_bytes_and_another_seed_others(made: Path, tmp_path: Path) -> None:
    again, other = tmp_path / "again", tmp_path / "other"
    synth.synth(again, "small", 0)
    synth.synth(other, "small", 1)
    stored = (made / checkpoint.FILE).read_bytes()
    assert (again / checkpoint.FILE).read_bytes() == stored
    assert (other / checkpoint.FILE).read_bytes() != stored


@pytest.mark.parametrize(("size", "seed"), [("medium", 0), ("small", -1)])
def test_another_size_or_seed_is_refused(tmp_path: Path, size: str, seed: int) -> None:
    with pytest.raises(UsageError, match=r"size 'medium'|seed -1"):
        synth.synth(tmp_path, size, seed)
