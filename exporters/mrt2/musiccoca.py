"""MusicCoCa on the host: prompt text to the style codes that the conditioning encoder reads.

The user supplies the published files: a SentencePiece vocabulary and TFLite models, which run on
ai-edge-litert. Follows ``magenta_rt.musiccoca`` of magenta-rt 2.0.3, its text half. Needs the optional
extra ``musiccoca``; nothing else of this recipe does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from coreproof.errors import InputError, PackageError, UsageError
from coreproof.files import read_bytes
from coreproof.jsonio import read_json

VOCABULARY = "spm.model"
TEXT_ENCODER = "text_encoder.tflite"
MAPPER = "mapper.tflite"
QUANTIZER = "pretrained_vector_quantizer.tflite"

LENGTH = 128  # ids of a prompt, padding included
START_ID = 1
_FILE_LIMIT = 4 << 30
_PROMPTS_LIMIT = 1 << 20
_SEEDS = 1 << 32


class MusicCoCa:
    """The models in ``folder``, each opened when it is first used.

    ``levels``: how many of the quantizer's outputs are style codes. Every method raises InputError when
    a file it needs is missing, unreadable or of another shape, and UsageError when the extra is not
    installed.
    """

    def __init__(self, folder: Path, levels: int = 12) -> None:
        self._folder = folder
        self.levels = levels

    def ids(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Token ids int32 (128,) of ``text`` and its padding mask float32 (128,), 1 where there is none.

        Lower case; the start id, then the pieces, cut to 128 together; padded with 0.
        """
        pieces = self._vocabulary.EncodeAsIds(text.lower())
        used = [START_ID, *pieces[: LENGTH - 1]]
        padding = LENGTH - len(used)
        ids = np.array(used + [0] * padding, np.int32)
        return ids, np.repeat(np.array([0, 1], np.float32), [len(used), padding])

    def embed(self, text: str, *, mapper: bool = False, seed: int = 0) -> np.ndarray:
        """The embedding float32 (768,) of ``text``. ``mapper``: moved to where audio lies, with
        standard-normal noise of numpy's legacy generator at ``seed``, and scaled to length 1."""
        if not 0 <= seed < _SEEDS:
            raise InputError(f"mapper seed {seed}: expected 0 to {_SEEDS - 1}")
        ids, padding = self.ids(text)
        embedding = self._text_encoder.run_by_dtype(ids, padding).astype(np.float32)
        if mapper:
            noise = np.random.RandomState(seed).randn(len(embedding)).astype(np.float32)
            moved = self._mapper.run(embedding, noise).astype(np.float32)
            embedding = moved / np.linalg.norm(moved)
        return _finite(embedding, f"the embedding of {text!r}")

    def codes(self, embedding: np.ndarray) -> list[int]:
        """The style codes of an embedding (768,), one a level."""
        found = self._quantizer.run(embedding)
        if len(found) < self.levels:
            raise InputError(f"{QUANTIZER}: gives {len(found)} codes, expected {self.levels} or more")
        return [int(code) for code in found[: self.levels]]

    def blend(self, prompts: Mapping[str, float], *, mapper: bool = False, seed: int = 0) -> np.ndarray:
        """The sum of the prompts' embeddings, each times its weight, float32 (768,). Raises InputError for
        no prompts or a weight that is no number."""
        if not prompts or not all(math.isfinite(weight) for weight in prompts.values()):
            raise InputError("prompts: expected at least one text, each with a finite weight")
        parts = [weight * self.embed(text, mapper=mapper, seed=seed) for text, weight in prompts.items()]
        return np.asarray(np.sum(parts, axis=0, dtype=np.float64), np.float32)

    @cached_property
    def _vocabulary(self) -> Any:
        path = self._file(VOCABULARY)
        processor = _needed("sentencepiece").SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(path)
        except (RuntimeError, ValueError, TypeError) as error:
            raise InputError(f"{self._folder / VOCABULARY}: no SentencePiece vocabulary: {error}") from None
        return processor

    @cached_property
    def _text_encoder(self) -> _Graph:
        return self._graph(TEXT_ENCODER, 2)

    @cached_property
    def _mapper(self) -> _Graph:
        return self._graph(MAPPER, 2)

    @cached_property
    def _quantizer(self) -> _Graph:
        return self._graph(QUANTIZER, 1)

    def _graph(self, name: str, inputs: int) -> _Graph:
        return _Graph(self._folder / name, self._file(name), inputs)

    def _file(self, name: str) -> bytes:
        try:
            return read_bytes(self._folder / name, _FILE_LIMIT)
        except PackageError as error:  # how the readers of packages say it
            raise InputError(f"{error}; MusicCoCa's files are {', '.join(FILES)}") from None


FILES = (VOCABULARY, TEXT_ENCODER, QUANTIZER, MAPPER)


class _Graph:
    """A TFLite model of ``inputs`` inputs; takes arrays of any shape of the right size and gives its first
    output as one row."""

    def __init__(self, path: Path, data: bytes, inputs: int) -> None:
        self._name = path
        runtime = _needed("ai_edge_litert.interpreter")
        try:
            # Without a delegate, which announces itself on stderr and whose sums depend on the CPU.
            kernels = runtime.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
            self._interpreter = runtime.Interpreter(model_content=data, experimental_op_resolver_type=kernels)
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{path}: ai-edge-litert cannot open it: {error}") from None
        self._inputs = self._interpreter.get_input_details()
        if len(self._inputs) != inputs:
            raise InputError(f"{path}: {len(self._inputs)} inputs, expected {inputs}")

    def run(self, *arrays: np.ndarray) -> np.ndarray:
        """Arrays in the order of the model's inputs."""
        for detail, array in zip(self._inputs, arrays, strict=True):
            self._set(detail, array)
        try:
            self._interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{self._name}: fails: {error}") from None
        output = self._interpreter.get_output_details()[0]
        row: np.ndarray = self._interpreter.get_tensor(output["index"]).reshape(-1)
        return row

    def run_by_dtype(self, *arrays: np.ndarray) -> np.ndarray:
        """Arrays of different dtypes, each for the input of its dtype, for a model's inputs have no order
        that can be relied on."""
        places = {detail["dtype"]: index for index, detail in enumerate(self._inputs)}
        if {a.dtype.type for a in arrays} != places.keys():
            found = ", ".join(sorted(np.dtype(d).name for d in places))
            raise InputError(
                f"{self._name}: inputs of {found}, expected int32 ids and a float32 padding mask"
            )
        return self.run(*sorted(arrays, key=lambda a: places[a.dtype.type]))

    def _set(self, detail: dict[str, Any], array: np.ndarray) -> None:
        if math.prod(detail["shape"].tolist()) != array.size or detail["dtype"] is not array.dtype.type:
            wanted = f"{np.dtype(detail['dtype']).name} {tuple(detail['shape'].tolist())}"
            raise InputError(
                f"{self._name}: input {detail['name']!r} is {wanted}; given {array.dtype} of {array.size} elements"
            )
        self._interpreter.set_tensor(detail["index"], array.reshape(detail["shape"]))


def read_prompts(path: Path) -> dict[str, float]:
    """Texts and their weights from a JSON object. Raises InputError."""
    try:
        found = read_json(path, max_bytes=_PROMPTS_LIMIT)
    except PackageError as error:
        raise InputError(str(error)) from None
    if not isinstance(found, dict) or not all(type(w) in (int, float) for w in found.values()):
        raise InputError(f'{path}: expected texts with weights, such as {{"jazz": 0.7, "techno": 0.3}}')
    return {text: float(weight) for text, weight in found.items()}


def _finite(array: np.ndarray, what: str) -> np.ndarray:
    if not np.isfinite(array).all():
        raise InputError(f"{what} holds NaN or infinity")
    return array


def _needed(module: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"prompt text needs the Python package {error.name!r}: pip install 'coreproof[musiccoca]'"
        ) from None
