"""Small stand-ins for MusicCoCa's files, the same bytes everywhere, and what the official host makes of them.

They have the published inputs and outputs (ids int32 and padding float32 of 128, embeddings of 768, more
quantizer levels than are used) and drawn weights. Run as a script, after ``make reference-mrt2``, it
writes ``fixtures/mrt2/musiccoca.npz`` anew.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as tfl
from sentencepiece import sentencepiece_model_pb2 as spm

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT / "fixtures" / "mrt2" / "musiccoca.npz"
WIDTH, LENGTH, LEVELS, CODES = 768, 128, 16, 48
TEXTS = ("Warm JAZZ trio", "techno", "", "über funk " * 40)  # none, and more than 127 pieces
MAPPER_SEED = 5


def write(folder: Path) -> None:
    """The four files into ``folder``."""
    draw = np.random.Generator(np.random.PCG64(2026))

    def weights(*shape: int) -> np.ndarray:
        return (draw.integers(-1000, 1001, shape) / 1000).astype(np.float32)

    (folder / "spm.model").write_bytes(_vocabulary())
    text = Graph()
    ids, padding = text.given((1, LENGTH), np.int32), text.given((1, LENGTH), np.float32)
    kept = text.op("SUB", [text.constant(np.ones((1, 1), np.float32)), padding], (1, LENGTH))
    numbers = text.op("MUL", [text.op("CAST", [ids], (1, LENGTH)), kept], (1, LENGTH))
    read = text.dense(numbers, weights(WIDTH, LENGTH) / 300), text.dense(kept, weights(WIDTH, LENGTH) / 9)
    joined = text.op("ADD", list(read), (1, WIDTH))
    (folder / "text_encoder.tflite").write_bytes(text.bytes(text.op("TANH", [joined], (1, WIDTH))))

    mapper = Graph()
    embedding, noise = mapper.given((1, WIDTH), np.float32), mapper.given((1, WIDTH), np.float32)
    quiet = mapper.op("MUL", [noise, mapper.constant(np.full((1, 1), 0.25, np.float32))], (1, WIDTH))
    moved = mapper.dense(mapper.op("ADD", [embedding, quiet], (1, WIDTH)), weights(WIDTH, WIDTH))
    (folder / "mapper.tflite").write_bytes(mapper.bytes(moved))

    quantizer = Graph()
    scores = quantizer.dense(quantizer.given((1, WIDTH), np.float32), weights(LEVELS * CODES, WIDTH))
    shape = quantizer.constant(np.array([1, LEVELS, CODES], np.int32))
    rows = quantizer.op("RESHAPE", [scores, shape], (1, LEVELS, CODES))
    last = quantizer.constant(np.array([2], np.int32))
    codes = quantizer.op("ARG_MAX", [rows, last], (1, LEVELS), np.int32)
    (folder / "pretrained_vector_quantizer.tflite").write_bytes(quantizer.bytes(codes))


def _vocabulary() -> bytes:
    model = spm.ModelProto()
    kinds = spm.ModelProto.SentencePiece
    special = [("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)]
    words = ["▁warm", "▁jazz", "▁trio", "▁tech", "no", "▁funk", "▁", *"abcdefghijklmnopqrstuvwxyzüJ"]
    for index, (piece, kind) in enumerate([*special, *((w, kinds.NORMAL) for w in words)]):
        model.pieces.add(piece=piece, score=-float(index), type=kind)
    model.trainer_spec.model_type = spm.TrainerSpec.UNIGRAM
    model.normalizer_spec.add_dummy_prefix = True
    return model.SerializeToString(deterministic=True)


@dataclass
class Graph:
    """A TFLite model in the making: tensors and ops by index."""

    tensors: list[tuple[tuple[int, ...], np.dtype, np.ndarray | None]] = field(default_factory=list)
    ops: list[tuple[str, list[int], int]] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)

    def _tensor(self, shape: tuple[int, ...], dtype: type, data: np.ndarray | None = None) -> int:
        self.tensors.append((shape, np.dtype(dtype), data))
        return len(self.tensors) - 1

    def given(self, shape: tuple[int, ...], dtype: type) -> int:
        self.inputs.append(self._tensor(shape, dtype))
        return self.inputs[-1]

    def constant(self, array: np.ndarray) -> int:
        return self._tensor(array.shape, array.dtype.type, array)

    def op(self, name: str, inputs: list[int], shape: tuple[int, ...], dtype: type = np.float32) -> int:
        self.ops.append((name, inputs, self._tensor(shape, dtype)))
        return self.ops[-1][2]

    def dense(self, x: int, weights: np.ndarray) -> int:
        bias = self.constant(np.zeros(len(weights), np.float32))
        return self.op("FULLY_CONNECTED", [x, self.constant(weights), bias], (1, len(weights)))

    def bytes(self, output: int) -> bytes:
        names = sorted({name for name, _, _ in self.ops})
        whole = tfl.ModelT()
        whole.version = 3
        whole.description = "stand-in"
        whole.operatorCodes = [_code(name) for name in names]
        whole.buffers = [tfl.BufferT(), *(_buffer(data) for _, _, data in self.tensors if data is not None)]
        part = tfl.SubGraphT()
        buffers = iter(range(1, len(whole.buffers)))
        part.tensors = [
            _tensor(f"t{index}", shape, dtype, 0 if data is None else next(buffers))
            for index, (shape, dtype, data) in enumerate(self.tensors)
        ]
        part.inputs, part.outputs = self.inputs, [output]
        part.operators = [_operator(names.index(name), name, given, made) for name, given, made in self.ops]
        whole.subgraphs = [part]
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(whole.Pack(builder), b"TFL3")
        return bytes(builder.Output())


_DTYPES = {np.dtype(np.float32): tfl.TensorType.FLOAT32, np.dtype(np.int32): tfl.TensorType.INT32}


def _code(name: str) -> tfl.OperatorCodeT:
    code = tfl.OperatorCodeT()
    code.builtinCode = getattr(tfl.BuiltinOperator, name)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.version = 1
    return code


def _buffer(data: np.ndarray) -> tfl.BufferT:
    buffer = tfl.BufferT()
    buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
    return buffer


def _tensor(name: str, shape: tuple[int, ...], dtype: np.dtype, buffer: int) -> tfl.TensorT:
    tensor = tfl.TensorT()
    tensor.name, tensor.shape, tensor.type, tensor.buffer = name, list(shape), _DTYPES[dtype], buffer
    return tensor


def _operator(code: int, name: str, given: list[int], made: int) -> tfl.OperatorT:
    operator = tfl.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = code, given, [made]
    if name == "TANH":
        return operator
    kind = "".join(part.capitalize() for part in name.split("_")) + "Options"
    operator.builtinOptionsType = getattr(tfl.BuiltinOptions, kind)
    operator.builtinOptions = getattr(tfl, f"{kind}T")()
    if name == "ARG_MAX":
        operator.builtinOptions.outputType = tfl.TensorType.INT32
    return operator


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


# Runs where magenta-rt is, which this project's own environment is not.
OFFICIAL = """
import importlib.metadata, json, sys, types
from pathlib import Path
import numpy as np
import magenta_rt
for name in ("audio", "paths"):  # audio files and downloads; text needs neither
    stand_in = types.ModuleType(f"magenta_rt.{name}")
    stand_in.Waveform = type("Waveform", (), {})
    sys.modules[stand_in.__name__] = stand_in
    setattr(magenta_rt, name, stand_in)
from magenta_rt.musiccoca import MusicCoCa

folder, result, texts, seed = sys.argv[1:]
texts = json.loads(texts)
model = MusicCoCa(folder)
plain = model.embed_batch_text(texts)
mapped = model.embed_batch_text(texts, use_mapper=True, seed=int(seed))
packages = ("magenta-rt", "ai-edge-litert", "sentencepiece", "numpy")
np.savez_compressed(
    result,
    plain=plain,
    mapped=mapped,
    plain_codes=model.tokenize(plain),
    mapped_codes=model.tokenize(mapped),
    mean_codes=model.tokenize(np.mean(plain[:2], axis=0)),
    packages=json.dumps({p: importlib.metadata.version(p) for p in packages}),
)
"""


def main() -> None:
    python = ROOT / ".venv-mrt2" / "bin" / "python"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "models"
        folder.mkdir()
        write(folder)
        made = Path(name) / "result.npz"
        arguments = [str(folder), str(made), json.dumps(TEXTS), str(MAPPER_SEED)]
        subprocess.run([str(python), "-c", OFFICIAL, *arguments], check=True)
        with np.load(made) as arrays:
            stored = {key: arrays[key] for key in arrays.files}
        np.savez_compressed(FIXTURE, files=json.dumps(digests(folder)), **stored)


if __name__ == "__main__":
    sys.exit(main())
