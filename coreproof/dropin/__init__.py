"""coreproof's runtime under coremltools, where Core ML itself is not.

coremltools reaches Core ML through one native module, ``coremltools.libcoremlpython``, which only its
macOS wheel has. :func:`enable_predict` puts another in its place, in this process only.
"""

from __future__ import annotations

import logging
import sys
from importlib import metadata
from typing import Any

from coreproof.errors import BackendError, UsageError

COREMLTOOLS = "9.0"
# What coremltools is told it runs on: the first macOS with every op set it can write.
_MACOS = (26, 0)

_logger = logging.getLogger(__name__)


def enable_predict(mode: str = "typed") -> bool:
    """Make ``predict``, ``make_state`` and compiled models of coremltools work on this machine.

    ``mode`` is the numeric mode (see :func:`coreproof.load`) of the models loaded from then on. It may
    be called before or after coremltools is imported, and again, to change the mode. coremltools then
    takes this machine for a Mac with macOS 26, so code that asks it and runs only there runs here.

    Returns True, or on a Mac, where Core ML itself predicts and nothing is changed, False. Raises
    BackendError when coremltools is not installed or not of version 9.0, UsageError for an unknown
    mode.
    """
    if sys.platform == "darwin":
        _logger.warning("enable_predict() changed nothing: this is a Mac, where Core ML itself predicts")
        return False
    _check_version()
    from coreproof.dropin import proxy
    from coreproof.runtime.codegen import MODES

    if mode not in MODES:
        raise UsageError(f"numeric mode {mode!r} does not exist; choose one of {', '.join(MODES)}")
    proxy._MLModelProxy.mode = mode
    _patch(sys.modules.setdefault(proxy.NAME, proxy.native_module()))
    return True


def _check_version() -> None:
    try:
        version = metadata.version("coremltools")
    except metadata.PackageNotFoundError:
        raise BackendError("coremltools is not installed; enable_predict() has nothing to enable") from None
    if version != COREMLTOOLS:
        raise BackendError(
            f"coremltools {version} is installed, enable_predict() is made for {COREMLTOOLS}; "
            f"install that (pip install coremltools=={COREMLTOOLS})"
        )


def _patch(native: Any) -> None:
    """Give ``native`` and a macOS version to every module of coremltools that asked for them already;
    later ones get them from those."""
    from coreproof.convert.quiet import coremltools

    coremltools().libcoremlpython = native
    told: dict[str, Any] = {"_IS_MACOS": True, "_is_macos": lambda: True, "_macos_version": lambda: _MACOS}
    told.update({name: value for name, value in vars(native).items() if name.startswith("_ML")})
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "coremltools" and module is not native:
            for attribute in told.keys() & vars(module).keys():
                setattr(module, attribute, told[attribute])
