from __future__ import annotations

import numpy as np
import pytest
from half import half_dot, half_sum, halves
from oracle import assert_same, inferred, normal, ours

from coreproof.runtime.numerics import FP16ACC, WIDE

NAME = "scaled_dot_product_attention"
SHAPES = [
    ((2, 3, 4, 8), (2, 3, 6, 8), (2, 3, 6, 5)),
    ((3, 4, 8), (3, 6, 8), (3, 6, 8)),
    ((1, 2, 2, 4, 8),) * 3,
]


def _operands(shapes: tuple[tuple[int, ...], ...]) -> dict[str, np.ndarray]:
    return {
        n: normal(*s, seed=i) for i, (n, s) in enumerate(zip(("query", "key", "value"), shapes, strict=True))
    }


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("mask", [None, "added", "boolean", "row"])
def test_as_coremltools(shapes: tuple[tuple[int, ...], ...], mask: str | None) -> None:
    arguments = _operands(shapes)
    added = normal(shapes[0][-2], shapes[1][-2], seed=7)
    if mask is not None:
        arguments["attn_mask"] = {"added": added, "boolean": added > -0.5, "row": added[:1]}[mask]
    expected = inferred(NAME, "ios18", **arguments).astype(np.float32)
    assert_same(ours(NAME, "ios18", **arguments), expected, rtol=1e-5)


@pytest.mark.parametrize("num", [WIDE, FP16ACC], ids=["wide", "half"])
@pytest.mark.parametrize("boolean", [False, True])
def test_a_row_that_sees_nothing_is_nan(boolean: bool, num: object) -> None:
    mask = np.array([[True, True], [False, False]])
    added = mask if boolean else np.where(mask, 0, -np.inf).astype(np.float32)
    got = ours(NAME, "ios18", num=num, **_operands(((1, 2, 4), (1, 2, 4), (1, 2, 4))), attn_mask=added)
    assert np.isfinite(got[0, 0]).all()
    assert np.isnan(got[0, 1]).all()


@pytest.mark.parametrize("num", [WIDE, FP16ACC], ids=["wide", "half"])
def test_such_a_row_of_one_head(num: object) -> None:
    mask = np.ones((1, 2, 3, 3), np.bool_)
    mask[0, 1, 2] = False
    got = ours(NAME, "ios18", num=num, **_operands(((1, 2, 3, 4),) * 3), attn_mask=mask)
    np.testing.assert_array_equal(np.isnan(got[..., 0]), ~mask.any(-1))


@pytest.mark.parametrize("mask", [None, "added", "boolean"])
def test_half_accumulation(mask: str | None) -> None:
    query, key, value = halves(3, 40, seed=1), halves(50, 40, seed=2), halves(50, 4, seed=3)
    noise = halves(3, 50, seed=4)
    masks = {"added": (noise, noise), "boolean": (noise > 0, np.where(noise > 0, 0, -np.inf))}
    given, added = masks.get(mask or "", (None, np.float32(0)))
    scores = (
        np.array([[half_dot(q, k) for k in key] for q in query], np.float32) / np.float32(np.sqrt(40)) + added
    )
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    weights = powers / np.array([half_sum(p) for p in powers], np.float32)[:, None]
    expected = np.array([[half_dot(w, column) for column in value.T] for w in weights], np.float32)
    arguments = {"query": query[None], "key": key[None], "value": value[None]}
    got = ours(NAME, "ios18", num=FP16ACC, **arguments, **({} if given is None else {"attn_mask": given}))
    # exp differs in its last bit between torch and numpy, which may move a rounding by one unit.
    np.testing.assert_allclose(got[0], expected, atol=2 * np.spacing(np.float16(np.abs(expected).max())))
