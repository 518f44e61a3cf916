"""Ways to run a stage: our runtime anywhere, the torch module, Core ML on a Mac, Core AI, a program in MLX."""

from __future__ import annotations

from importlib import import_module

from coreproof.backends.base import Backend, Target
from coreproof.errors import BackendError

__all__ = ["BACKENDS", "PACKAGE_RUNNERS", "Backend", "Target", "available", "create", "default"]

# name -> module; each module defines NAME's class ``Runner`` and ``absent() -> str | None``.
BACKENDS = {
    "mil": "coreproof.backends.mil",
    "torch": "coreproof.backends.torch",
    "coreml": "coreproof.backends.coreml",
    "coreai": "coreproof.backends.coreai",
    "mlx": "coreproof.backends.mlx",
}
PACKAGE_RUNNERS = ("coreml", "mil")  # those that run a package's own bytes, the first present by default


def available() -> dict[str, str | None]:
    """Backend name -> None when it can run here, else the reason why not."""
    return {name: import_module(module).absent() for name, module in BACKENDS.items()}


def default() -> str:
    """The backend that judges packages here when none is named: Core ML on a Mac, elsewhere ``mil``."""
    return next(name for name in PACKAGE_RUNNERS if import_module(BACKENDS[name]).absent() is None)


def create(name: str) -> Backend:
    """A backend by name. Raises BackendError for an unknown one or one absent on this machine."""
    if name not in BACKENDS:
        raise BackendError(f"no backend {name!r}; choose one of {', '.join(BACKENDS)}")
    module = import_module(BACKENDS[name])
    reason = module.absent()
    if reason:
        raise BackendError(f"backend {name!r} is absent here: {reason}")
    backend: Backend = module.Runner()
    return backend
