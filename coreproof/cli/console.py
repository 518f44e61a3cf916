"""What every command shares: consoles, progress, tables, and how errors end the program."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from coreproof.errors import CoreproofError, printable

if TYPE_CHECKING:
    from coreproof.blame import Suspect

# Names and paths may hold anything, brackets too: what is printed is never read as markup.
out = Console(highlight=False, markup=False)
err = Console(stderr=True, highlight=False, markup=False)

INTERRUPTED = 130

Report = Callable[[str, int, int], None]


@contextmanager
def progress() -> Iterator[Report]:
    """A progress bar on standard error, gone when the work is done."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("starting", total=None)

        def report(step: str, done: int, total: int) -> None:
            bar.update(task, description=step, completed=done, total=total if total > 1 else None)

        yield report


def say(text: str, head: str = "", style: str = "") -> None:
    """Print one line, begun by ``head`` in ``style``; never folded, so that a path in it can be copied."""
    out.print(printable(head), style=style, end="")
    out.print(printable(text), soft_wrap=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> None:
    """Print rows of plain values or rich ``Text``; a column whose name ends in ``>`` is right-aligned."""
    view = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        view.add_column(
            column.removesuffix(">"), justify="right" if column.endswith(">") else "left", overflow="fold"
        )
    for row in rows:
        view.add_row(*(cell if isinstance(cell, Text) else printable(str(cell)) for cell in row))
    out.print(view)


def show_suspects(suspects: Sequence[Suspect], title: str) -> None:
    """Print the ops that err by themselves; what their weights' names share is the torch module."""
    rows = [
        (
            s.op,
            s.name,
            "makes NaN or Inf" if s.creates_nonfinite else number(s.error),
            commonprefix(s.weights).rstrip("_"),  # noqa: RUF071  (names, not paths)
        )
        for s in suspects
    ]
    table(("op", "name", "own error>", "its weights"), rows, title=title)


def print_json(value: Any) -> None:
    """One JSON document on standard output, for scripts."""
    sys.stdout.write(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def number(value: float | str) -> str:
    """Four significant digits, as a person reads them; close to 1 the distance from it counts."""
    if isinstance(value, str):
        return value
    if 0 < 1 - value < 1e-3:
        return f"1 - {1 - value:.2g}"
    return f"{value:.4g}"


def size(count: int) -> str:
    """A byte count in decimal units."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000  # type: ignore[assignment]
    return f"{count:.2f} GB"


def end(error: Exception, debug: bool) -> int:
    """Report ``error`` and give the exit status: 1 judged bad, 2 wrong use."""
    if debug:
        err.print_exception()
    if isinstance(error, CoreproofError):
        err.print("error:", style="bold red", end=" ")
        err.print(str(error), soft_wrap=True)
        return error.exit_code
    err.print("internal error:", style="bold red", end=" ")
    err.print(f"{type(error).__name__}: {error}", soft_wrap=True)
    if not debug:
        hint = "this is a bug in coreproof; run again with --debug before the command to see where"
        err.print(hint, soft_wrap=True)
    return 2
