"""Write a synthetic checkpoint: the published files, keys and shapes, with drawn weights.

Means and spreads are near those measured in the published weights, as gains relative to fan-in so
that attention is as peaked and activations as wide at any size. Every number is an integer draw
times a factor: no transcendental function, so the same seed gives the same bytes on every CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import chain, islice, product
from pathlib import Path
from string import ascii_lowercase, digits, punctuation

import numpy as np
from safetensors.numpy import save

from coreproof.convert.synthetic import check_request, write_json, write_note
from coreproof_exporters.minilm.checkpoint import SEQUENCE_LENGTH, shapes

SIZES = {
    "full": {
        "vocab_size": 30522,
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
    },
    "small": {
        "vocab_size": 1200,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 160,
        "type_vocab_size": 2,
    },
}

_ARCHITECTURE = {
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "model_type": "bert",
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
}

# Key pattern: mean, spread; the first that fits. A matrix's spread is a gain, divided by sqrt(fan-in).
# Drawn weights lack the structure that keeps a trained encoder's tokens apart, so queries and keys
# are wider (attention that selects) and the rest narrower (little that all tokens share).
_STATISTICS = {
    "embeddings.word_embeddings.weight": (0.0, 0.056),
    "embeddings.*_embeddings.weight": (0.0, 0.025),
    "*.LayerNorm.weight": (0.6, 0.1),
    "*.LayerNorm.bias": (0.0, 0.04),
    "*.self.query.weight": (0.0, 3.0),
    "*.self.key.weight": (0.0, 3.0),
    "*.self.query.bias": (0.0, 0.3),
    "*.self.key.bias": (0.0, 0.001),
    "*.self.value.weight": (0.0, 1.2),
    "*.attention.output.dense.weight": (0.0, 0.7),
    "*.intermediate.dense.weight": (0.0, 1.3),
    "*.output.dense.weight": (0.0, 1.2),
    "*.bias": (0.0, 0.04),
    "pooler.dense.weight": (0.0, 0.2),
}

# First and last letter of the scripts that the stand-in vocabulary spells letter by letter, in the
# decomposed form to which the normalizer brings text.
_ALPHABETS = (
    "αω",  # Greek
    "ая",  # Cyrillic
    "את",  # Hebrew
    "اي",  # Arabic
    "अह",  # Devanagari
    "กฮ",  # Thai
    "ぁん",  # Hiragana
    "ァン",  # Katakana
    "\u1100\u1112",  # Hangul, initial consonants
    "\u1161\u1175",  # Hangul, vowels
    "\u11a8\u11c2",  # Hangul, final consonants
)
_SPECIAL = ("[UNK]", "[CLS]", "[SEP]", "[MASK]")  # ids 100 to 103, after [PAD] and 99 unused ones


def synth(folder: Path, size: str, seed: int) -> None:
    """Write ``config.json``, ``model.safetensors``, ``tokenizer.json`` and ``synth.json`` into
    ``folder``, which is created. ``size`` is ``small`` or ``full``; ``seed`` is not negative.

    Raises UsageError for another size or seed.
    """
    check_request(size, SIZES, seed)
    config = SIZES[size]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {**_ARCHITECTURE, **config})
    write_json(folder / "tokenizer.json", _tokenizer(config["vocab_size"]))
    weights = save(_tensors(config, seed), metadata={"format": "pt"})
    (folder / "model.safetensors").write_bytes(weights)
    write_note(folder, "minilm", size, seed)


def _tensors(config: dict[str, int], seed: int) -> dict[str, np.ndarray]:
    hidden, positions = config["hidden_size"], config["max_position_embeddings"]
    table = shapes(config) | {"pooler.dense.weight": (hidden, hidden), "pooler.dense.bias": (hidden,)}
    generator = np.random.Generator(np.random.PCG64(seed))
    tensors = {key: _draw(generator, key, shape) for key, shape in sorted(table.items())}
    tensors["embeddings.position_ids"] = np.arange(positions, dtype=np.int64).reshape(1, positions)
    return tensors


def _draw(generator: np.random.Generator, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Bell-shaped float32 numbers: sums of four uniform 16-bit integers, centred and scaled."""
    mean, spread = next(value for pattern, value in _STATISTICS.items() if fnmatchcase(key, pattern))
    if len(shape) == 2 and not key.startswith("embeddings."):
        spread /= math.sqrt(shape[1])
    total = generator.integers(0, 1 << 16, size=(*shape, 4), dtype=np.uint16).sum(axis=-1, dtype=np.int64)
    deviation = math.sqrt(4 / 12) * (1 << 16)  # of the sum
    centred = total - 2 * ((1 << 16) - 1)
    values: np.ndarray = mean + centred * (spread / deviation)
    return values.astype(np.float32)


def _tokenizer(vocab_size: int) -> dict[str, object]:
    """A WordPiece tokenizer with the published one's special ids, normalisation and lengths."""
    names = {"[PAD]": 0, **{name: 100 + i for i, name in enumerate(_SPECIAL)}}
    flags = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": {"max_length": SEQUENCE_LENGTH, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": SEQUENCE_LENGTH},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": names["[PAD]"],
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
        "added_tokens": [{"id": number, "content": name, **flags} for name, number in names.items()],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "BertProcessing",
            "cls": ["[CLS]", names["[CLS]"]],
            "sep": ["[SEP]", names["[SEP]"]],
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {token: number for number, token in enumerate(islice(_vocabulary(), vocab_size))},
        },
    }


def _vocabulary() -> Iterator[str]:
    """Special tokens, then single characters, then pairs and triples of Latin letters."""
    letters = [*digits, *ascii_lowercase]
    for ends in _ALPHABETS:
        letters += [chr(code) for code in range(ord(ends[0]), ord(ends[1]) + 1)]
    pieces = ("".join(p) for length in (2, 3) for p in product(ascii_lowercase, repeat=length))
    return chain(
        ["[PAD]", *(f"[unused{i}]" for i in range(99)), *_SPECIAL],
        punctuation,
        chain.from_iterable((letter, f"##{letter}") for letter in letters),
        chain.from_iterable((piece, f"##{piece}") for piece in pieces),
    )
