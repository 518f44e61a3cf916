"""A stand-in for flan-t5's ``tokenizer.json``: another vocabulary, with T5's special ids and steps."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice, product
from string import ascii_lowercase, ascii_uppercase, digits, punctuation
from typing import Any

SPECIAL = ("<pad>", "</s>", "<unk>")  # ids 0, 1, 2
EXTRA = 100  # sentinels at the end, counted down
_PADDING = 28  # rows of the published embedding that no token has
_SPACE = "▁"


def stand_in(rows: int) -> dict[str, Any]:
    """A Unigram tokenizer for an embedding of ``rows``: single characters, then pairs and triples of
    letters with and without a space before, the longer the likelier."""
    count = rows - _PADDING - EXTRA
    pieces = list(islice(_pieces(), count - len(SPECIAL)))
    extra = [f"<extra_id_{i}>" for i in reversed(range(EXTRA))]
    vocabulary = [*((s, 0.0) for s in SPECIAL), *((p, -12.0 + 2.0 * len(p)) for p in pieces)]
    vocabulary += [(name, 0.0) for name in extra]
    ids = {name: i for i, (name, _) in enumerate(vocabulary)}
    flags = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    metaspace = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "always", "split": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": ids[name], "content": name, **flags} for name in (*SPECIAL, *extra)],
        "normalizer": {"type": "NFKC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "</s>", "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "</s>", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 0}},
                {"SpecialToken": {"id": "</s>", "type_id": 0}},
            ],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [ids["</s>"]], "tokens": ["</s>"]}},
        },
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": ids["<unk>"], "vocab": vocabulary, "byte_fallback": False},
    }


def _pieces() -> Iterator[str]:
    letters = (*ascii_lowercase, *ascii_uppercase, *digits, *punctuation)
    pairs, triples, longer = (
        ("".join(p) for p in product(ascii_lowercase, repeat=length)) for length in (2, 3, 4)
    )
    spaced = (f"{_SPACE}{letter}" for letter in ascii_lowercase)
    words = chain.from_iterable((piece, f"{_SPACE}{piece}") for piece in chain(triples, longer))
    return chain([_SPACE], letters, spaced, pairs, words)
