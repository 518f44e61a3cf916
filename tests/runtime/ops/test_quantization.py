from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracle import assert_same, inferred, normal, ours, rng

from coreproof.errors import UnsupportedOpError

X = 40 * normal(2, 3, 4)
SCALE = np.array([0.5, 0.25, 1.5], np.float32)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("vector", [False, True])
def test_quantize(dtype: str, shifted: bool, vector: bool) -> None:
    arguments: dict[str, Any] = {"input": X, "scale": SCALE if vector else SCALE[0], "output_dtype": dtype}
    if shifted:
        points = np.array([3, 100, 7], dtype)
        arguments["zero_point"] = points if vector else points[0]
    if vector:
        arguments["axis"] = 1
    assert_same(ours("quantize", "ios17", **arguments), inferred("quantize", "ios17", **arguments))


def test_halves_go_to_even() -> None:
    x = np.array([0.5, 1.5, -0.5, -1.5, 300, -300], np.float32)
    got = ours("quantize", "ios17", input=x, scale=np.float32(1), output_dtype="int8")
    assert got.tolist() == [0, 2, 0, -2, 127, -128]


def test_quantize_dtype() -> None:
    with pytest.raises(UnsupportedOpError, match="'int4'"):
        ours("quantize", "ios17", input=X, scale=np.float32(1), output_dtype="int4")


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("axis", [None, 1, -2])
def test_dequantize(dtype: str, shifted: bool, axis: int | None) -> None:
    data = rng(1).integers(0, 120, (2, 3, 4)).astype(dtype)
    points = np.array([100, 3, 7], dtype)
    scale, point = (
        (SCALE[0], points[0]) if axis is None else (SCALE.reshape(1, 3, 1), points.reshape(1, 3, 1))
    )
    expected = scale * (data.astype(np.float32) - (point.astype(np.float32) if shifted else 0))
    arguments: dict[str, Any] = {"input": data, "scale": SCALE[0] if axis is None else SCALE}
    arguments |= {"zero_point": points[0] if axis is None else points} if shifted else {}
    arguments |= {} if axis is None else {"axis": axis}
    assert_same(ours("dequantize", "ios17", **arguments), expected)
