"""The report as JUnit XML, one test case a gate, for CI systems that show test results.

The form is what Jenkins' xUnit plugin and pytest agree on: ``testsuites`` of ``testsuite`` of ``testcase``
with a ``failure`` in those that fail, and counts that add up. What fails in a package that is on record,
and so fails no build, is ``skipped``. No time is given, because none was measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.etree import ElementTree

from coreproof.evidence.report import words
from coreproof.evidence.report.facts import Facts, PackageFacts, label
from coreproof.parity.gates import Verdict

# A test's name, and what is wrong with it: nothing when it passes.
Test = tuple[str, Sequence[str]]
# Name, tests, properties.
Suite = tuple[str, list[Test], dict[str, str]]


def junit(facts: Facts) -> str:
    """The report as an XML document. Suites: the evidence, what the reference excites, each package; one
    that holds no test fails, because what nothing judges never passes."""
    suites: list[Suite] = [
        ("evidence", [(check.what, check.problems) for check in facts.checks], {}),
        ("excitations", [_gate(v) for v in facts.excitations], {}),
        *((p.record.package, list(_package(p)), _properties(p)) for p in facts.packages),
    ]
    if not facts.packages:
        suites.append(("packages", [("the build has packages", ["it has none"])], {}))
    root = ElementTree.Element("testsuites", name=words.shown(f"coreproof {facts.manifest.model}"))
    on_record = {p.record.package for p in facts.packages if p.judged_as is not None}
    for name, tests, properties in suites:
        judged: Suite = (name, tests or [("judged", ["no gate judged it"])], properties)
        _suite(root, facts.manifest.model, judged, "skipped" if name in on_record else "failure")
    for count in ("tests", "failures"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in root)))
    root.set("errors", "0")
    ElementTree.indent(root, " ")
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _suite(root: ElementTree.Element, model: str, judged: Suite, outcome: str) -> None:
    """``outcome``: ``failure``, or ``skipped`` for tests of a package that is on record and fails no build."""
    name, tests, properties = judged
    bad = sum(bool(problems) for _, problems in tests)
    counts = {"tests": len(tests), "failures": 0, "errors": 0, "skipped": 0}
    counts["failures" if outcome == "failure" else outcome] = bad
    suite = ElementTree.SubElement(
        root, "testsuite", {"name": words.shown(name), **{key: str(n) for key, n in counts.items()}}
    )
    if properties:
        holder = ElementTree.SubElement(suite, "properties")
        for key, value in properties.items():
            ElementTree.SubElement(holder, "property", name=key, value=words.shown(value))
    for test, problems in tests:
        case = ElementTree.SubElement(
            suite, "testcase", classname=words.shown(f"{model}.{name}"), name=words.shown(test)
        )
        if problems:
            lines = [words.shown(problem) for problem in problems]
            failure = ElementTree.SubElement(case, outcome, message=lines[0], type="gate")
            failure.text = "\n".join(lines)


def _properties(package: PackageFacts) -> dict[str, str]:
    on_record = {} if package.judged_as is None else {"on record, judged as": package.judged_as}
    return {"sha256": package.digest, **on_record}


def _package(package: PackageFacts) -> Iterator[Test]:
    yield from map(_gate, package.verdicts)
    problems = [*package.problems]
    if not package.verdicts and not problems:
        problems.append("no gate judged it")
    if package.suspects and not package.passed:
        first = package.suspects[0]
        problems += [f"op to look at first: {first.op} {first.name}"]
    yield "outputs are what the contract says", problems


def _gate(verdict: Verdict) -> Test:
    if verdict.passed:
        return label(verdict), ()
    case = f" (case {verdict.case})" if verdict.case else ""
    found = f"{words.number(verdict.value)}, {words.bound(verdict)} is needed{case}"
    return label(verdict), (found, verdict.detail)
