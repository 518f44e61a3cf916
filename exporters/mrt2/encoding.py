"""Audio to codec embeddings and codes with an exported build: the analysis half of the codec's host."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from coreproof.audio.rvq import quantize
from coreproof.audio.stft import stft
from coreproof.errors import InputError
from coreproof.package.manifest import load_manifest
from coreproof_exporters.mrt2.architecture import (
    CONTEXT_FRAMES,
    HALF_CHANNELS,
    ROWS_PER_FRAME,
    STFT_STEP,
)
from coreproof_exporters.mrt2.host import Graph, find_record, host_array

FRAME_SAMPLES = ROWS_PER_FRAME * STFT_STEP


class Encoder:
    """The codec's analysis encoder of ``build``, on ``backend``.

    Raises UsageError when the build has no such stage: its checkpoint needs ``encoder.safetensors``.
    """

    def __init__(self, build: Path, backend: str = "mil") -> None:
        record = find_record(build, load_manifest(build), "spectrostream_encoder", "fp32")
        self._graph = Graph(build, record, backend)
        self._books = host_array(build, "rvq_codebooks")
        self._length = self._graph.inputs["encoder_stft"].shape[1] // ROWS_PER_FRAME

    def embeddings(self, audio: np.ndarray, context: int = CONTEXT_FRAMES) -> np.ndarray:
        """One embedding float32 (features,) for each 1,920 samples of ``audio`` (samples, 2), 48 kHz at
        full level 1, the last filled up with silence.

        Every chunk but the first starts with the ``context`` frames before it. 14 are exact: an
        embedding sees the 54 rows before its own. Raises InputError for audio that is not finite or of
        another shape.
        """
        if audio.ndim != 2 or audio.shape[1] != HALF_CHANNELS or not len(audio):
            raise InputError(f"audio of shape {audio.shape}; expected (samples, {HALF_CHANNELS})")
        if not np.isfinite(audio).all():
            raise InputError("the audio holds NaN or infinity")
        frames = -(-len(audio) // FRAME_SAMPLES)
        whole = np.zeros((frames * FRAME_SAMPLES, HALF_CHANNELS))
        whole[: len(audio)] = audio
        rows = stft(whole, STFT_STEP)
        made: list[np.ndarray] = []
        done = 0
        while done < frames:
            first = max(0, done - context)
            found = self._chunk(rows[first * ROWS_PER_FRAME :])[done - first :]
            made.append(found[: frames - done])
            done = min(frames, first + self._length)
        return np.concatenate(made)

    def codes(self, audio: np.ndarray) -> np.ndarray:
        """The codes int32 (frames, 12) of ``audio``; see :meth:`embeddings`."""
        return quantize(self.embeddings(audio), self._books)

    def _chunk(self, rows: np.ndarray) -> np.ndarray:
        """The embeddings of the first rows; what is missing at the end is silence, which comes too late to
        matter."""
        given = np.zeros(self._graph.inputs["encoder_stft"].shape, np.float32)
        part = rows[: given.shape[1]]
        given[0, : len(part)] = part
        embeddings: np.ndarray = self._graph(encoder_stft=given)["encoder_embeddings"][0]
        return embeddings
