"""From a build folder to a report in one of its forms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from coreproof.atomic import atomic_file
from coreproof.catalog import ModelParts
from coreproof.convert.convert import Report
from coreproof.errors import FixtureError, UsageError
from coreproof.evidence.report.facts import Facts, gather
from coreproof.evidence.report.junit import junit
from coreproof.evidence.report.markdown import markdown
from coreproof.evidence.report.page import page
from coreproof.evidence.report.rerun import rerun

SUFFIXES = {"html": ".html", "markdown": ".md", "junit": ".xml"}
_SHORT: dict[str, Callable[[Facts], str]] = {"markdown": markdown, "junit": junit}


@dataclass(frozen=True, slots=True)
class Written:
    """Where a report lies, how large it is in bytes, and whether it says pass."""

    path: Path
    size: int
    passed: bool


def write_report(
    build: Path,
    parts: ModelParts,
    output: Path | None,
    form: str = "html",
    backend: str = "mil",
    fixture: Path | None = None,
    report: Report = lambda step, done, total: None,
) -> Written:
    """Write a report on the build folder ``build`` and its receipt by ``backend``, whole or not at all.

    ``form``: ``html``, ``markdown`` or ``junit``; only the first runs packages. ``output`` of None is
    ``report`` with the form's suffix. Raises UsageError for an unknown form and an output inside the build,
    which it would spoil, and as :func:`coreproof.evidence.report.facts.gather`.
    """
    if form not in SUFFIXES:
        raise UsageError(f"--format {form}: choose one of {', '.join(SUFFIXES)}")
    path = output or Path(f"report{SUFFIXES[form]}")
    if path.resolve().is_relative_to(build.resolve()):
        raise UsageError(
            f"{path} lies in the build, which must hold nothing else; choose another place with -o"
        )
    facts = gather(build, parts, backend)
    if form == "html":
        text, passed = _page(build, parts, facts, fixture, report)
    else:
        text, passed = _SHORT[form](facts), facts.passed
    data = text.encode()
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)
    return Written(path, len(data), passed)


def _page(
    build: Path, parts: ModelParts, facts: Facts, fixture: Path | None, report: Report
) -> tuple[str, bool]:
    spoilt = [c for c in facts.checks if not c.passed and "coreproof.json" in c.what]
    if spoilt:
        return page(build, facts, None, "its files are not those of the build.", report)
    try:
        return page(build, facts, rerun(build, parts, facts, fixture, report), "", report)
    except FixtureError as error:
        return page(build, facts, None, f"{error}.", report)
