"""The metrics against scipy, transformers' filterbank, textbook formulas and hand-computed values."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial import distance
from scipy.stats import pearsonr
from transformers.audio_utils import mel_filter_bank

from coreproof.errors import CoreproofError, MetricError
from coreproof.parity import metrics, spectrum
from coreproof.parity.metrics import METRICS, measure

RATE = 16000
FLOATING = [m.name for m in METRICS.values() if not m.audio and not m.tokens]
AUDIO = [m.name for m in METRICS.values() if m.audio]
TOKENS = [m.name for m in METRICS.values() if m.tokens]


def metric(name: str, actual: object, expected: object, rate: int | None = RATE) -> float:
    return METRICS[name].fn(actual, expected, rate)


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def pink(seed: int, length: int) -> np.ndarray:
    """Noise of equal energy in every octave, at unit RMS."""
    x = np.fft.irfft(np.fft.rfft(noise(seed, length)) / np.sqrt(np.arange(1, length // 2 + 2)))
    return x / np.sqrt(np.mean(x**2))


def frames(x: np.ndarray) -> np.ndarray:
    """|STFT| frame by frame: centres at multiples of 256, windows of 1024 whose non-zero part (all but
    the first weight) touches x."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    padded = np.concatenate([np.zeros(1024), x, np.zeros(2048)])
    starts = [c - 512 for c in range(-256, len(x) + 512, 256) if c - 511 < len(x)]
    spectra = [np.abs(np.fft.rfft(padded[s + 1024 : s + 2048] * window)) for s in starts]
    return np.array(spectra).T / window.sum()


def log_mel(x: np.ndarray, rate: int) -> np.ndarray:
    bank = mel_filter_bank(513, 80, 0.0, rate / 2, rate, norm=None, mel_scale="htk")
    return np.log(np.maximum(bank.T @ frames(x), 1e-7))


def test_the_registry_names_every_metric_of_the_field() -> None:
    assert set(METRICS) == {
        "pearson_correlation", "cosine", "snr_db", "max_abs_error", "mean_abs_error", "relative_error",
        "rms_ratio", "finite_ratio", "log_spectral_distance_db", "log_mel_correlation",
        "token_mismatches", "first_mismatch",
    }  # fmt: skip
    for name, entry in METRICS.items():
        assert name == entry.name
        assert getattr(metrics, name) is entry.fn
        assert entry.fn.__doc__


REFERENCES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "pearson_correlation": lambda a, e: pearsonr(a.ravel(), e.ravel()).statistic,
    "cosine": lambda a, e: 1 - distance.cosine(a.ravel(), e.ravel()),
    "snr_db": lambda a, e: 10 * np.log10(np.sum(e**2) / np.sum((a - e) ** 2)),
    "max_abs_error": lambda a, e: distance.chebyshev(a.ravel(), e.ravel()),
    "mean_abs_error": lambda a, e: distance.cityblock(a.ravel(), e.ravel()) / a.size,
    "relative_error": lambda a, e: distance.euclidean(a.ravel(), e.ravel()) / np.sqrt(np.sum(e**2)),
    "rms_ratio": lambda a, e: np.sqrt(np.mean(a**2)) / np.sqrt(np.mean(e**2)),
    "finite_ratio": lambda a, e: 1.0,
}


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int16", "bool"])
@pytest.mark.parametrize("name", FLOATING)
def test_floating_metrics_equal_scipy_in_float64(name: str, dtype: str) -> None:
    expected, actual = (np.trunc(2 * noise(seed, 3, 5, 7)).astype(dtype) for seed in (1, 2))
    reference = REFERENCES[name](actual.astype(np.float64), expected.astype(np.float64))
    assert metric(name, actual, expected) == pytest.approx(reference, rel=1e-12)


def test_fp16_is_compared_in_float64_not_in_fp16() -> None:
    expected = np.full(8, 60000, np.float16)
    actual = -expected
    assert metric("max_abs_error", actual, expected) == 2 * float(np.float16(60000))
    assert metric("relative_error", actual, expected) == 2


@pytest.mark.parametrize(
    ("name", "actual", "expected", "value"),
    [
        ("max_abs_error", [1, 2, 3, 6], [1, 2, 3, 4], 2),
        ("mean_abs_error", [1, 2, 3, 6], [1, 2, 3, 4], 0.5),
        ("relative_error", [1, 2, 3, 6], [1, 2, 3, 4], 2 / math.sqrt(30)),
        ("rms_ratio", [1, 2, 3, 6], [1, 2, 3, 4], math.sqrt(50 / 30)),
        ("snr_db", [1.1, 0, 0], [1, 0, 0], 20),
        ("cosine", [1, 0], [1, 1], math.sqrt(0.5)),
        ("pearson_correlation", [1, 2, 3], [-1, -2, -3], -1),
        ("token_mismatches", [[1, 2], [3, 4]], [[1, 0], [0, 4]], 2),
        ("first_mismatch", [[1, 2], [3, 4]], [[1, 2], [0, 0]], 2),
        ("first_mismatch", [1, 2, 3], [0, 2, 3], 0),
        ("first_mismatch", [1, 2, 3], [1, 2, 3], 3),
        ("token_mismatches", [True, False], [True, True], 1),
        ("finite_ratio", [1, math.nan, math.inf, -math.inf], [1, 1, 1, 1], 0.25),
    ],
)
def test_hand_computed_values(name: str, actual: list, expected: list, value: float) -> None:
    assert metric(name, actual, expected) == pytest.approx(value, rel=1e-12)


ZEROS, ONES, RAMP = np.zeros(4), np.ones(4), np.arange(4.0)


@pytest.mark.parametrize(
    ("name", "actual", "expected", "value"),
    [
        ("snr_db", RAMP, RAMP, math.inf),
        ("snr_db", ZEROS, ZEROS, math.inf),
        ("snr_db", RAMP, ZEROS, -math.inf),
        ("snr_db", ZEROS, RAMP, 0),
        ("relative_error", ZEROS, ZEROS, 0),
        ("relative_error", RAMP, ZEROS, math.inf),
        ("rms_ratio", ZEROS, RAMP, 0),
        ("rms_ratio", RAMP, ZEROS, math.inf),
        ("rms_ratio", ZEROS, ZEROS, math.nan),
        ("cosine", ZEROS, RAMP, math.nan),
        ("cosine", RAMP, ZEROS, math.nan),
        ("cosine", ONES, ONES, 1),
        ("pearson_correlation", ONES, RAMP, math.nan),
        ("pearson_correlation", RAMP, 0.1 * ONES, math.nan),
        (
            "pearson_correlation",
            [0.1, 0.1, 0.1],
            [0.1, 0.1, 0.1],
            math.nan,
        ),  # their mean rounds away from 0.1
        ("pearson_correlation", [1.0], [1.0], math.nan),
        ("log_spectral_distance_db", ZEROS, ZEROS, 0),
        ("log_spectral_distance_db", RAMP, RAMP, 0),
        ("log_mel_correlation", ZEROS, ZEROS, math.nan),
        ("log_mel_correlation", ZEROS, RAMP, math.nan),
        ("log_mel_correlation", RAMP, RAMP, 1),
    ],
)
def test_constant_silent_and_identical_signals(
    name: str, actual: np.ndarray, expected: np.ndarray, value: float
) -> None:
    assert metric(name, actual, expected) == pytest.approx(value, nan_ok=True)


def test_float64_extremes_neither_overflow_to_a_perfect_score_nor_underflow() -> None:
    for scale in (1e300, 1e-300):
        assert metric("snr_db", scale * np.array([1.0, 1.001]), scale * ONES[:2]) == pytest.approx(
            20 * math.log10(math.sqrt(2) / 0.001), abs=1e-6
        )


@pytest.mark.parametrize("name", METRICS)
def test_empty_arrays_give_nan(name: str) -> None:
    empty = np.zeros((0, 3), np.int32)
    assert math.isnan(metric(name, empty, empty))


@pytest.mark.parametrize("name", METRICS)
def test_shapes_that_differ_are_refused_even_where_numpy_would_broadcast(name: str) -> None:
    with pytest.raises(MetricError, match=rf"{name}: actual has shape \(4,\), expected \(1, 4\)"):
        metric(name, np.zeros(4, np.int32), np.zeros((1, 4), np.int32))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [*FLOATING, *AUDIO])
def test_one_bad_element_on_either_side_gives_nan(name: str, bad: float) -> None:
    clean, broken = noise(1, 2000), noise(1, 2000)
    broken[7] = bad
    assert math.isnan(metric(name, clean, broken))
    assert math.isnan(metric(name, broken, broken))
    of_actual = metric(name, broken, clean)
    assert of_actual == 1999 / 2000 if name == "finite_ratio" else math.isnan(of_actual)


@pytest.mark.parametrize(
    ("name", "actual", "rate", "message"),
    [
        ("cosine", np.zeros(4, np.complex64), None, "actual has dtype complex64; .* real numbers"),
        ("max_abs_error", np.array(["a"] * 4), None, "actual has dtype <U1; .* real numbers"),
        ("token_mismatches", np.zeros(4), None, "actual has dtype float64; .* integers or bools"),
        ("first_mismatch", np.zeros(4), None, "actual has dtype float64; .* integers or bools"),
        ("log_mel_correlation", np.zeros(4), None, "sample_rate is None; .* Hz"),
        ("log_spectral_distance_db", np.zeros(4), 0, "sample_rate is 0; .* Hz"),
    ],
)
def test_what_a_metric_cannot_compare_is_refused(
    name: str, actual: np.ndarray, rate: int | None, message: str
) -> None:
    with pytest.raises(CoreproofError, match=f"{name}: {message}"):
        metric(name, actual, np.zeros(4, np.int32), rate)


@pytest.mark.parametrize(
    ("actual", "expected", "rate", "names"),
    [
        (np.zeros(4, np.float16), np.zeros(4, np.float32), None, FLOATING),
        (np.zeros(4), np.zeros(4), 8000, FLOATING + AUDIO),
        (np.zeros(4, np.int32), np.zeros(4, np.int64), 8000, TOKENS),
        (np.zeros(4, bool), np.zeros(4, bool), None, TOKENS),
        (np.zeros(4), np.zeros(4, np.int32), None, FLOATING),
    ],
)
def test_measure_gives_the_metrics_that_apply(
    actual: np.ndarray, expected: np.ndarray, rate: int | None, names: list[str]
) -> None:
    measured = measure(actual, expected, rate)
    assert set(measured) == set(names)
    assert all(type(value) is float for value in measured.values())


def test_trap_of_the_finite_part() -> None:
    """15.7 % of the output is NaN or Inf, and the rest correlates above 0.99."""
    expected = noise(1, 10000)
    actual = (expected + 0.05 * noise(2, 10000)).astype(np.float16)
    broken = np.random.default_rng(3).permutation(10000)[:1570]
    actual[broken] = np.resize([np.nan, np.inf, -np.inf], 1570)
    finite = np.isfinite(actual)
    assert pearsonr(actual[finite].astype(np.float64), expected[finite]).statistic > 0.99
    measured = measure(actual, expected, RATE)
    assert measured.pop("finite_ratio") == 0.843
    assert measured
    assert all(math.isnan(value) for value in measured.values())


def test_trap_of_the_uncentred_log_mel() -> None:
    """Two sounds that take turns, one loud where the other is quiet: a cosine of their log-mels calls
    them alike, because both lie far below zero."""
    turns = np.repeat([1.0, 0.1] * 4, RATE // 8)
    first, second = 1e-3 * pink(1, RATE) * turns, 1e-3 * pink(2, RATE) * turns[::-1]
    mels = [log_mel(x, RATE).ravel() for x in (first, second)]
    assert 1 - distance.cosine(*mels) > 0.95
    assert metric("log_mel_correlation", first, second) < 0


@pytest.mark.parametrize("length", [100, 1024, 1025, 5000])
def test_spectral_metrics_equal_a_frame_by_frame_stft(length: int) -> None:
    actual, expected = noise(1, length), noise(2, length)
    padded = [np.pad(x, (0, max(0, 1024 - length))) for x in (actual, expected)]
    levels = [20 * np.log10(np.maximum(frames(x), 1e-7)) for x in padded]
    distance_db = np.sqrt(np.mean((levels[0] - levels[1]) ** 2))
    assert metric("log_spectral_distance_db", actual, expected) == pytest.approx(distance_db, rel=1e-9)
    correlation = pearsonr(*(log_mel(x, RATE).ravel() for x in padded)).statistic
    assert metric("log_mel_correlation", actual, expected) == pytest.approx(correlation, abs=1e-9)


@pytest.mark.parametrize("name", AUDIO)
def test_other_axes_than_time_hold_further_signals(name: str) -> None:
    actual, expected = noise(1, 2, 3, 4000), noise(2, 2, 3, 4000)
    swapped = metric(name, actual[:, ::-1], expected[:, ::-1])
    assert metric(name, actual, expected) == pytest.approx(swapped, rel=1e-12)
    assert metric(name, actual, expected[:, ::-1]) != pytest.approx(swapped, rel=1e-6)


def test_a_gain_of_two_is_6_db_in_every_bin() -> None:
    x = noise(1, 4000)
    assert metric("log_spectral_distance_db", 2 * x, x) == pytest.approx(20 * math.log10(2), rel=1e-9)
    assert metric("log_mel_correlation", 2 * x, x) == pytest.approx(1)


def test_a_sine_reads_half_its_amplitude_and_silence_reads_the_floor() -> None:
    sine = 0.8 * np.sin(2 * np.pi * 100 / 1024 * np.arange(8192))
    levels = spectrum.log_magnitude_db(sine, RATE)
    assert levels.shape[0] == 513
    assert levels[100, 10] == pytest.approx(20 * math.log10(0.4), abs=1e-9)
    assert levels[300, 10] == pytest.approx(-140)
    assert spectrum.log_mel(0 * sine, RATE) == pytest.approx(math.log(1e-7))


@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000, 96000])
def test_mel_filterbank_equals_transformers_without_its_empty_bands(rate: int) -> None:
    reference = mel_filter_bank(513, 80, 0.0, rate / 2, rate, norm=None, mel_scale="htk").T
    reference = reference[reference.any(axis=1)]
    bank = spectrum.mel_filterbank(rate)
    assert bank.shape == reference.shape
    np.testing.assert_allclose(bank, reference, atol=1e-9)


GAINS = st.floats(1e-3, 1e3)
SEEDS = st.integers(0, 99)
VECTORS = hnp.arrays(np.float64, 16, elements=st.floats(-100, 100, width=32))


@given(VECTORS, GAINS, st.floats(-100, 100))
def test_correlation_is_blind_to_gain_and_offset(a: np.ndarray, gain: float, offset: float) -> None:
    a[:2] = 200, -200
    expected = np.arange(16.0)
    before = metric("pearson_correlation", a, expected)
    assert metric("pearson_correlation", gain * a + offset, expected) == pytest.approx(before, abs=1e-9)
    assert metric("pearson_correlation", -a, expected) == pytest.approx(-before, abs=1e-12)


@given(st.floats(-60, 120), GAINS, SEEDS)
def test_snr_is_the_level_of_the_noise_that_was_added(level: float, gain: float, seed: int) -> None:
    signal, dirt = gain * noise(seed, 64), noise(seed + 100, 64)
    dirt *= np.sqrt(np.sum(signal**2) / np.sum(dirt**2)) * 10 ** (-level / 20)
    assert metric("snr_db", signal + dirt, signal) == pytest.approx(level, abs=1e-6)
    assert metric("relative_error", signal + dirt, signal) == pytest.approx(10 ** (-level / 20), rel=1e-6)


@given(VECTORS, GAINS)
def test_rms_ratio_is_the_gain_and_errors_order(x: np.ndarray, gain: float) -> None:
    x[0] = 1.0
    assert metric("rms_ratio", gain * x, x) == pytest.approx(gain, rel=1e-12)
    assert metric("cosine", gain * x, x) == pytest.approx(1, abs=1e-12)
    assert metric("mean_abs_error", gain * x, x) <= metric("max_abs_error", gain * x, x) * (1 + 1e-12)


TOKEN_ROWS = hnp.arrays(np.int32, (3, 4), elements=st.integers(0, 2))


@given(TOKEN_ROWS, TOKEN_ROWS)
def test_token_metrics_count_as_a_loop_does(a: np.ndarray, e: np.ndarray) -> None:
    differs = [x != y for x, y in zip(a.ravel().tolist(), e.ravel().tolist(), strict=True)]
    assert metric("token_mismatches", a, e) == sum(differs)
    assert metric("first_mismatch", a, e) == (differs.index(True) if True in differs else 12)
