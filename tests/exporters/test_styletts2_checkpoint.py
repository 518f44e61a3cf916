"""StyleTTS 2's checkpoint: read strictly, folded exactly, and never run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import digests

from coreproof.convert.checkpoint import Checkpoint
from coreproof.errors import CheckpointError, UsageError
from coreproof_exporters.styletts2 import architecture, naming
from coreproof_exporters.styletts2.checkpoint import CONFIG, FILE, PARTS, TRAINING, load
from coreproof_exporters.styletts2.synth import synth

# Parameters and tensors of each part of the published model, counted from upstream's modules.
PUBLISHED = {
    "bert": (6_292_480, 25),
    "bert_encoder": (393_728, 2),
    "text_encoder": (5_606_400, 24),
    "predictor": (16_194_612, 122),
    "decoder": (54_289_492, 678),
    "diffusion": (25_326_976, 48),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("styletts2")
    synth(made, "small", 3)
    return made


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Checkpoint:
    return load(folder)


def stored(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / FILE, weights_only=True)
    return content


def altered(folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of the checkpoint whose ``net`` went through ``change``."""
    content = stored(folder)
    change(content["net"])
    torch.save(content, tmp_path / FILE)
    shutil.copy(folder / CONFIG, tmp_path / CONFIG)
    return tmp_path


def test_the_published_shapes_are_known() -> None:
    found: dict[str, tuple[int, int]] = {}
    for key, shape in naming.shapes(architecture.SIZES["full"]).items():
        part = key.partition(".")[0]
        count, tensors = found.get(part, (0, 0))
        found[part] = (count + int(np.prod(shape)), tensors + 1)
    assert {part: found[part] for part in PUBLISHED} == PUBLISHED
    assert found["style_encoder"] == found["predictor_encoder"]
    assert found["style_encoder"][1] == 67


def test_every_key_is_accounted_for(folder: Path, loaded: Checkpoint) -> None:
    keys = {f"{part}.{key.removeprefix('module.')}" for part in PARTS for key in stored(folder)["net"][part]}
    used = {key for origin in loaded.origins.values() for key in origin.keys}
    left = {key for key in keys - used if not key.startswith("diffusion.diffusion.net.")}
    assert left == set(loaded.unused) - {"diffusion.diffusion.net.*"}
    assert used <= keys
    assert loaded.tensors.keys() == loaded.origins.keys()
    assert (loaded.kind, loaded.seed, loaded.config["sigma_data"]) == ("synthetic", 3, 0.19926648961191362)


def test_weight_norm_is_folded_as_torch_computes_it(folder: Path, loaded: Checkpoint) -> None:
    net = stored(folder)["net"]
    for key, layer in (
        ("generator.ups.1", torch.nn.ConvTranspose1d(32, 16, 10, 5)),
        ("encode.conv1", torch.nn.Conv1d(66, 96, 3)),
    ):
        normed = torch.nn.utils.weight_norm(layer.double())
        for part in ("weight_g", "weight_v"):
            getattr(normed, part).data = net["decoder"][f"module.{key}.{part}"].double()
        torch.nn.utils.remove_weight_norm(normed)
        np.testing.assert_array_equal(
            loaded.tensors[f"decoder.{key}.weight"], normed.weight.detach().numpy().astype(np.float32)
        )


def test_spectral_norm_is_folded_as_torch_computes_it(folder: Path, loaded: Checkpoint) -> None:
    state = stored(folder)["net"]["style_encoder"]
    layer = torch.nn.utils.spectral_norm(torch.nn.Conv2d(8, 16, 3)).double().eval()
    layer.weight_orig.data = state["module.shared.1.conv2.weight_orig"].double()
    for part in ("weight_u", "weight_v"):
        getattr(layer, part).data = state[f"module.shared.1.conv2.{part}"].double()
    layer(torch.zeros(1, 8, 9, 9, dtype=torch.float64))
    np.testing.assert_allclose(
        loaded.tensors["style_encoder.shared.1.conv2.weight"], layer.weight.detach().numpy(), rtol=1e-7
    )


def test_synth_makes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    synth(tmp_path / "again", "small", 3)
    assert digests(tmp_path / "again") == {
        n: d for n, d in digests(folder).items() if n in (FILE, CONFIG, "synth.json")
    }
    synth(tmp_path / "other", "small", 4)
    assert digests(tmp_path / "other")[FILE] != digests(folder)[FILE]
    with pytest.raises(UsageError, match="size 'huge'"):
        synth(tmp_path, "huge", 0)
    with pytest.raises(UsageError, match="negative"):
        synth(tmp_path, "small", -1)


def test_training_parts_and_unwrapped_keys_are_read(folder: Path, tmp_path: Path, loaded: Checkpoint) -> None:
    def change(net: dict[str, Any]) -> None:
        net |= {part: {"weight": torch.zeros(2)} for part in TRAINING}
        net["bert"] = {key.removeprefix("module."): value for key, value in net["bert"].items()}
        del net["bert"]["embeddings.position_ids"]

    again = load(altered(folder, tmp_path, change))
    assert {f"{part}.*" for part in TRAINING} <= again.unused.keys()
    for name, array in loaded.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], array)


def _nan(net: dict[str, Any]) -> None:
    net["decoder"]["module.encode.conv1.bias"][0] = float("nan")


def _half(net: dict[str, Any]) -> None:
    net["decoder"]["module.encode.conv1.bias"] = net["decoder"]["module.encode.conv1.bias"].half()


def _copies_differ(net: dict[str, Any]) -> None:
    net["diffusion"]["module.diffusion.net.to_out.1.bias"] = torch.ones(256)


def _rename(net: dict[str, Any]) -> None:
    net["predictor"]["module.lstm.weight"] = net["predictor"].pop("module.lstm.weight_ih_l0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: net.pop("bert"), "net has no bert"),
        (lambda net: net.update(extra={}), "unknown parts extra"),
        (lambda net: net["decoder"].pop("module.encode.conv1.bias"), "missing decoder.encode.conv1.bias"),
        (_rename, r"missing predictor.lstm.weight_ih_l0; unknown predictor.lstm.weight"),
        (
            lambda net: net["bert_encoder"].update({"module.bias": torch.zeros(3)}),
            r"bert_encoder.bias \(3,\)",
        ),
        (_nan, "NaN or infinity in decoder.encode.conv1.bias"),
        (_half, "torch.float16, expected float32"),
        (_copies_differ, "to_out.1.bias and diffusion.unet.to_out.1.bias differ"),
        (lambda net: net["bert"].update({"module.x": 1}), "bert.x is a int, expected a tensor"),
        (lambda net: net.update(bert=[]), "is no state dict"),
    ],
)
def test_a_checkpoint_that_is_off_is_refused(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(altered(folder, tmp_path, change))


class Payload:
    """What runs code when a pickle that holds it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_a_pickle_that_would_run_code_is_refused(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    content = stored(folder) | {"optimizer": Payload(marker)}
    torch.save(content, tmp_path / FILE)
    shutil.copy(folder / CONFIG, tmp_path / CONFIG)
    with pytest.raises(CheckpointError, match="could run code, so it was not loaded"):
        load(tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("type: hifigan", "type: istftnet", "decoder 'istftnet'"),
        ("multispeaker: true", "multispeaker: false", "multispeaker False"),
        ("n_layer: 3", "n_layer: 4", "not the dimensions of the published"),
        ("n_layer: 3", "", "malformed or missing"),
        ("sigma_data: 0.19926648961191362", "sigma_data: 0", "sigma_data 0.0"),
        ("decoder:", "decoders:", "decoder is missing"),
        ("model_params:", "params:", "model_params is missing"),
        ("model_params:", "}{", "is not YAML"),
    ],
)
def test_a_config_that_is_off_is_refused(
    folder: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    shutil.copy(folder / FILE, tmp_path / FILE)
    text = (folder / CONFIG).read_text()
    assert old in text
    (tmp_path / CONFIG).write_text(text.replace(old, new, 1))
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_sigma_data_is_the_files(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / FILE, tmp_path / FILE)
    (tmp_path / CONFIG).write_text((folder / CONFIG).read_text().replace("0.19926648961191362", "0.2"))
    assert load(tmp_path / FILE).config["sigma_data"] == 0.2


def test_missing_and_broken_files_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no file"):
        load(tmp_path)
    (tmp_path / FILE).write_bytes((folder / FILE).read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match=r"config.yml is missing"):
        load(tmp_path)
    shutil.copy(folder / CONFIG, tmp_path / CONFIG)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(tmp_path)
