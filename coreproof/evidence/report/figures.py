"""The page's pictures, by matplotlib, as SVG in ``data:`` addresses.

They follow the reader's light or dark scheme, hold no name from a package, and are the same bytes for the
same numbers.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from coreproof.blame import Observation
from coreproof.parity import spectrum
from coreproof.parity.gates import Verdict
from coreproof.parity.suite import Heard

POINTS = 400  # of one curve
_COLUMNS, _ROWS = 420, 128  # of one spectrogram
_RANGE_DB = 90.0

# Colours that stand for the page's own, light and dark.
INK, MUTED, GRID, FIRST, SECOND, BAD = (f"#0{i}0{i}0{i}" for i in range(1, 7))
_LIGHT = ("#1c2330", "#5a6475", "#d9dee7", "#3659b8", "#b4541a", "#b3202c")
_DARK = ("#e7eaf0", "#a3adbd", "#343c4a", "#8fb0ff", "#f0a35e", "#ff8a8a")
_NAMES = ("ink", "muted", "grid", "first", "second", "bad")
_STYLE: Any = {
    "svg.hashsalt": "coreproof",
    "svg.fonttype": "none",
    "font.size": 9.0,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.4,
    "path.simplify": True,
}
_FONT = re.compile(r"(font: [0-9.]+px |font-family: )[^;\"]*")


def histogram(actual: np.ndarray, expected: np.ndarray) -> str:
    """How many elements lie how far from the reference, on a logarithmic axis."""
    error = np.abs(actual.astype(np.float64) - expected.astype(np.float64)).ravel()
    size = error[np.isfinite(error) & (error > 0)]
    figure, axes = _figure()
    if size.size:
        # What is smaller than all but 1 in 200 goes into the first bar.
        low, high = np.floor(np.log10(np.quantile(size, 0.005))), np.ceil(np.log10(size.max()))
        edges = np.logspace(low, high if high > low else low + 1, 49)
        counts, _ = np.histogram(np.maximum(size, edges[0]), edges)
        axes.stairs(100 * counts / error.size, edges, fill=True, color=FIRST, alpha=0.85)
        axes.set_xscale("log")
    _beside(axes, error, size)
    axes.set_xlabel("|error| of an element")
    axes.set_ylabel("% of elements")
    axes.margins(x=0.02)
    return _svg(figure)


def _beside(axes: Any, error: np.ndarray, size: np.ndarray) -> None:
    exact, broken = np.count_nonzero(error == 0), np.count_nonzero(~np.isfinite(error))
    words = []
    if exact >= 0.01 * error.size:
        words.append(f"{100 * exact / error.size:.3g} % exact")
    if broken:
        words.append(f"{100 * broken / error.size:.3g} % NaN or Inf")
    if words:
        axes.set_title("besides: " + ", ".join(words), fontsize=8.5, loc="left")


def along(actual: np.ndarray, expected: np.ndarray, unit: str, step: float = 1.0) -> str:
    """Level of the error and of the reference along the first axis, by root mean square; of integers the
    share that differs. ``step``: how many ``unit`` an index is."""
    tokens = actual.dtype.kind in "biu"
    a, e = (x.reshape(len(x), -1).astype(np.float64) for x in (actual, expected))
    edges = np.linspace(0, len(a), min(POINTS, len(a)) + 1).astype(int)
    x = edges[:-1] * step
    figure, axes = _figure()
    if tokens:
        axes.stairs(100 * _rms(a != e, edges) ** 2, edges * step, fill=True, color=SECOND)
        axes.set_ylim(0, 100)
        axes.set_ylabel("% that differ")
    else:
        with np.errstate(all="ignore"):
            error, level = (_rms(values, edges) for values in (a - e, e))
        finite = np.isfinite(error)
        dot = "o" if len(x) == 1 else ""
        axes.plot(x, np.where(level > 0, level, np.nan), color=FIRST, marker=dot, label="reference")
        axes.plot(x, np.where(finite & (error > 0), error, np.nan), color=SECOND, marker=dot, label="error")
        if not finite.all():
            height = float(level.max()) or 1.0
            axes.plot(x[~finite], np.full((~finite).sum(), height), "x", color=BAD, label="NaN or Inf")
        _log(axes, [*error, *level])
        axes.set_ylabel("RMS")
        _legend(axes)
    axes.set_xlabel(unit)
    return _svg(figure)


def _rms(x: np.ndarray, edges: np.ndarray) -> np.ndarray:
    power = np.add.reduceat((x.astype(np.float64) ** 2).mean(axis=1), edges[:-1]) / np.diff(edges)
    level: np.ndarray = np.sqrt(power)
    return level


def cases(values: Sequence[float | None], verdict: Verdict) -> str:
    """A gated metric case by case, with its bound."""
    y = np.array([np.nan if v is None else v for v in values])
    figure, axes = _figure()
    near = verdict.side == "min" and verdict.bound is not None and 0 < 1 - verdict.bound < 0.1
    if near:  # so near to 1 that only the distance from it can be seen
        y = 1 - y
    limit = verdict.bound if not near else 1 - (verdict.bound or 0)
    drawn = np.where(np.isfinite(y), y, np.nan)
    x = np.arange(len(y))
    axes.plot(x, drawn, ".", color=FIRST, markersize=4, label="case")
    if limit is not None:
        axes.axhline(limit, color=BAD, linestyle="--", label="bound")
    lost = x[~np.isfinite(y)]
    if lost.size:
        axes.plot(lost, np.full(lost.size, limit or 0.0), "x", color=BAD, label="NaN, Inf or not measured")
    positive = drawn[np.isfinite(drawn)]
    if (limit or 0) > 0 and positive.size and (positive > 0).all():
        axes.set_yscale(
            "log" if limit and max(positive.max(), limit) > 30 * min(positive.min(), limit) else "linear"
        )
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("case")
    axes.set_ylabel("1 − value" if near else "value")
    _legend(axes)
    return _svg(figure)


def through(curve: Sequence[Observation]) -> str:
    """Errors of the ops in program order: what each does by itself, and what has arrived by then."""
    x = np.arange(len(curve))
    own = np.array([o.suspect.error for o in curve])
    arrived = np.array([np.nan if o.arrived is None else o.arrived for o in curve])
    broken = np.array([o.suspect.creates_nonfinite for o in curve]) | np.isinf(own) | np.isinf(arrived)
    figure, axes = _figure(2)
    axes.plot(*_thinned(x, arrived), color=SECOND, linewidth=1.0, label="arrived by here")
    axes.plot(*_thinned(x, own), ".", color=FIRST, markersize=3.5, label="by the op itself")
    good = np.concatenate([own, arrived])
    good = good[np.isfinite(good) & (good > 0)]
    if broken.any():
        axes.plot(x[broken], np.full(broken.sum(), good.max() if good.size else 1.0), "x", color=BAD,
                  label="NaN or Inf")  # fmt: skip
    _log(axes, good)
    axes.set_xlabel("op, in program order")
    axes.set_ylabel("relative error")
    _legend(axes)
    return _svg(figure)


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The greatest of each block, so that no peak is lost where there are more ops than points."""
    y = np.where(np.isfinite(y) & (y > 0), y, np.nan)
    block = -(-len(x) // (3 * POINTS)) or 1
    if block == 1:
        return x, y
    kept = [i + int(np.argmax(np.nan_to_num(y[i : i + block]))) for i in range(0, len(x), block)]
    return x[kept], y[kept]


def spectrograms(heard: Heard) -> str:
    """|STFT| of reference, candidate and difference in dB, on one scale; of several channels the loudest."""
    pair = [np.where(np.isfinite(a), a, 0.0).T.astype(np.float64) for a in (heard.expected, heard.actual)]
    levels = [_pooled(spectrum.log_magnitude_db(x, heard.sample_rate).max(axis=0)) for x in
              (*pair, pair[1] - pair[0])]  # fmt: skip
    top = max(float(levels[0].max()), float(levels[1].max()))
    seconds = len(heard.expected) / heard.sample_rate
    figure, axes = _figure(2, rows=3)
    for axis, level, title in zip(axes, levels, ("reference", "candidate", "difference"), strict=True):
        image = axis.imshow(
            level, origin="lower", aspect="auto", interpolation="none", cmap="magma", vmin=top - _RANGE_DB,
            vmax=top, extent=(0.0, seconds, 0.0, heard.sample_rate / 2000),
        )  # fmt: skip
        axis.set_title(title, fontsize=9, loc="left")
        axis.grid(visible=False)
        axis.set_ylabel("kHz")
    axes[-1].set_xlabel("s")
    bar = figure.colorbar(image, ax=list(axes), pad=0.02, aspect=40)
    bar.set_label("dB")
    bar.outline.set_visible(False)
    return _svg(figure)


def _pooled(level: np.ndarray) -> np.ndarray:
    """At most _ROWS x _COLUMNS of the greatest values."""
    for axis, most in ((0, _ROWS), (1, _COLUMNS)):
        count = min(most, level.shape[axis])
        edges = np.linspace(0, level.shape[axis], count + 1).astype(int)[:-1]
        level = np.maximum.reduceat(level, edges, axis=axis)
    return np.round(level)  # a dB is not seen, and rounded pictures are a quarter as large


def _figure(columns: int = 1, rows: int = 1) -> tuple[Any, Any]:
    import logging

    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # says when it looks for fonts
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        size = (4.7 if columns == 1 else 7.2, 2.5 if rows == 1 else 1.55 * rows)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(rows, 1, sharex=True)
    return figure, axes


def _log(axes: Any, values: Sequence[float] | np.ndarray) -> None:
    """A logarithmic axis for the bulk of ``values``: a few that happen to be near zero do not stretch it."""
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known) & (known > 0)]
    if known.size:
        axes.set_yscale("log")
        axes.set_ylim(0.4 * np.quantile(known, 0.02), 2.5 * known.max())


def _legend(axes: Any) -> None:
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=3,
        borderaxespad=0.2,
        handlelength=1.2,
        columnspacing=1.2,
        fontsize=8.5,
        frameon=False,
        labelcolor=INK,
    )


def _svg(figure: Any) -> str:
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    text = stream.getvalue()
    for sentinel, name in zip((INK, MUTED, GRID, FIRST, SECOND, BAD), _NAMES, strict=True):
        text = text.replace(sentinel, f"var(--{name})")
    text = _FONT.sub(r"\1system-ui, 'Helvetica Neue', Arial, sans-serif", text)
    light, dark = (
        "".join(f"--{n}:{c};" for n, c in zip(_NAMES, colours, strict=True)) for colours in (_LIGHT, _DARK)
    )
    style = f"<style>:root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    text = text.replace("<defs>", f"{style}<defs>", 1)
    return f"data:image/svg+xml;base64,{base64.b64encode(text.encode()).decode()}"
