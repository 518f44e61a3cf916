"""The commands that make sound: generate, sweep."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coreproof.cli.build import Json
from coreproof.cli.console import number, print_json, progress, say, table

if TYPE_CHECKING:
    from coreproof.audio.sound import Sound

Build = Annotated[Path, typer.Argument(help="A build folder with coreproof.json.")]
Prompt = Annotated[
    str | None, typer.Option("--prompt", "-p", help="What to sound like, for models that read text.")
]
Options = Annotated[
    list[str] | None, typer.Option("--option", help="NAME=VALUE for the model's pipeline; repeatable.")
]
BackendName = Annotated[str, typer.Option("--backend", "-b", help="See `coreproof backends`.")]
RecipeFolder = Annotated[
    str | None, typer.Option("--model", help="Recipe folder, when the model is not a shipped one.")
]


def generate(
    build: Build,
    output: Annotated[Path, typer.Option("--output", "-o", help="WAV file to write.")],
    seconds: Annotated[float, typer.Option(help="How much sound.", min=0.0)] = 4.0,
    prompt: Prompt = None,
    text: Annotated[str | None, typer.Option(help="What to say, for models that speak.")] = None,
    ipa: Annotated[str | None, typer.Option(help="The same as phonemes.")] = None,
    reference: Annotated[str | None, typer.Option(help="WAV file of the voice to speak in.")] = None,
    option: Options = None,
    backend: BackendName = "mil",
    model: RecipeFolder = None,
    as_json: Json = False,
) -> None:
    """Run a build's packages end to end and write what is heard."""
    from coreproof import catalog
    from coreproof.audio.wav import write_wav
    from coreproof.package.manifest import load_manifest

    parts = catalog.of_build(load_manifest(build).model, model)
    named = {"text": text, "ipa": ipa, "reference": reference}
    options = _options(option or [], prompt) | {n: v for n, v in named.items() if v is not None}
    with progress() as report:
        report(f"{parts.name}: generating", 0, 1)
        sound = parts.generate()(build, seconds, backend, options, report)
    write_wav(output, sound.samples, sound.sample_rate)
    if as_json:
        print_json({"output": str(output), "samples": len(sound.samples), **_measured(sound)})
        return
    shown = {"runs": "runs>", "median_ms": "median ms>", "p99_ms": "p99 ms>"}
    if sound.frames:
        shown["ms_per_frame"] = "ms per frame>"
    rows = [
        (name, *(f"{t[key]:.{0 if key == 'runs' else 2}f}" for key in shown))
        for name, t in timings(sound).items()
    ]
    table(("stage", *shown.values()), rows)
    if sound.budget is not None and sound.frames:
        say(_against_the_budget(sound.frames, sound.budget))
    if sound.settings:
        say(", ".join(f"{name} {value}" for name, value in sound.settings.items()))
    say(f"{len(sound.samples) / sound.sample_rate:.2f} s at {sound.sample_rate} Hz -> {output}")


def sweep(
    build: Build,
    option_values: Annotated[
        str, typer.Argument(metavar="NAME=VALUE,VALUE,...", help="The pipeline's option and what to try.")
    ],
    seconds: Annotated[float, typer.Option(help="How much sound.", min=0.0)] = 4.0,
    prompt: Prompt = None,
    option: Options = None,
    backend: BackendName = "mil",
    model: RecipeFolder = None,
    as_json: Json = False,
) -> None:
    """Make the same sound with several values of an option; table time against distance from the last one."""
    from coreproof import catalog
    from coreproof.audio.sweep import sweep as try_all
    from coreproof.errors import UsageError
    from coreproof.package.manifest import load_manifest

    name, _, listed = option_values.partition("=")
    values = [value for value in listed.split(",") if value]
    if not name or len(values) < 2:
        raise UsageError(f"{option_values}: write NAME=VALUE,VALUE,... with two values or more")
    parts = catalog.of_build(load_manifest(build).model, model)
    with progress() as report:
        make = partial(parts.generate(), build, seconds, backend)
        rows = try_all(make, _options(option or [], prompt), name, values, report)
    if as_json:
        print_json({"option": name, "against": values[-1], "rows": [row.to_json() for row in rows]})
        return
    table(
        (name, "s>", "SNR dB>", "correlation>", "log-mel correlation>"),
        [(row.value, f"{row.seconds:.2f}", *(number(m) for m in row.metrics.values())) for row in rows],
    )
    say(f"seconds on this machine; distances from {name} {values[-1]}, the same {rows[-1].shared}")


def timings(sound: Sound) -> dict[str, dict[str, float]]:
    """Median, 99th percentile and worst of each stage's runs after the first, in ms, and ``ms_per_frame``:
    what all its runs come to a frame, for a stage may run once in many."""
    found = {name: {"runs": len(seconds), **_spread(seconds)} for name, seconds in sound.seconds.items()}
    if sound.frames:
        for name, seconds in sound.seconds.items():
            found[name]["ms_per_frame"] = 1e3 * sum(seconds) / len(sound.frames)
    return found


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    import numpy as np

    warm = 1e3 * np.array(seconds[1:] or seconds)
    return {
        "median_ms": float(np.median(warm)),
        "p99_ms": float(np.percentile(warm, 99)),
        "worst_ms": float(warm.max()),
    }


def _measured(sound: Sound) -> dict[str, object]:
    found: dict[str, object] = {"stages": timings(sound), "settings": dict(sound.settings)}
    if sound.frames:
        found["frame"] = _spread(sound.frames)
        found["frames_ms"] = [1e3 * s for s in sound.frames]
    if sound.budget is not None:
        found["budget_ms"] = 1e3 * sound.budget
    return found


def _against_the_budget(frames: Sequence[float], budget: float) -> str:
    spread = _spread(frames)
    late = sum(s > budget for s in frames)
    return (
        f"a frame took {spread['median_ms']:.1f} ms (median), {spread['p99_ms']:.1f} ms (p99) of the "
        f"{1e3 * budget:.0f} ms that it lasts; {late} of {len(frames)} took longer, on this machine"
    )


def _options(given: list[str], prompt: str | None) -> dict[str, str]:
    from coreproof.errors import UsageError

    pairs = [entry.partition("=") for entry in given]
    for entry, (name, equals, _) in zip(given, pairs, strict=True):
        if not name or not equals:
            raise UsageError(f"--option {entry}: write NAME=VALUE")
    options = {name: value for name, _, value in pairs}
    return options if prompt is None else {**options, "prompt": prompt}
