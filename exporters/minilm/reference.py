"""The expected tensors, by the official implementation.

``transformers``' tokenizer class on the checkpoint's own ``tokenizer.json``, its ``BertModel`` in
float64 with plain ("eager") attention, then ``sentence-transformers``' ``Pooling`` and ``Normalize``:
the three modules that the publication's ``modules.json`` lists. Nothing of this recipe's torch
module takes part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from transformers import BertModel, PreTrainedTokenizerFast
from transformers.utils import logging

from coreproof.parity.suite import Reference
from coreproof_exporters.minilm.checkpoint import SEQUENCE_LENGTH, load

SENTENCES = Path(__file__).with_name("sentences.json")
EXCITED = 32  # the excitations are computed on this many sentences, the first ones

_BATCH = 16
_PACKAGES = ("sentence-transformers", "tokenizers", "torch", "transformers")


def compute(checkpoint: Path) -> Reference:
    """Embed ``sentences.json`` with the checkpoint folder (or ``model.safetensors``) given.

    N sentences, hidden size H, 128 tokens: ``input_ids`` and ``attention_mask`` int32 [N, 128],
    ``embedding`` float32 [N, H]. What the first 32 become if one ingredient is left out, float32
    [32, H]: ``embedding_mask_ignored`` (every position attended and pooled), ``embedding_reversed``
    (the tokens between [CLS] and [SEP] in reverse order), ``embedding_cls`` ([CLS] pooled).

    Raises CheckpointError for a checkpoint that the recipe refuses.
    """
    config = load(checkpoint).config
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    with _quiet():
        model = BertModel.from_pretrained(
            folder, local_files_only=True, dtype=torch.float64, attn_implementation="eager"
        )
        ids, mask = _tokens(folder)
    first = (ids[:EXCITED], mask[:EXCITED])
    arrays = {
        "input_ids": ids.numpy().astype(np.int32),
        "attention_mask": mask.numpy().astype(np.int32),
        "embedding": _embed(model, ids, mask),
        "embedding_mask_ignored": _embed(model, first[0], torch.ones_like(first[1])),
        "embedding_reversed": _embed(model, _reversed(*first), first[1]),
        "embedding_cls": _embed(model, *first, pooling="cls"),
    }
    return Reference(arrays, _provenance(config, len(ids)))


def _tokens(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]")
    encoded = tokenizer(
        json.loads(SENTENCES.read_bytes()),
        padding="max_length",
        truncation=True,
        max_length=SEQUENCE_LENGTH,
        return_tensors="pt",
    )
    return encoded["input_ids"], encoded["attention_mask"]


def _embed(model: BertModel, ids: torch.Tensor, mask: torch.Tensor, pooling: str = "mean") -> np.ndarray:
    """Embeddings float32 [n, H] of tokens [n, 128]."""
    pool, normalize = Pooling(model.config.hidden_size, pooling), Normalize()
    rows = []
    with torch.inference_mode():
        for start in range(0, len(ids), _BATCH):
            batch = slice(start, start + _BATCH)
            hidden = model(input_ids=ids[batch], attention_mask=mask[batch]).last_hidden_state
            features = normalize(pool({"token_embeddings": hidden, "attention_mask": mask[batch]}))
            rows.append(features["sentence_embedding"])
    return torch.cat(rows).to(torch.float32).numpy()


def _reversed(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    result = ids.clone()
    for row, count in enumerate(mask.sum(dim=1).tolist()):
        result[row, 1 : count - 1] = ids[row, 1 : count - 1].flip(0)
    return result


def _provenance(config: Any, count: int) -> dict[str, object]:
    return {
        "implementation": "transformers BertModel; sentence-transformers Pooling and Normalize",
        "packages": {name: version(name).partition("+")[0] for name in _PACKAGES},
        "computed_in": "float64",
        "stored_in": "float32",
        "config": dict(config),
        "sequence_length": SEQUENCE_LENGTH,
        "sentences": count,
        "sentences_sha256": hashlib.sha256(SENTENCES.read_bytes()).hexdigest(),
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars or notes from transformers inside, its settings as before outside."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
