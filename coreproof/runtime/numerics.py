"""How values are held, and how products and sums accumulate.

Two ways of accumulating exist. ``WIDE`` is torch's own fp32 kernels. ``FP16ACC`` brackets what
hardware with half-precision accumulators may return: every product ``a * b`` is rounded to fp16;
addends are rounded to fp16 and summed in ascending order of the reduced index in blocks of 32, each
running sum rounded; the block sums are then added pairwise as a balanced tree, in order, each sum
rounded, an odd one carried over. Rounding is to nearest even. Everything else inside an op (the
exponential of a softmax, the square root of a norm) stays fp32. Only ops whose result is typed fp16
may be given ``FP16ACC``.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from coreproof.errors import UnsupportedOpError
from coreproof.mil.types import DType, TensorType, ValueType
from coreproof.runtime.bounds import padded
from coreproof.runtime.registry import Ints

Tensors = list[Tensor]
"""The kind of parameter that takes several tensors."""
BLOCK = 32
_LARGE = 1 << 18  # elements of a weight that is read from memory rather than from the nearest cache
_ONEDNN = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()
_MAX_TEMPORARY = 1 << 20  # elements of a product block, so that it stays near the caches

_CONTAINERS = {
    DType.BOOL: torch.bool,
    DType.FP16: torch.float32, DType.FP32: torch.float32, DType.FP64: torch.float64,
    DType.BF16: torch.float32, DType.FP8E4M3FN: torch.float32, DType.FP8E5M2: torch.float32,
    DType.INT4: torch.int8, DType.INT8: torch.int8, DType.INT16: torch.int16,
    DType.INT32: torch.int32, DType.INT64: torch.int64,
    DType.UINT1: torch.uint8, DType.UINT2: torch.uint8, DType.UINT3: torch.uint8,
    DType.UINT4: torch.uint8, DType.UINT6: torch.uint8, DType.UINT8: torch.uint8,
    DType.UINT16: torch.int32, DType.UINT32: torch.int64, DType.UINT64: torch.int64,
}  # fmt: skip


def container(dtype: DType) -> torch.dtype:
    """The torch dtype that holds values of MIL type ``dtype``: fp32 for every float up to 32 bits,
    the next signed type for the unsigned ones torch does not compute with.

    Raises UnsupportedOpError for ``string``, which no tensor holds.
    """
    if dtype not in _CONTAINERS:
        raise UnsupportedOpError(f"a tensor of {dtype} cannot be held; strings exist only as constants")
    return _CONTAINERS[dtype]


def held(out: tuple[ValueType, ...]) -> torch.dtype:
    """The container of an op's only output. Raises UnsupportedOpError when that is no tensor."""
    (kind,) = out
    if not isinstance(kind, TensorType):
        raise UnsupportedOpError(f"the result is declared {kind}, expected a tensor")
    return container(kind.dtype)


def round_half(x: Tensor) -> Tensor:
    """``x`` rounded once to fp16 (nearest even; |x| >= 65520 becomes infinite), held as fp32."""
    return x.half().float()


def round_half_(x: Tensor) -> Tensor:
    """As :func:`round_half`, written over ``x``."""
    return x.copy_(x.half())


@dataclass(frozen=True, slots=True)
class Numerics:
    """The kernels that multiply and add. ``wide``: they are torch's fp32 ones, so that an op may
    call a fused torch kernel instead.

    ``dims`` are the dimensions to reduce, None for all of them; ``pads`` are (before, after) for
    each spatial dimension in order, flattened, negative to crop.
    """

    wide: bool
    matmul: Callable[[Tensor, Tensor], Tensor]
    linear: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    product: Callable[[Tensor, Tensor], Tensor]
    sum: Callable[[Tensor, Ints | None, bool], Tensor]
    cumsum: Callable[[Tensor, int], Tensor]
    softmax: Callable[[Tensor, int], Tensor]
    convolve: Callable[[Tensor, Tensor, Tensor | None, Ints, Ints, Ints, int], Tensor]
    """``(x, weight, bias, strides, pads, dilations, groups)``"""
    convolve_transpose: Callable[[Tensor, Tensor, Tensor | None, Ints, Ints, Ints, int], Tensor]
    """As ``convolve``; ``pads`` are what is cut off the full result."""

    def mean(self, x: Tensor, dims: Ints | None, keep_dims: bool) -> Tensor:
        """The sum divided by the number of elements; NaN over nothing."""
        if self.wide:
            return torch.mean(x, dims, keep_dims)
        count = x.numel() if dims is None else math.prod(x.shape[d] for d in dims)
        return self.sum(x, dims, keep_dims) / count


def windows(x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Tensor:
    """Every window of ``x`` [N, C, *spatial], as a view [N, C, *positions, *kernel]."""
    for axis, (size, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True), start=2):
        x = x.unfold(axis, (size - 1) * dilation + 1, stride)[..., ::dilation]
    return x


def flip_pairs(pads: Sequence[int]) -> list[int]:
    """``pads`` in the order of ``torch.nn.functional.pad``, the last dimension first."""
    return [side for i in range(len(pads) - 2, -1, -2) for side in pads[i : i + 2]]


def _sum(x: Tensor, dims: Ints | None, keep_dims: bool) -> Tensor:
    return torch.sum(x, dims, keep_dims, dtype=x.dtype)


def _cumsum(x: Tensor, dim: int) -> Tensor:
    return torch.cumsum(x, dim, dtype=x.dtype)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One row by a large weight is bound by how fast the weight is read. BLAS reads it with one thread and
    slowly where the processor is not its maker's; oneDNN, which torch has on x86, with all of them."""
    if (
        _ONEDNN
        and weight.numel() >= _LARGE
        and x.numel() == weight.shape[1]
        and x.dim() > 1
        and weight.is_contiguous()
        and x.is_cpu
        and x.dtype is torch.float32
        and not torch.compiler.is_compiling()
    ):
        row: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return row
    return F.linear(x, weight, bias)


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, strides: Ints, pads: Ints, dilations: Ints, groups: int
) -> Tensor:
    if any(pads):
        padded(x, pads, len(weight))
    padding = pads[::2]
    if padding != pads[1::2] or min(padding) < 0:
        x = F.pad(x, flip_pairs(pads))
        padding = (0,) * len(padding)
    return torch.convolution(x, weight, bias, strides, padding, dilations, False, (0,) * len(strides), groups)


def _convolve_transpose(
    x: Tensor, weight: Tensor, bias: Tensor | None, strides: Ints, pads: Ints, dilations: Ints, groups: int
) -> Tensor:
    before = pads[::2]
    extra = tuple(low - high for low, high in zip(before, pads[1::2], strict=True))
    limits = map(max, strides, dilations)
    if min(before) >= 0 and all(0 <= e < limit for e, limit in zip(extra, limits, strict=True)):
        return torch.convolution(x, weight, bias, strides, before, dilations, True, extra, groups)
    none = (0,) * len(strides)
    full = torch.convolution(x, weight, None, strides, none, dilations, True, none, groups)
    padded(full, [-side for side in pads])
    return _add_bias(F.pad(full, [-side for side in flip_pairs(pads)]), bias)


def _add_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias.reshape(-1, *[1] * (y.dim() - 2))


def _accumulate(addend: Callable[[int], Tensor], length: int) -> Tensor:
    """The fp16 sum of ``length`` addends over the leading dimension. ``addend(j)`` gives the j-th
    addend of every block that has one, as fp16; ``addend(0)`` is overwritten."""
    total = addend(0)
    for j in range(1, min(length, BLOCK)):
        step = addend(j)
        total[: len(step)] += step
    while len(total) > 1:
        right = total[1::2]
        total = total[::2].clone()
        total[: len(right)] += right
    return total[0]


def _half_sum(x: Tensor, dims: Ints | None, keep_dims: bool) -> Tensor:
    reduced = sorted(range(x.dim()) if dims is None else {d % x.dim() for d in dims})
    kept = [d for d in range(x.dim()) if d not in reduced]
    length = math.prod(x.shape[d] for d in reduced)
    rows = x.permute(*reduced, *kept).reshape(length, *[x.shape[d] for d in kept]).half()
    total = _accumulate(lambda j: rows[j::BLOCK], length).float() if length else rows.float().sum(0)
    return total.reshape([1 if d in reduced else s for d, s in enumerate(x.shape)]) if keep_dims else total


def _half_product(a: Tensor, b: Tensor) -> Tensor:
    return round_half(a * b)


def _half_cumsum(x: Tensor, dim: int) -> Tensor:
    # Every partial sum is a result here, so the order is strictly ascending, without blocks.
    rows = x.movedim(dim, 0).half().clone() if x.dim() else x
    for i in range(1, len(rows)):
        rows[i] += rows[i - 1]
    return rows.float().movedim(0, dim)


def _half_matmul(a: Tensor, b: Tensor) -> Tensor:
    left = a.unsqueeze(0) if a.dim() == 1 else a
    right = b.unsqueeze(1) if b.dim() == 1 else b
    batch = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    length, columns = right.shape[-2:]
    per_row = math.prod(batch) * columns * -(-length // BLOCK)
    rows = max(1, _MAX_TEMPORARY // max(1, per_row))
    parts = [_half_rows(part, right) for part in torch.split(left, rows, dim=-2)]
    y = torch.cat(parts, dim=-2) if len(parts) > 1 else parts[0]
    y = y.squeeze(-2) if a.dim() == 1 else y
    return y.squeeze(-1) if b.dim() == 1 else y


def _half_rows(a: Tensor, b: Tensor) -> Tensor:
    length = a.shape[-1]
    if length == 0:
        return a @ b

    def addend(j: int) -> Tensor:
        x = a[..., j::BLOCK].movedim(-1, 0).unsqueeze(-1)  # (blocks, ..., M, 1)
        y = b[..., j::BLOCK, :].movedim(-2, 0).unsqueeze(-2)  # (blocks, ..., 1, N)
        missing = x.dim() - y.dim()
        x = x.reshape(len(x), *[1] * -missing, *x.shape[1:])
        y = y.reshape(len(y), *[1] * missing, *y.shape[1:])
        return (x * y).half()

    return _accumulate(addend, length).float()


def _half_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = _half_matmul(x, weight.t().contiguous())
    return y if bias is None else y + bias


def _half_softmax(x: Tensor, dim: int) -> Tensor:
    powers = torch.exp(x - x.amax(dim, keepdim=True))
    return powers / _half_sum(powers, (dim,), True)


def _half_convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, strides: Ints, pads: Ints, dilations: Ints, groups: int
) -> Tensor:
    """The reduced index runs over input channels, then kernel positions in row-major order."""
    rank = len(strides)
    padded(x, pads, len(weight))
    seen = windows(F.pad(x, flip_pairs(pads)), weight.shape[2:], strides, dilations)
    batch, _, *positions = seen.shape[: 2 + rank]
    columns = seen.permute(0, *range(2, 2 + rank), 1, *range(2 + rank, 2 + 2 * rank))
    columns = columns.reshape(batch, math.prod(positions), groups, -1).transpose(1, 2)
    kernels = weight.reshape(groups, weight.shape[0] // groups, -1).transpose(1, 2)
    y = _half_matmul(columns, kernels.contiguous())  # (N, groups, positions, C_out / groups)
    return _add_bias(y.transpose(2, 3).reshape(batch, weight.shape[0], *positions), bias)


def _half_convolve_transpose(
    x: Tensor, weight: Tensor, bias: Tensor | None, strides: Ints, pads: Ints, dilations: Ints, groups: int
) -> Tensor:
    """The equal correlation of the zero-stuffed input with the mirrored kernel, so the reduced index
    also passes over the stuffed zeros."""
    rank = len(strides)
    stuffed = x.new_zeros(*x.shape[:2], *[(n - 1) * s + 1 for n, s in zip(x.shape[2:], strides, strict=True)])
    places: tuple[slice, ...] = (slice(None), slice(None), *(slice(None, None, s) for s in strides))
    stuffed[places] = x
    reach = [(k - 1) * d for k, d in zip(weight.shape[2:], dilations, strict=True)]
    around = tuple(reach[i // 2] - side for i, side in enumerate(pads))
    grouped = weight.reshape(groups, -1, *weight.shape[1:])
    mirrored = grouped.transpose(1, 2).flatten(0, 1).flip(list(range(2, 2 + rank)))
    return _half_convolve(stuffed, mirrored, bias, (1,) * rank, around, dilations, groups)


WIDE = Numerics(
    wide=True,
    matmul=torch.matmul,
    linear=_linear,
    product=torch.mul,
    sum=_sum,
    cumsum=_cumsum,
    softmax=torch.softmax,
    convolve=_convolve,
    convolve_transpose=_convolve_transpose,
)
FP16ACC = Numerics(
    wide=False,
    matmul=_half_matmul,
    linear=_half_linear,
    product=_half_product,
    sum=_half_sum,
    cumsum=_half_cumsum,
    softmax=_half_softmax,
    convolve=_half_convolve,
    convolve_transpose=_half_convolve_transpose,
)
