"""The expected tensors, by upstream's own code: the PyPI package ``styletts2``, in float64 on the CPU.

``official.py`` runs it in a process of its own, on packages that ``make reference-styletts2`` puts into
``.reference-styletts2``. Nothing of this recipe's torch modules takes part. In float64, because upstream's
own phase drifts in float32: by 0.19 rad at harmonic 9 over 100 s.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from coreproof.arrays import read_npz
from coreproof.errors import FixtureError
from coreproof.parity.suite import Reference
from coreproof_exporters.styletts2.architecture import FRAME_BUCKETS, SAMPLE_RATE, TEXT_BUCKETS
from coreproof_exporters.styletts2.checkpoint import load
from coreproof_exporters.styletts2.harmonics import fixed_noise, weights_of

# Invented words of three lengths, so that three buckets of tokens and of frames are used. The texts of
# the long form are two sentences of one speech.
TEXTS = (
    "həlˈoʊ, wˈɜːld.",
    "ðə kwˈɪk bɹˈaʊn fˈɑːks dʒˈʌmps ˌoʊvɚ ðə lˈeɪzi dˈɑːɡ.",
    "wˌiː ʃˈɛl fˈaɪt ɔnðə bˈiːtʃᵻz, ænd ɪnðə fˈiːldz; ɪn ðə stɹˈiːts, ænd ɪn ðə hˈɪlz: wˌiː ʃˈɛl nˈɛvɚ ɡˈɪv ˌʌp!",
)
LONG = ("sˈʌm sˈɛntəns.", "ænd ɐnˈʌðɚ wˈʌn.")
VOICES = (0, 1, 0)  # which clip a text speaks like
NOISE_SEED = 20260101
SOURCES = 2  # texts whose harmonic source is kept
# What runs without masks: modules, text, bucket.
UNMASKED = (
    *(("text", min(i, 2), size) for i, size in enumerate(TEXT_BUCKETS)),
    ("step", 0, TEXT_BUCKETS[-1]),
    *(("frames", min(i, 2), size) for i, size in enumerate(FRAME_BUCKETS)),
)

_FOLDER = Path(__file__).parent
_PACKAGES = ".reference-styletts2"
_CLIP_SECONDS = (1.3, 4.1)


def clips() -> list[np.ndarray]:
    """Two reference clips, float32 at 24 kHz: gliding tones with overtones, pauses and a little noise. Cosines
    are rounded to 16 bits, so that every CPU makes the same."""
    made = []
    for index, seconds in enumerate(_CLIP_SECONDS):
        time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
        pitch = (120.0, 210.0)[index] * (time + 0.1 * np.sin(3.0 * time))
        tones = sum(np.cos(2 * np.pi * h * pitch) / (h + index) for h in range(1, 12))
        loud = 0.5 + 0.5 * np.sin(2 * np.pi * (2.5 + index) * time)
        noise = np.random.Generator(np.random.PCG64(index)).integers(-300, 301, len(time))
        made.append((np.round(tones * loud * 6000) + noise).astype(np.float32) / 32768)
    return made


def compute(checkpoint: Path, dtype: str = "float64") -> Reference:
    """What upstream says of TEXTS, LONG and two clips, in ``dtype``, rounded to float32.

    Of text ``i``, as ``ti_NAME``: ``tokens`` int32 (1, L) and every tensor between upstream's modules under the
    names of the packages' features; ``step_x``, ``step_sigma`` and ``step_denoised``, the sampler's eight
    evaluations; ``s`` and ``ref``, the blended halves; ``waveform`` (1, 1, 600 T). Of clip ``i``: ``vi_mel``; of both
    ``ref_s`` (2, 256). ``longi_waveform`` and ``longi_style`` of the long form with guidance 2. ``unmasked_...`` of
    inputs that were padded with zeros and taken for real. ``noise_seed``: the noise of text i is numpy's
    ``Generator(PCG64(noise_seed + i)).standard_normal(float32)``, of the long form ``noise_seed + 3``.

    Raises CheckpointError for a checkpoint that the recipe refuses, FixtureError when the official
    code is not installed or fails.
    """
    loaded = load(checkpoint)
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    waves = clips()
    longest = max(map(len, waves))
    job = {
        "texts": json.dumps(TEXTS),
        "long": json.dumps(LONG),
        "voices": np.array(VOICES),
        "noise_seed": np.array(NOISE_SEED),
        "sources": np.array(SOURCES),
        "unmasked": json.dumps(UNMASKED),
        "fixed_noise": fixed_noise(),
        "dimensions": json.dumps({k: v for k, v in loaded.config.items() if isinstance(v, int)}),
        "dtype": dtype,
    }
    with tempfile.TemporaryDirectory(prefix="coreproof-styletts2-") as scratch:
        given, result = Path(scratch) / "job.npz", Path(scratch) / "result.npz"
        padded = np.stack([np.pad(w, (0, longest - len(w))) for w in waves])
        lengths = np.array([len(w) for w in waves])
        np.savez(given, allow_pickle=False, clips=padded, clip_lengths=lengths, **job)
        _run(given, folder.resolve(), result)
        arrays = read_npz(result)
    weight, _ = weights_of(loaded)
    chosen = {"noise_seed": np.array(NOISE_SEED), "source_weight": weight}
    return Reference({**arrays, **chosen}, _provenance(loaded.config, dtype))


def _run(job: Path, folder: Path, result: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(_packages()), "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, str(_FOLDER / "official.py"), str(job), str(folder), str(result)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode or not result.is_file():
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise FixtureError(f"official.py failed with status {done.returncode}: {last[0]}")


def _packages() -> Path:
    """The folder of the packages of ``reference-requirements.txt``."""
    for place in (Path(_PACKAGES), _FOLDER.parents[1] / _PACKAGES):
        if (place / "styletts2").is_dir():
            return place.absolute()
    raise FixtureError(
        f"upstream's code is not installed: there is no styletts2 in {_PACKAGES}; run make reference-styletts2"
    )


def _provenance(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    import torch
    import transformers

    pins = (_FOLDER / "reference-requirements.txt").read_text(encoding="utf-8").split("\n")
    return {
        "implementation": "styletts2.tts.StyleTTS2.inference and long_inference_segment, with styletts2.models",
        "packages": {
            **dict(line.split("==") for line in pins if "==" in line),
            "torch": torch.__version__.partition("+")[0],
            "transformers": transformers.__version__,
        },
        "computed_in": dtype,
        "config": {
            k: v if isinstance(v, (int, float)) else json.loads(json.dumps(v)) for k, v in config.items()
        },
        "texts": list(TEXTS),
        "noise": f"numpy PCG64, standard_normal in float32, seed {NOISE_SEED}",
    }
