"""The command that makes sound: generate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coreproof.cli.build import Json
from coreproof.cli.console import print_json, progress, say, table

if TYPE_CHECKING:
    from coreproof.audio.sound import Sound


def generate(
    build: Annotated[Path, typer.Argument(help="A build folder with coreproof.json.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="WAV file to write.")],
    seconds: Annotated[float, typer.Option(help="How much sound.", min=0.0)] = 4.0,
    option: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE for the model's pipeline; repeatable.")
    ] = None,
    backend: Annotated[str, typer.Option("--backend", "-b", help="See `coreproof backends`.")] = "mil",
    model: Annotated[
        str | None, typer.Option(help="Recipe folder, when the model is not a shipped one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a build's packages end to end and write what is heard."""
    from coreproof import catalog
    from coreproof.audio.wav import write_wav
    from coreproof.package.manifest import load_manifest

    parts = catalog.of_build(load_manifest(build).model, model)
    with progress() as report:
        report(f"{parts.name}: generating", 0, 1)
        sound = parts.generate()(build, seconds, backend, _options(option or []))
    write_wav(output, sound.samples, sound.sample_rate)
    if as_json:
        print_json({"output": str(output), "samples": len(sound.samples), "stages": timings(sound)})
        return
    rows = [
        (name, *(f"{t[key]:.2f}" for key in ("median_ms", "p99_ms"))) for name, t in timings(sound).items()
    ]
    table(("stage", "median ms>", "p99 ms>"), rows)
    if sound.budget is not None:
        used = sum(t["median_ms"] for t in timings(sound).values())
        say(f"{used:.1f} ms of the {1e3 * sound.budget:.0f} ms that a frame lasts, on this machine")
    say(f"{len(sound.samples) / sound.sample_rate:.2f} s at {sound.sample_rate} Hz -> {output}")


def timings(sound: Sound) -> dict[str, dict[str, float]]:
    """Median and 99th percentile of each stage's runs after the first, in ms."""
    import numpy as np

    found = {}
    for name, seconds in sound.seconds.items():
        warm = 1e3 * np.array(seconds[1:] or seconds)
        found[name] = {"median_ms": float(np.median(warm)), "p99_ms": float(np.percentile(warm, 99))}
    return found


def _options(given: list[str]) -> dict[str, str]:
    from coreproof.errors import UsageError

    pairs = [entry.partition("=") for entry in given]
    for entry, (name, equals, _) in zip(given, pairs, strict=True):
        if not name or not equals:
            raise UsageError(f"--option {entry}: write NAME=VALUE")
    return {name: value for name, _, value in pairs}
