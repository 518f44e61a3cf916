"""Export every stage of a checkpoint by itself: processor time, peak memory, size, and the same bytes twice.

    python benchmarks/stages.py styletts2 CHECKPOINT -o build/stages [--variant V]... [--once | --against BUILD]

Each stage is exported in a process of its own, whose peak memory is what the operating system reports, and
a second time unless ``--once``; with ``--against``, the second is what BUILD has, which one process exported.
Writes ``stages.md``, a table, into the folder, and keeps the builds there; a stage that is there already is not
exported again. Exit status 1 when bytes differ.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from coreproof import catalog
from coreproof.package.manifest import load_manifest

MEBIBYTE = 1 << 20


def export(model: str, checkpoint: Path, variant: str, stage: str, build: Path) -> dict[str, Any]:
    """Export one stage into ``build`` and return its figures, which stay beside it."""
    figures = build / "figures.json"
    if figures.is_file():
        told: dict[str, Any] = json.loads(figures.read_text())
        return told
    shutil.rmtree(build, ignore_errors=True)
    program = Path(sys.executable).with_name("coreproof")
    command = [str(program), "export", model, "--checkpoint", str(checkpoint)]
    command += ["--variant", variant, "--stage", stage, "--output", str(build), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{variant} {stage}: export ended with status {status}")
    (record,) = load_manifest(build).packages
    files = load_manifest(build).package_files(record.package)
    found = {
        "package": record.package,
        "functions": max(1, len(record.contract.functions)),
        "cpu": round(used.ru_utime + used.ru_stime, 1),
        "peak": used.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "bytes": sum(f.size for f in files),
        "weights": sum(f.size for f in files if f.path.endswith(".bin")),
        "sha256": load_manifest(build).package_digest(record.package),
    }
    figures.write_text(json.dumps(found))
    return found


def page(rows: list[dict[str, Any]]) -> str:
    """The table, with what buckets save that share their weights."""
    lines = [
        "| package | functions | MB | MB apart | CPU seconds | peak MiB | sha256 | twice the same |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        row["apart"] = row["bytes"] + (row["functions"] - 1) * row["weights"]
        lines.append(
            f"| `{row['package']}` | {row['functions']} | {row['bytes'] / 1e6:.1f} | {row['apart'] / 1e6:.1f} "
            f"| {row['cpu']:.0f} | {row['peak'] / MEBIBYTE:.0f} "
            f"| `{row['sha256'][:12]}` | {row['twice']} |"
        )
    total = {name: sum(row[name] for row in rows) for name in ("bytes", "apart", "cpu")}
    lines.append(
        f"| all {len(rows)} | | {total['bytes'] / 1e6:.1f} | {total['apart'] / 1e6:.1f} "
        f"| {total['cpu']:.0f} | {max(r['peak'] for r in rows) / MEBIBYTE:.0f} | | |"
    )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--variant", action="append")
    second = parser.add_mutually_exclusive_group()
    second.add_argument("--once", action="store_true")
    second.add_argument("--against", type=Path)
    given = parser.parse_args()
    others = load_manifest(given.against) if given.against else None
    recipe = catalog.find(given.model).recipe()
    loaded = recipe.load(given.checkpoint)
    names = [(v, s.name) for v in given.variant or recipe.variants for s in recipe.stages(loaded, v)]
    del loaded
    rows = []
    for variant, stage in names:
        build = given.output / f"{variant}-{stage}"
        row = export(given.model, given.checkpoint, variant, stage, build)
        row["twice"] = "not tried"
        if others is not None:
            row["twice"] = "yes" if others.package_digest(row["package"]) == row["sha256"] else "NO"
        elif not given.once:
            again = export(
                given.model, given.checkpoint, variant, stage, build.with_name(f"{build.name}-again")
            )
            row["twice"] = "yes" if again["sha256"] == row["sha256"] else "NO"
            for package in build.with_name(f"{build.name}-again").glob("*.mlpackage"):
                shutil.rmtree(package)
        rows.append(row)
        print(
            f"{row['package']}: {row['cpu']:.0f} s, {row['peak'] / MEBIBYTE:.0f} MiB, {row['twice']}",
            flush=True,
        )
    (given.output / "stages.md").write_text(page(rows))
    print(page(rows))
    return int(any(row["twice"] == "NO" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
