"""Activations (coremltools 9.0 ops/defs/iOS15/activation.py).

From iOS 17 on alpha and beta may have another dtype than x (iOS17/activation.py). NaN stays NaN in all of
them; ``prelu`` has one alpha a channel, dimension 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from coreproof.errors import UnsupportedOpError
from coreproof.runtime.numerics import Numerics
from coreproof.runtime.registry import REQUIRED, Param, add, op

_X = (Param("x", "tensor", REQUIRED),)
add("relu", torch.relu, _X, moves=True)
add("relu6", F.relu6, _X, moves=True)
add("sigmoid", torch.sigmoid, _X)
add("silu", F.silu, _X)
add("softplus", F.softplus, _X)
add("softsign", F.softsign, _X)
add("prelu", torch.prelu, (*_X, Param("alpha", "tensor", REQUIRED)))
add("leaky_relu", F.leaky_relu, (*_X, Param("alpha", "float", REQUIRED)))
add("elu", F.elu, (*_X, Param("alpha", "float", REQUIRED)))


@op("clamped_relu")
def clamped_relu(x: Tensor, alpha: float, beta: float) -> Tensor:
    """``min(x, beta)`` for x >= 0, else ``min(alpha * x, beta)``."""
    return torch.clamp(F.leaky_relu(x, alpha), max=beta)


@op("gelu")
def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """``x * Phi(x)`` by the error function, by ``tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))``, or as
    ``x * sigmoid(1.702 * x)``, which torch lacks.

    Raises UnsupportedOpError for another mode.
    """
    if mode == "EXACT":
        return F.gelu(x)
    if mode == "TANH_APPROXIMATION":
        return F.gelu(x, approximate="tanh")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    raise UnsupportedOpError(f"gelu mode {mode!r} is not EXACT, TANH_APPROXIMATION or SIGMOID_APPROXIMATION")


@op("linear_activation")
def linear_activation(x: Tensor, alpha: float, beta: float) -> Tensor:
    return x * alpha + beta


@op("scaled_tanh")
def scaled_tanh(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.tanh(x * beta) * alpha


@op("sigmoid_hard")
def sigmoid_hard(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


@op("softplus_parametric")
def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """``alpha * log(1 + exp(beta * x))`` with one alpha and beta a channel, dimension 1."""
    per_channel = (-1, *[1] * (x.dim() - 2))
    return F.softplus(x * beta.reshape(per_channel)) * alpha.reshape(per_channel)


@op("softmax")
def softmax(x: Tensor, axis: int = -1, *, num: Numerics) -> Tensor:
    """Computed after subtracting the maximum; NaN where all elements are negative infinity."""
    return num.softmax(x, axis)


@op("thresholded_relu", moves=True)
def thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    """x where x >= alpha, else 0; NaN stays."""
    return torch.where(x < alpha, 0.0, x)
