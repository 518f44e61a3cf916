"""Core ML exports you can prove: deterministic packages, a runtime for MIL programs that works on
any machine, and gates that fail closed."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Model", "State", "__version__", "enable_predict", "load"]

if TYPE_CHECKING:
    from coreproof.dropin import enable_predict
    from coreproof.runtime.model import Model, load
    from coreproof.runtime.state import State

# torch takes a second to import, so these are resolved on first use.
_LAZY = {
    "load": "coreproof.runtime.model",
    "Model": "coreproof.runtime.model",
    "State": "coreproof.runtime.state",
    "enable_predict": "coreproof.dropin",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'coreproof' has no attribute {name!r}")
