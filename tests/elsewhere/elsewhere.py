"""Export in one clean environment, verify in another that differs in all that must not matter.

    python tests/elsewhere/elsewhere.py [MODEL ...] [--json]

Two virtual environments are made from the lock, coreproof installed in both as a wheel. One exports
each model's small synthetic checkpoint; the other, run by another user where this one is root, in
another folder, locale and time zone, with another number of threads, hash seed, umask and vector
instructions, makes the checkpoint again and verifies. Exit status 1 when a byte differs anywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NOBODY = 65534
DISPATCHED = (
    "from numpy._core._multiarray_umath import __cpu_dispatch__ as d, __cpu_features__ as f;"
    "print(' '.join(n for n in d if f.get(n)))"
)
SAYS = (
    "import json, locale, os, platform, sys, time, torch;"
    "from numpy._core._multiarray_umath import __cpu_dispatch__ as d, __cpu_features__ as f;"
    "print(json.dumps({'python': platform.python_version(), 'user': os.getuid(), 'folder': os.getcwd(),"
    "'locale': locale.setlocale(locale.LC_ALL, ''), 'time zone': time.strftime('%Z %z'),"
    "'threads': torch.get_num_threads(), 'hash seed': os.environ.get('PYTHONHASHSEED'),"
    "'torch kernels': torch.backends.cpu.get_cpu_capability(),"
    "'numpy kernels': ' '.join(n for n in d if f.get(n)) or 'baseline'}))"
)


@dataclass(frozen=True)
class Place:
    """A virtual environment, and how what is installed in it is run. ``uid`` of None: as this user."""

    folder: Path
    variables: Mapping[str, str]
    umask: int
    uid: int | None = None

    @property
    def bin(self) -> Path:
        return self.folder / "venv/bin"

    def run(self, *command: object) -> subprocess.CompletedProcess[str]:
        """Run a command of this environment in its own folder."""
        home = self.folder / "home"
        identity: dict[str, Any] = {}
        if self.uid is not None:
            identity = {"user": self.uid, "group": self.uid, "extra_groups": []}
        return subprocess.run(
            [str(self.bin / str(command[0])), *map(str, command[1:])],
            cwd=home,
            env={"PATH": "/usr/bin:/bin", "HOME": str(home), "HF_HUB_OFFLINE": "1", **self.variables},
            umask=self.umask,
            capture_output=True,
            text=True,
            check=False,
            **identity,
        )


def make(python: str, place: Place, wheel: Path) -> None:
    """Fill the place's folder: a virtual environment from the lock, and a home of its own."""
    venv = place.folder / "venv"
    (place.folder / "home").mkdir(parents=True)
    subprocess.run([python, "-m", "venv", "--without-pip", str(venv)], check=True)
    install = [sys.executable, "-m", "pip", "--python", str(venv / "bin/python"), "install", "-qq"]
    install += ["--disable-pip-version-check", "--constraint", str(ROOT / "constraints.txt"), str(wheel)]
    subprocess.run(install, check=True, env={**os.environ, "PIP_ROOT_USER_ACTION": "ignore"})
    if place.uid is not None:
        shutil.chown(place.folder / "home", place.uid, place.uid)


def places(folder: Path, python: str) -> tuple[Place, Place]:
    """The two environments to be; ``python`` is the second one's interpreter."""
    here = Place(
        folder / "one",
        {"LC_ALL": "C.utf8", "TZ": "UTC", "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"},
        0o022,
    )
    other = {
        "LC_ALL": "POSIX",
        "TZ": "Pacific/Kiritimati",
        "PYTHONHASHSEED": "2",
        "OMP_NUM_THREADS": "2",
        "ATEN_CPU_CAPABILITY": "default",
    }
    there = Place(folder / "another one", other, 0o077, NOBODY if os.getuid() == 0 else None)
    return here, there


def only(place: Place, **variables: str) -> Place:
    """``place`` with more variables."""
    return Place(place.folder, {**place.variables, **variables}, place.umask, place.uid)


def compare(model: str, here: Place, there: Place) -> dict[str, Any]:
    """Export ``model`` in one place, verify it in the other; what came of it."""
    checkpoint, build = here.folder / f"home/{model}", here.folder / f"home/{model}-build"
    for command in (
        ("coreproof", "synth", model, "-o", checkpoint),
        ("coreproof", "export", model, "-c", checkpoint, "-o", build),
    ):
        ended = here.run(*command)
        if ended.returncode:
            return {"model": model, "verdict": "fail", "why": ended.stderr.strip()[-500:]}
    again = there.folder / f"home/{model}-again"
    ended = there.run("coreproof", "synth", model, "-o", again)
    if ended.returncode == 0:
        ended = there.run("coreproof", "verify", build, "-c", again, "--json")
    if not ended.stdout.startswith("{"):
        return {"model": model, "verdict": "fail", "why": ended.stderr.strip()[-500:]}
    found = json.loads(ended.stdout)
    manifest = json.loads((build / "coreproof.json").read_bytes())
    return {
        "model": model,
        "verdict": found["verdict"],
        "packages": len(manifest["packages"]),
        "files": found["files"],
        "bytes": sum(f["size"] for f in manifest["files"]),
        "why": "; ".join(f"{f['where']}: {f['what']}" for f in found["findings"]),
    }


def show(facts: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]]) -> None:
    rows = [("", "exported in", "verified in")]
    rows += [(name, str(facts[0][name]), str(facts[1][name])) for name in facts[0]]
    print_table(rows)
    print()
    columns = ("model", "packages", "files", "bytes", "verdict", "why")
    verdicts = {"pass": "identical", "fail": "DIFFERS"}
    table = [
        tuple(str({**r, "verdict": verdicts[r["verdict"]]}.get(c, "")) for c in columns) for r in results
    ]
    print_table([columns, *table])


def print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="Default: every shipped model.")
    parser.add_argument("--python", default="/usr/bin/python3", help="The second environment's interpreter.")
    parser.add_argument("--json", action="store_true", help="Print one JSON document.")
    options = parser.parse_args()
    from coreproof.catalog import shipped

    # A folder that another user can enter.
    with tempfile.TemporaryDirectory(prefix="coreproof-elsewhere-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        source = folder / "source"  # setuptools would put old files of ROOT/build into the wheel
        shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".git", ".venv*", "build", "checkpoints"))
        build = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--wheel-dir", name, str(source)]
        subprocess.run(build, check=True)
        (wheel,) = folder.glob("coreproof-*.whl")
        here, there = places(folder, options.python)
        make(sys.executable, here, wheel)
        make(options.python, there, wheel)
        vectors = there.run("python", "-c", DISPATCHED).stdout.strip()
        there = only(there, NPY_DISABLE_CPU_FEATURES=vectors) if vectors else there
        facts = [json.loads(place.run("python", "-c", SAYS).stdout) for place in (here, there)]
        results = [compare(model, here, there) for model in options.models or shipped()]
    if options.json:
        print(json.dumps({"places": facts, "models": results}, indent=1))
    else:
        show(facts, results)
    return 0 if results and all(r["verdict"] == "pass" for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
