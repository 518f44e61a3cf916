"""Commands that run a model and look into it: run, inspect, diff, backends."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from coreproof.cli.build import Json
from coreproof.cli.console import number, print_json, say, show_suspects, size, table

if TYPE_CHECKING:
    from coreproof.diff import Comparison
    from coreproof.mil.matching import Difference

_SHOWN = 20  # differences printed


def run(
    package: Annotated[Path, typer.Argument(help="An .mlpackage or .mlmodelc.")],
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input", "-i", help="NAME=FILE.npy, or a FILE.npz or FILE.json that holds several; repeatable."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the outputs to this .npz.")
    ] = None,
    mode: Annotated[str, typer.Option(help="Numeric mode: typed, fp32 or fp16acc.")] = "typed",
    function: Annotated[str | None, typer.Option(help="Function of a multifunction package.")] = None,
    compare_modes: Annotated[
        bool,
        typer.Option("--compare-modes", help="Also list the ops that err most in this mode against fp32."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a package once on given inputs, with no Mac."""
    from coreproof.arrays import listed, read_inputs, summary, write_npz
    from coreproof.blame import blame
    from coreproof.runtime.model import load

    model = load(package, mode, function)
    state = model.make_state() if model.contract.states else None
    arrays = read_inputs(inputs or [], model.contract)
    results = model.predict(arrays, state)
    suspects = blame(package, [arrays], mode)[:10] if compare_modes else []
    if output:
        write_npz(output, results)
    summaries = {name: summary(array) for name, array in results.items()}
    if as_json:
        values = {
            n: {**summaries[n], **({"values": listed(a)} if a.size <= 1024 else {})}
            for n, a in results.items()
        }
        print_json({"outputs": values, "suspects": [s.to_json() for s in suspects]})
        return
    rows = [
        (
            name,
            s["dtype"],
            s["shape"],
            number(s["min"]),
            number(s["max"]),
            number(s["mean"]),
            number(s["finite_ratio"]),
        )
        for name, s in summaries.items()
    ]
    table(("output", "dtype", "shape", "min>", "max>", "mean>", "finite_ratio>"), rows)
    if compare_modes:
        show_suspects(suspects, f"ops by their own error in mode {mode}")
    if output:
        say(f"outputs -> {output}")


def inspect(
    package: Annotated[
        Path, typer.Argument(help="An .mlpackage, .mlmodelc or bare ML-program .mlmodel, whoever made it.")
    ],
    weights: Annotated[bool, typer.Option("--weights", help="List every weight.")] = False,
    lint: Annotated[
        bool,
        typer.Option("--lint", help="Only look for forms that convert and compute something else."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show a package's contract, ops, dtypes, weights, states and functions."""
    if lint:
        _lint(package, as_json)
    from coreproof.inspect import inspect as look_into

    seen = look_into(package)
    if as_json:
        print_json(seen)
        return
    version = seen["specification_version"]
    say(f": specification version {version}, {size(seen['bytes'])} on disk", package.name, "bold")
    for name, function in seen["functions"].items():
        features = [
            (kind, f["name"], f["dtype"] or f["kind"], f["shape"])
            for kind in ("inputs", "outputs", "states")
            for f in function[kind]
        ]
        table(
            ("feature", "name", "dtype", "shape"),
            [(k.removesuffix("s"), *f) for k, *f in features],
            title=f"function {name} ({function['opset']})",
        )
        rows = [
            (family, sum(ops.values()), ", ".join(f"{n} {op}" for op, n in ops.items()))
            for family, ops in function["ops"].items()
        ]
        table(
            ("family", "ops>", "which"),
            rows,
            title=f"{function['op_count']} ops, highest rank {function['highest_rank']}",
        )
        table(("result dtype", "ops>"), list(function["dtypes"].items()))
    kinds = [(dtype, w["count"], size(w["bytes"])) for dtype, w in seen["weights"]["by_dtype"].items()]
    table(("weight dtype", "weights>", "size>"), kinds)
    if weights:
        listed = [(w["name"], w["dtype"], w["shape"], size(w["bytes"])) for w in seen["weights"]["list"]]
        table(("weight", "dtype", "shape", "size>"), listed)
    table(("metadata", "value"), list(seen["metadata"].items()))


def _lint(package: Path, as_json: bool) -> NoReturn:
    from coreproof.lint import CHECKS
    from coreproof.lint import lint as findings
    from coreproof.package.reader import open_package

    found = findings(open_package(package).program)
    if as_json:
        print_json({"findings": [asdict(f) for f in found]})
    elif found:
        rows = [(f.level, f.check, f.function, f.op, f.type, f.what) for f in found]
        table(("level", "check", "function", "op", "type", "what"), rows)
    else:
        say(f": {len(CHECKS)} checks", "nothing found", "bold green")
    raise typer.Exit(1 if any(f.level == "error" for f in found) else 0)


def diff(
    first: Annotated[
        Path, typer.Argument(help="An .mlpackage, .mlmodelc or bare ML-program .mlmodel, whoever made it.")
    ],
    second: Annotated[Path, typer.Argument(help="The one to compare it with, in any of these forms.")],
    as_json: Json = False,
) -> None:
    """Say whether two models are the same program, op by op and weight by weight."""
    from coreproof.diff import diff as compare

    found = compare(first, second)
    if as_json:
        print_json(found.to_json())
    else:
        _show_comparison(found)
    raise typer.Exit(0 if found.same else 1)


def _show_comparison(found: Comparison) -> None:
    both = f"{_count(found.operations, 'op')}, {_both(found.weights, 'weight')}"
    if found.same:
        say(f": {both}", "same program", "bold green")
    else:
        kinds = Counter(d.kind for d in found.differences)
        listed = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
        say(f": {_count(len(found.differences), 'difference')} ({listed})", "different programs", "bold red")
        largest = f"; largest difference of a constant {found.max_abs:.4g}" if found.max_abs else ""
        say(f"in both: {both}{largest}")
        for difference in found.differences[:_SHOWN]:
            say(*_difference(difference, found.functions))
        if len(found.differences) > _SHOWN:
            say(f"and {len(found.differences) - _SHOWN} more; --json has them all")
    if found.renamed:
        say(f"names differ: {_count(found.renamed, 'op or feature', 'ops or features')}")
    if found.metadata:
        table(("metadata", "first", "second"), found.metadata)


def _difference(difference: Difference, functions: int) -> tuple[str, str, str]:
    """What the line about it says, its beginning and that one's style."""
    change = difference.change
    what = [change.what] if change.what else []
    if change.differing is not None and change.max_abs is not None:
        what.append(f"{change.differing} of {change.elements} elements differ")
        what.append(f"max abs {change.max_abs:.4g}")
    of = [f"({difference.op_type})"] if difference.op_type else []
    where = [difference.argument] if difference.argument else []
    weight = [f"({difference.weight})"] if difference.weight else []
    place = "".join(f" {word}" for word in (*of, *where, *weight))
    function = f"function {difference.function}" if functions > 1 or not difference.op else ""
    return f"{place}: {'; '.join(what)}", " ".join(filter(None, (function, difference.op))), "bold"


def _both(counts: tuple[int, int], what: str) -> str:
    first, second = counts
    return _count(first, what) if first == second else f"{first} and {_count(second, what)}"


def _count(count: int, what: str, several: str | None = None) -> str:
    return f"{count} {what if count == 1 else several or what + 's'}"


def backends(as_json: Json = False) -> None:
    """List the ways to run a package, and why one is absent here."""
    from coreproof.backends import available

    found = available()
    if as_json:
        print_json(found)
    else:
        table(
            ("backend", "here"),
            [(name, "yes" if reason is None else f"no: {reason}") for name, reason in found.items()],
        )
