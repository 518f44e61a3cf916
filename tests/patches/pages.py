"""The tables of patches/styletts2/README.md. ``python tests/patches/pages.py`` measures and writes them."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from op_forms import FORMS, Row, row
from repairs import REPAIRS, Measured, measure
from upstream import REPOSITORY, unpack

PAGE = REPOSITORY / "patches/styletts2/README.md"
NO_SINE = "no such sine"


def op_forms(rows: Iterable[Row]) -> str:
    head = "| written | MIL ops | result, against torch |\n|---|---|---|\n"
    return head + "".join(f"| {name} | {ops} | {verdict} |\n" for name, ops, verdict in rows)


def repairs(rows: Mapping[str, Measured]) -> str:
    head = "| parts applied | phase error, 6.4 s | 102.4 s | correlation |\n|---|---|---|---|\n"
    lines = (
        f"| {name} | {_number(m.phase)} | {'' if m.long is None else _number(m.long)} | {_correlation(m)} |\n"
        for name, m in rows.items()
    )
    return head + "".join(lines)


def figures() -> Mapping[str, Measured]:
    """What the page says of each repair."""
    (table,) = re.findall(r"<!-- repairs -->\n.*?<!-- end -->", PAGE.read_text(), re.S)
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in table.splitlines()
        if line.startswith("|")
    ]
    return {
        name: Measured(_read(phase), _read(correlation), _read(long) if long else None)
        for name, phase, long, correlation in rows[2:]
    }


def _number(value: float) -> str:
    return NO_SINE if math.isnan(value) else f"{value:.2g}"


def _correlation(measured: Measured) -> str:
    value = measured.correlation
    if math.isnan(value):
        return NO_SINE
    return f"1 - {1 - value:.2g}" if value > 0.9 else f"{value:.2f}"


def _read(cell: str) -> float:
    if cell == NO_SINE:
        return math.nan
    return 1 - float(cell.removeprefix("1 - ")) if cell.startswith("1 - ") else float(cell)


def _write(name: str, table: str) -> None:
    text = PAGE.read_text()
    pattern = rf"(?<=<!-- {name} -->\n).*?(?=<!-- end -->)"
    assert len(re.findall(pattern, text, re.S)) == 1
    PAGE.write_text(re.sub(pattern, lambda _: table, text, flags=re.S))


def main() -> None:
    def work() -> Path:
        return Path(tempfile.mkdtemp(dir=folder))

    with tempfile.TemporaryDirectory() as folder:
        modules = unpack("styletts2", "0.1.6", work()) / "src/styletts2/Modules"
        _write("op forms", op_forms([row(*form, work()) for form in FORMS]))
        _write("repairs", repairs({r.name: measure(r, modules, work()) for r in REPAIRS}))


if __name__ == "__main__":
    main()
