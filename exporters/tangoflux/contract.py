"""What a host must know beside the packages' own contracts. No torch here."""

from __future__ import annotations

import math

import numpy as np

from coreproof_exporters.tangoflux.architecture import CONTEXT_ROWS, DILATIONS, TEXT_ROWS, UNIT_KERNEL, Config

HIDDEN_SCORE = -1e4  # exp(score - 1e4) is exactly 0 in fp16 and fp32 alike, and 1e4 is an fp16 number
CHUNK_ROWS = 96  # latent rows of a call of the chunked decoder; 0.5 GB for the published widths
HOST_FILE = "tangoflux.json"
HOST_SCHEMA = "coreproof.tangoflux/1"


def key_mask(tokens: int, audio_rows: int) -> np.ndarray:
    """float32 (1, 1, 1, 65 + audio_rows): hides the text rows from ``tokens`` to 63.

    Upstream pads both texts to the conditional one's length, and its transformer attends to all of that:
    so ``tokens`` is the conditional prompt's, and the duration's row stays visible.
    """
    mask = np.zeros((1, 1, 1, CONTEXT_ROWS + audio_rows), np.float32)
    mask[..., tokens:TEXT_ROWS] = HIDDEN_SCORE
    return mask


def overlap(config: Config) -> int:
    """Latent rows on each side that the decoder's audio of a row depends on, at most.

    Counted from the audio back: a convolution adds half its reach; a transposed one of stride s, kernel 2 s
    and padding ceil(s / 2) makes sample n of the inputs from ceil((n + p + 1) / s) - 2 to (n + p) // s.
    """
    reach = UNIT_KERNEL // 2
    # Samples needed for those of one row, 0 to hop - 1: the first and the last.
    first, last = -reach, math.prod(config["vae_strides"]) - 1 + reach
    for stride in reversed(config["vae_strides"]):
        units = sum(reach * dilation for dilation in DILATIONS)
        padding = (stride + 1) // 2
        first, last = first - units + padding, last + units + padding
        first, last = -(-(first + 1) // stride) - 2, last // stride
    return max(-(first - reach), last + reach)
