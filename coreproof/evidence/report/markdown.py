"""The report as Markdown, short enough for a comment on a pull request."""

from __future__ import annotations

import re
from typing import Any

from markupsafe import Markup, escape

from coreproof.evidence.report import words
from coreproof.evidence.report.facts import Facts, label
from coreproof.evidence.report.page import environment, render

MOST = 60_000  # characters; GitHub takes 65,536 in a comment
_PROBLEMS = 5  # of one package
_TICKS = re.compile("`+")


def code(text: str) -> str:
    """``text`` as a code span, in which neither Markdown, HTML nor a mention means anything. A vertical bar
    is escaped as tables ask (GitHub Flavored Markdown, section 4.10)."""
    plain = words.shown(text)
    fence = "`" * (1 + max((len(run) for run in _TICKS.findall(plain)), default=0))
    space = " " if plain.startswith("`") or plain.endswith("`") or not plain.strip() else ""
    return f"{fence}{space}{plain or ' '}{space}{fence}".replace("|", "\\|")


def markdown(facts: Facts) -> str:
    """The report's text: verdict, what fails, packages in short, and each one's gates folded away. Above
    MOST characters the gates of packages that pass are left out, and that is said."""
    text = _render(facts, every_gate=True)
    return text if len(text) <= MOST else _render(facts, every_gate=False)


def _render(facts: Facts, *, every_gate: bool) -> str:
    # Whatever is not marked as this project's own words becomes a code span.
    templates = environment(autoescape=False, finalize=_finalize)
    own = {name: _ours(getattr(words, name)) for name in ("number", "bound", "headroom", "size", "plural")}
    return render(
        templates.get_template("report.md.jinja"),
        facts=facts,
        manifest=facts.manifest,
        every_gate=every_gate,
        label=label,
        ours=Markup,
        mark=lambda good: Markup("pass" if good else "**FAIL**"),
        escaped=lambda text: Markup(escape(words.shown(text))),
        most_problems=_PROBLEMS,
        **own,
    )


def _finalize(value: Any) -> Any:
    return code(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _ours(function: Any) -> Any:
    return lambda *arguments: Markup(function(*arguments))
