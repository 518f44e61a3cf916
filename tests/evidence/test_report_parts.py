"""What a page is made of: players, pictures, and which cases are run again."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile

from coreproof import catalog
from coreproof.blame import Observation, Suspect, observe
from coreproof.evidence.report import audio, figures
from coreproof.evidence.report.page import Room, worst_of
from coreproof.evidence.report.rerun import _alike, choose, worst_case
from coreproof.parity.gates import Verdict
from coreproof.parity.suite import Case, Heard, Outcome

RATE = 8000
TONE = 0.5 * np.sin(2 * np.pi * 440 * np.arange(8 * RATE) / RATE)[:, None]


def _decoded(clip: audio.Clip) -> np.ndarray:
    samples, rate = soundfile.read(
        io.BytesIO(base64.b64decode(clip.source.partition(",")[2])), always_2d=True
    )
    assert rate == RATE
    return samples


def test_players_are_cut_and_say_so() -> None:
    made, said = audio.clips(Heard("x", TONE + 1e-4, TONE, RATE), 10**7)
    assert [len(_decoded(clip)) for clip in made] == [6 * RATE] * 3
    assert said == (
        "8.00 s at 8000 Hz, FLAC of 16 bits; what was measured is the tensors. The players hold the first 6.00 s."
    )
    np.testing.assert_allclose(_decoded(made[0]), TONE[: 6 * RATE], atol=2**-15)
    assert made[2].note == "made 80 dB louder"


def test_what_is_too_loud_is_made_quieter_for_both() -> None:
    made, said = audio.clips(Heard("x", 4 * TONE, 2 * TONE, RATE), 10**7)
    reference, candidate = (_decoded(clip) for clip in made[:2])
    np.testing.assert_allclose(candidate, 2 * reference, atol=2**-14)
    assert np.abs(candidate).max() == pytest.approx(0.98, abs=1e-3)
    assert "both made 6.2 dB quieter" in said


def test_nan_plays_as_silence_and_is_counted() -> None:
    broken = TONE.copy()
    broken[10:20] = np.nan
    made, said = audio.clips(Heard("x", broken, TONE, RATE), 10**7)
    assert not _decoded(made[1])[10:20].any()
    assert "10 samples of the candidate are NaN or Inf and play as silence." in said


def test_equal_sound_has_a_silent_difference() -> None:
    made, _ = audio.clips(Heard("x", TONE, TONE, RATE), 10**7)
    assert made[2].note == "silence: no sample differs"
    assert not _decoded(made[2]).any()


@pytest.mark.parametrize(
    ("rate", "budget", "words"), [(100, 10**7, "do not play 100 Hz"), (RATE, 99, "no room")]
)
def test_no_players_where_none_can_be(rate: int, budget: int, words: str) -> None:
    made, said = audio.clips(Heard("x", TONE, TONE, rate), budget)
    assert made == ()
    assert words in said


def _svg(source: str) -> str:
    head, _, data = source.partition(",")
    assert head == "data:image/svg+xml;base64"
    text = base64.b64decode(data).decode()
    ElementTree.fromstring(text)
    for word in ("<dc:date", "matplotlib v", "#010101", "#060606", "DejaVu"):
        assert word not in text, word
    assert "prefers-color-scheme:dark" in text
    return text


def _suspect(error: float, *, creates: bool = False) -> Suspect:
    return Suspect("mul", "m", "m", error, creates, ())


def _gate(metric: str, bound: float) -> Verdict:
    return Verdict("output", "x", metric, "min", bound, 1.0, True, "")


NOISE = np.random.default_rng(1).standard_normal((64, 4)).astype(np.float32)
BROKEN = np.where(np.arange(64)[:, None] == 5, np.float32("nan"), NOISE)
CURVE = [Observation(_suspect(1e-4 * i), 1e-3) for i in range(3000)]
PICTURES = {
    "histogram": lambda: figures.histogram(NOISE + np.float32(1e-3), NOISE),
    "histogram with NaN": lambda: figures.histogram(BROKEN, NOISE),
    "histogram of one size": lambda: figures.histogram(NOISE * 0 + 1, NOISE * 0),
    "along": lambda: figures.along(NOISE * 1.01, NOISE, "steps"),
    "along with NaN": lambda: figures.along(BROKEN, NOISE, "steps"),
    "along of tokens": lambda: figures.along(np.arange(9), np.arange(9)[::-1], "axis 0"),
    "along of silence": lambda: figures.along(NOISE * 0, NOISE * 0 + np.float32(1e-20), "seconds", 1 / RATE),
    "cases": lambda: figures.cases([1.0, None, math.nan, 3.0], _gate("snr_db", 2.0)),
    "cases near 1": lambda: figures.cases([0.9999, 0.99999], _gate("cosine", 0.999)),
    "through": lambda: figures.through(CURVE),
    "through NaN": lambda: figures.through([Observation(_suspect(math.inf, creates=True), math.inf), *CURVE[:3]]),
    "through nothing": lambda: figures.through([Observation(_suspect(0.0), None)]),
    "spectrograms": lambda: figures.spectrograms(Heard("x", TONE + 1e-3, TONE, RATE)),
    "spectrograms of silence": lambda: figures.spectrograms(Heard("x", TONE * np.nan, TONE * 0, RATE)),
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_the_same_every_time(name: str) -> None:
    first = PICTURES[name]()
    assert first == PICTURES[name]()
    assert len(_svg(first)) < 250_000


def test_a_picture_shows_what_it_says() -> None:
    assert "besides: 98.4 % exact, 1.56 % NaN or Inf" in _svg(PICTURES["histogram with NaN"]())
    assert ">NaN or Inf<" in _svg(PICTURES["along with NaN"]())
    assert ">% that differ<" in _svg(PICTURES["along of tokens"]())
    assert ">1 − value<" in _svg(PICTURES["cases near 1"]())


def _package(**columns: tuple[float | None, ...]) -> Any:
    return SimpleNamespace(cases=("a", "b", "c"), verdicts=(), metrics={"y": columns})


@pytest.mark.parametrize(
    ("columns", "worst"),
    [
        ({"snr_db": (60.0, 40.0, 50.0)}, "b"),
        ({"snr_db": (60.0, 40.0, math.nan)}, "c"),
        ({"snr_db": (60.0, None, 50.0)}, "c"),
        ({"token_mismatches": (0.0, 1.0, 3.0)}, "c"),
        ({"snr_db": (math.inf, math.inf, math.inf)}, "a"),
    ],
)
def test_the_worst_case(columns: dict[str, tuple[float | None, ...]], worst: str) -> None:
    found = worst_case(_package(**columns), "y")
    assert found is not None
    assert found[0] == worst


def test_a_failing_gates_case_comes_before_the_worst() -> None:
    package = _package(snr_db=(60.0, 40.0, 50.0))
    package.verdicts = (Verdict("output", "y", "cosine", "min", 1.0, 0.5, False, "", "c"),)
    assert worst_case(package, "y") == ("c", "y cosine, which fails")
    assert worst_case(_package(), "y") is None


def test_the_first_and_the_worst_are_run_again() -> None:
    cases = [Case(name, "s", (), {"y": np.zeros(1)}) for name in ("a", "b", "c")]
    chosen = choose(_package(snr_db=(60.0, 40.0, 50.0)), cases)
    assert [(case.id, outputs) for case, _, outputs in chosen] == [("a", {"y"}), ("b", {"y"})]
    assert [why for _, why, _ in chosen] == ["the first case", "the worst of 3 by y snr_db"]
    assert [case.id for case, _, _ in choose(_package(), cases)] == ["a"]


@pytest.mark.parametrize(
    ("now", "then", "metric", "alike"),
    [
        (60.0, 57.0, "snr_db", True),
        (60.0, 50.0, "snr_db", False),
        (1e-4, 1.5e-4, "max_abs_error", True),
        (1e-4, 1e-3, "max_abs_error", False),
        (1 - 1e-6, 1 - 1.5e-6, "cosine", True),
        (1 - 1e-6, 1 - 1e-4, "cosine", False),
        (math.nan, math.nan, "snr_db", True),
        (math.nan, 60.0, "snr_db", False),
        (60.0, math.nan, "snr_db", False),
        (None, 60.0, "snr_db", False),
        (1.0, 0.5, "finite_ratio", False),
        (5.0, 5.0, "no_such_metric", True),
        (5.0, 5.1, "no_such_metric", False),
    ],
)
def test_what_agrees_with_a_receipt(now: float | None, then: float | None, metric: str, alike: bool) -> None:
    assert _alike(now, then, metric) is alike


def test_the_worst_of_a_column() -> None:
    assert worst_of("snr_db", (3.0, 1.0, None)) == 1.0
    assert worst_of("max_abs_error", (3.0, 1.0)) == 3.0
    assert worst_of("rms_ratio", (1.1, 0.5)) == 0.5
    assert math.isnan(worst_of("snr_db", (3.0, math.nan)) or 0)
    assert worst_of("snr_db", (None,)) is None


def test_a_full_page_takes_no_more() -> None:
    room = Room(10)
    assert [room.keep("x" * 6), room.keep("y" * 6), room.keep("z" * 4)] == ["x" * 6, "", "z" * 4]


def test_ops_are_observed_in_program_order(reported_filter: Any) -> None:
    package: Path = reported_filter.package("fp16")
    steps = [{"audio": np.full((1, 1, 320), 0.1, np.float32)}] * 2
    curve = observe(package, steps, "typed")
    ops = [o.suspect.op for o in curve]
    assert ops.index("read_state") < ops.index("concat") < ops.index("conv")
    conv = curve[ops.index("conv")]
    assert 0 < conv.suspect.error < 1e-3
    assert conv.arrived is not None
    assert 0 < conv.arrived < 2e-3
    assert all(o.suspect.error == 0 and o.arrived in (0, None) for o in observe(package, steps, "fp32"))


def test_tangofluxs_decoders_are_heard_in_stereo() -> None:
    suite = catalog.find("tangoflux").suite()
    assert suite.heard is not None
    audio = np.stack([TONE[:, 0], -TONE[:, 0]])[np.newaxis]
    case = Case("whole", "vae_decoder", ({},), {"audio": audio})
    (heard,) = suite.heard(Outcome(case, {"audio": audio * 0.5}))
    assert (heard.actual.shape, heard.sample_rate) == ((len(TONE), 2), 44100)
    np.testing.assert_array_equal(heard.expected[:, 1], -TONE[:, 0])
    assert suite.heard(Outcome(case, {"audio": audio[..., 1:]})) == ()
    assert (
        suite.heard(Outcome(Case("t", "text_encoder", ({},), {"text_hidden": audio}), {"text_hidden": audio}))
        == ()
    )
