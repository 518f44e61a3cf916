"""WAV files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from coreproof.audio.wav import write_wav
from coreproof.errors import InputError


def test_scipy_reads_what_was_written(tmp_path: Path) -> None:
    audio = np.array([[0, 1], [-32768, 32767], [5, -5]], np.int16)
    write_wav(tmp_path / "a.wav", audio, 48_000)
    rate, read = wavfile.read(tmp_path / "a.wav")
    assert rate == 48_000
    np.testing.assert_array_equal(read, audio)


@pytest.mark.parametrize("audio", [np.zeros(4, np.int16), np.zeros((4, 2), np.float32)])
def test_other_arrays_are_refused_and_write_nothing(tmp_path: Path, audio: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"expected int16 \(samples, channels\)"):
        write_wav(tmp_path / "a.wav", audio, 48_000)
    assert not list(tmp_path.iterdir())
