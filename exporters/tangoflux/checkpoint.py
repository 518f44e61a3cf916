"""Read the snapshot of ``declare-lab/TangoFlux`` as published, strictly and memory-mapped.

``config.json``, ``tangoflux.safetensors`` and ``vae.safetensors`` are the snapshot's; ``tokenizer.json``
is that of ``google/flan-t5-large``, which the snapshot names and does not hold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from coreproof.convert.checkpoint import Checkpoint, json_object, some
from coreproof.convert.later import Hashed
from coreproof.convert.mapped import is_finite, read_safetensors
from coreproof.convert.synthetic import read_seed
from coreproof.errors import CheckpointError
from coreproof_exporters.tangoflux.architecture import (
    BIAS_TABLE,
    JOINT,
    ROPE_AXES,
    SHARED,
    SINGLE,
    T5,
    TIED,
    VAE_BLOCK,
    VAE_ENCODER,
    Config,
    tangoflux_shapes,
    vae_shapes,
)
from coreproof_exporters.tangoflux.naming import named

CONFIG, WEIGHTS, VAE, TOKENIZER = "config.json", "tangoflux.safetensors", "vae.safetensors", "tokenizer.json"
FILES = {
    CONFIG: "declare-lab/TangoFlux",
    WEIGHTS: "declare-lab/TangoFlux",
    TOKENIZER: "google/flan-t5-large",
    VAE: "declare-lab/TangoFlux",
}
PAD, END, UNKNOWN = 0, 1, 2  # T5's special ids

# config.json key: our name, upstream's default, least and greatest value that is believed.
_DIMENSIONS = {
    "num_layers": ("joint_layers", 6, 0, 256),
    "num_single_layers": ("single_layers", 18, 0, 256),
    "in_channels": ("channels", 64, 1, 1 << 12),
    "attention_head_dim": ("head_width", 128, 2, 1 << 12),
    "num_attention_heads": ("heads", 8, 1, 256),
    "joint_attention_dim": ("context_width", 1024, 1, 1 << 14),
    "audio_seq_len": ("audio_rows", 645, 1, 1 << 14),
    "max_duration": ("max_duration", 30, 1, 1 << 12),
}


def load(path: Path) -> Checkpoint:
    """The checkpoint at ``path``: its folder, or its ``tangoflux.safetensors``.

    ``tensors`` are float32 under the names of this folder's torch modules, views of the mapped files
    where nothing had to be folded. ``config`` holds the dimensions of
    :data:`coreproof_exporters.tangoflux.architecture.SIZES`: the transformer's as ``config.json`` says and
    the keys confirm, T5's and the VAE's as their shapes say.

    Raises CheckpointError when a file is missing or malformed, when ``config.json`` and the keys disagree,
    when a key is missing, unknown, of another shape or not float32, when a weight is not finite, and when
    the tokenizer is none of T5's or knows ids that the embedding lacks.
    """
    folder = _folder(path)
    files = Hashed(folder, list(FILES))
    found, vae = read_safetensors(folder / WEIGHTS), read_safetensors(folder / VAE)
    config = _config(folder, found, vae)
    stored, unused = _stored(folder, found, vae, config)
    _check_tokenizer(folder / TOKENIZER, config["vocabulary"])
    tensors, origins = named(stored, config)
    return Checkpoint(
        files=files,
        config=config,
        tensors=tensors,
        origins=origins,
        unused=unused,
        seed=read_seed(folder, "tangoflux"),
    )


def _folder(path: Path) -> Path:
    folder = path if path.is_dir() else path.parent
    if not path.is_dir() and path.name != WEIGHTS:
        raise CheckpointError(f"{path}: expected a folder with {', '.join(FILES)}")
    for name, repository in FILES.items():
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing; put the file of {repository} there")
    return folder


def _config(folder: Path, found: Mapping[str, np.ndarray], vae: Mapping[str, np.ndarray]) -> dict[str, Any]:
    given = json_object(folder / CONFIG)
    config: dict[str, Any] = {}
    for key, (name, default, least, most) in _DIMENSIONS.items():
        size = given.get(key, default)
        if type(size) is not int or not least <= size <= most:
            raise CheckpointError(
                f"{folder / CONFIG}: {key} is {size!r}; expected an integer of {least} to {most}"
            )
        config[name] = size
    for key, prefix in (("num_layers", JOINT), ("num_single_layers", SINGLE)):
        count = _count(found, prefix)
        if config[_DIMENSIONS[key][0]] != count:
            raise CheckpointError(
                f"{folder / CONFIG}: {key} is {config[_DIMENSIONS[key][0]]}, {WEIGHTS} has {count} blocks "
                f"{prefix}*; take both files from one publication"
            )
    if config["head_width"] != sum(ROPE_AXES):
        raise CheckpointError(
            f"{folder / CONFIG}: attention_head_dim is {config['head_width']}, expected {sum(ROPE_AXES)}, the "
            f"sum of the rotary axes {ROPE_AXES}"
        )
    return {**config, **_text_config(folder / WEIGHTS, found), **_vae_config(folder / VAE, vae)}


def _count(found: Mapping[str, np.ndarray], prefix: str) -> int:
    """How many numbered blocks follow ``prefix``: one more than the greatest number."""
    numbers = [m[1] for key in found if (m := re.match(rf"{re.escape(prefix)}(\d{{1,3}})\.", key))]
    return 1 + max(map(int, numbers), default=-1)


def _text_config(path: Path, found: Mapping[str, np.ndarray]) -> dict[str, int]:
    first = f"{T5}encoder.block.0.layer."
    query, inner = f"{first}0.SelfAttention.q.weight", f"{first}1.DenseReluDense.wi_0.weight"
    shared, table, q, wi = (_matrix(path, found, key) for key in (SHARED, BIAS_TABLE, query, inner))
    if table[1] < 1 or q[0] % table[1]:
        raise CheckpointError(f"{path}: {query} has {q[0]} rows for the {table[1]} heads of {BIAS_TABLE}")
    return {
        "text_layers": _count(found, f"{T5}encoder.block."),
        "text_heads": table[1],
        "text_head_width": q[0] // table[1],
        "text_inner": wi[0],
        "vocabulary": shared[0],
    }


def _matrix(path: Path, found: Mapping[str, np.ndarray], key: str, axes: int = 2) -> tuple[int, ...]:
    if key not in found or found[key].ndim != axes:
        what = f"has shape {found[key].shape}" if key in found else "is missing"
        raise CheckpointError(f"{path}: {key} {what}; expected {axes} axes, as in {FILES[path.name]}")
    shape: tuple[int, ...] = found[key].shape
    return shape


def _vae_config(path: Path, vae: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    kernels = [
        _matrix(path, vae, f"{VAE_BLOCK}{block}.conv_t1.weight_v", 3)
        for block in range(_count(vae, VAE_BLOCK))
    ]
    if not kernels or any(size < 2 or size % 2 for _, _, size in kernels):
        raise CheckpointError(f"{path}: kernels {kernels} of {VAE_BLOCK}*.conv_t1; expected even lengths")
    return {
        "vae_widths": (*(wide for wide, _, _ in kernels), kernels[-1][1]),
        "vae_strides": tuple(size // 2 for _, _, size in kernels),
    }


def _stored(
    folder: Path, found: Mapping[str, np.ndarray], vae: Mapping[str, np.ndarray], config: Config
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors that are read, and what is knowingly left out, with reasons."""
    tied, unused = found.get(TIED), {}
    if tied is not None:
        if not np.array_equal(tied, found[SHARED]):
            raise CheckpointError(f"{folder / WEIGHTS}: {TIED} differs from {SHARED}; T5 ties the two")
        unused[TIED] = f"the same numbers as {SHARED}"
    decoder = {key: tensor for key, tensor in vae.items() if not key.startswith(VAE_ENCODER)}
    if len(decoder) < len(vae):
        unused[f"{VAE_ENCODER}*"] = (
            f"{len(vae) - len(decoder)} tensors of the VAE's encoder; generation decodes"
        )
    stored = {
        **_checked(folder / WEIGHTS, {k: t for k, t in found.items() if k != TIED}, tangoflux_shapes(config)),
        **_checked(folder / VAE, decoder, vae_shapes(config)),
    }
    return stored, unused


def _checked(
    path: Path, found: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    problems = []
    if missing := expected.keys() - found.keys():
        problems.append(f"missing {some(missing)}")
    if extra := found.keys() - expected.keys():
        problems.append(f"unknown {some(extra)}")
    if problems:
        raise CheckpointError(
            f"{path}: {'; '.join(problems)}; expected the {len(expected)} keys of {FILES[path.name]}"
        )
    wrong = [
        f"{key} ({found[key].dtype} {found[key].shape}, expected float32 {shape})"
        for key, shape in expected.items()
        if found[key].dtype != np.float32 or found[key].shape != shape
    ]
    if wrong:
        raise CheckpointError(f"{path}: not as {CONFIG} and the other keys ask: {some(wrong)}")
    if bad := [key for key in expected if not is_finite(found[key])]:
        raise CheckpointError(f"{path}: NaN or infinity in {some(bad)}; every weight must be finite")
    return {key: found[key] for key in expected}


def _check_tokenizer(path: Path, vocabulary: int) -> None:
    json_object(path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
        ids = tokenizer.get_vocab(with_added_tokens=True)
        ends = tokenizer.encode("").ids
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{path} is no tokenizer of the tokenizers library: {error}") from error
    special = {"<pad>": PAD, "</s>": END, "<unk>": UNKNOWN}
    if any(ids.get(token) != number for token, number in special.items()) or ends != [END]:
        raise CheckpointError(
            f"{path}: expected T5's {special}, and an empty text to become [{END}]; take the file of "
            f"{FILES[TOKENIZER]}"
        )
    if max(ids.values()) >= vocabulary:
        raise CheckpointError(
            f"{path}: token id {max(ids.values())} is beyond the {vocabulary} rows of {SHARED}; take both files "
            "of one model"
        )
