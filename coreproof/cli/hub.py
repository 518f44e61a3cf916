"""Commands that meet the Hugging Face Hub: publish, fetch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from coreproof.cli.build import Json
from coreproof.cli.console import err, print_json, progress, say, size, table

if TYPE_CHECKING:
    from coreproof.publication.plan import Plan
    from coreproof.publication.release import Release


def publish(
    build: Annotated[Path, typer.Argument(help="A build folder with coreproof.json and its receipts.")],
    repo: Annotated[str, typer.Option("--repo", "-r", help="Model repository, as OWNER/NAME.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")
    ] = False,
    public: Annotated[
        bool, typer.Option("--public", help="Let anyone see it. Default: a private repository.")
    ] = False,
    allow_synthetic: Annotated[
        bool, typer.Option("--allow-synthetic", help="Publish synthetic weights; the card says so.")
    ] = False,
    licence: Annotated[
        str | None,
        typer.Option("--license", help="Licence of weights that are not the pinned publication (SPDX)."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Recipe folder, when the model is not a shipped one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Publish a build with its proof to a Hugging Face model repository, in one commit."""
    from coreproof import catalog
    from coreproof.errors import UsageError
    from coreproof.package.manifest import load_manifest
    from coreproof.publication.client import connect
    from coreproof.publication.plan import make_plan
    from coreproof.publication.release import prepare
    from coreproof.publication.upload import upload

    if repo.count("/") != 1:
        raise UsageError(f"--repo {repo}: write OWNER/NAME, such as someone/minilm-coreml")
    parts = catalog.of_build(load_manifest(build).model, model)
    with progress() as report:
        report(f"checking {build}", 0, 1)
        release = prepare(build, parts, repo, allow_synthetic, licence)
        api = connect(progress_bars=False)
        report(f"asking the Hub about {repo}", 0, 1)
        plan = make_plan(api, repo, release.items, public)
    if not as_json:
        _show(plan, release, dry_run)
    done = None
    if not dry_run:
        with progress() as report:
            done = upload(api, plan, release.summary, report)
    if as_json:
        made = None if done is None else {"commit": done.commit, "url": done.url}
        print_json({"plan": plan.to_json(), "published": made, "card": release.card})
    elif done is None:
        say("nothing was changed: this was a dry run")
    else:
        say(f": {len(plan.items)} files, checked at commit {done.commit}", "published", "bold green")
        say(f"coreproof.json has sha256 {release.manifest_sha256}")
        say(done.url)


def fetch(
    repo: Annotated[str, typer.Argument(help="Model repository, as OWNER/NAME.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Build folder to make.")],
    revision: Annotated[str, typer.Option(help="Branch, tag or commit.")] = "main",
    expect: Annotated[
        str | None,
        typer.Option(help="The sha256 that coreproof.json must have, from someone you trust."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Download a published build and check every byte before it appears."""
    from coreproof.publication.client import connect
    from coreproof.publication.download import check_digest
    from coreproof.publication.download import fetch as fetch_build

    expected = None if expect is None else check_digest(expect)
    with progress() as report:
        fetched = fetch_build(connect(progress_bars=False), repo, revision, output, expected, report)
    manifest = fetched.manifest
    if as_json:
        print_json(
            {
                "folder": str(fetched.folder),
                "commit": fetched.commit,
                "manifest_sha256": fetched.manifest_sha256,
                "pinned": expected is not None,
                "packages": {r.package: manifest.package_digest(r.package) for r in manifest.packages},
                "receipts": {name: receipt["verdict"] for name, receipt in fetched.receipts.items()},
            }
        )
        return
    for record in manifest.packages:
        say(f"sha256 {manifest.package_digest(record.package)}  {record.package}")
    say(f": {len(manifest.files)} files of {repo} at {fetched.commit} -> {fetched.folder}", "whole", "green")
    if expected is None:
        err.print(
            f"coreproof.json has sha256 {fetched.manifest_sha256}; compare it with one you trust, or pass it "
            "as --expect: without, whoever wrote the repository is believed",
            soft_wrap=True,
        )


_COLOURS = {"add": "green", "replace": "yellow", "remove": "red", "keep": "dim"}


def _show(plan: Plan, release: Release, whole: bool) -> None:
    """The plan: every file with what happens to it; in a dry run also how the card changes."""
    rows = [
        (
            Text(c.action, style=_COLOURS[c.action]),
            c.path,
            "" if c.old_size is None else size(c.old_size),
            "" if c.new_size is None else size(c.new_size),
        )
        for c in plan.changes
    ]
    if whole or not plan.empty:
        table(("change", "file", "there>", "here>"), rows)
    if whole:
        say(plan.card_diff or ("README.md as it is there" if plan.head else release.card))
    then = "public" if plan.public else "private"
    now = "new" if plan.head is None else "private" if plan.private else "public"
    sent = sum(i.digest.size for i in plan.to_send)
    what = (
        f"one commit, at most {size(sent)} to send"
        if plan.to_send or plan.to_remove
        else "holds all of it already"
    )
    say(f"{plan.repo}: {now} -> {then}; {what}")
