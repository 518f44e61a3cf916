"""Graphs to time the runtime on, each one kind of work. Their modules are in ``graph_modules.py``: this
table is also read by arms that do without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

TINY_OPS = 1000
FRAMES, WIDTH, HEADS = 64, 512, 8
_CACHE = (1, HEADS, FRAMES, WIDTH // HEADS)

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Graph:
    """``states``: shapes of the buffers that a prediction reads and writes."""

    inputs: Shapes
    states: Shapes = field(default_factory=dict)


GRAPHS: Mapping[str, Graph] = {
    "tiny_ops": Graph({"x": (16,)}),
    "transformer": Graph({"x": (1, 128, 384)}),
    "conv_decoder": Graph({"x": (1, 64, 50)}),
    "lstm": Graph({"x": (1, 100, 256)}),
    "stateful_step": Graph({"x": (1, 1, WIDTH)}, {"keys": _CACHE, "values": _CACHE}),
}


def arrays(name: str) -> dict[str, NDArray[np.float32]]:
    """Inputs of graph ``name``, the same every time."""
    generator = np.random.default_rng(1)
    shapes = GRAPHS[name].inputs.items()
    return {key: generator.standard_normal(shape, dtype=np.float32) for key, shape in shapes}
