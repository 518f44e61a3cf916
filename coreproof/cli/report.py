"""The command that shows the evidence: report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coreproof.cli.build import Json
from coreproof.cli.console import print_json, progress, say, size


def report(
    build: Annotated[Path, typer.Argument(help="A build folder with coreproof.json.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File. Default: report.html, .md or .xml.")
    ] = None,
    form: Annotated[
        str, typer.Option("--format", "-f", help="html, markdown (a comment) or junit (CI).")
    ] = "html",
    backend: Annotated[str, typer.Option("--backend", "-b", help="Whose receipt.")] = "mil",
    fixture: Annotated[
        Path | None, typer.Option(help="Use this fixture folder instead of searching.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Recipe folder, when the model is not a shipped one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a build's evidence: one self-contained page, Markdown, or JUnit XML."""
    from coreproof import catalog
    from coreproof.evidence.report.write import write_report
    from coreproof.package.manifest import load_manifest

    parts = catalog.of_build(load_manifest(build).model, model)
    with progress() as step:
        written = write_report(build, parts, output, form, backend, fixture, step)
    verdict = "pass" if written.passed else "fail"
    if as_json:
        print_json({"verdict": verdict, "report": str(written.path), "bytes": written.size})
    else:
        colour = "green" if written.passed else "red"
        say(f": {written.path}, {size(written.size)}", "pass" if written.passed else "FAIL", f"bold {colour}")
    raise typer.Exit(0 if written.passed else 1)
