"""Text to embeddings with an exported build: the host's part, without torch or coremltools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from coreproof.backends import Backend, Target, create
from coreproof.errors import UsageError
from coreproof.package.manifest import PackageRecord, load_manifest


class Encoder:
    """Embeds texts with the package ``variant`` of the build folder ``build``.

    ``backend``: a name that :func:`coreproof.backends.create` knows, or a Backend of one's own.
    Raises UsageError when the build lacks the variant, PackageError for a build that cannot be
    read, BackendError when the backend is absent.
    """

    def __init__(self, build: Path, variant: str = "fp16", backend: Backend | str = "mil") -> None:
        record = _record(build, variant)
        tokens, embedding = record.contract.inputs[0].shape, record.contract.outputs[0].shape
        self.dimension = embedding[-1]
        self._tokenizer = Tokenizer.from_file(str(build / "tokenizer.json"))
        self._tokenizer.enable_truncation(tokens[-1])
        self._tokenizer.enable_padding(length=tokens[-1])
        self._backend = create(backend) if isinstance(backend, str) else backend
        self._backend.load(Target(build / record.package))

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of length 1, float32 [N, dimension], one row a text. Texts beyond the contract's
        128 tokens are cut; the empty text is a text like any other; no texts give (0, dimension)."""
        result = np.empty((len(texts), self.dimension), np.float32)
        for row, encoding in enumerate(self._tokenizer.encode_batch(list(texts))):
            inputs = {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask}
            arrays = {name: np.array([values], np.int32) for name, values in inputs.items()}
            result[row] = self._backend.predict(arrays)["embedding"][0]
        return result


def _record(build: Path, variant: str) -> PackageRecord:
    packages = load_manifest(build).packages
    for record in packages:
        if record.variant == variant and record.stage == "encoder":
            return record
    found = ", ".join(record.variant for record in packages) or "none"
    raise UsageError(f"{build} has no encoder of variant {variant!r}; its variants: {found}")
