"""The pytest plugin: ``--coreproof`` runs a Core ML project's tests where Core ML is not.

It enables prediction before any test module is imported and makes runs repeatable: random, numpy and
torch are seeded from the ids of what runs, so slices and any number of workers agree. Node ids
begin at pytest's rootdir; give ``--rootdir`` to have the same ones on every machine.

This module is imported by every pytest run of an environment that has coreproof, so it imports
nothing heavy.
"""

from __future__ import annotations

import gc
import hashlib
import random
import re
import sys
from collections.abc import Generator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from coreproof.dropin import outcomes, results
from coreproof.dropin.outcomes import Outcome, Outcomes
from coreproof.dropin.results import Case
from coreproof.errors import CoreproofError, UsageError

# coremltools only warns when a model cannot be loaded; a test that goes on without its model would
# prove nothing. Models other than ML programs do not run here and keep their warning.
_REFUSED = "error:You will not be able to run predict(?!.*not an ML program):RuntimeWarning"
# What ids must not hold: addresses, which differ from run to run, and line breaks.
_UNFIT = ((re.compile(r" at 0x[0-9a-f]+"), ""), (re.compile(r"\s+"), " "))
_STRICT_PASS = "[XPASS(strict)]"
_PASSED = Outcome(outcomes.PASSED)
_MARKED = ("failed", "error")
_SEEN = "coreproof"  # the user property of a test's last report
_WATCHED: pytest.StashKey[Any] = pytest.StashKey()
_SET_ASIDE = 100  # tests
_OPTIONS = ("slice", "outcomes", "record", "tight", "report")


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
    group.addoption(
        "--coreproof-tight",
        action="store_true",
        help="also hold predictions to a tight tolerance, and say how often they miss it",
    )
    group.addoption("--coreproof-report", metavar="FILE", help="write what each case did to FILE, as JSON")


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
    for name in _OPTIONS:
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
        self.report = config.getoption("coreproof_report")
        self.tight = config.getoption("coreproof_tight")
        self.actual: Outcomes = {}
        self.cases: dict[str, Case] = {}
        self.ran = 0
        self.is_worker = hasattr(config, "workerinput")
        config.addinivalue_line("filterwarnings", _REFUSED)

    def pytest_report_header(self) -> str:
        part = f", slice {self.slice[0]}/{self.slice[1]}" if self.slice else ""
        return f"coreproof: Core ML models run in numeric mode {self.mode}{part}"

    @pytest.hookimpl(wrapper=True)
    def pytest_make_parametrize_id(self) -> Generator[None, str | None, str | None]:
        name = yield
        for pattern, text in _UNFIT:
            name = name and pattern.sub(text, name)
        return name

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
            if known := self._marked(item.nodeid):
                item.add_marker(pytest.mark.xfail(reason=known.reason, strict=True))

    @pytest.hookimpl(tryfirst=True)
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be collected is a case, of outcome ``error``."""
        if report.failed:
            self.actual[report.nodeid] = Outcome("error", outcomes.reason(_last_line(report)))
            if known := self._marked(report.nodeid):
                # pytest then does not count it as a failure
                report.wasxfail = known.reason  # type: ignore[attr-defined]

    def pytest_collection_finish(self) -> None:
        _set_aside()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        from coreproof.dropin.watch import watch

        with watch(self.tight) as item.stash[_WATCHED]:
            result = yield
        self.ran += 1
        if self.ran % _SET_ASIDE == 0:
            _set_aside()
        return result

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        item.user_properties.append((_SEEN, asdict(item.stash[_WATCHED])))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        case = self.cases.setdefault(report.nodeid, Case())
        case.seconds += report.duration
        seen: Any = dict(report.user_properties).get(_SEEN, {})
        for name, value in seen.items():
            setattr(case, name, value)
        kind = self._kind(report)
        known = self.actual.get(report.nodeid, _PASSED)
        if kind != outcomes.PASSED and known == _PASSED:
            self.actual[report.nodeid] = Outcome(kind, outcomes.reason(_message(report)))
        elif report.when == "call":
            self.actual.setdefault(report.nodeid, _PASSED)

    def _kind(self, report: pytest.TestReport) -> str:
        """The outcome so far. What the file lists as failing runs under a strict xfail mark, so that
        pytest itself judges it; the mark is undone here."""
        marked = self._marked(report.nodeid) is not None
        if report.skipped and hasattr(report, "wasxfail") and not marked:
            return "xfailed"
        if report.skipped and not hasattr(report, "wasxfail"):
            return "skipped"
        if report.passed or (marked and str(report.longrepr).startswith(_STRICT_PASS)):
            return outcomes.PASSED
        return "failed" if report.when == "call" else "error"

    def _marked(self, node: str) -> Outcome | None:
        """What the file says of a case that it lists as failing."""
        known = (self.expected or {}).get(node)
        return known if known and known.kind in _MARKED else None

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.is_worker:
            return
        if self.record:
            outcomes.write(Path(self.record), outcomes.merge(self.expected or {}, self.actual))
        if self.report:
            results.write(Path(self.report), self._results())
        if session.exitstatus == pytest.ExitCode.OK and (self._differences() or self._blind()):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        sections = {"outcomes other than expected": self._differences()}
        if self.tight:
            sections["tight tolerance"] = self._blind() or list(results.closeness(self.cases))
        for title, lines in sections.items():
            if lines:
                terminalreporter.section(f"coreproof: {title}")
                for line in lines:
                    terminalreporter.write_line(line)

    def _differences(self) -> list[str]:
        return [] if self.expected is None else list(outcomes.differences(self.expected, self.actual))

    def _blind(self) -> list[str]:
        """What to say when nothing was held to the tight tolerance though there was something to hold."""
        predicted = sum(case.predictions > 0 for case in self.cases.values())
        if not self.tight or not predicted or any(case.compared for case in self.cases.values()):
            return []
        return [
            f"{predicted} cases predicted, and none of them compared a prediction through "
            "numpy.testing.assert_allclose: nothing was judged"
        ]

    def _results(self) -> dict[str, Case]:
        for node, outcome in outcomes.merge(self.expected or {}, self.actual).items():
            if node in self.actual:
                case = self.cases.setdefault(node, Case())
                case.outcome, case.reason = outcome.kind, outcome.reason
        return self.cases


def _set_aside() -> None:
    """Spare the garbage collector what lives so far: modules, test items, the types that coremltools
    never lets go. It collects after every conversion, and would look through them for longer than the
    conversion takes."""
    gc.collect()
    gc.freeze()


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


def _last_line(report: pytest.CollectReport) -> str:
    return str(report.longrepr).strip().rpartition("\n")[2].removeprefix("E")


def _message(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return report.wasxfail
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash else report.longrepr)
