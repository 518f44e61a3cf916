"""The metrics a gate can name: ``METRICS["snr_db"].fn(actual, expected, sample_rate)``.

Rules common to all, so that each function below states only its own:

* ``actual`` and ``expected`` are arrays of one shape, bool, integer or floating; all but the token
  metrics compute in float64. Other dtypes and shapes that differ raise MetricError.
* Empty arrays give NaN.
* A NaN or Inf anywhere in either array gives NaN, which no gate lets pass. Only ``finite_ratio``
  still counts, unless it is ``expected`` that is not finite.
* ``sample_rate`` in Hz is needed by the audio metrics and ignored by the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg

from coreproof.errors import MetricError
from coreproof.parity import spectrum

Better = Literal["higher", "lower", "one"]
MetricFn = Callable[..., float]


@dataclass(frozen=True, slots=True)
class Metric:
    """``better``: the direction in which a result improves; ``one``: the nearer to 1 the better.
    ``audio``: needs a sample rate. ``tokens``: compares integer arrays only.
    ``fn(actual, expected, sample_rate=None)`` measures."""

    name: str
    unit: str
    better: Better
    audio: bool
    tokens: bool
    fn: MetricFn


_METRICS: dict[str, Metric] = {}
METRICS: Mapping[str, Metric] = MappingProxyType(_METRICS)


def measure(actual: ArrayLike, expected: ArrayLike, sample_rate: int | None = None) -> dict[str, float]:
    """Every metric that applies, by name: the token metrics when both arrays are integer or bool,
    otherwise the floating ones, with the audio ones among them when ``sample_rate`` is given.

    Raises MetricError as the metrics do.
    """
    a, e = np.asarray(actual), np.asarray(expected)
    tokens = _is_integer(a) and _is_integer(e)
    return {
        name: metric.fn(a, e, sample_rate)
        for name, metric in METRICS.items()
        if metric.tokens == tokens and (sample_rate is not None or not metric.audio)
    }


def _metric(
    unit: str, better: Better, *, audio: bool = False, tokens: bool = False, counts_nonfinite: bool = False
) -> Callable[[MetricFn], MetricFn]:
    """Register a function of two checked arrays (and the sample rate, for audio) under its name."""

    def register(body: MetricFn) -> MetricFn:
        name = body.__name__

        @wraps(body)
        def fn(actual: ArrayLike, expected: ArrayLike, sample_rate: int | None = None) -> float:
            a, e = _checked(name, actual, expected, tokens)
            rate = (_checked_rate(name, sample_rate),) if audio else ()
            if a.size == 0 or not np.isfinite(e).all():
                return math.nan
            if not counts_nonfinite and not np.isfinite(a).all():
                return math.nan
            with np.errstate(all="ignore"):  # overflow ends in NaN or Inf, which the gates judge
                return float(body(a, e, *rate))

        _METRICS[name] = Metric(name, unit, better, audio, tokens, fn)
        return fn

    return register


def _checked(
    name: str, actual: ArrayLike, expected: ArrayLike, tokens: bool
) -> tuple[np.ndarray, np.ndarray]:
    a, e = np.asarray(actual), np.asarray(expected)
    if a.shape != e.shape:
        raise MetricError(f"{name}: actual has shape {a.shape}, expected {e.shape}; compare equal shapes")
    for role, array in (("actual", a), ("expected", e)):
        if not (_is_integer(array) or (array.dtype.kind == "f" and not tokens)):
            wanted = "integers or bools" if tokens else "real numbers"
            raise MetricError(f"{name}: {role} has dtype {array.dtype}; the metric compares {wanted}")
    return (a, e) if tokens else (a.astype(np.float64), e.astype(np.float64))


def _checked_rate(name: str, sample_rate: int | None) -> int:
    if sample_rate is None or not sample_rate > 0:
        raise MetricError(f"{name}: sample_rate is {sample_rate}; give the sample rate in Hz, above 0")
    return sample_rate


def _is_integer(array: np.ndarray) -> bool:
    return array.dtype.kind in "biu"


def _norm(x: np.ndarray) -> float:
    """L2 norm over all elements by BLAS ``nrm2``, which neither overflows nor underflows inside."""
    return float(linalg.norm(x.ravel(), check_finite=False))


def _unit(x: np.ndarray) -> np.ndarray:
    return x / _norm(x)


@_metric("1", "higher", counts_nonfinite=True)
def finite_ratio(actual: np.ndarray, expected: np.ndarray) -> float:
    """Share of the elements of ``actual`` that are neither NaN nor Inf: 0 to 1, dimensionless.

    To be read before any other metric: statistics over the finite part alone can look perfect.
    NaN when ``expected`` itself is not finite, for then it is no reference.
    """
    return float(np.mean(np.isfinite(actual)))


@_metric("1", "higher")
def pearson_correlation(actual: np.ndarray, expected: np.ndarray) -> float:
    """``sum(a' e') / (|a'| |e'|)``, a' and e' being the arrays minus their means: -1 to 1.

    Blind to offset and positive gain, so gate a magnitude beside it. NaN when either array is
    constant (one element included). Source: Pearson 1895; as ``scipy.stats.pearsonr``, clipped to
    [-1, 1] against rounding.
    """
    if np.ptp(actual) == 0 or np.ptp(expected) == 0:
        return math.nan
    return cosine(actual - actual.mean(), expected - expected.mean())


@_metric("1", "higher")
def cosine(actual: np.ndarray, expected: np.ndarray) -> float:
    """``sum(a e) / (|a| |e|)``, the cosine of the angle between the flattened arrays: -1 to 1.

    Not centred: a large common mean pushes it towards 1. NaN when either array is all zeros. Source:
    1 minus ``scipy.spatial.distance.cosine``, clipped to [-1, 1] against rounding.
    """
    return float(np.clip(np.sum(_unit(actual) * _unit(expected)), -1.0, 1.0))


@_metric("dB", "higher")
def snr_db(actual: np.ndarray, expected: np.ndarray) -> float:
    """``20 log10(|e| / |a - e|)``: signal-to-noise ratio with ``expected`` as the signal, in dB.

    Identical arrays, two silent ones included, give +inf; a silent ``expected`` under anything else
    gives -inf. The textbook power ratio ``10 log10(sum e^2 / sum (a - e)^2)``.
    """
    noise = _norm(actual - expected)
    return math.inf if noise == 0 else float(20.0 * np.log10(_norm(expected) / noise))


@_metric("of the output", "lower")
def max_abs_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """``max |a - e|``, in the unit of the output; 0 for identical arrays."""
    return float(np.max(np.abs(actual - expected)))


@_metric("of the output", "lower")
def mean_abs_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """``mean |a - e|``, in the unit of the output; 0 for identical arrays."""
    return float(np.mean(np.abs(actual - expected)))


@_metric("1", "lower")
def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """``|a - e| / |e|`` with L2 norms over all elements; dimensionless.

    Identical arrays give 0, two all-zero ones included; an all-zero ``expected`` under anything
    else gives inf. Source: the normwise relative error of Higham 2002, "Accuracy and Stability of
    Numerical Algorithms".
    """
    error = np.float64(_norm(actual - expected))
    return 0.0 if error == 0 else float(error / _norm(expected))


@_metric("1", "one")
def rms_ratio(actual: np.ndarray, expected: np.ndarray) -> float:
    """``sqrt(mean a^2) / sqrt(mean e^2)``: the gain of the output; 1 when the levels agree.

    Sees the loss of level that correlation cannot see; sees no sign. All-zero ``expected`` gives
    inf, or NaN when ``actual`` is all zeros too.
    """
    return float(np.float64(_norm(actual)) / _norm(expected))


@_metric("dB", "lower", audio=True)
def log_spectral_distance_db(actual: np.ndarray, expected: np.ndarray, sample_rate: int) -> float:
    """``sqrt(mean((A - E)^2))`` over every frame and bin, A and E being
    ``spectrum.log_magnitude_db`` of the signals (..., samples): dB.

    0 for identical signals and for two silent ones. ``sample_rate`` does not change it. Source: the
    log spectral distance of Gray and Markel 1976, "Distance measures for speech processing", with
    one mean over frames and bins.
    """
    a, e = (spectrum.log_magnitude_db(x, sample_rate) for x in (actual, expected))
    return float(np.sqrt(np.mean((a - e) ** 2)))


@_metric("1", "higher", audio=True)
def log_mel_correlation(actual: np.ndarray, expected: np.ndarray, sample_rate: int) -> float:
    """``pearson_correlation`` of ``spectrum.log_mel`` of the signals (..., samples), over all
    channels, bands and frames at once: -1 to 1.

    Each log-mel is centred on its own mean: log-mels lie far below zero, so that their plain cosine
    calls unrelated signals alike. Blind to gain, above the floor of the spectrum. NaN when either
    log-mel is constant, as silence is.
    """
    a, e = (spectrum.log_mel(x, sample_rate) for x in (actual, expected))
    return pearson_correlation(a, e)


@_metric("tokens", "lower", tokens=True)
def token_mismatches(actual: np.ndarray, expected: np.ndarray) -> float:
    """Number of positions whose tokens differ; integer or bool arrays."""
    return float(np.count_nonzero(actual != expected))


@_metric("tokens", "higher", tokens=True)
def first_mismatch(actual: np.ndarray, expected: np.ndarray) -> float:
    """Number of tokens, in row-major order, before the first that differs; the size of the arrays
    when none does. Integer or bool arrays. What an autoregressive loop emits after its first
    mismatch says little, so this is the length that can be trusted."""
    differs = (actual != expected).ravel()
    return float(np.argmax(differs) if differs.any() else differs.size)
