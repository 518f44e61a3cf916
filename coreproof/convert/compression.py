"""A Stage's compression: what coremltools is to do, and what it made of a weight.

``coremltools.optimize`` chooses the weights and their axes, rounds to int8 and builds the ops. The
tables are those of :mod:`coreproof.convert.palette`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coreproof.convert.palette import k_means, nearest
from coreproof.convert.recipe import Compression, Stage
from coreproof.errors import ConversionError
from coreproof.mil.packing import unpack
from coreproof.mil.program import Binding, Blob, Immediate, Operation, Program
from coreproof.mil.types import DType, TensorType
from coreproof.mil.weights import Reference, references
from coreproof.package.manifest import CompressionRecord
from coreproof.package.reader import Package

_PALETTE, _LINEAR = "palette", "linear"
_BITS = {_PALETTE: (1, 2, 3, 4, 6, 8), _LINEAR: (8,)}
_INT8 = 127  # the greatest magnitude of symmetric int8

Array = NDArray[Any]


def pipeline(ct: Any, stage: Stage) -> Any:
    """coremltools' passes, and after them the one that ``stage.compression`` asks for; None without one.

    Raises ConversionError for a compression that does not exist.
    """
    if stage.compression is None:
        return None
    _check(stage.name, stage.compression)
    name = {_PALETTE: "compression::palettize_weights", _LINEAR: "compression::linear_quantize_weights"}
    passes = ct.PassPipeline()
    passes.append_pass(name[stage.compression.kind])
    config = ct.optimize.coreml.OptimizationConfig(global_config=_config(ct, stage.compression))
    passes.set_options(name[stage.compression.kind], {"config": config})
    return passes


def _check(name: str, asked: Compression) -> None:
    if asked.bits not in _BITS.get(asked.kind, ()):
        choices = "; ".join(f"{kind} of {', '.join(map(str, bits))} bits" for kind, bits in _BITS.items())
        raise ConversionError(
            f"stage {name!r}: there is no compression {asked.kind!r} of {asked.bits} bits; choose {choices}"
        )
    if asked.threshold < 0 or (asked.group_size is not None and asked.group_size < 1):
        raise ConversionError(
            f"stage {name!r}: compression with group_size {asked.group_size} and threshold "
            f"{asked.threshold}; a group has at least one channel, a threshold is not negative"
        )
    if asked.kind == _LINEAR and asked.group_size is not None:
        raise ConversionError(f"stage {name!r}: linear compression has a scale for each channel, no groups")


def _config(ct: Any, asked: Compression) -> Any:
    optimize = ct.optimize.coreml
    if asked.kind == _LINEAR:
        return optimize.OpLinearQuantizerConfig(
            mode="linear_symmetric", dtype="int8", granularity="per_channel", weight_threshold=asked.threshold
        )

    def table(weight: Array) -> tuple[Array, Array]:
        if not np.isfinite(weight).all():
            raise ValueError("a weight that is not finite has no palette")
        entries = k_means(weight, 1 << asked.bits)
        return entries, nearest(weight, entries).reshape(-1)

    grouped = {} if asked.group_size is None else {"group_size": asked.group_size}
    return optimize.OpPalettizerConfig(
        mode="custom",
        lut_function=table,
        granularity="per_grouped_channel" if grouped else "per_tensor",
        weight_threshold=asked.threshold,
        **grouped,
    )


def record(stage: Stage, package: Package) -> CompressionRecord | None:
    """``stage.compression`` as the manifest says it, with the weights of ``package`` that it left."""
    asked = stage.compression
    if asked is None:
        return None
    found = [r for r in references(package.program) if not _is_compressed(r.operation)]
    sizes = {r.name: package.weights.array(r.blob).size for r in found}
    left = tuple(name for name, size in sizes.items() if size > asked.threshold)
    return CompressionRecord(asked.kind, asked.bits, asked.group_size, asked.threshold, left)


def compressed(program: Program) -> Mapping[tuple[str, int], Reference]:
    """What refers to each weight that is a part of a compressed constant, by file and offset."""
    found = (r for r in references(program) if _is_compressed(r.operation))
    return {(r.blob.file, r.blob.offset): r for r in reversed(list(found))}


def _is_compressed(operation: Operation | None) -> bool:
    return operation is not None and operation.type in _READERS


def read(operation: Operation, package: Package) -> Palette | Steps:
    """The compressed constant that ``operation`` makes. Raises ConversionError for one that is broken."""
    values = {**operation.attributes, **{name: bound[0] for name, bound in operation.inputs.items()}}
    arrays = {name: _array(v, package) for name, v in values.items() if name != "name"}
    return _READERS[operation.type](operation.name, arrays)


def _array(value: Binding, package: Package) -> Array:
    if isinstance(value, Immediate):
        return np.asarray(value.data)
    assert isinstance(value, Blob)
    assert isinstance(value.type, TensorType)
    stored, type_ = package.weights.array(value), value.type
    if type_.dtype.bits >= 8:
        return stored
    shape = tuple(size for size in type_.shape or () if size is not None)
    return unpack(stored.view(np.uint8), type_.dtype, math.prod(shape)).reshape(shape)


@dataclass(frozen=True, slots=True)
class Palette:
    """``indices`` of the weight's shape into ``tables`` [*groups, entries]; at most one dimension has more
    than one group."""

    indices: Array
    tables: Array

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.tables.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.indices.shape

    def head(self, count: int) -> Array:
        """The first ``count`` elements that the program computes with, in C order."""
        places = np.unravel_index(np.arange(count), self.shape)
        sizes = [size // groups for size, groups in zip(self.shape, self.tables.shape[:-1], strict=True)]
        groups = tuple(place // size for place, size in zip(places, sizes, strict=True))
        return self.tables[(*groups, self.indices[places])]

    def is_of(self, weight: Array) -> bool:
        """Whether ``weight`` gives these tables and these indices, every bit of them."""
        axis, tables = self._groups()
        own = zip(np.split(weight, len(tables), axis), np.split(self.indices, len(tables), axis), strict=True)
        return all(
            np.array_equal(k_means(part, len(table)), table) and np.array_equal(nearest(part, table), indices)
            for (part, indices), table in zip(own, tables, strict=True)
        )

    def step(self, argument: str) -> str:
        """How ``argument`` of the op is made of the weight, in words."""
        axis, tables = self._groups()
        entries = tables.shape[1]
        each = (
            f", a table for each {self.shape[axis] // len(tables)} of axis {axis}" if len(tables) > 1 else ""
        )
        if argument == "lut":
            return f"palette of {entries} by k-means{each}"
        return f"indices of the nearest of a palette of {entries} by k-means{each}"

    def _groups(self) -> tuple[int, Array]:
        """The axis along which there are several tables, and the tables [groups, entries]."""
        several = [axis for axis, count in enumerate(self.tables.shape[:-1]) if count > 1]
        return several[0] if several else 0, self.tables.reshape(-1, self.tables.shape[-1])


@dataclass(frozen=True, slots=True)
class Steps:
    """``data`` int8 of the weight's shape, times ``scale``, of as many dimensions and 1 in all but one."""

    data: Array
    scale: Array

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.scale.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def head(self, count: int) -> Array:
        """The first ``count`` elements that the program computes with, in C order."""
        places = np.unravel_index(np.arange(count), self.shape)
        return self.data[places] * np.broadcast_to(self.scale, self.shape)[places]

    def is_of(self, weight: Array) -> bool:
        """Whether ``weight`` gives this scale and these integers."""
        others = tuple(axis for axis, size in enumerate(self.scale.shape) if size == 1)
        greatest = np.abs(weight).max(axis=others, keepdims=True)
        scale = (greatest + greatest) / weight.dtype.type(2 * _INT8)
        if not np.array_equal(scale, self.scale):
            return False
        return np.array_equal(np.clip(np.round(weight / scale), -_INT8, _INT8), self.data)

    def step(self, argument: str) -> str:
        """How ``argument`` of the op is made of the weight, in words."""
        several = [axis for axis, size in enumerate(self.scale.shape) if size > 1]
        each = f"of each channel of axis {several[0]}" if several else "of it"
        if argument == "zero_point":
            return f"zeros, one {each}"
        scale = f"twice the greatest magnitude {each} / {2 * _INT8}"
        return scale if argument == "scale" else f"divided by {scale}; rounded to int8"


def _palette(name: str, arrays: Mapping[str, Array]) -> Palette:
    if "shape" not in arrays:  # from iOS 18 on
        return Palette(arrays["indices"].astype(np.uint8), arrays["lut"][..., 0])
    lut, shape = arrays["lut"], tuple(int(size) for size in arrays["shape"])
    bits = len(lut).bit_length() - 1
    kinds = {kind.bits: kind for kind in DType if str(kind).startswith("uint")}
    count = math.prod(shape)
    indices = unpack(arrays["indices"], kinds[bits], count) if bits < 8 else arrays["indices"]
    return Palette(indices.astype(np.uint8).reshape(shape), lut.reshape(*[1] * len(shape), -1))


def _steps(name: str, arrays: Mapping[str, Array]) -> Steps:
    scale = arrays["scale"]
    if not np.isfinite(scale).all() or not scale.all():
        raise ConversionError(
            f"{name}: the scale of one of its channels is zero or not finite, because all its weights are "
            f"zero or beyond half of what {scale.dtype} holds; choose a palette or a greater threshold"
        )
    if "data" in arrays:  # from iOS 18 on
        return Steps(arrays["data"], scale)
    data, axis = arrays["quantized_data"], int(arrays["axis"])
    return Steps(data, scale.reshape([-1 if dim == axis else 1 for dim in range(data.ndim)]))


_READERS: Mapping[str, Callable[[str, Mapping[str, Array]], Palette | Steps]] = {
    "constexpr_lut_to_dense": _palette,
    "constexpr_affine_dequantize": _steps,
    "constexpr_blockwise_shift_scale": _steps,
}
