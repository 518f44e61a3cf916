"""Random values (coremltools 9.0 ops/defs/iOS15/random.py).

The definitions fix the distributions, not the generator, so no value of Core ML can be repeated
here. With a seed from 0 on, every call gives the same values on every device. Without one (-1) they
come from torch's global generator, which ``torch.manual_seed`` makes reproducible.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from coreproof.errors import UnsupportedOpError
from coreproof.mil.types import DType, TensorType, ValueType
from coreproof.runtime.bounds import within
from coreproof.runtime.registry import Ints, op


def _generator(seed: int) -> torch.Generator | None:
    return None if seed < 0 else torch.Generator().manual_seed(seed)


@op("random_bernoulli", pure=False)
def random_bernoulli(shape: Ints, prob: float = 0.5, seed: int = -1) -> Tensor:
    """1 with probability ``prob``, else 0."""
    return (torch.rand(within(shape), generator=_generator(seed)) < prob).float()


@op("random_categorical", pure=False)
def random_categorical(x: Tensor, mode: str = "logits", size: int = 1, seed: int = -1) -> Tensor:
    """``size`` indices into the last dimension of x, drawn with replacement, in place of that dimension.

    ``probs`` need not sum to 1. The indices are of the dtype of x: above 2048, fp16 rounds them.
    """
    if mode not in ("logits", "probs"):
        raise UnsupportedOpError(f"random_categorical mode {mode!r} is neither logits nor probs")
    weights = torch.softmax(x, -1) if mode == "logits" else x
    rows = weights.reshape(-1, x.shape[-1]).cpu()
    within((len(rows), size))
    drawn = torch.multinomial(rows, size, replacement=True, generator=_generator(seed))
    return drawn.reshape(*x.shape[:-1], size).to(x)


@op("random_normal", pure=False)
def random_normal(shape: Ints, mean: float = 0.0, stddev: float = 1.0, seed: int = -1) -> Tensor:
    return mean + stddev * torch.randn(within(shape), generator=_generator(seed))


@op("random_uniform", pure=False)
def random_uniform(
    shape: Ints, low: float = 0.0, high: float = 1.0, seed: int = -1, *, out: tuple[ValueType, ...]
) -> Tensor:
    """In ``[low, high)``; ``low`` where the two are equal. Values that the result's type would round to
    ``high`` become the number below it."""
    (kind,) = out
    half = isinstance(kind, TensorType) and kind.dtype is DType.FP16
    number = np.float16 if half else np.float32
    below = float(np.nextafter(number(high), number(low)))
    return torch.clamp(low + (high - low) * torch.rand(within(shape), generator=_generator(seed)), max=below)
