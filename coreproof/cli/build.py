"""Commands that make things: export, synth, reference."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coreproof.cli.console import print_json, progress, say, size, table

Model = Annotated[str, typer.Argument(help="A shipped model's name, or a recipe folder.")]
CheckpointOption = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint", "-c", help="Checkpoint folder or file. Default: the pinned Hugging Face revision."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]


def export(
    model: Model,
    checkpoint: CheckpointOption = None,
    variant: Annotated[list[str] | None, typer.Option(help="Only this variant; repeatable.")] = None,
    stage: Annotated[list[str] | None, typer.Option(help="Only this stage; repeatable.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Build folder. Default: build/MODEL.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn a checkpoint into Core ML packages, the same bytes every time."""
    from coreproof import catalog
    from coreproof.convert.export import export as export_build
    from coreproof.convert.export import select
    from coreproof.hub import fetch_checkpoint

    parts = catalog.find(model)
    recipe = parts.recipe()
    path = checkpoint or fetch_checkpoint(recipe)
    loaded = recipe.load(path)
    pairs = select(recipe, loaded, variant or (), stage or ())
    build = output or Path("build") / parts.name
    with progress() as report:
        manifest = export_build(recipe, path, loaded, pairs, build, report)
    if as_json:
        print_json(manifest.to_json())
        return
    rows = []
    for record in manifest.packages:
        bytes_ = sum(f.size for f in manifest.package_files(record.package))
        rows.append((record.package, record.precision.compute, len(record.weights), size(bytes_)))
    table(("package", "precision", "weights>", "size>"), rows)
    for record in manifest.packages:
        say(f"sha256 {manifest.package_digest(record.package)}  {record.package}")
    say(f"{manifest.checkpoint.kind} checkpoint {manifest.checkpoint.sha256[:12]} -> {build}/coreproof.json")


def synth(
    model: Model,
    size_: Annotated[
        str,
        typer.Option("--size", help="small (for tests), full (published shapes) or another of the model's."),
    ] = "small",
    seed: Annotated[int, typer.Option(help="Seed of numpy's Generator.", min=0)] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder. Default: checkpoints/MODEL-SIZE-SEED.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a synthetic checkpoint with the published file names, keys and shapes."""
    from coreproof import catalog
    from coreproof.atomic import atomic_directory
    from coreproof.convert.synthetic import NOTE
    from coreproof.errors import UsageError

    parts = catalog.find(model)
    sizes = parts.recipe().sizes
    if size_ not in sizes:
        raise UsageError(f"--size {size_}: choose {' or '.join(sizes)}")
    folder = output or Path("checkpoints") / f"{parts.name}-{size_}-{seed}"
    with (
        progress() as report,
        atomic_directory(folder, replace=lambda old: (old / NOTE).is_file()) as temporary,
    ):
        report(f"{parts.name}: drawing weights", 0, 1)
        parts.recipe().synth(temporary, size_, seed)
    if as_json:
        print_json({"model": parts.name, "size": size_, "seed": seed, "folder": str(folder)})
    else:
        say(f"synthetic {parts.name} checkpoint, {size_}, seed {seed} -> {folder}")


def reference(
    model: Model,
    checkpoint: Annotated[Path, typer.Option("--checkpoint", "-c", help="Checkpoint folder or file.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for fixtures.")] = None,
    as_json: Json = False,
) -> None:
    """Compute the expected tensors with the official implementation."""
    from coreproof import catalog
    from coreproof.package.manifest import checkpoint_digest
    from coreproof.parity.fixture import save
    from coreproof.validate import cached_fixtures

    parts = catalog.find(model)
    recipe = parts.recipe()
    loaded = recipe.load(checkpoint)
    with progress() as report:
        report(f"{recipe.name}: running the official implementation", 0, 1)
        computed = parts.compute_reference()(checkpoint)
    digest = checkpoint_digest(loaded.files)
    folder = save(computed, recipe.name, digest, output or cached_fixtures(recipe.name))
    if as_json:
        print_json({"model": parts.name, "checkpoint_sha256": digest, "folder": str(folder)})
    else:
        say(f"{len(computed.arrays)} arrays for {loaded.kind} checkpoint {digest[:12]} -> {folder}")
