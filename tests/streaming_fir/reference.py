"""The expected audio, by ``scipy.signal.lfilter`` in float64 on the whole signal at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy
from safetensors.numpy import load_file
from scipy.signal import lfilter

from coreproof.parity.suite import Reference

SAMPLES = 8000  # 0.5 s at 16 kHz
SEED = 7


def compute(checkpoint: Path) -> Reference:
    file = checkpoint / "filter.safetensors" if checkpoint.is_dir() else checkpoint
    taps = load_file(file)["taps"].astype(np.float64)
    noise = np.random.Generator(np.random.PCG64(SEED)).standard_normal(SAMPLES) * 0.1
    audio = noise.astype(np.float32)
    whole = lfilter(taps, 1.0, audio.astype(np.float64))
    chunks = [lfilter(taps, 1.0, part) for part in audio.reshape(-1, 320).astype(np.float64)]
    return Reference(
        {"audio": audio, "filtered": whole.astype(np.float32), "without_history": np.concatenate(chunks)},
        {"packages": {"scipy": scipy.__version__}, "dtype": "float64", "seed": SEED},
    )
