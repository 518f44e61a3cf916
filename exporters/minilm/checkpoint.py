"""Read ``sentence-transformers/all-MiniLM-L6-v2`` (or a checkpoint of the same architecture), strictly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from coreproof.convert.checkpoint import Checkpoint, Origin, digest, json_object, some
from coreproof.convert.mapped import is_finite, read_safetensors
from coreproof.convert.recipe import Published
from coreproof.convert.synthetic import read_seed
from coreproof.errors import CheckpointError

SEQUENCE_LENGTH = 128  # the published tokenizer.json truncates and pads to it

PUBLISHED = Published(
    repo="sentence-transformers/all-MiniLM-L6-v2",
    revision="1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
    files={
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    },
    licence="Apache-2.0",
)


POSITION_TABLE = "embeddings.position_table"
WORDS = "embeddings.word_embeddings.weight"
POSITIONS = "embeddings.position_embeddings.weight"
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"

UNUSED = {
    "embeddings.position_ids": "the numbers 0, 1, 2, ...; the contract's positions are constant",
    "pooler.dense.bias": "BERT's pooler; the sentence embedding is the mean over tokens",
    "pooler.dense.weight": "BERT's pooler; the sentence embedding is the mean over tokens",
}

_DIMENSIONS = {  # config key: least and greatest value that is believed
    "vocab_size": (1, 1 << 20),
    "hidden_size": (1, 1 << 14),
    "num_hidden_layers": (1, 128),
    "num_attention_heads": (1, 256),
    "intermediate_size": (1, 1 << 16),
    "max_position_embeddings": (SEQUENCE_LENGTH, 1 << 16),
    "type_vocab_size": (1, 64),
}
_REQUIRED = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
_MAY_BE_ABSENT = {"position_embedding_type", "is_decoder", "add_cross_attention"}  # transformers' defaults


def load(path: Path) -> Checkpoint:
    """The checkpoint at ``path``: its folder, or its ``model.safetensors``.

    Reads ``config.json``, ``model.safetensors`` and ``tokenizer.json``. ``tensors`` are float32 under
    the names of :mod:`coreproof_exporters.minilm.modules`, which are the file's own but for
    ``embeddings.position_table`` [128, hidden]. ``config`` holds the dimensions and
    ``layer_norm_eps``.

    Raises CheckpointError when a file is missing or malformed, when the architecture is another
    one, when a key is missing, unknown, of another shape or dtype than the config asks for, when a
    weight is not finite, or when the tokenizer knows ids that the embedding table lacks.
    """
    folder = _folder(path)
    config = _config(folder / "config.json")
    raw, unused = _weights(folder / "model.safetensors", shapes(config))
    _check_tokenizer(folder / "tokenizer.json", config["vocab_size"])
    files = tuple(digest(folder / name) for name in sorted(PUBLISHED.files))
    published = all(file.sha256 == PUBLISHED.files[file.path] for file in files)
    tensors, origins = _named(raw)
    return Checkpoint(
        files=files,
        config=config,
        tensors=tensors,
        origins=origins,
        unused=unused,
        published=published,
        seed=None if published else read_seed(folder, "minilm"),
    )


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every key of ``model.safetensors`` that is read, with its shape: transformers' ``BertModel``."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    table: dict[str, tuple[int, ...]] = {
        WORDS: (config["vocab_size"], hidden),
        POSITIONS: (config["max_position_embeddings"], hidden),
        TOKEN_TYPES: (config["type_vocab_size"], hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
    }
    parts = {
        "attention.self.query": (hidden, hidden),
        "attention.self.key": (hidden, hidden),
        "attention.self.value": (hidden, hidden),
        "attention.output.dense": (hidden, hidden),
        "attention.output.LayerNorm": (hidden,),
        "intermediate.dense": (inner, hidden),
        "output.dense": (hidden, inner),
        "output.LayerNorm": (hidden,),
    }
    for layer in range(config["num_hidden_layers"]):
        for part, shape in parts.items():
            table[f"encoder.layer.{layer}.{part}.weight"] = shape
            table[f"encoder.layer.{layer}.{part}.bias"] = shape[:1]
    return table


def _folder(path: Path) -> Path:
    folder = path if path.is_dir() else path.parent
    if not path.is_dir() and path.name != "model.safetensors":
        raise CheckpointError(f"{path}: expected a folder with {', '.join(PUBLISHED.files)}")
    for name in PUBLISHED.files:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing; put the file of {PUBLISHED.repo} there")
    return folder


def _config(path: Path) -> dict[str, Any]:
    found = json_object(path)
    for key, value in _REQUIRED.items():
        if found.get(key, value if key in _MAY_BE_ABSENT else None) != value:
            raise CheckpointError(f"{path}: {key} is {found.get(key)!r}; this recipe reads only {value!r}")
    for key, (least, most) in _DIMENSIONS.items():
        size = found.get(key)
        if type(size) is not int or not least <= size <= most:
            raise CheckpointError(f"{path}: {key} is {size!r}; expected an integer of {least} to {most}")
    hidden, heads = found["hidden_size"], found["num_attention_heads"]
    if hidden % heads:
        raise CheckpointError(f"{path}: hidden_size {hidden} is no multiple of num_attention_heads {heads}")
    eps = found.get("layer_norm_eps")
    if type(eps) is not float or not 0 < eps < 1:
        raise CheckpointError(f"{path}: layer_norm_eps is {eps!r}; expected a number between 0 and 1")
    return {key: found[key] for key in _DIMENSIONS} | {"layer_norm_eps": eps}


def _weights(
    path: Path, expected: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors named in ``expected``, and those of ``UNUSED`` that the file has, with reasons."""
    found = read_safetensors(path)
    _check_keys(path, set(found), set(expected))
    tensors = {key: found[key] for key in expected}
    _check_types(path, tensors, expected)
    bad = [key for key, tensor in tensors.items() if not is_finite(tensor)]
    if bad:
        raise CheckpointError(f"{path}: NaN or infinity in {some(bad)}; every weight must be finite")
    return tensors, {key: reason for key, reason in UNUSED.items() if key in found}


def _check_keys(path: Path, found: set[str], expected: set[str]) -> None:
    problems = []
    if missing := expected - found:
        problems.append(f"missing {some(missing)}")
    if extra := found - expected - set(UNUSED):
        problems.append(f"unknown {some(extra)}")
    if problems:
        raise CheckpointError(
            f"{path}: {'; '.join(problems)}; expected the {len(expected)} keys of a BertModel"
        )


def _check_types(
    path: Path, tensors: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]
) -> None:
    wrong = [
        f"{key} ({tensor.dtype} {tensor.shape}, expected float32 {expected[key]})"
        for key, tensor in tensors.items()
        if tensor.dtype != np.float32 or tensor.shape != expected[key]
    ]
    if wrong:
        raise CheckpointError(f"{path}: not as config.json asks: {some(wrong)}")


def _check_tokenizer(path: Path, vocab_size: int) -> None:
    from tokenizers import Tokenizer  # here, so that who needs no tokenizer does not load the library

    json_object(path)
    try:
        vocabulary = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{path} is no tokenizer of the tokenizers library: {error}") from error
    if max(vocabulary.values(), default=-1) >= vocab_size:
        raise CheckpointError(
            f"{path}: token id {max(vocabulary.values())} is beyond vocab_size {vocab_size} of config.json; "
            "take both files from one publication"
        )


def _named(raw: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, Origin]]:
    """State dict tensors and origins: as in the file, but positions and token types are one table,
    since the contract has one segment and a fixed length."""
    tensors = {key: tensor for key, tensor in raw.items() if key not in (POSITIONS, TOKEN_TYPES)}
    origins = {key: Origin((key,)) for key in tensors}
    rows = raw[POSITIONS][:SEQUENCE_LENGTH].astype(np.float64) + raw[TOKEN_TYPES][0].astype(np.float64)
    tensors[POSITION_TABLE] = rows.astype(np.float32)
    origins[POSITION_TABLE] = Origin(
        (POSITIONS, TOKEN_TYPES),
        f"rows 0..{SEQUENCE_LENGTH - 1} of the first key plus row 0 of the second, in float64, rounded once",
    )
    return tensors, origins
