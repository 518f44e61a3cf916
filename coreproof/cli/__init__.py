"""The ``coreproof`` command: one verb a job.

Exit status: 0 good, 1 judged bad (a gate failed, bytes differ), 2 wrong use or bad input,
130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

import coreproof
from coreproof.cli import build, generate, hub, judge, look, report, verify
from coreproof.cli.console import INTERRUPTED, end, err, out

app = typer.Typer(
    help="Core ML exports you can prove: deterministic packages, run and judged on any machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_debug = False


def _version(wanted: bool) -> None:
    if wanted:
        out.print(coreproof.__version__)
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    global _debug
    _debug = debug


_PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Make and re-make": (build.export, build.synth, build.reference, verify.verify),
    "Judge": (judge.validate, judge.compare, report.report, judge.models),
    "Run and look": (look.run, look.inspect, look.diff, generate.generate, generate.sweep, look.backends),
    "Publish": (hub.publish, hub.fetch),
}
for _panel, _commands in _PANELS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)


def main() -> None:
    """Entry point of the console script."""
    try:
        app(standalone_mode=True)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # typer's own way to end on Control-C
            err.print("interrupted; nothing half-written was left behind")
        raise
    except Exception as error:
        sys.exit(end(error, _debug))
