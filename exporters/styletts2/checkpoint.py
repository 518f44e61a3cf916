"""Read ``epochs_2nd_00020.pth`` and ``config.yml`` as published: strictly, and without running a pickle."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from coreproof.convert.checkpoint import Checkpoint, digest, some
from coreproof.convert.large import release
from coreproof.convert.synthetic import read_seed
from coreproof.errors import CheckpointError
from coreproof_exporters.styletts2.architecture import HEAD, MEL_BANDS, SIZES, Config

FILE = "epochs_2nd_00020.pth"
CONFIG = "config.yml"

PARTS = (
    "bert",
    "bert_encoder",
    "predictor",
    "decoder",
    "text_encoder",
    "predictor_encoder",
    "style_encoder",
    "diffusion",
)
TRAINING = ("text_aligner", "pitch_extractor", "mpd", "msd", "wd")
_UNUSED = dict.fromkeys(TRAINING, "used in training only")
_POOLER_REASON = "PL-BERT's pooler; nothing reads it"
_COPY_REASON = "the same tensors as diffusion.unet, checked to be equal"
_IDS_REASON = "the positions 0 to 511, which older versions of transformers stored"

_WRAPPER = "module."
_CONFIG_LIMIT = 1 << 20  # bytes; the published config.yml has 2,000


def load(path: Path) -> Checkpoint:
    """The checkpoint at ``path``: its folder, or the ``.pth`` file itself with ``config.yml`` beside it.

    ``tensors`` are float32 under the names of this folder's torch modules; ``config`` holds the dimensions
    of :data:`coreproof_exporters.styletts2.architecture.SIZES`, and ``sigma_data`` as the file says. A
    prefix ``module.`` is taken off where a part's keys all have it.

    Raises CheckpointError when a file is missing, truncated or malformed, when the pickle asks for
    anything but tensors and plain values, when a key is missing, unknown, of another shape or dtype, when
    the denoiser's two copies differ, when a weight is not finite, and for another architecture than the
    multi-speaker model with the HiFi-GAN decoder.
    """
    from coreproof_exporters.styletts2.naming import named, shapes

    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(f"{file} is no file; expected {FILE} of yl4579/StyleTTS2-LibriTTS")
    told = _told(file.with_name(CONFIG))
    arrays, unused = _arrays(file)
    config = _config(file, told, arrays)
    unused |= _drop_copy(file, arrays)
    expected = shapes(config)
    unused |= _drop_known(arrays, expected)
    _check(file, arrays, expected)
    tensors, origins = named(arrays, config)
    for array in arrays.values():  # checking and folding have read the whole file
        release(array)
    return Checkpoint(
        files=tuple(digest(f) for f in sorted((file, file.with_name(CONFIG)), key=lambda f: f.name)),
        config=config,
        tensors=tensors,
        origins=origins,
        unused=unused,
        seed=read_seed(file.parent, "styletts2"),
    )


def _told(path: Path) -> Mapping[str, Any]:
    """``model_params`` of the config file."""
    import yaml

    if not path.is_file():
        raise CheckpointError(f"{path} is missing; it lies beside {FILE} where that was published")
    if path.stat().st_size > _CONFIG_LIMIT:
        raise CheckpointError(f"{path}: {path.stat().st_size} bytes; expected a short config")
    try:
        content = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not YAML: {error}") from error
    told = content.get("model_params") if isinstance(content, dict) else None
    if not isinstance(told, dict):
        raise CheckpointError(f"{path}: model_params is missing")
    return told


def _arrays(file: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Every tensor of the parts that generation needs as ``part.key``, and the keys left out."""
    net = _read(file)
    if missing := [part for part in PARTS if part not in net]:
        raise CheckpointError(f"{file}: net has no {', '.join(missing)}; expected {', '.join(PARTS)}")
    if unknown := sorted(net.keys() - {*PARTS, *TRAINING}):
        raise CheckpointError(f"{file}: net has unknown parts {some(unknown)}")
    arrays = {}
    for part in PARTS:
        state = net[part]
        if not isinstance(state, Mapping) or not state:
            raise CheckpointError(f"{file}: net[{part!r}] is no state dict")
        wrapped = all(isinstance(key, str) and key.startswith(_WRAPPER) for key in state)
        for key, value in state.items():
            name = f"{part}.{str(key).removeprefix(_WRAPPER) if wrapped else key}"
            arrays[name] = _array(file, name, value)
    return arrays, {f"{part}.*": reason for part, reason in _UNUSED.items() if part in net}


def _read(file: Path) -> Mapping[str, Any]:
    import torch

    try:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported global" not in str(error) and "WeightsUnpickler" not in str(error):
            raise CheckpointError(
                f"{file} cannot be read: {_first_line(error)}; download it again"
            ) from error
        raise CheckpointError(
            f"{file}: its pickle asks for more than tensors and plain values, which could run code, so it was "
            f"not loaded ({_first_line(error)}); take the file as published"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} cannot be read: {_first_line(error)}; download it again") from error
    net = content.get("net") if isinstance(content, Mapping) else None
    if not isinstance(net, Mapping):
        raise CheckpointError(f"{file}: no dict of state dicts under 'net'; expected {FILE}")
    return net


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "nsupported" in line]
    return (named or lines or [type(error).__name__])[0][:200]


def _array(file: Path, name: str, value: Any) -> np.ndarray:
    import torch

    if not isinstance(value, torch.Tensor):
        raise CheckpointError(f"{file}: {name} is a {type(value).__name__}, expected a tensor")
    if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        raise CheckpointError(f"{file}: {name} is no plain tensor")
    if value.dtype == torch.int64 and name.endswith("position_ids"):
        return value.numpy()
    if value.dtype != torch.float32:
        raise CheckpointError(
            f"{file}: {name} is {value.dtype}, expected float32; weights that were rounded once give "
            "another model"
        )
    array: np.ndarray = value.detach().contiguous().numpy()
    return array


def _config(file: Path, told: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Config:
    """Dimensions: what config.yml says, and from shapes what only upstream's code or PL-BERT's own
    config say. Whatever is off shows when all shapes are compared."""
    decoder, diffusion = _section(file, told, "decoder"), _section(file, told, "diffusion")
    transformer, spread = _section(file, diffusion, "transformer"), _section(file, diffusion, "dist")
    if told.get("multispeaker") is not True or decoder.get("type") != "hifigan":
        raise CheckpointError(
            f"{file.with_name(CONFIG)}: multispeaker {told.get('multispeaker')}, decoder {decoder.get('type')!r}; "
            "only the multi-speaker model with the hifigan decoder (LibriTTS) is read"
        )

    def shape(name: str, axis: int) -> int:
        found = arrays.get(name)
        if found is None or found.ndim <= axis:
            raise CheckpointError(f"{file}: missing {name}")
        return int(found.shape[axis])

    try:
        config: dict[str, Any] = {
            "style": int(told["style_dim"]),
            "layers": int(told["n_layer"]),
            "tokens": int(told["n_token"]),
            "max_dur": int(told["max_dur"]),
            "mels": int(told["n_mels"]),
            "hidden": int(told["hidden_dim"]),
            "dim_in": int(told["dim_in"]),
            "initial": int(decoder["upsample_initial_channel"]),
            "upsample_rates": _numbers(decoder["upsample_rates"]),
            "upsample_kernels": _numbers(decoder["upsample_kernel_sizes"]),
            "resblock_kernels": _numbers(decoder["resblock_kernel_sizes"]),
            "resblock_dilations": tuple(_numbers(d) for d in decoder["resblock_dilation_sizes"]),
            "denoiser_layers": int(transformer["num_layers"]),
            "denoiser_heads": int(transformer["num_heads"]),
            "denoiser_multiplier": int(transformer["multiplier"]),
            "sigma_data": float(spread["sigma_data"]),
            "bert_embedding": shape("bert.embeddings.word_embeddings.weight", 1),
            "bert": shape("bert_encoder.weight", 1),
            "bert_ffn": shape("bert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight", 0),
            "inner": shape("decoder.encode.conv2.weight_v", 0),
            "asr": shape("decoder.asr_res.0.weight_v", 0),
        }
        head = int(transformer["head_features"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file.with_name(CONFIG)}: malformed or missing: {error}") from error
    known = [{k: v for k, v in size.items() if k != "sigma_data"} for size in SIZES.values()]
    given = {k: v for k, v in config.items() if k != "sigma_data"}
    if given not in known or head != HEAD or config["mels"] != MEL_BANDS:
        wrong = [f"{k} {v}" for k, v in given.items() if v != known[-1][k]] + [f"head_features {head}"]
        raise CheckpointError(
            f"{file.with_name(CONFIG)}: {', '.join(wrong)}; not the dimensions of the published LibriTTS model"
        )
    if not 0.0 < config["sigma_data"] < 10.0:
        raise CheckpointError(f"{file.with_name(CONFIG)}: sigma_data {config['sigma_data']}")
    return config


def _section(file: Path, told: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = told.get(name)
    if not isinstance(found, dict):
        raise CheckpointError(f"{file.with_name(CONFIG)}: {name} is missing from model_params")
    return found


def _numbers(values: Any) -> tuple[int, ...]:
    return tuple(int(v) for v in values)


def _drop_copy(file: Path, arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """Take the denoiser's second copy out of ``arrays``, after comparing it with the first."""
    from coreproof_exporters.styletts2.naming import DENOISER, DENOISER_AGAIN

    # The state dict of upstream's wrapper names its two references to one object in its own way.
    copies = {name: f"{DENOISER}{name.removeprefix(DENOISER_AGAIN)}" for name in arrays if _is_copy(name)}
    for name, original in copies.items():
        first, second = arrays.get(original), arrays.pop(name)
        if first is None or first.shape != second.shape or not np.array_equal(first, second):
            raise CheckpointError(
                f"{file}: {name} and {original} differ; upstream stores one tensor under both names, so the file "
                "was altered"
            )
    if not copies:
        return {}
    if missing := [n for n in arrays if n.startswith(f"{DENOISER}.") and n not in copies.values()]:
        raise CheckpointError(f"{file}: {some(missing)} under one of the denoiser's two names only")
    return {f"{DENOISER_AGAIN}.*": _COPY_REASON}


def _is_copy(name: str) -> bool:
    from coreproof_exporters.styletts2.naming import DENOISER_AGAIN

    return name.startswith(f"{DENOISER_AGAIN}.")


def _drop_known(arrays: dict[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    from coreproof_exporters.styletts2.naming import POOLER, POSITION_IDS

    unused = {key: _POOLER_REASON for key in POOLER if key in expected}
    if POSITION_IDS in arrays:
        del arrays[POSITION_IDS]
        unused[POSITION_IDS] = _IDS_REASON
    return unused


def _check(file: Path, arrays: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]) -> None:
    problems = []
    if missing := expected.keys() - arrays.keys():
        problems.append(f"missing {some(missing)}")
    if extra := arrays.keys() - expected.keys():
        problems.append(f"unknown {some(extra)}")
    wrong = [
        f"{name} {array.shape}, expected {expected[name]}"
        for name, array in arrays.items()
        if name in expected and array.shape != expected[name]
    ]
    if wrong:
        problems.append(f"of another shape {some(wrong)}")
    if problems:
        raise CheckpointError(f"{file}: {'; '.join(problems)}; expected the {len(expected)} keys of {FILE}")
    # A sum is finite only if every term is, and needs no temporary of the tensor's size.
    bad = [name for name, array in arrays.items() if not np.isfinite(array.sum(dtype=np.float64))]
    if bad:
        raise CheckpointError(f"{file}: NaN or infinity in {some(bad)}; every weight must be finite")
