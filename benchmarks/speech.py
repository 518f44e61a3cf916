"""How near StyleTTS 2's loop comes to upstream, end to end, and how near upstream in float32 to itself in float64.

    python benchmarks/speech.py CHECKPOINT BUILD [--fixture FOLDER]

BUILD has the fp32 packages of the exact layout, FOLDER what ``coreproof reference`` wrote; without it, the
committed reference is taken. Runs upstream once more in float32, which takes minutes, and prints a table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from coreproof import catalog
from coreproof.package.manifest import load_manifest
from coreproof.parity.fixture import find
from coreproof.parity.metrics import METRICS
from coreproof_exporters.styletts2 import reference
from coreproof_exporters.styletts2.architecture import FRAME, SAMPLE_RATE, VOICED
from coreproof_exporters.styletts2.synthesizer import Noise, Synthesizer, frames_of

Arrays = Mapping[str, np.ndarray]


class Told(Synthesizer):
    """With this F0 in the source, and there alone."""

    f0: np.ndarray

    def heard(self, f0: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        return super().heard(self.f0, drawn)


def snr(actual: np.ndarray, expected: np.ndarray) -> float:
    return METRICS["snr_db"].fn(actual.ravel().astype(np.float64), expected.ravel().astype(np.float64))


def row(build: Path, double: Arrays, single: Arrays, index: int) -> str:
    """Text ``index``: its size, and the figures."""
    tokens, ref_s = double[f"t{index}_tokens"][0], double["ref_s"][reference.VOICES[index]]
    f0, wave = double[f"t{index}_F0"][0], double[f"t{index}_waveform"]
    told = Told(build, "fp32")
    told.f0 = f0
    seed = int(double["noise_seed"]) + index
    own, guided = (s.speak(tokens, ref_s, Noise(seed)) for s in (Synthesizer(build, "fp32"), told))
    durations = frames_of(double[f"t{index}_pred_dur_log"][0])
    cells = [
        f"{index + 1}, {len(tokens)} tokens",
        f"{FRAME * int(own.durations.sum()) / SAMPLE_RATE:.1f}",
        f"{np.mean(f0 > VOICED):.2f}",
        "identical"
        if np.array_equal(own.durations, durations)
        else f"{np.sum(own.durations != durations)} differ",
        f"{(own.f0.astype(np.float64) - f0).mean():.1e}",
        f"{snr(own.waveform, wave):.1f}",
        f"{snr(single[f't{index}_waveform'], wave):.1f}",
        f"{snr(own.waveform, single[f't{index}_waveform']):.1f}",
        f"{snr(guided.waveform, wave):.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("build", type=Path)
    parser.add_argument("--fixture", type=Path)
    given = parser.parse_args()
    places = [given.fixture] if given.fixture else list(catalog.find("styletts2").fixtures)
    fixture = find(places, "styletts2", load_manifest(given.build).checkpoint.sha256)
    if fixture is None:
        print(f"no reference for this build in {places[0]}", file=sys.stderr)
        return 2
    single = reference.compute(given.checkpoint, "float32").arrays
    print(
        "| text | seconds | voiced | durations | mean error of F0, Hz | loop / upstream float64 "
        "| upstream float32 / float64 | loop / upstream float32 | loop with upstream's F0 / float64 |\n"
        f"|{'---|' * 9}"
    )
    for index in range(len(reference.VOICES)):
        print(row(given.build, fixture.arrays, single, index), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
