"""What the official decoder makes of weights whose stream leaves the range of fp16.

Run as a script, after ``make reference-mrt2`` has set up its environment, it writes the fixtures below
``fixtures/mrt2/decoders`` anew: the first frames of what ``coreproof reference`` computes, without the rest.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from coreproof.package.manifest import checkpoint_digest
from coreproof.parity.fixture import save
from coreproof.parity.suite import Reference
from coreproof_exporters.mrt2 import checkpoint, reference, synth
from coreproof_exporters.mrt2.architecture import LOOKAHEAD_ROWS, ROWS_PER_FRAME

FIXTURES = Path(__file__).parents[2] / "fixtures" / "mrt2" / "decoders"
# Size of the checkpoint, and the token frames that are kept: those of a decoder without memory.
FRAMES = {"small+loud": 25, "small+edge": 5}
SEED = 0


def main() -> None:
    for size, frames in FRAMES.items():
        with tempfile.TemporaryDirectory() as name:
            synth.synth(Path(name), size, SEED)
            sha256 = checkpoint_digest(checkpoint.load(Path(name)).files)
            whole = reference.compute(Path(name))
        arrays = {
            "decoder_embeddings": whole.arrays["decoder_embeddings"][:frames],
            "decoder_stft": whole.arrays["decoder_stft"][: ROWS_PER_FRAME * frames - LOOKAHEAD_ROWS],
        }
        made = {
            "kept": f"the decoder's rows of the first {frames} frames, by tests/exporters/{Path(__file__).name}",
            "synth": {"size": size, "seed": SEED},
        }
        print(save(Reference(arrays, {**whole.provenance, **made}), "mrt2", sha256, FIXTURES))


if __name__ == "__main__":
    main()
