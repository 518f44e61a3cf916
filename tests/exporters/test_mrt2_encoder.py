"""The codec's analysis encoder of Magenta RealTime 2: checkpoint, module, stage and host, against official JAX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from support import digests

from coreproof import catalog
from coreproof.audio.stft import stft
from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.export import export, select
from coreproof.errors import CheckpointError, InputError, UsageError
from coreproof.package.manifest import checkpoint_digest, load_manifest
from coreproof.parity.fixture import find
from coreproof.parity.metrics import METRICS
from coreproof.prove import prove
from coreproof.validate import validate
from coreproof_exporters.mrt2 import architecture, checkpoint, modules, recipe, synth
from coreproof_exporters.mrt2.encoding import Encoder

FIXTURES = Path(__file__).parents[2] / "fixtures" / "mrt2"
Arrays = Mapping[str, np.ndarray]
Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("mrt2-encoder")
    synth.synth(made, "small+encoder", 0)
    return made


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Checkpoint:
    return checkpoint.load(folder)


@pytest.fixture(scope="module")
def build(folder: Path, loaded: Checkpoint) -> Path:
    pairs = select(recipe.RECIPE, loaded, ("fp32",), ("spectrostream_encoder",))
    export(recipe.RECIPE, folder, loaded, pairs, folder / "build", lambda *_: None)
    return folder / "build"


@pytest.fixture(scope="module")
def official(loaded: Checkpoint) -> Arrays:
    fixture = find([FIXTURES], "mrt2", checkpoint_digest(loaded.files))
    assert fixture is not None, "make reference-mrt2"
    return fixture.arrays


def snr(actual: np.ndarray, expected: np.ndarray) -> float:
    return METRICS["snr_db"].fn(actual, expected)


def test_the_full_shapes_are_the_published_ones() -> None:
    table = architecture.analysis_shapes(architecture.SIZES["full"])
    kernels = {k.removeprefix("params/encoder/"): s for k, s in table.items() if k.endswith("kernel")}
    assert len(table) == 2 * len(kernels) == 48
    for key, shape in {
        "base_conv_first/conv": (7, 7, 2, 32),
        "encoder_2/conv2d_3x6_a/conv": (3, 6, 64, 128),
        "encoder_5/conv2d_4x4_a/conv": (4, 4, 128, 256),
        "encoder_6/conv2d_3x3/conv": (3, 3, 512, 512),
        "encoder_6/shortcut_layer/conv1x1/conv": (1, 1, 512, 256),
        "bottleneck/conv2d_3x3_a/conv": (3, 3, 256, 256),
        "output_convs/conv1x1_last/conv": (1, 1, 1280, 256),
        "output_convs/shortcut_layer/conv1x1_b1/conv": (1, 1, 1280, 1280),
    }.items():
        assert kernels[f"{key}/kernel"] == shape, key


def test_the_encoder_is_part_of_the_checkpoint_where_it_lies_beside_it(
    folder: Path, loaded: Checkpoint, mrt2_folder: Path
) -> None:
    assert [f.path for f in loaded.files] == ["encoder.safetensors", "mrt2_small.safetensors"]
    used = {key for origin in loaded.origins.values() for key in origin.keys}
    assert used == set(load_file(folder / checkpoint.FILE)) | set(load_file(folder / checkpoint.ENCODER_FILE))
    assert (loaded.kind, loaded.seed) == ("synthetic", 0)
    alone = checkpoint.load(mrt2_folder)
    assert alone.files == loaded.files[1:]
    names = [s.name for s in recipe.stages(alone, "fp32")]
    assert [s.name for s in recipe.stages(loaded, "fp32")] == [*names, "spectrostream_encoder"]
    with pytest.raises(UsageError):
        select(recipe.RECIPE, alone, ("fp32",), ("spectrostream_encoder",))


def remove(tensors: Tensors) -> None:
    del tensors["params/encoder/bottleneck/conv2d_3x3/conv/bias"]


def add(tensors: Tensors) -> None:
    tensors["params/encoder/other"] = np.zeros(2, np.float32)


def turn(tensors: Tensors) -> None:
    key = "params/encoder/encoder_0/conv2d_3x4_a/conv/kernel"
    tensors[key] = np.ascontiguousarray(tensors[key].transpose(1, 0, 2, 3))


def halve(tensors: Tensors) -> None:
    key = "params/encoder/base_conv_first/conv/bias"
    tensors[key] = tensors[key].astype(np.float16)


def poison(tensors: Tensors) -> None:
    tensors["params/encoder/base_conv_first/conv/bias"][0] = np.nan


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            remove,
            r"encoder\.safetensors: missing .*bottleneck/conv2d_3x3/conv/bias; expected the 48 keys of enc",
        ),
        (add, "unknown params/encoder/other"),
        (turn, r"conv2d_3x4_a/conv/kernel \(4, 3, 2, 4\), expected \(3, 4, 2, 4\)"),
        (halve, r"expected float32 throughout, found .*base_conv_first/conv/bias \(F16\)"),
        (poison, "NaN or infinity in params/encoder/base_conv_first/conv/bias"),
    ],
)
def test_another_encoder_is_refused(
    folder: Path, tmp_path: Path, change: Callable[[Tensors], None], says: str
) -> None:
    (tmp_path / checkpoint.FILE).symlink_to(folder / checkpoint.FILE)
    tensors = dict(load_file(folder / checkpoint.ENCODER_FILE))
    change(tensors)
    save_file(tensors, tmp_path / checkpoint.ENCODER_FILE)
    with pytest.raises(CheckpointError, match=says):
        checkpoint.load(tmp_path)


def test_a_truncated_encoder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / checkpoint.FILE).symlink_to(folder / checkpoint.FILE)
    whole = (folder / checkpoint.ENCODER_FILE).read_bytes()
    (tmp_path / checkpoint.ENCODER_FILE).write_bytes(whole[:-4])
    with pytest.raises(CheckpointError, match=r"encoder\.safetensors cannot be read"):
        checkpoint.load(tmp_path)


def test_the_weights_excite_what_is_tested(official: Arrays) -> None:
    """History reaches every embedding of a chunk that starts without it, and codes differ."""
    alone = official["encoder_embeddings_without_history"]
    whole = official["encoder_embeddings"][-len(alone) :]
    change = np.linalg.norm(alone - whole, axis=1) / np.linalg.norm(whole, axis=1)
    assert change.min() > 1e-2
    assert 0.3 < official["encoder_embeddings"].std() < 3
    assert np.mean([len(np.unique(level)) for level in official["waveform_codes"].T]) > 5


def test_module(loaded: Checkpoint, official: Arrays) -> None:
    with torch.no_grad():
        made = modules.analysis(loaded)(torch.from_numpy(official["decoder_stft"])[None])[0]
    assert snr(made.numpy(), official["encoder_embeddings"]) >= 118


def test_the_stage_passes_its_gates_and_they_bite(build: Path, folder: Path, official: Arrays) -> None:
    judged = validate(build, catalog.find("mrt2"))
    assert judged.passed
    (package,) = judged.packages
    assert len(package.judgement.verdicts) >= 2
    proofs = prove(build, catalog.find("mrt2"), folder, None, lambda *_: None)
    assert {p.control for p in proofs} == {"nan_weight", "row_late", "shortcut_unpooled", "halves_swapped"}
    assert [p for p in proofs if not p.caught] == []


def test_export_is_deterministic(folder: Path, loaded: Checkpoint, build: Path, tmp_path: Path) -> None:
    pairs = select(recipe.RECIPE, loaded, ("fp32",), ("spectrostream_encoder",))
    export(recipe.RECIPE, folder, loaded, pairs, tmp_path / "again", lambda *_: None)
    assert digests(tmp_path / "again") == digests(build)
    (package,) = load_manifest(build).packages
    assert all(w.keys for w in package.weights)


def test_the_hosts_stft_is_the_official_one(official: Arrays) -> None:
    rows, edges = stft(official["audio"], 480), official["waveform_stft"]
    assert rows.shape == (100, 480, 4)
    assert snr(rows[:4], edges[:4]) >= 120
    assert snr(rows[-4:], edges[4:]) >= 120


def test_audio_has_the_official_embeddings_and_codes(build: Path, official: Arrays) -> None:
    encoder = Encoder(build)
    assert snr(encoder.embeddings(official["audio"]), official["waveform_embeddings"]) >= 110
    np.testing.assert_array_equal(encoder.codes(official["audio"]), official["waveform_codes"][:, :12])


def test_long_audio_in_chunks_is_encoding_the_whole(build: Path, loaded: Checkpoint) -> None:
    draw = np.random.default_rng(2)
    audio = (draw.normal(size=(60 * 1920 - 700, 2)) * 0.1).astype(np.float32)
    padded = np.concatenate([audio, np.zeros((700, 2), np.float32)])
    with torch.no_grad():
        whole = modules.analysis(loaded)(torch.from_numpy(stft(padded, 480))[None])[0].numpy()
    encoder = Encoder(build)
    made = encoder.embeddings(audio)
    assert made.shape == whole.shape == (60, 20)
    assert float(np.abs(made - whole).max() / np.abs(whole).max()) <= 1e-4
    assert snr(encoder.embeddings(audio, 6), whole) < 80  # a frame's reach is 54 rows, 14 frames


@pytest.mark.parametrize("audio", [np.zeros(5), np.zeros((0, 2)), np.zeros((9, 1)), np.full((9, 2), np.nan)])
def test_other_audio_is_refused(build: Path, audio: np.ndarray) -> None:
    with pytest.raises(InputError, match="audio"):
        Encoder(build).embeddings(audio)


def test_a_build_without_the_encoder_says_so(mrt2_build: Path) -> None:
    with pytest.raises(UsageError, match="no stage 'spectrostream_encoder'"):
        Encoder(mrt2_build)
