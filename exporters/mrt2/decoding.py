"""The codec's decoder as a stream: one embedding a frame in, STFT rows out, in two ways.

Both give the rows of whole-sequence decoding: 4 n - 4 of them for n frames, because the decoder looks
one frame ahead.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from coreproof_exporters.mrt2.architecture import CONTEXT_FRAMES, LOOKAHEAD_ROWS, ROWS_PER_FRAME
from coreproof_exporters.mrt2.host import Graph, Timings

# Option value -> the stage that does it.
DECODERS = {"streaming": "spectrostream_decoder_streaming", "context": "spectrostream_decoder_25"}


class Rows(Protocol):
    """``push`` takes the embedding float32 (1, features) of the next frame and gives the STFT rows
    (n, 480, 4) that are then certain; ``finish`` gives the others at the stream's end."""

    def push(self, embedding: np.ndarray) -> np.ndarray: ...

    def finish(self) -> np.ndarray: ...


class StreamingRows:
    """Four rows a frame, at once: the graph hands each call the rows that reach into it."""

    def __init__(self, graph: Graph, timings: Timings) -> None:
        self._graph, self._timings = graph, timings
        self._carried = graph.zeros("_in")
        self._lookahead = LOOKAHEAD_ROWS

    def push(self, embedding: np.ndarray) -> np.ndarray:
        made = self._timings.run(
            "decoder", lambda: self._graph(decoder_embeddings=embedding[np.newaxis], **self._carried)
        )
        self._carried = {f"{n.removesuffix('_out')}_in": a for n, a in made.items() if n.endswith("_out")}
        rows: np.ndarray = made["decoder_stft"][0, self._lookahead :]
        self._lookahead = 0
        return rows

    def finish(self) -> np.ndarray:
        return _none(self._graph)


class ContextRows:
    """Rows of whole chunks of the graph's T frames. All but a stream's first chunk start with the
    ``context`` frames that their predecessor ended with, and bring T - context frames.

    14 frames of context are exact, because one frame reaches 58 rows; fewer are not. One is the least
    that loses no rows, for a chunk cannot give the last rows of its last frame.
    """

    def __init__(self, graph: Graph, timings: Timings, context: int = CONTEXT_FRAMES) -> None:
        self._graph, self._timings, self._context = graph, timings, context
        self._length = graph.inputs["decoder_embeddings"].shape[1]
        self._held: list[np.ndarray] = []
        self._new = 0  # frames of those held that have not been decoded
        self._repeated = 0  # rows of the next chunk that were given out

    def push(self, embedding: np.ndarray) -> np.ndarray:
        self._held.append(embedding)
        self._new += 1
        if len(self._held) < self._length:
            return _none(self._graph)
        rows = self._decode()[self._repeated :]
        self._held = self._held[-self._context :]
        self._new = 0
        # The rows of the context, less those that a chunk's lookahead costs it.
        self._repeated = ROWS_PER_FRAME * self._context - LOOKAHEAD_ROWS
        return rows

    def finish(self) -> np.ndarray:
        if not self._new:
            return _none(self._graph)
        rows = ROWS_PER_FRAME * len(self._held) - LOOKAHEAD_ROWS
        # Nothing after a frame reaches its rows, so what fills the chunk up does not matter.
        missing = self._length - len(self._held)
        self._held += [np.zeros_like(self._held[0])] * missing
        self._new = 0
        return self._decode()[self._repeated : rows]

    def _decode(self) -> np.ndarray:
        chunk = np.concatenate(self._held)[np.newaxis]
        rows: np.ndarray = self._timings.run("decoder", lambda: self._graph(decoder_embeddings=chunk))[
            "decoder_stft"
        ][0]
        return rows


def _none(graph: Graph) -> np.ndarray:
    return np.zeros((0, *graph.outputs["decoder_stft"].shape[2:]), np.float32)
