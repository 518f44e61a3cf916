"""The expected-outcome file: one line for each case of a test suite that does not pass.

    NODE_ID <tab> OUTCOME <tab> REASON

in the order of the node ids, with outcomes ``failed``, ``error`` (outside the test itself),
``skipped`` and ``xfailed`` (by the suite's own mark). Empty lines and lines that begin with ``#`` are
ignored. A case that starts or stops passing is thereby a one-line diff.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from coreproof.atomic import atomic_file
from coreproof.errors import UsageError

PASSED = "passed"
KINDS = ("failed", "error", "skipped", "xfailed")
_LONGEST = 200
# What differs from run to run in a message: addresses and temporary paths.
_VOLATILE = re.compile(rf"0x[0-9a-f]{{6,}}|{re.escape(tempfile.gettempdir())}[^\s'\":,)]*")


@dataclass(frozen=True, slots=True)
class Outcome:
    """``kind``: one of KINDS, or ``passed`` with an empty reason."""

    kind: str
    reason: str = ""


Outcomes = dict[str, Outcome]


def read(path: Path) -> Outcomes:
    """The outcomes in the file ``path`` by node id.

    Raises UsageError naming the line that is malformed or names a case again, and for a file that
    cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: the expected outcomes cannot be read: {error}") from None
    outcomes: Outcomes = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = line.split("\t")
        if len(fields) != 3 or fields[1] not in KINDS or not fields[2].strip():
            raise UsageError(
                f"{path}:{number}: expected NODE_ID, one of {', '.join(KINDS)} and a reason, with tabs"
            )
        if fields[0] in outcomes:
            raise UsageError(f"{path}:{number}: {fields[0]} is listed twice")
        outcomes[fields[0]] = Outcome(fields[1], fields[2])
    return outcomes


def write(path: Path, outcomes: Mapping[str, Outcome]) -> None:
    """Write the lines of ``outcomes`` that are not ``passed`` to ``path``, whole or not at all."""
    lines = [line(node, o) for node, o in sorted(outcomes.items()) if o.kind != PASSED]
    with atomic_file(path) as new:
        new.write_text("".join(f"{text}\n" for text in lines), encoding="utf-8")


def merge(expected: Mapping[str, Outcome], actual: Mapping[str, Outcome]) -> Outcomes:
    """What to record after a run: the ``actual`` outcomes, with the reason that ``expected`` gives
    where the kind is as expected, and ``expected`` for cases that did not run."""
    changed = {n: o for n, o in actual.items() if n not in expected or expected[n].kind != o.kind}
    return {**expected, **changed}


def differences(expected: Mapping[str, Outcome], actual: Mapping[str, Outcome]) -> Iterator[str]:
    """Diff lines, sorted by node id, for each case that ran and came out other than expected: ``-``
    the line that no longer holds, ``+`` the line that now does."""
    for node in sorted(actual):
        was, now = expected.get(node, Outcome(PASSED)), actual[node]
        if was.kind != now.kind:
            if was.kind != PASSED:
                yield f"- {line(node, was)}"
            if now.kind != PASSED:
                yield f"+ {line(node, now)}"


def line(node: str, outcome: Outcome) -> str:
    """One line of the file, without its end."""
    return f"{node}\t{outcome.kind}\t{outcome.reason}"


def reason(message: str) -> str:
    """``message`` on one line, short, and the same in every run."""
    return _VOLATILE.sub("...", " ".join(message.split()))[:_LONGEST] or "no message"
