"""Names and shapes at the edge of the graphs: what a host carries from call to call. No torch here."""

from __future__ import annotations

import numpy as np

from coreproof_exporters.mrt2.architecture import BLOCKS, INPUT_BINS, LAST_KERNEL, WINDOW, Config

COLUMNS = 1 + WINDOW + 1  # of the bias row: the sink, the cached frames, the current frame
HIDDEN_SCORE = -1e4  # exp(score - 1e4) is exactly 0 in fp16 and fp32 alike, and 1e4 is an fp16 number
STEP = "step"  # the state in which the published signature keeps the position
STREAM_FRAMES = 1  # token frames of a call of the streaming decoder
ANALYSIS_FRAMES = 25  # token frames of a call of the codec's analysis encoder


def stems(config: Config) -> list[str]:
    """The names of the temporal body's caches in the order of the graphs: states are called so, inputs
    and outputs have ``_in`` and ``_updates`` after it."""
    return [
        f"temporal_layer_{layer:02d}_{kind}_{part}_cache"
        for layer in range(config["layers"])
        for kind in ("self", "cross")
        for part in ("key", "value")
    ]


def burst_bias(seen: int, frames: int) -> np.ndarray:
    """The bias float32 (1, 1, frames, 42 + frames) of chronological caches, the newest last, after ``seen``
    frames: columns are the sink, 41 cached frames and the frames of the call. A frame sees itself and the
    41 before it, as far as there are so many."""
    bias = np.full((1, 1, frames, 1 + WINDOW + frames), HIDDEN_SCORE, np.float32)
    bias[..., 0] = 0.0
    for frame in range(frames):
        first = max(frame, WINDOW - seen)
        bias[0, 0, frame, 1 + first : 2 + WINDOW + frame] = 0.0
    return bias


def cache_shape(config: Config, frames: int = WINDOW) -> tuple[int, ...]:
    return (1, frames, config["heads"], config["head_width"])


def carried(config: Config) -> dict[str, tuple[int, ...]]:
    """Name and shape (halves, channels, rows, bins) of what the streaming decoder hands to its next
    call, in the order of use: rows that a convolution saw, output rows that a transposed one began."""
    base, bins = config["base_depth"], INPUT_BINS
    table: dict[str, tuple[int, ...]] = {
        f"unit_{part}_rows": (1, 8 * base, 2, bins) for part in ("first", "second")
    }
    for index, (stride, kernel, _, wide) in enumerate(BLOCKS):
        bins *= stride[1]
        # The first block runs before the stereo halves are split.
        halves = 1 if index == 0 else 2
        table[f"block_{index}_overlap"] = (halves, wide * base, kernel[0] - stride[0], bins)
        table[f"block_{index}_rows"] = (halves, wide * base, 2, bins)
    return table | {"last_rows": (2, base, LAST_KERNEL - 1, bins)}
