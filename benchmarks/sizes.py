"""Lines of Python a folder, and the longest file of each, so that growth is seen."""

from __future__ import annotations

from pathlib import Path

from coreproof.cli.console import table

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    rows, total = [], 0
    for top in ("coreproof", "exporters", "validation", "benchmarks", "tests"):
        folders = sorted({p.parent for p in (ROOT / top).rglob("*.py")})
        for folder in folders:
            lines = {p.name: len(p.read_text(encoding="utf-8").splitlines()) for p in folder.glob("*.py")}
            longest = max(lines, key=lambda name: lines[name])
            total += sum(lines.values())
            rows.append(
                (folder.relative_to(ROOT), len(lines), sum(lines.values()), f"{longest} ({lines[longest]})")
            )
    table(("folder", "files>", "lines>", "longest"), [*rows, ("total", "", total, "")])


if __name__ == "__main__":
    main()
