"""Reading and writing at computed places (coremltools 9.0 ops/defs/iOS15, iOS16, iOS17/scatter_gather.py).

An index outside the tensor is always an error here: where ``validate_indices`` does not ask for one
MIL leaves the result undefined. Negative indices count from the end up to iOS 16; from iOS 17 on
they are outside. Of several updates to one place, ``update`` keeps one, the other modes combine all. The
mode is ``add`` unless given, also of ``scatter``, whose text, unlike its code, says ``update``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from coreproof.errors import InputError, UnsupportedOpError
from coreproof.runtime.bounds import within
from coreproof.runtime.registry import op

Scatter = Callable[[Tensor, int, Tensor, Tensor], Tensor]


def _bounded(indices: Tensor, size: int, negative: bool) -> Tensor:
    """int64 indices in ``[0, size)``, where negative ones count from the end if they are allowed.
    Raises InputError for any other."""
    indices = indices.long()
    lowest, highest = (0, -1) if indices.numel() == 0 else (v.item() for v in torch.aminmax(indices))
    if highest >= size or lowest < (-size if negative else 0):
        wrong = highest if highest >= size else lowest
        raise InputError(f"index {wrong} is out of bounds for a dimension of size {size}")
    return torch.where(indices < 0, indices + size, indices) if lowest < 0 else indices


def _gather(x: Tensor, indices: Tensor, axis: int, batch_dims: int, negative: bool) -> Tensor:
    axis %= x.dim()
    within((*x.shape[:axis], *indices.shape[batch_dims:], *x.shape[axis + 1 :]))
    if batch_dims == 0:
        if indices.dim() == 1:
            return _select(x, axis, indices, negative)
        picked = _select(x, axis, indices.reshape(-1), negative)
        return picked.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])
    places = _bounded(indices, x.shape[axis], negative)
    index = (*_batch_index(x, batch_dims, indices.dim()), places)
    picked = x.movedim(axis, batch_dims)[index]
    before = range(axis - batch_dims)  # the dimensions between the batch and the axis
    return picked.movedim([indices.dim() + d for d in before], [batch_dims + d for d in before])


def _select(x: Tensor, axis: int, indices: Tensor, negative: bool) -> Tensor:
    if x.is_cpu:
        try:
            return torch.index_select(x, axis, indices)  # checks them itself, but knows no negative ones
        except (IndexError, RuntimeError):
            pass
    return torch.index_select(x, axis, _bounded(indices, x.shape[axis], negative))


def _batch_index(x: Tensor, batch_dims: int, rank: int) -> list[Tensor]:
    """Indices that walk the first ``batch_dims`` dimensions of x, beside an index of ``rank`` dimensions."""
    sizes = x.shape[: max(0, batch_dims)]
    shapes = [[1] * dim + [-1] + [1] * (rank - dim - 1) for dim in range(len(sizes))]
    return [torch.arange(n, device=x.device).reshape(shape) for n, shape in zip(sizes, shapes, strict=True)]


@op("gather", moves=True)
def gather(x: Tensor, indices: Tensor, axis: int = 0) -> Tensor:
    """``numpy.take``: the indices' shape replaces dimension ``axis``."""
    return _gather(x, indices, axis, 0, True)


@op("gather", since="ios16", moves=True)
def gather_ios16(x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0) -> Tensor:
    """The first ``batch_dims`` dimensions of x and indices go together."""
    return _gather(x, indices, axis, batch_dims, True)


@op("gather", since="ios17", moves=True)
def gather_ios17(
    x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    return _gather(x, indices, axis, batch_dims, False)


@op("gather_along_axis", moves=True)
def gather_along_axis(x: Tensor, indices: Tensor, axis: int = 0) -> Tensor:
    """``numpy.take_along_axis``."""
    return torch.gather(x, axis, _bounded(indices, x.shape[axis], True))


@op("gather_along_axis", since="ios17", moves=True)
def gather_along_axis_ios17(
    x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool = False
) -> Tensor:
    return torch.gather(x, axis, _bounded(indices, x.shape[axis], False))


def _gather_nd(x: Tensor, indices: Tensor, batch_dims: int, negative: bool) -> Tensor:
    within((*indices.shape[:-1], *x.shape[batch_dims + indices.shape[-1] :]))
    index = _batch_index(x, batch_dims, indices.dim() - 1)
    for dim, places in enumerate(indices.unbind(-1), start=batch_dims):
        index.append(_bounded(places, x.shape[dim], negative))
    return x[tuple(index)]


@op("gather_nd", moves=True)
def gather_nd(x: Tensor, indices: Tensor) -> Tensor:
    """The last dimension of ``indices`` indexes the first dimensions of x together."""
    return _gather_nd(x, indices, 0, True)


@op("gather_nd", since="ios16", moves=True)
def gather_nd_ios16(x: Tensor, indices: Tensor, batch_dims: int = 0) -> Tensor:
    """The first ``batch_dims`` dimensions of x and indices go together."""
    return _gather_nd(x, indices, batch_dims, True)


@op("gather_nd", since="ios17", moves=True)
def gather_nd_ios17(
    x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    return _gather_nd(x, indices, batch_dims, False)


def _divide(data: Tensor, dim: int, index: Tensor, updates: Tensor) -> Tensor:
    divisors = torch.ones_like(data).scatter_reduce(dim, index, updates, "prod")
    return data / divisors if data.is_floating_point() else torch.div(data, divisors, rounding_mode="trunc")


_MODES: dict[str, Scatter] = {
    "update": torch.scatter,
    "add": torch.scatter_add,
    "sub": lambda data, dim, index, updates: torch.scatter_add(data, dim, index, -updates),
    "mul": lambda data, dim, index, updates: torch.scatter_reduce(data, dim, index, updates, "prod"),
    "div": _divide,
    "max": lambda data, dim, index, updates: torch.scatter_reduce(data, dim, index, updates, "amax"),
    "min": lambda data, dim, index, updates: torch.scatter_reduce(data, dim, index, updates, "amin"),
}


def _mode(mode: str) -> Scatter:
    if mode not in _MODES:
        raise UnsupportedOpError(f"scatter mode {mode!r} is not one of {', '.join(_MODES)}")
    return _MODES[mode]


def _scatter(data: Tensor, indices: Tensor, updates: Tensor, axis: int, mode: str, negative: bool) -> Tensor:
    axis %= data.dim()
    places = _bounded(indices, data.shape[axis], negative).reshape(-1)
    shape = [*data.shape[:axis], len(places), *data.shape[axis + 1 :]]
    index = places.reshape(-1, *[1] * (data.dim() - axis - 1)).expand(shape)
    return _mode(mode)(data, axis, index, updates.reshape(shape))


@op("scatter")
def scatter(data: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, mode: str = "add") -> Tensor:
    """Slice i of ``updates`` along ``axis`` goes to slice ``indices[i]`` of a copy of ``data``."""
    return _scatter(data, indices, updates, axis, mode, True)


@op("scatter", since="ios17")
def scatter_ios17(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    return _scatter(data, indices, updates, axis, mode, False)


@op("scatter_along_axis")
def scatter_along_axis(
    data: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, mode: str = "add"
) -> Tensor:
    """``numpy.put_along_axis`` on a copy of ``data``."""
    return _mode(mode)(data, axis, _bounded(indices, data.shape[axis], True), updates)


@op("scatter_along_axis", since="ios17")
def scatter_along_axis_ios17(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    return _mode(mode)(data, axis, _bounded(indices, data.shape[axis], False), updates)


def _scatter_nd(data: Tensor, indices: Tensor, updates: Tensor, mode: str, negative: bool) -> Tensor:
    depth = indices.shape[-1]
    place = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=data.device)
    for dim, places in enumerate(indices.unbind(-1)):
        place = place * data.shape[dim] + _bounded(places, data.shape[dim], negative)
    rows = data.reshape(-1, *data.shape[depth:])
    return _scatter(rows, place, updates, 0, mode, False).reshape(data.shape)


@op("scatter_nd")
def scatter_nd(data: Tensor, indices: Tensor, updates: Tensor, mode: str = "add") -> Tensor:
    """The last dimension of ``indices`` indexes the first dimensions of ``data`` together."""
    return _scatter_nd(data, indices, updates, mode, True)


@op("scatter_nd", since="ios17")
def scatter_nd_ios17(
    data: Tensor, indices: Tensor, updates: Tensor, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    return _scatter_nd(data, indices, updates, mode, False)
