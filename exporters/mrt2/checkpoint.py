"""Read ``mrt2_small.safetensors`` as published, strictly and memory-mapped, without MLX or JAX."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from coreproof.convert.checkpoint import Checkpoint, some
from coreproof.convert.later import Hashed
from coreproof.convert.mapped import is_finite
from coreproof.convert.synthetic import read_seed
from coreproof.errors import CheckpointError
from coreproof_exporters.mrt2.architecture import (
    QUANTIZER,
    SIZES,
    STYLE,
    TOKEN_EMBEDDING,
    TOKEN_SHIFT,
    Config,
    analysis_shapes,
    shapes,
)
from coreproof_exporters.mrt2.naming import Stored, named

FILE = "mrt2_small.safetensors"
ENCODER_FILE = "encoder.safetensors"  # the codec's analysis encoder, published beside it
# As reported by those who published conversions of it; the file itself needs a licence to be accepted.
PUBLISHED_SHA256 = "5dd1cbc7c606c512c21de0bcb04d4818bf0a3b873d7cbb9d1556d67d3b034de3"


UNUSED = {
    "params/soundstream/encoder/*": "the codec's analysis encoder; generation only decodes",
}
# One kernel for what the recipe reads as several: stacked on axis 1, as the official loader accepts.
_COMBINED = {
    "query_key_value_projection": ("query_projection", "key_projection", "value_projection"),
    "key_value_projection": ("key_projection", "value_projection"),
}
_HEADER_LENGTH = 8  # bytes; safetensors starts with the length of its JSON header


def load(path: Path) -> Checkpoint:
    """The checkpoint at ``path``: its folder, or the ``.safetensors`` file itself. An
    ``encoder.safetensors`` beside it, which generation does not need, is read too.

    ``tensors`` are float32 under the names of this folder's torch modules, views of the mapped file
    where nothing had to be folded. ``config`` holds the dimensions of
    :data:`coreproof_exporters.mrt2.architecture.SIZES`. Self- and cross-attention kernels may be
    separate or combined, as the official loader allows.

    Raises CheckpointError when the file is missing, truncated or malformed, when a key is missing,
    unknown, of another shape, or not float32, and when a weight is not finite.
    """
    file = path / FILE if path.is_dir() else path
    if not file.is_file() or file.suffix != ".safetensors":
        raise CheckpointError(f"{file} is no file; expected {FILE} of google/magenta-realtime-2")
    encoder = file.with_name(ENCODER_FILE)
    digests = Hashed(file.parent, [file.name, *([ENCODER_FILE] if encoder.is_file() else [])])
    arrays = _mapped(file)
    config = _config(file, arrays)
    stored, unused = _stored(file, arrays, shapes(config))
    if encoder.is_file():
        found, _ = _stored(encoder, _mapped(encoder), analysis_shapes(config))
        stored |= found
    tensors, origins = named(stored, config)
    levels, quantizers = config["levels"], config["quantizers"]
    # No published sha256 of the encoder is known, so with one the checkpoint is not known to be published.
    files = tuple(digests)
    published = [f.sha256 for f in files] == [PUBLISHED_SHA256]
    return Checkpoint(
        files=files,
        config=config,
        tensors=tensors,
        origins=origins,
        unused=unused | {f"{QUANTIZER}[{levels}:{quantizers}]": f"the model generates {levels} levels"},
        published=published,
        seed=None if published else read_seed(file.parent, "mrt2"),
    )


def _mapped(path: Path) -> dict[str, np.ndarray]:
    """Every tensor as a private view of the mapped file: nothing is read before it is used.

    safetensors checks the header: offsets within the file, no overlap and no gap. So the data follow
    one another in the order it gives.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {key: file.get_slice(key) for key in file.offset_keys()}
            found = {key: (entry.get_dtype(), tuple(entry.get_shape())) for key, entry in slices.items()}
        with path.open("rb") as stream:
            offset = _HEADER_LENGTH + int.from_bytes(stream.read(_HEADER_LENGTH), "little")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; download it again") from error
    wrong = [f"{key} ({dtype})" for key, (dtype, _) in found.items() if dtype != "F32"]
    if wrong:
        raise CheckpointError(
            f"{path}: expected float32 throughout, found {some(wrong)}; take the file as published, because "
            "weights that were rounded or quantised once give another model"
        )
    data = np.memmap(path, np.uint8, mode="c")
    arrays = {}
    for key, (_, shape) in found.items():
        size = 4 * math.prod(shape)
        arrays[key] = data[offset : offset + size].view("<f4").view(np.ndarray).reshape(shape)
        offset += size
    return arrays


def _config(path: Path, arrays: Mapping[str, np.ndarray]) -> Config:
    if TOKEN_EMBEDDING not in arrays:
        raise CheckpointError(f"{path}: missing {TOKEN_EMBEDDING}; expected the keys of {FILE}")
    found = arrays[TOKEN_EMBEDDING].shape
    known = {shapes(config)[TOKEN_EMBEDDING]: config for config in SIZES.values()}
    if found not in known:
        raise CheckpointError(
            f"{path}: {TOKEN_EMBEDDING} is {found}, expected {' or '.join(map(str, known))}; "
            "mrt2_base and other sizes are not read"
        )
    return known[found]


def _stored(
    path: Path, arrays: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Stored], dict[str, str]]:
    """What is stored for each expected key, and the keys knowingly left out, with reasons."""
    stored: dict[str, Stored] = {}
    unused: dict[str, str] = {}
    extra = []
    for key, array in arrays.items():
        reason = next((r for pattern, r in UNUSED.items() if key.startswith(pattern.rstrip("*"))), None)
        parts = _parts(key)
        if key in expected:
            stored[key] = Stored(array, key)
        elif parts and array.ndim == 4 and array.shape[1] == len(parts) and parts.keys() <= expected.keys():
            stored |= {name: Stored(array[:, i], key, f"[:, {i}]") for name, i in parts.items()}
        elif reason:
            unused[key] = reason
        else:
            extra.append(key)
    _check(path, stored, expected, extra)
    bad = [key for key, found in stored.items() if not is_finite(np.ascontiguousarray(found.array))]
    if bad:
        raise CheckpointError(f"{path}: NaN or infinity in {some(bad)}; every weight must be finite")
    return stored, unused


def _parts(key: str) -> dict[str, int]:
    """The keys that a combined kernel stands for, with their places on axis 1; none for other keys."""
    match = re.fullmatch(r"(.*/attention/)(\w+)(/kernel)", key)
    if match is None or match[2] not in _COMBINED:
        return {}
    return {f"{match[1]}{name}{match[3]}": i for i, name in enumerate(_COMBINED[match[2]])}


def _check(
    path: Path, stored: Mapping[str, Stored], expected: Mapping[str, tuple[int, ...]], extra: list[str]
) -> None:
    problems = []
    if missing := expected.keys() - stored.keys():
        problems.append(f"missing {some(missing)}")
    if extra:
        problems.append(f"unknown {some(extra)}")
    wrong = [
        f"{key} {found.array.shape}, expected {expected[key]}{_advice(key, found.array, expected[key])}"
        for key, found in stored.items()
        if found.array.shape != expected[key]
    ]
    if wrong:
        problems.append(f"of another shape {some(wrong)}")
    if problems:
        raise CheckpointError(
            f"{path}: {'; '.join(problems)}; expected the {len(expected)} keys of {_published(path)}"
        )


def _advice(key: str, array: np.ndarray, expected: tuple[int, ...]) -> str:
    if not key.startswith(STYLE) or len(expected) != array.ndim:
        return ""
    levels = (expected[0] - array.shape[0]) // TOKEN_SHIFT
    if levels < 1 or array.shape[0] + levels * TOKEN_SHIFT != expected[0]:
        return ""
    return (
        f" (each level has {TOKEN_SHIFT} rows before its codes, so levels lie {expected[0] // levels} rows apart, "
        f"not {array.shape[0] // levels})"
    )


def _published(path: Path) -> str:
    return ENCODER_FILE if path.name == ENCODER_FILE else FILE
