"""Constants compared by value, with expectations by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from coreproof.mil import values as module
from coreproof.mil.program import Blob, Immediate
from coreproof.mil.types import DType, ListType, TensorType
from coreproof.mil.values import Change, Values

TEXT = TensorType(DType.STRING)


def immediate(values: Any, dtype: str, kind: DType, *shape: int) -> Immediate:
    return Immediate(TensorType(kind, shape), np.array(values, dtype).reshape(shape))


def fp32(*values: float) -> Immediate:
    return immediate(values, "float32", DType.FP32, len(values))


def unread(blob: Blob) -> Any:
    raise AssertionError


def compare(first: Any, second: Any) -> Change | None:
    forward = Values(unread, unread).compare(first, second)
    backward = Values(unread, unread).compare(second, first)
    assert (forward is None) == (backward is None)
    if forward and backward:
        assert (forward.differing, forward.elements) == (backward.differing, backward.elements)
        np.testing.assert_equal(forward.max_abs, backward.max_abs)
    return forward


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (fp32(1, 2), fp32(1, 2)),
        (fp32(np.inf, -np.inf), fp32(np.inf, -np.inf)),
        (fp32(np.nan, 1), Immediate(TensorType(DType.FP32, (2,)), np.array([0x7FC00001, 0x3F800000], "u4").view("f4"))),
        (Immediate(TEXT, "a"), Immediate(TEXT, "a")),
        (Immediate(ListType(TEXT, 1), ("a",)), Immediate(ListType(TEXT, 1), ("a",))),
        (immediate([], "int32", DType.INT32, 0), immediate([], "int32", DType.INT32, 0)),
    ],
)  # fmt: skip
def test_equal(first: Immediate, second: Immediate) -> None:
    assert compare(first, second) is None


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (fp32(1, 2), fp32(1, 2.5), Change("[1.0, 2.0], [1.0, 2.5]", 2, 1, 0.5)),
        (fp32(0, 1), fp32(-0.0, 1), Change("[0.0, 1.0], [-0.0, 1.0]", 2, 1, 0.0)),
        (fp32(np.inf), fp32(-np.inf), Change("[inf], [-inf]", 1, 1, np.inf)),
        (fp32(*range(9)), fp32(*range(8), 9), Change("", 9, 1, 1.0)),
        (fp32(1), immediate([1], "float16", DType.FP16, 1), Change("fp32[1], fp16[1]", 1, 0, 0.0)),
        (fp32(0.1), immediate([0.1], "float16", DType.FP16, 1), Change("fp32[1], fp16[1]", 1, 1, abs(
            float(np.float32(0.1)) - float(np.float16(0.1))))),
        (fp32(1), fp32(1, 1), Change("fp32[1], fp32[2]")),
        (immediate(True, "bool", DType.BOOL), immediate(False, "bool", DType.BOOL), Change("True, False", 1, 1, 1.0)),
        (immediate(-(2**63), "int64", DType.INT64), immediate(2**62, "int64", DType.INT64),
         Change(f"{-(2**63)}, {2**62}", 1, 1, 2.0**63 + 2.0**62)),
        (immediate([0x21], "uint8", DType.UINT4), Immediate(TensorType(DType.UINT4, (2,)), np.uint8([0x21])),
         Change("uint4[], uint4[2]")),
        (Immediate(TensorType(DType.INT4, (2,)), np.uint8([0x8F])),
         Immediate(TensorType(DType.INT4, (2,)), np.uint8([0x7F])), Change("[-1, -8], [-1, 7]", 2, 1, 15.0)),
        (Immediate(TensorType(DType.BF16, (1,)), np.uint8([0x80, 0x3F])),
         Immediate(TensorType(DType.BF16, (1,)), np.uint8([0, 0x40])), Change("[1.0], [2.0]", 1, 1, 1.0)),
        (Immediate(TEXT, "a"), Immediate(TEXT, "b"), Change("'a', 'b'")),
        (Immediate(TEXT, "a" * 99), Immediate(TEXT, "b"), Change("a string[], 'b'")),
        (Immediate(TEXT, "1"), immediate(1, "int32", DType.INT32), Change("'1', array(1, dtype=int32)")),
    ],
)  # fmt: skip
def test_different(first: Immediate, second: Immediate, expected: Change) -> None:
    assert compare(first, second) == expected


def test_nan_against_a_number() -> None:
    change = compare(fp32(1, 2, np.nan), fp32(1, np.nan, np.nan))
    assert change is not None and change.differing == 1
    assert change.max_abs is not None and np.isnan(change.max_abs)


def test_large_weights_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 64)
    rng = np.random.default_rng(0)
    for dtype in (DType.FP16, DType.UINT3, DType.UINT6, DType.BF16):
        size = 1000
        nbytes = (size * dtype.bits + 7) // 8
        first = rng.integers(0, 255, nbytes).astype(np.uint8) & 0x3F
        second = first.copy()
        second[[3, nbytes // 2, nbytes - 1]] ^= 1
        kind, name = TensorType(dtype, (size,)), dtype.numpy_name or "uint8"
        stored = {"a": first.view(name), "b": second.view(name)}
        read = Values(lambda b, s=stored: s[b.file], lambda b, s=stored: s[b.file])
        assert read.compare(Blob(kind, "a", 64), Blob(kind, "a", 64)) is None
        change = read.compare(Blob(kind, "a", 64), Blob(kind, "b", 64))
        assert change is not None
        assert (change.differing, change.elements) == (3, size)
