"""The expected tensors, by the official implementation: magenta-rt's JAX code in float32 on the CPU.

It does not install beside this project, so ``official.py`` runs it in an environment of its own, which
``make reference-mrt2`` sets up in ``.venv-mrt2``. Nothing of this recipe's torch modules takes part.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from coreproof.arrays import read_npz
from coreproof.audio.noise import GumbelNoise
from coreproof.errors import FixtureError
from coreproof.parity.suite import Reference
from coreproof_exporters.mrt2.architecture import CONTROLS
from coreproof_exporters.mrt2.checkpoint import FILE, load

FRAMES = 130  # the window of 41 wraps three times
DECODED = 26  # frames that become audio: one chunk of 25 and one more
DEPTH_FRAMES = (0, 1, 41, 100)
CONDITIONINGS = 10
NOISE_SEED = 20260101
TEMPERATURE = 1.3  # the official default

_SEED = 7
_FOLDER = Path(__file__).parent
_ENVIRONMENT = ".venv-mrt2"
_LEAST = {"piano_roll": -1, "drums": -1, "guidance": 0, "guidance_drums": 0}
_MOST = {"piano_roll": 3, "drums": 1, "guidance": 40, "guidance_drums": 8}


def compute(checkpoint: Path) -> Reference:
    """Generate FRAMES frames with shared noise and decode the first DECODED of them.

    float32 but for tokens and codes, in int32. ``conditioning_tokens`` [10, 144], ``source_encoded`` [10,
    S] and ``source_encoded_float64``, float64, which the same official code gives when it computes in that;
    ``frame_conditioning`` [130], which of the ten a frame has; ``temporal_inputs``, ``temporal_outputs``
    and ``temporal_feedback`` [130, D]; the outputs ``_without_history`` and ``_other_source`` [130, D];
    ``depth_inputs`` [4, 12, D] and ``depth_logits`` [4, 12, ids]; ``codes`` and ``margins`` [130, 12], the
    winning score less the next; ``noise_seed`` and ``temperature``; ``dimensions``, the config's values by
    name; ``decoder_embeddings`` [26, features], ``decoder_stft`` [100, 480, 4] and ``audio`` [48000, 2].
    With the codec's encoder: ``encoder_embeddings`` [25, features] of ``decoder_stft``,
    ``_without_history`` [12, features] of its second half alone, and of ``audio`` the first and last 4 rows
    of ``waveform_stft``, ``waveform_embeddings`` and ``waveform_codes``.

    Raises CheckpointError for a checkpoint that the recipe refuses, FixtureError when the official
    code is not installed or fails.
    """
    config = load(checkpoint).config
    file = checkpoint / FILE if checkpoint.is_dir() else checkpoint
    job = _job(config)
    with tempfile.TemporaryDirectory(prefix="coreproof-mrt2-") as folder:
        given, result = Path(folder) / "job.npz", Path(folder) / "result.npz"
        noise = GumbelNoise(NOISE_SEED).draw(FRAMES, config["levels"], config["codes"])
        np.savez(given, allow_pickle=False, config=json.dumps(dict(config)), noise=noise, **job)
        _run(given, file.resolve(), result)
        arrays = read_npz(result)
    kept = {name: job[name] for name in ("conditioning_tokens", "frame_conditioning", "temperature")}
    dimensions = np.array([config[name] for name in sorted(config)], np.int32)
    chosen = {"noise_seed": np.array(NOISE_SEED), "dimensions": dimensions}
    return Reference({**arrays, **kept, **chosen}, _provenance(config))


def _job(config: Mapping[str, int]) -> dict[str, np.ndarray]:
    generator = np.random.Generator(np.random.PCG64(_SEED))
    style = generator.integers(0, config["style_codes"], (CONDITIONINGS, config["levels"]))
    style[1, 6:] = -1  # a prompt of fewer levels
    controls = [
        generator.integers(_LEAST[name], _MOST[name], (CONDITIONINGS, count), endpoint=True)
        for name, count, _ in CONTROLS
    ]
    tokens = np.concatenate([style, *controls], axis=1)
    tokens[2, -3:] = _MOST["guidance"], _MOST["guidance"], _MOST["guidance_drums"]  # these read one row on
    return {
        "conditioning_tokens": tokens.astype(np.int32),
        "frame_conditioning": (np.arange(FRAMES) * CONDITIONINGS // FRAMES).astype(np.int32),
        "depth_frames": np.array(DEPTH_FRAMES, np.int32),
        "temperature": np.array(TEMPERATURE, np.float32),
        "decoded_frames": np.array(DECODED),
    }


def _run(job: Path, checkpoint: Path, result: Path) -> None:
    command = [_interpreter(), str(_FOLDER / "official.py"), str(job), str(checkpoint), str(result)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not result.is_file():
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise FixtureError(f"official.py failed with status {done.returncode}: {last[0]}")


def _interpreter() -> str:
    """The Python that has magenta-rt: this one, or that of the environment made for it."""
    if find_spec("magenta_rt") is not None:
        return sys.executable
    places = [Path(_ENVIRONMENT), _FOLDER.parents[1] / _ENVIRONMENT]
    for place in places:
        if (python := place / "bin" / "python").is_file():
            return str(python.absolute())
    raise FixtureError(
        f"the official code is not installed: neither magenta_rt here nor {' nor '.join(map(str, places))}; "
        "run make reference-mrt2"
    )


def _provenance(config: Mapping[str, int]) -> dict[str, Any]:
    pins = (_FOLDER / "reference-requirements.txt").read_text(encoding="utf-8").split("\n")
    return {
        "implementation": "magenta_rt.jax: depthformer, transformer, spectrostream; sequence_layers.jax",
        "packages": dict(line.split("==") for line in pins if "==" in line),
        "computed_in": "float32; source_encoded_float64 in float64",
        "config": dict(config),
        "frames": FRAMES,
        "noise": f"SplitMix64, seed {NOISE_SEED}",
    }
