"""Run tests in a forked process, with a fault planted in one module as it is imported."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Literal

from mutants import mutated

Verdict = Literal["killed", "timed out", "survived"]
SURVIVED: Verdict = "survived"
_POLL = 0.01  # seconds
_OPTIONS = ("-x", "--tb=no", "--noconftest", "-p", "no:faulthandler")
"""The suite's own conftest gives every test a folder, which these do without."""
Planted = tuple[str, str, int]
"""A module's name, its source and the mutant's index."""


def warm_up() -> None:
    """Load what every test process needs, and nothing that a fault may be planted in."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # each child would load them all
    from coreproof.convert.quiet import coremltools

    coremltools()
    for name in (
        "pytest",
        "scipy.special",
        "scipy.stats",
        "scipy.ndimage",
        "torch",
        "coreproof.runtime.registry",
    ):
        import_module(name)
    if early := sorted(name for name in sys.modules if name.startswith("coreproof.runtime.ops")):
        raise RuntimeError(f"{early[0]} is loaded already, so no fault could be planted in it")
    gc.collect()
    gc.freeze()  # or each child's first collection would copy the whole heap


def run_tests(files: Sequence[str], limit: float, planted: Planted | None = None) -> Verdict:
    """What the tests in ``files`` make of a fault: ``killed`` when one fails or none can be run,
    ``timed out`` after ``limit`` seconds, ``survived`` when all pass."""
    child = os.fork()
    if child == 0:
        _child(files, planted)
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return SURVIVED if os.waitstatus_to_exitcode(status) == 0 else "killed"
        time.sleep(_POLL)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timed out"


def _child(files: Sequence[str], planted: Planted | None) -> None:
    status = 1
    try:
        os.setsid()  # so that what the tests start ends with them
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        sys.stdout = sys.stderr = os.fdopen(nowhere, "w")
        if planted is not None:
            sys.meta_path.insert(0, _Finder(planted))
        import pytest

        status = int(pytest.main([*_OPTIONS, *files]))
    finally:
        os._exit(status)


class _Finder(MetaPathFinder):
    def __init__(self, planted: Planted) -> None:
        self.planted = planted

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        name, source, index = self.planted
        if fullname != name:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin is None:
            raise ImportError(f"no module {name} to plant a fault in")
        spec.loader = _Loader(fullname, spec.origin, source, index)
        return spec


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, source: str, index: int) -> None:
        super().__init__(name, path)
        self._source, self._index = source, index

    def get_code(self, fullname: str) -> CodeType:
        return compile(mutated(self._source, self._index), str(Path(self.path)), "exec")
