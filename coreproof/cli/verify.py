"""The command that holds a build to its checkpoint, its receipts or a pinned digest: verify."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from coreproof.cli.build import CheckpointOption, Json
from coreproof.cli.console import err, print_json, progress, say, size, table
from coreproof.errors import UsageError

if TYPE_CHECKING:
    from coreproof.explain import Finding
    from coreproof.verify import Verification


_HUB = re.compile(r"hf:(?P<repo>[^@]+)(?:@(?P<revision>.+))?")


def verify(
    build: Annotated[
        str, typer.Argument(help="A build folder with coreproof.json, or hf:OWNER/NAME[@REVISION].")
    ],
    checkpoint: CheckpointOption = None,
    model: Annotated[
        str | None, typer.Option(help="Recipe folder, when the model is not a shipped one.")
    ] = None,
    expect: Annotated[
        str | None,
        typer.Option(
            "--expect", help="sha256 that coreproof.json must have; without -c nothing is exported."
        ),
    ] = None,
    weights_only: Annotated[
        bool,
        typer.Option(
            "--weights-only",
            help="Convert nothing: compare every stored weight with the checkpoint, by numpy.",
        ),
    ] = False,
    receipt: Annotated[
        Path | None,
        typer.Option("--receipt", help="Export nothing: run the comparison of this receipt again."),
    ] = None,
    fixture: Annotated[
        Path | None, typer.Option(help="For --receipt: use this fixture folder instead of searching.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Re-export a build from its checkpoint, compare every byte and explain a difference.

    With a pinned digest of coreproof.json (--expect) the files are held to that instead or as well.
    """
    if sum((weights_only, receipt is not None, expect is not None)) > 1:
        raise UsageError("--weights-only, --receipt and --expect are three checks; give one at a time")
    with _opened(build) as folder:
        if receipt is not None:
            beside = folder / receipt.name  # a receipt of a fetched build is known by its name
            _recheck(folder, receipt if receipt.exists() else beside, checkpoint, fixture, model, as_json)
        if weights_only:
            _weights_only(folder, checkpoint, model, as_json)
        _re_export(folder, checkpoint, model, expect, as_json)


@contextmanager
def _opened(build: str) -> Iterator[Path]:
    """The build folder; one from a Hugging Face repository is fetched, every sha256 checked, and gone
    afterwards."""
    found = _HUB.fullmatch(build)
    if found is None:
        yield Path(build)
        return
    from coreproof.publication.client import connect
    from coreproof.publication.download import fetch

    with tempfile.TemporaryDirectory(prefix="coreproof-fetched-") as name:
        with progress() as report:
            folder = Path(name) / "build"
            fetched = fetch(
                connect(progress_bars=False), found["repo"], found["revision"] or "main", folder, None, report
            )
        err.print(f"fetched {found['repo']} at {fetched.commit}", soft_wrap=True)
        yield folder


def _re_export(
    build: Path, checkpoint: Path | None, model: str | None, expect: str | None, as_json: bool
) -> NoReturn:
    from coreproof import catalog
    from coreproof.hub import fetch_checkpoint
    from coreproof.package.manifest import load_manifest
    from coreproof.verify import merged, verify_itself, verify_pin
    from coreproof.verify import verify as verify_build

    parts = catalog.of_build(load_manifest(build).model, model)
    pinned = verify_pin(build, expect) if expect else None
    if pinned and checkpoint is None:
        found = merged(pinned, verify_itself(build, parts))
    else:
        path = checkpoint or fetch_checkpoint(parts.recipe())
        with tempfile.TemporaryDirectory(prefix="coreproof-verify-") as folder, progress() as report:
            exported = verify_build(build, parts, path, Path(folder) / "build", report)
        found = merged(pinned, exported) if pinned else exported
    if as_json:
        print_json(found.to_json())
    else:
        _show(found, build)
    raise typer.Exit(0 if found.passed else 1)


def _weights_only(build: Path, checkpoint: Path | None, model: str | None, as_json: bool) -> NoReturn:
    from coreproof import catalog
    from coreproof.hub import fetch_checkpoint
    from coreproof.package.manifest import load_manifest
    from coreproof.weights_only import verify_weights

    parts = catalog.of_build(load_manifest(build).model, model)
    path = checkpoint or fetch_checkpoint(parts.recipe())
    with progress() as report:
        found = verify_weights(build, parts, path, report)
    if as_json:
        print_json(found.to_json())
        raise typer.Exit(0 if found.passed else 1)
    rows = [(p.package, p.weights, size(p.bytes), len(p.constants)) for p in found.packages]
    table(("package", "weights>", "size>", "constants>"), rows)
    _findings(found.findings, build)
    if found.passed:
        total = sum(p.weights for p in found.packages)
        unknown = sum(len(p.constants) for p in found.packages)
        say(
            f": {total - unknown} weights of {build} are the checkpoint's, every byte accounted for",
            "same",
            "green",
        )
        say(
            "not looked at: the graph and what constants it holds; without --weights-only they are re-exported"
        )
    raise typer.Exit(0 if found.passed else 1)


def _recheck(
    build: Path,
    receipt: Path,
    checkpoint: Path | None,
    fixture: Path | None,
    model: str | None,
    as_json: bool,
) -> NoReturn:
    from coreproof import catalog
    from coreproof.package.manifest import load_manifest
    from coreproof.recheck import recheck

    parts = catalog.of_build(load_manifest(build).model, model)
    with progress() as report:
        found = recheck(build, receipt, parts, checkpoint, fixture, report)
    if as_json:
        print_json(found.to_json())
        raise typer.Exit(0 if found.passed else 1)
    if found.why:
        say(f"not the same place, so within 1 dB or 10 %: {found.why}")
    _findings(found.findings, build)
    if found.passed and found.exact:
        say(f": {found.figures} figures of {receipt}, measured again, are the same numbers", "same", "green")
    elif found.passed:
        far = f"by {100 * found.largest:.2g} % and {found.largest_db:.2g} dB at most"
        say(
            f": {found.figures} figures of {receipt}, measured again, differ {far}; verdicts are the same",
            "near",
            "green",
        )
    raise typer.Exit(0 if found.passed else 1)


def _findings(findings: Sequence[Finding], build: Path) -> None:
    for finding in findings:
        say(f" {finding.where}: {finding.what}", finding.level, "bold")
    if findings:
        reasons = f"{len(findings)} reason{'s' if len(findings) > 1 else ''}"
        say(f": {build}, for {reasons}", "refused", "bold red")


def _show(found: Verification, build: Path) -> None:
    files = len(found.manifest.files)
    if not found.passed:
        _findings(found.findings, build)
        return
    if "receipts" in found.checked:
        say(f"the receipts of {build} are of these bytes")
    if "re-export" in found.checked:
        say(f": all {files} files of {build} re-exported byte for byte", "identical", "green")
    if "pin" in found.checked:
        say(
            f": coreproof.json of {build} is the expected one, its {files} files are as it says",
            "pinned",
            "green",
        )
