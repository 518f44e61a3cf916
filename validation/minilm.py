"""The MiniLM suite: every sentence of ``sentences.json`` is a case of the stage ``encoder``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.recipe import Stage
from coreproof.parity.defects import plant_nan, swap_weights
from coreproof.parity.suite import Arrays, Case, Control, Outcome, Suite

_INPUTS = ("input_ids", "attention_mask")
_EXCITATIONS = {
    "attention_mask": "embedding_mask_ignored",
    "token_order": "embedding_reversed",
    "pooling": "embedding_cls",
}


def cases(arrays: Arrays) -> Iterable[Case]:
    """One case a sentence, ``s000`` on, in the order of ``sentences.json``."""
    for index in range(len(arrays["input_ids"])):
        row = slice(index, index + 1)
        step = {name: arrays[name][row] for name in _INPUTS}
        yield Case(f"s{index:03d}", "encoder", (step,), {"embedding": arrays["embedding"][row]})


def excitations(arrays: Arrays) -> Mapping[str, float]:
    """How far the official embedding moves when one ingredient is left out: the mean over the first
    sentences of |without - with| / |with|, L2."""
    return {name: _mean_change(arrays[key], arrays["embedding"]) for name, key in _EXCITATIONS.items()}


def _mean_change(changed: np.ndarray, embedding: np.ndarray) -> float:
    whole = embedding[: len(changed)].astype(np.float64)
    return float(np.mean(np.linalg.norm(changed - whole, axis=1) / np.linalg.norm(whole, axis=1)))


def aggregates(outcomes: Sequence[Outcome]) -> Mapping[str, float]:
    """``nearest_neighbour_agreement``: the share of sentences, 0 to 1, whose nearest other sentence by
    cosine is the same one in what the package computed as in the reference.

    Sentences that reach the model as the same tokens count once, since their order would be a tie.
    NaN when an embedding is not finite or fewer than three sentences are left; nothing is measured
    when an embedding is missing or of another shape.
    """
    distinct = list({o.case.steps[0]["input_ids"].tobytes(): o for o in outcomes}.values())
    pairs = [(o.actual.get("embedding"), o.case.expected["embedding"]) for o in distinct]
    actual = [a for a, e in pairs if a is not None and a.shape == e.shape]
    if len(actual) < len(pairs):
        return {}
    if len(pairs) < 3 or not all(np.isfinite(a).all() for a in actual):
        return {"nearest_neighbour_agreement": float("nan")}
    same = _nearest(actual) == _nearest([e for _, e in pairs])
    return {"nearest_neighbour_agreement": float(np.mean(same))}


def _nearest(embeddings: Sequence[np.ndarray]) -> np.ndarray:
    """For each of N embeddings (1, H) the index of the nearest other one, int64 [N]."""
    rows = np.concatenate(embeddings).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    similarity: np.ndarray = rows @ rows.T
    np.fill_diagonal(similarity, -np.inf)
    nearest: np.ndarray = similarity.argmax(axis=1)
    return nearest


def _ignore_mask(stage: Stage, _: Checkpoint) -> Stage:
    from torch import Tensor

    from coreproof_exporters.minilm.modules import SentenceEncoder, build

    class MaskIgnored(SentenceEncoder):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            ones = (attention_mask >= 0).to(attention_mask.dtype)
            return super().forward(input_ids, ones)

    return replace(stage, module=partial(build, encoder=MaskIgnored))


def _pool_cls(stage: Stage, _: Checkpoint) -> Stage:
    from torch import Tensor

    from coreproof_exporters.minilm.modules import SentenceEncoder, build

    class ClsPooled(SentenceEncoder):
        def pool(self, x: Tensor, mask: Tensor) -> Tensor:
            return x[:, 0]

    return replace(stage, module=partial(build, encoder=ClsPooled))


def _plant_nan(package: Path) -> None:
    plant_nan(package, "encoder_layer_0_intermediate_dense_weight*")


def _swap_layers(package: Path) -> None:
    query = "encoder_layer_{}_attention_self_query_weight*"
    swap_weights(package, query.format(0), query.format(1))


SUITE = Suite(
    model="minilm",
    cases=cases,
    excitations=excitations,
    aggregates=aggregates,
    controls=(
        Control("nan_weight", "one weight of the first layer is NaN", package=_plant_nan),
        Control("layers_swapped", "layers 0 and 1 have each other's query weights", package=_swap_layers),
        Control("mask_ignored", "padding is attended to and pooled", stage=_ignore_mask),
        Control("cls_pooling", "the embedding is [CLS] instead of the mean", stage=_pool_cls),
    ),
)
