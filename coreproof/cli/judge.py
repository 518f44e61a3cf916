"""Commands that judge: validate, compare, models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.text import Text

from coreproof.cli.build import Json
from coreproof.cli.console import number, print_json, progress, say, show_suspects, size, table

if TYPE_CHECKING:
    from coreproof.backends.device import Measured
    from coreproof.catalog import ModelParts
    from coreproof.parity.gates import Verdict
    from coreproof.prove import Proof
    from coreproof.validate import PackageResult, Validation

_SHOWN = 5  # problems printed for one package

Checkpoint = Annotated[
    Path | None,
    typer.Option("--checkpoint", "-c", help="The build's checkpoint, where no reference of it is recorded."),
]
BackendName = Annotated[
    str | None,
    typer.Option(
        "--backend", "-b", help="See `coreproof backends`. Default: coreml on a Mac, mil elsewhere."
    ),
]


def validate(
    build: Annotated[Path, typer.Argument(help="A build folder with coreproof.json.")],
    checkpoint: Checkpoint = None,
    backend: Annotated[
        str | None,
        typer.Option(
            "--backend",
            "-b",
            help="See `coreproof backends`, or all. Default: coreml on a Mac, mil elsewhere.",
        ),
    ] = None,
    fixture: Annotated[
        Path | None, typer.Option(help="Use this fixture folder instead of searching.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Recipe folder, when the model is not a shipped one.")
    ] = None,
    record: Annotated[bool, typer.Option("--record", help="Also write the receipt into receipts/.")] = False,
    controls: Annotated[
        bool, typer.Option("--controls", help="Instead, plant each defect and show that its gates catch it.")
    ] = False,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="With coreml: add this Mac's times and placement to the receipts."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a build's packages and judge them against the official implementation."""
    from coreproof import catalog
    from coreproof.backends import default
    from coreproof.errors import UsageError
    from coreproof.evidence import receipt as receipts
    from coreproof.package.manifest import load_manifest
    from coreproof.prove import prove
    from coreproof.validate import validate as validate_build

    parts = catalog.of_build(load_manifest(build).model, model)
    if controls:
        if record or backend not in (None, "mil"):
            raise UsageError(
                "--controls runs the mil backend and records nothing; leave out the other options"
            )
        with progress() as report:
            proofs = prove(build, parts, checkpoint, fixture, report)
        _show_proofs(proofs, as_json)
        raise typer.Exit(0 if proofs and all(p.caught for p in proofs) else 1)
    if measure and (backend or default()) != "coreml":
        raise UsageError(
            "--measure asks Core ML on a Mac for times and placement: it goes with --backend coreml"
        )
    if backend == "all":
        _everyone(build, parts, checkpoint, fixture, record, as_json)
    with progress() as report:
        result = validate_build(build, parts, backend or default(), checkpoint, fixture, report)
    written = receipts.write(result, build)
    lines = _measure(build, parts, checkpoint, fixture) if measure else ()
    if record:
        written = receipts.record(result, Path("receipts"))
    if as_json:
        print_json(
            {**receipts.receipt(result), **({"measured": [m.to_json() for m in lines]} if lines else {})}
        )
    else:
        _show(result)
        _show_measured(lines)
        say(f"receipt: {written}")
    raise typer.Exit(0 if result.passed else 1)


def _measure(
    build: Path, parts: ModelParts, checkpoint: Path | None, fixture: Path | None
) -> tuple[Measured, ...]:
    from coreproof.measure import measure_build

    with progress() as report:
        return measure_build(build, parts, checkpoint, fixture, report)


def _show_measured(lines: Sequence[Measured]) -> None:
    if not lines:
        return
    rows = [
        (
            m.package,
            f"{m.median_ms:.2f}",
            f"{m.p90_ms:.2f}",
            " ".join(f"{k} {n}" for k, n in m.placement.items()),
        )
        for m in lines
    ]
    title = f"measured on {lines[0].device}, {lines[0].system}"
    table(("package", "median ms>", "p90 ms>", "ops by preferred device"), rows, title=title)


def _everyone(
    build: Path, parts: ModelParts, checkpoint: Path | None, fixture: Path | None, record: bool, as_json: bool
) -> NoReturn:
    from coreproof.agreement import by_everyone
    from coreproof.evidence import receipt as receipts

    with progress() as report:
        found = by_everyone(build, parts, checkpoint, fixture, report)
    for validation in found.validations:
        receipts.write(validation, build)
        if record:
            receipts.record(validation, Path("receipts"))
    if as_json:
        print_json(found.to_json())
        raise typer.Exit(0 if found.passed else 1)
    for validation in found.validations:
        _show(validation)
    for package in dict.fromkeys(a.package for a in found.agreements):
        rows = [
            (f"{a.first}, {a.second}", a.output, a.cases, a.metric, number(a.worst), number(a.max_abs_error))
            for a in found.agreements
            if a.package == package
        ]
        table(("backends", "output", "cases>", "metric", "worst>", "max abs error>"), rows, title=package)
    for name, why in found.absent.items():
        say(f": not here: {why}", name, "yellow")
    for name, package, why in found.left_out:
        say(f": {package}: {why}", name, "yellow")
    raise typer.Exit(0 if found.passed else 1)


def compare(
    package: Annotated[Path, typer.Argument(help="Any .mlpackage or .mlmodelc, whoever made it.")],
    reference: Annotated[
        Path, typer.Option("--reference", "-r", help=".npz with input/NAME and expected/NAME arrays.")
    ],
    gates: Annotated[Path, typer.Option("--gates", "-g", help="Gate file (TOML).")],
    mode: Annotated[str, typer.Option(help="Numeric mode: typed, fp32 or fp16acc.")] = "typed",
    backend: BackendName = None,
    as_json: Json = False,
) -> None:
    """Judge one package against reference tensors of your own."""
    from coreproof.backends import default
    from coreproof.compare import compare as compare_package

    with progress() as report:
        judgement = compare_package(package, reference, gates, mode, backend or default(), report)
    if as_json:
        print_json(judgement.to_json())
    else:
        _verdicts(package.name, judgement.verdicts, judgement.problems)
    raise typer.Exit(0 if judgement.passed else 1)


def models(
    receipts: Annotated[Path, typer.Option(help="Folder of recorded receipts.")] = Path("receipts"),
    page: Annotated[Path, typer.Option(help="The page to write or check.")] = Path("MODELS.md"),
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 when the page is stale.")
    ] = False,
) -> None:
    """Write MODELS.md from recorded receipts."""
    from coreproof.atomic import atomic_file
    from coreproof.errors import JudgedBadError
    from coreproof.evidence.models_page import models_page

    text = models_page(receipts)
    if not check:
        with atomic_file(page) as temporary:
            temporary.write_text(text, encoding="utf-8")
    elif not page.is_file() or page.read_text(encoding="utf-8") != text:
        raise JudgedBadError(f"{page} does not say what {receipts}/ says; run coreproof models")
    say(f"{page} says what {receipts}/ says")


def _show(result: Validation) -> None:
    kind = result.manifest.checkpoint.kind
    seed = "" if result.manifest.checkpoint.seed is None else f", seed {result.manifest.checkpoint.seed}"
    say(f"{result.manifest.model}: {kind} checkpoint {result.manifest.checkpoint.sha256[:12]}{seed}")
    _verdicts("what the cases excite", result.excitations, ())
    for package in result.packages:
        mode = f"mode {package.mode}" if package.mode else f"backend {result.backend}"
        title = f"{package.record.package} ({mode}, {len(package.comparisons)} cases)"
        _verdicts(title, package.judgement.verdicts, package.judgement.problems)
        if package.suspects:
            show_suspects(package.suspects, f"{package.record.package}: ops to look at first")
    rows = [_summary(result, package) for package in result.packages]
    table(("package", "precision", "size>", "cases>", "gates", "verdict"), rows, title="in short")
    passed = sum(p.judgement.passed for p in result.shipping)
    colour = "green" if result.passed else "red"
    verdict = "pass" if result.passed else "FAIL"
    say(f": {passed} of {len(result.shipping)} packages", verdict, f"bold {colour}")


def _summary(result: Validation, package: PackageResult) -> tuple[object, ...]:
    bytes_ = sum(f.size for f in result.manifest.package_files(package.record.package))
    verdicts = package.judgement.verdicts
    on_record = " (on record)" if package.judged_as else ""
    return (
        package.record.package,
        package.record.precision.compute,
        size(bytes_),
        len(package.comparisons),
        f"{sum(v.passed for v in verdicts)} of {len(verdicts)}",
        _mark(package.judgement.passed, *(f"{m}{on_record}" for m in ("pass", "FAIL"))),
    )


def _verdicts(title: str, verdicts: Any, problems: Any) -> None:
    table(("gate", "worst>", "bound>", "case", "verdict"), [_row(v) for v in verdicts], title=title)
    more = len(problems) - _SHOWN
    for problem in [
        *problems[:_SHOWN],
        *([f"and {more} more; the receipt has them all"] if more > 0 else []),
    ]:
        say(f": {problem}", "problem", "red")


def _row(verdict: Verdict) -> tuple[str | Text, ...]:
    what = f"{verdict.name} {verdict.metric}" if verdict.metric else verdict.name
    value = "not measured" if verdict.value is None else number(verdict.value)
    bound = (
        "no gate"
        if verdict.bound is None
        else f"{'>=' if verdict.side == 'min' else '<='} {number(verdict.bound)}"
    )
    return (what, value, bound, verdict.case or "", _mark(verdict.passed, "pass", "FAIL"))


def _mark(good: bool, yes: str, no: str) -> Text:
    return Text(yes, style="green") if good else Text(no, style="red")


def _show_proofs(proofs: list[Proof], as_json: bool) -> None:
    if as_json:
        print_json([p.to_json() for p in proofs])
        return
    for package in dict.fromkeys(p.package for p in proofs):
        rows = [
            (p.control, p.gate, p.value, p.bound, _mark(p.caught, "caught", "MISSED"))
            for p in proofs
            if p.package == package
        ]
        table(("planted defect", "gate", "worst>", "bound>", "verdict"), rows, title=package)
    caught = sum(p.caught for p in proofs)
    colour = "green" if proofs and caught == len(proofs) else "red"
    say(f" of {len(proofs)} caught", str(caught), f"bold {colour}")
