"""An op is found in the module of its family, which is imported when a program has such an op."""

from __future__ import annotations

import subprocess
import sys

ALONE = """
import sys
from coreproof.errors import UnsupportedOpError
from coreproof.mil.families import FAMILIES
from coreproof.runtime import registry
from coreproof.runtime.control import CONTROL
from coreproof.runtime.left_out import OPS

ELSEWHERE = {*CONTROL, *OPS, "const"}


def imported():
    return {name for name in sys.modules if name.startswith("coreproof.runtime.ops.")}


assert not imported(), imported()
for family, ops in FAMILIES.items():
    for name in imported():
        del sys.modules[name]
    registry._REGISTRY.clear()
    for name in set(ops) - ELSEWHERE:
        registry.lookup(name, "ios18")
    assert registry.module_of(family) in imported() or set(ops) <= ELSEWHERE, family
    assert len(imported()) <= 3, imported()
    print(family)
"""


def test_the_ops_of_a_family_are_found_without_the_other_families() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 20
