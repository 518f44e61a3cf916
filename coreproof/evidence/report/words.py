"""Names, numbers and verdicts as a report prints them. Packages come from anyone, and so do their names."""

from __future__ import annotations

import re
from typing import Any

from coreproof.cli.console import number as significant
from coreproof.errors import printable
from coreproof.parity.gates import Verdict
from coreproof.parity.metrics import METRICS

LONGEST = 240
# Characters that reorder or hide what stands beside them (Unicode UAX 9; zero width ones), line ends, and
# what XML 1.0 cannot hold.
_MISLEADING = re.compile(
    "[\t\n\u0085\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff]"
)


def shown(text: str) -> str:
    """``text`` from a package on one line: what would hide, reorder or control is written as escapes, and
    the middle of more than LONGEST characters is left out."""
    plain = _MISLEADING.sub(lambda found: found[0].encode("unicode_escape").decode(), printable(text))
    if len(plain) > LONGEST:
        return f"{plain[: LONGEST // 2]} … {plain[-LONGEST // 2 :]}"
    return plain


def number(value: float | None) -> str:
    """A measured value to four digits; what was never measured says so."""
    if value is None:
        return "not measured"
    return significant(value)


def bound(verdict: Verdict) -> str:
    """A gate's bound with its side."""
    if verdict.bound is None:
        return "no gate"
    return f"{'≥' if verdict.side == 'min' else '≤'} {significant(verdict.bound)}"


def headroom(verdict: Verdict) -> str:
    """How far inside its bound a passing value lies: in dB where it is in dB; else as the factor that the
    error may still grow by, or for what only has to be large, that it may shrink by."""
    value, limit = verdict.value, verdict.bound
    if not verdict.passed or value is None or limit is None:
        return ""
    metric = METRICS.get(verdict.metric or "")
    if (metric and metric.unit == "dB") or "_db" in verdict.name:
        spare = value - limit if verdict.side == "min" else limit - value
        return f"{spare:.1f} dB"
    if verdict.side == "max":
        error, most = value, limit
    elif verdict.kind == "excitation" or not 0.5 <= limit <= 1:
        return f"{value / limit:.3g} ×" if limit > 0 else ""
    else:
        error, most = 1 - value, 1 - limit
    return f"{most / error:.3g} ×" if error > 0 else "at its best"


def size(count: int) -> str:
    """A byte count in decimal units."""
    from coreproof.cli.console import size as decimal

    return decimal(count)


def plural(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def plain(value: Any) -> str:
    """A JSON value of a receipt's provenance on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(inner)}" for key, inner in sorted(value.items()))
    if isinstance(value, list):
        return ", ".join(plain(inner) for inner in value)
    return shown(str(value))
