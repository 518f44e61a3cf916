"""The HTML page: one file that asks for nothing else, readable without its script."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup, escape

from coreproof.blame import Suspect, ranked
from coreproof.convert.convert import Report
from coreproof.errors import PackageError
from coreproof.evidence.report import audio, figures, words
from coreproof.evidence.report.facts import Check, Facts, PackageFacts, label
from coreproof.evidence.report.rerun import CaseRun, PackageRun, Trace
from coreproof.inspect import inspect
from coreproof.package.manifest import Manifest
from coreproof.parity.gates import Verdict
from coreproof.parity.suite import Heard

MOST = 13_000_000  # characters of pictures and sound, so that a page stays under 15 MB
_SOUND = 1_500_000  # of one set of players
_RANKED = 8  # ops listed
_PROBLEMS = 12  # of one package


@dataclass(frozen=True, slots=True)
class Figure:
    """``source``: a ``data:`` address, empty when the page had no room. ``alt`` says what is seen."""

    source: str
    caption: str
    alt: str
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Block:
    """What one output of one case, or its sound, shows."""

    title: str
    case: str
    why: str
    words: str
    figures: tuple[Figure, ...] = ()
    clips: tuple[audio.Clip, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class PackageView:
    """One package as the page shows it. ``inside`` is what :func:`coreproof.inspect.inspect` finds, None
    where the package cannot be read."""

    facts: PackageFacts
    anchor: str
    blocks: tuple[Block, ...]
    cases: tuple[Figure, ...]
    curve: Figure | None
    curve_words: str
    suspects: tuple[Suspect, ...]
    inside: dict[str, Any] | None
    notes: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return self.facts.passed and not self.problems


class Room:
    """How many characters of pictures and sound still fit."""

    def __init__(self, left: int) -> None:
        self.left = left

    def keep(self, source: str) -> str:
        """``source`` while there is room for it, else nothing."""
        if len(source) > self.left:
            return ""
        self.left -= len(source)
        return source


def page(
    build: Path, facts: Facts, runs: Iterator[PackageRun] | None, why_not: str, report: Report
) -> tuple[str, bool]:
    """The page's text, and whether its verdict is a pass.

    ``runs``: what running the packages again gives, one each, drawn as it comes; None when nothing was run,
    for the reason ``why_not``.
    """
    room = Room(MOST)
    views = []
    for index, package in enumerate(facts.packages):
        run = next(runs) if runs is not None else PackageRun(package.mode or "")
        report(f"{package.record.package}: drawing", index, len(facts.packages))
        views.append(_view(build, index, package, run, room))
    again = tuple(f"{v.facts.record.package}: {p}" for v in views for p in v.problems)
    checks = (*facts.checks, Check("what was run again for this page agrees with the receipt", again))
    checks = checks if runs is not None else facts.checks
    passed = facts.passed and all(c.passed for c in checks)
    return _render(facts, checks, views, passed, why_not), passed


def _view(build: Path, index: int, package: PackageFacts, run: PackageRun, room: Room) -> PackageView:
    blocks = [block for case in run.cases for block in _blocks(case, room)]
    notes = [run.note] if run.note else []
    try:
        inside = inspect(build / package.record.package)
    except (PackageError, OSError) as error:
        inside = None
        notes.append(f"It cannot be read: {error}")
    worst = ranked([o.suspect for o in run.curve])[:_RANKED] or package.suspects
    return PackageView(
        facts=package,
        anchor=f"package-{index}",
        blocks=tuple(blocks),
        cases=tuple(_case_charts(package, room)),
        curve=_curve(run, room),
        curve_words=_curve_words(run),
        suspects=tuple(worst),
        inside=inside,
        notes=tuple(notes),
        problems=run.problems,
    )


def _blocks(case: CaseRun, room: Room) -> Iterator[Block]:
    for trace in case.traces:
        yield _trace_block(case, trace, room)
    shown = {trace.output for trace in case.traces}
    for heard in case.heard:
        yield _sound_block(case, heard, room, measured=heard.name in shown)


def _trace_block(case: CaseRun, trace: Trace, room: Room) -> Block:
    a, e = trace.actual, trace.expected
    where = f"of {trace.output} in case {case.case}"
    said = _numbers(a, e)
    drawn: list[Figure] = []
    if not np.array_equal(a, e):
        if a.dtype.kind == "f" and np.isfinite(a).any():
            text = f"Histogram of the absolute error {where}: {said}"
            drawn.append(Figure(room.keep(figures.histogram(a, e)), "Error histogram", text))
        first, second, unit, step = _unrolled(trace)
        if len(first) > 1:
            text = f"Error along {unit} {where}: {said}"
            source = room.keep(figures.along(first, second, unit, step))
            drawn.append(Figure(source, f"Error along {_axis_name(unit)}", text))
    return Block(trace.output, case.case, case.why, said, tuple(drawn))


def _numbers(actual: np.ndarray, expected: np.ndarray) -> str:
    if np.array_equal(actual, expected):
        return f"All {actual.size:,} elements are equal"
    if actual.dtype.kind != "f":
        return f"{np.count_nonzero(actual != expected):,} of {actual.size:,} elements differ"
    error = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    good = error[np.isfinite(error)]
    if not good.size:
        return f"None of {actual.size:,} elements is finite"
    median, most, top = np.quantile(good, 0.5), np.quantile(good, 0.99), good.max()
    lost = f", {error.size - good.size:,} NaN or Inf" if good.size < error.size else ""
    return f"{actual.size:,} elements, |error| median {median:.3g}, 99 % below {most:.3g}, largest {top:.3g}{lost}"


def _unrolled(trace: Trace) -> tuple[np.ndarray, np.ndarray, str, float]:
    """The arrays with the axis to look along first, its name and how much of that an index is."""
    from coreproof.parity.comparison import joined

    pair = (trace.actual, trace.expected)
    if trace.sample_rate is not None and trace.actual.dtype.kind == "f":
        together = [joined(a) if trace.steps > 1 else a for a in pair]
        first, second = (np.moveaxis(a, -1, 0) for a in together)
        return first, second, "seconds", 1 / trace.sample_rate
    if trace.steps > 1:
        return *pair, "steps", 1.0
    axis = int(np.argmax(trace.actual.shape)) if trace.actual.ndim else 0
    first, second = (np.moveaxis(np.atleast_1d(a), axis, 0) for a in pair)
    return first, second, f"axis {axis}", 1.0


def _axis_name(unit: str) -> str:
    return {"seconds": "time", "steps": "the steps"}.get(unit, unit)


def _sound_block(case: CaseRun, heard: Heard, room: Room, *, measured: bool) -> Block:
    made, said = audio.clips(heard, min(_SOUND, room.left))
    for clip in made:
        room.keep(clip.source)
    where = f"{heard.name} in case {case.case}"
    drawn = []
    if not measured:  # made of an output by the host, so that nothing above shows its error
        text = f"Level of the error and of the reference along time, {where}"
        source = figures.along(heard.actual, heard.expected, "seconds", 1 / heard.sample_rate)
        drawn.append(Figure(room.keep(source), "Error along time", text))
    text = f"Spectrograms of reference, candidate and difference, {where}, on one scale of 90 dB"
    drawn.append(
        Figure(room.keep(figures.spectrograms(heard)), "Spectrograms, on one scale", text, wide=True)
    )
    return Block(f"Sound: {heard.name}", case.case, case.why, "", tuple(drawn), made, said)


def _case_charts(package: PackageFacts, room: Room) -> Iterator[Figure]:
    for verdict in package.verdicts:
        values = package.metrics.get(verdict.name, {}).get(verdict.metric or "", ())
        if len(values) > 1:
            text = (
                f"{label(verdict)} of {len(values)} cases; the worst is {words.number(verdict.value)}, "
                f"the bound {words.bound(verdict)}"
            )
            source = room.keep(figures.cases(values, verdict))
            yield Figure(source, f"{label(verdict)}, case by case", text)


def _curve(run: PackageRun, room: Room) -> Figure | None:
    seen = [o for o in run.curve if o.suspect.error > 0 or o.suspect.creates_nonfinite or o.arrived]
    if not seen:
        return None
    text = f"Relative error of {len(run.curve)} ops in program order. {_curve_words(run)}"
    return Figure(room.keep(figures.through(run.curve)), "Each op against fp32 mode", text, wide=True)


def _curve_words(run: PackageRun) -> str:
    if not run.curve:
        return ""
    arrived = [o.arrived for o in run.curve if o.arrived is not None]
    if not any(arrived) and not any(o.suspect.creates_nonfinite for o in run.curve):
        return f"In mode {run.mode} none of {len(run.curve):,} ops departs from fp32 mode."
    worst = max(o.suspect.error for o in run.curve)
    return (
        f"{len(run.curve):,} ops on case {run.curve_case}, the last step: an op in mode {run.mode} departs by at most "
        f"{words.number(worst)} from fp32 mode by itself; {words.number(arrived[-1])} has arrived at the end."
    )


def _breakable(name: str) -> Markup:
    """``name`` escaped, with places to break a line after what joins its words."""
    return Markup(re.sub(r"([_./:])(?=.)", r"\1<wbr>", str(escape(words.shown(name)))))


def _policy(style: str, script: str) -> str:
    """The content security policy: this page's own script, and pictures and sound that lie in it. Styles
    may be inline, because a style runs nothing."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data:; media-src data:; base-uri 'none'; form-action 'none'"
    )


def _finalize(value: Any) -> Any:
    return words.shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def environment(**options: Any) -> jinja2.Environment:
    """Templates of this folder, which refuse what they do not know."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("coreproof.evidence.report"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        **options,
    )


def _render(
    facts: Facts, checks: Sequence[Check], views: Sequence[PackageView], passed: bool, why_not: str
) -> str:
    # Every value is escaped as HTML after words.shown; only data: addresses and this project's own files
    # are marked as safe.
    templates = environment(autoescape=True, finalize=_finalize)
    style, script = (_own(f"report.{kind}") for kind in ("css", "js"))
    functions: dict[str, Callable[..., Any]] = {
        name: getattr(words, name) for name in ("number", "bound", "headroom", "size", "plural", "plain")
    }
    return render(
        templates.get_template("report.html.jinja"),
        facts=facts,
        manifest=facts.manifest,
        checks=checks,
        views=views,
        passed=passed,
        why_not=why_not,
        failing=_failing(facts, views),
        gates=_count(facts),
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
        label=label,
        source=Markup,
        worst=worst_of,
        breakable=_breakable,
        files=_files(facts.manifest),
        most_problems=_PROBLEMS,
        **functions,
    )


def render(template: jinja2.Template, **values: Any) -> str:
    """``template`` with ``values``. Raises PackageError where a receipt lacks what it says."""
    try:
        return template.render(**values)
    except (jinja2.UndefinedError, TypeError, ValueError) as error:
        raise PackageError(
            f"the receipt lacks what a report says ({error}); run coreproof validate again"
        ) from None


def _own(name: str) -> str:
    return (files("coreproof.evidence.report") / "templates" / name).read_text(encoding="utf-8")


def _failing(facts: Facts, views: Sequence[PackageView]) -> list[tuple[PackageView, list[Verdict]]]:
    """The packages that fail the build, each with the gates that say so."""
    shipping = [v for v in views if v.facts.judged_as is None]
    return [(v, [g for g in v.facts.verdicts if not g.passed]) for v in shipping if not v.passed]


def _count(facts: Facts) -> tuple[int, int]:
    verdicts = [*facts.excitations, *(v for p in facts.shipping for v in p.verdicts)]
    return sum(v.passed for v in verdicts), len(verdicts)


def worst_of(metric: str, values: Sequence[float | None]) -> float | None:
    """The worst of a metric's values, NaN before all; None when there is none."""
    from coreproof.parity.metrics import METRICS

    known = [v for v in values if v is not None]
    if not known or metric not in METRICS:
        return None
    if any(np.isnan(v) for v in known):
        return float("nan")
    better = METRICS[metric].better
    if better == "one":
        return max(known, key=lambda v: abs(v - 1))
    return min(known) if better == "higher" else max(known)


def _files(manifest: Manifest) -> list[tuple[str, int, str]]:
    return [(f.path, f.size, f.sha256) for f in manifest.files]
