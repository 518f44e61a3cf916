"""Commands that run a package and look into it: run, inspect, backends."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coreproof.cli.build import Json
from coreproof.cli.console import number, print_json, say, show_suspects, size, table


def run(
    package: Annotated[Path, typer.Argument(help="An .mlpackage.")],
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
        Path, typer.Argument(help="An .mlpackage or a bare ML-program .mlmodel, whoever made it.")
    ],
    weights: Annotated[bool, typer.Option("--weights", help="List every weight.")] = False,
    as_json: Json = False,
) -> None:
    """Show a package's contract, ops, dtypes, weights, states and functions."""
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
