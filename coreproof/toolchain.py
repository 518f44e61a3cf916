"""Which versions made the bytes, and on which processor numbers were computed."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import coreproof

# The packages whose version an exported byte may depend on.
_TOOLS = ("coremltools", "numpy", "protobuf", "torch")


def public_version(text: str) -> str:
    """A version without its local suffix: ``2.13.0`` for ``2.13.0+cpu``."""
    return text.partition("+")[0]


def installed(package: str) -> str | None:
    """The installed public version of ``package``, None when it is absent."""
    try:
        return public_version(version(package))
    except PackageNotFoundError:
        return None


def toolchain() -> dict[str, str]:
    """Name -> public version of coreproof and of every tool that shapes a package's bytes."""
    versions = {name: installed(name) or "absent" for name in _TOOLS}
    return {"coreproof": coreproof.__version__, **versions}


def machine() -> dict[str, str | int]:
    """What the numbers of a receipt were computed on: architecture, torch's CPU capability and
    thread count, and the Python version. Nothing that identifies the host."""
    import torch

    return {
        "architecture": platform.machine(),
        "system": platform.system(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }
