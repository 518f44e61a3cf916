"""The pytest plugin: ``--coreproof`` runs a Core ML project's tests where Core ML is not.

It enables prediction before any test module is imported and makes runs repeatable: random, numpy and
torch are seeded from the ids of what runs, so slices and any number of workers agree. Node ids
begin at pytest's rootdir; give ``--rootdir`` to have the same ones on every machine.

This module is imported by every pytest run of an environment that has coreproof, so it imports
nothing heavy.
"""

from __future__ import annotations

import hashlib
import random
import re
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from coreproof.dropin import outcomes
from coreproof.dropin.outcomes import Outcome, Outcomes
from coreproof.errors import CoreproofError, UsageError

# coremltools only warns when a model cannot be loaded; a test that goes on without its model would
# prove nothing. Models other than ML programs do not run here and keep their warning.
_REFUSED = "error:You will not be able to run predict(?!.*not an ML program):RuntimeWarning"
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_STRICT_PASS = "[XPASS(strict)]"
_PASSED = Outcome(outcomes.PASSED)
_MARKED = ("failed", "error")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("coreproof", "Core ML models on any machine (coreproof)")
    group.addoption("--coreproof", action="store_true", help="run Core ML models with coreproof's runtime")
    group.addoption(
        "--coreproof-mode", default="typed", metavar="MODE", help="numeric mode: typed, fp32 or fp16acc"
    )
    group.addoption(
        "--coreproof-slice", metavar="I/N", help="run one case in N of every test function, at least one"
    )
    group.addoption(
        "--coreproof-outcomes",
        metavar="FILE",
        help="cases expected not to pass; any other outcome fails the session",
    )
    group.addoption("--coreproof-record", metavar="FILE", help="write the cases that did not pass to FILE")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    options = early_config.known_args_namespace
    if options.coreproof:
        _enable(options.coreproof_mode)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("coreproof"):
        _enable(config.getoption("coreproof_mode"))
        try:
            config.pluginmanager.register(_Suite(config), "coreproof-suite")
        except UsageError as error:
            raise pytest.UsageError(str(error)) from None
        return
    for name in ("slice", "outcomes", "record"):
        if config.getoption(f"coreproof_{name}"):
            raise pytest.UsageError(f"--coreproof-{name} needs --coreproof")


def _enable(mode: str) -> None:
    from coreproof.dropin import enable_predict

    try:
        enable_predict(mode)
    except CoreproofError as error:
        raise pytest.UsageError(str(error)) from None


class _Suite:
    """The hooks of a run with ``--coreproof``."""

    def __init__(self, config: pytest.Config) -> None:
        self.mode = config.getoption("coreproof_mode")
        self.slice = parse_slice(config.getoption("coreproof_slice"))
        expected = config.getoption("coreproof_outcomes")
        self.expected: Outcomes | None = outcomes.read(Path(expected)) if expected else None
        self.record = config.getoption("coreproof_record")
        self.actual: Outcomes = {}
        self.is_worker = hasattr(config, "workerinput")
        config.addinivalue_line("filterwarnings", _REFUSED)

    def pytest_report_header(self) -> str:
        part = f", slice {self.slice[0]}/{self.slice[1]}" if self.slice else ""
        return f"coreproof: Core ML models run in numeric mode {self.mode}{part}"

    @pytest.hookimpl(wrapper=True)
    def pytest_make_parametrize_id(self) -> Generator[None, str | None, str | None]:
        name = yield
        return name and _ADDRESS.sub("", name)

    def pytest_collectstart(self, collector: pytest.Collector) -> None:
        seed(collector.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Generator[None, Any, Any]:
        seed(f"{request.node.nodeid}::{fixturedef.argname}[{request.param_index}]")
        return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        seed(item.nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        if self.slice:
            kept = select([item.nodeid for item in items], *self.slice)
            config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in kept])
            items[:] = [item for item in items if item.nodeid in kept]
        for item in items:
            known = (self.expected or {}).get(item.nodeid)
            if known and known.kind in _MARKED:
                item.add_marker(pytest.mark.xfail(reason=known.reason, strict=True))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        kind = self._kind(report)
        known = self.actual.get(report.nodeid, _PASSED)
        if kind != outcomes.PASSED and known == _PASSED:
            self.actual[report.nodeid] = Outcome(kind, outcomes.reason(_message(report)))
        elif report.when == "call":
            self.actual.setdefault(report.nodeid, _PASSED)

    def _kind(self, report: pytest.TestReport) -> str:
        """The outcome so far. What the file lists as failing runs under a strict xfail mark, so that
        pytest itself judges it; the mark is undone here."""
        marked = (self.expected or {}).get(report.nodeid, _PASSED).kind in _MARKED
        if report.skipped and hasattr(report, "wasxfail") and not marked:
            return "xfailed"
        if report.skipped and not hasattr(report, "wasxfail"):
            return "skipped"
        if report.passed or (marked and str(report.longrepr).startswith(_STRICT_PASS)):
            return outcomes.PASSED
        return "failed" if report.when == "call" else "error"

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.is_worker:
            return
        if self.record:
            outcomes.write(Path(self.record), outcomes.merge(self.expected or {}, self.actual))
        if session.exitstatus == pytest.ExitCode.OK and self._differences():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        lines = self._differences()
        if lines:
            terminalreporter.section("coreproof: outcomes other than expected")
            for line in lines:
                terminalreporter.write_line(line)

    def _differences(self) -> list[str]:
        return [] if self.expected is None else list(outcomes.differences(self.expected, self.actual))


def parse_slice(text: str | None) -> tuple[int, int] | None:
    """``(I, N)`` of ``I/N``. Raises UsageError unless 0 <= I < N."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise UsageError(f"--coreproof-slice {text}: expected I/N with 0 <= I < N, such as 0/20")
    return int(match[1]), int(match[2])


def select(nodes: Sequence[str], index: int, count: int) -> set[str]:
    """Slice ``index`` of ``count`` of the cases ``nodes``.

    The cases of each test function are ordered by the sha256 of their ids and dealt out in turn.
    A function with fewer than ``count`` cases has one in every slice. The slices together hold all.
    """
    functions: dict[str, list[str]] = {}
    for node in nodes:
        functions.setdefault(node.partition("[")[0], []).append(node)
    kept: set[str] = set()
    for cases in functions.values():
        cases.sort(key=_digest)
        kept.update(cases[index % len(cases) :: count])
    return kept


def seed(text: str) -> None:
    """Seed random, numpy and torch (its CPU generator), as far as they are loaded, from the sha256 of
    ``text``."""
    number = int.from_bytes(_digest(text)[:8], "little") >> 1
    random.seed(number)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(number % 2**32)
    if torch := sys.modules.get("torch"):
        torch.default_generator.manual_seed(number)  # torch.manual_seed imports torch's compiler first


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _message(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return report.wasxfail
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash else report.longrepr)
