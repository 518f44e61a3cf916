"""Write audio as a WAV file."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

from coreproof.atomic import atomic_file
from coreproof.errors import InputError


def write_wav(path: Path, audio: np.ndarray, sample_rate: int) -> None:
    """Write ``audio``, int16 (samples, channels), at ``sample_rate`` Hz to ``path``, whole or not at all.

    Raises InputError for another dtype or number of axes.
    """
    if audio.dtype != np.int16 or audio.ndim != 2:
        raise InputError(f"audio {audio.dtype} of shape {audio.shape}; expected int16 (samples, channels)")
    with atomic_file(path) as temporary, wave.open(str(temporary), "wb") as stream:
        stream.setnchannels(audio.shape[1])
        stream.setsampwidth(2)
        stream.setframerate(sample_rate)
        stream.writeframes(np.ascontiguousarray(audio, "<i2").tobytes())
