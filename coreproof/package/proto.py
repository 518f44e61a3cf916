"""The protobuf messages of Core ML models, as coremltools ships them, without importing coremltools.

For writers, and for whoever wants a message whole; what opening a model reads needs neither (see
:mod:`coreproof.package.wire`). ``import coremltools`` takes seconds, needs everything it was built with
and prints warnings on Linux. The generated message modules need none of it, so they are loaded on
their own, under a private package name. Protobuf keeps one class a message type in a process, so these
are the very classes that ``coremltools.proto`` has, whichever is imported first.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from coreproof.errors import CoreproofError, PackageError
from coreproof.files import read_bytes

# ML programs keep their weights elsewhere: a gigabyte of weights comes with less than a megabyte of
# spec. A message parsed by the library can be 33 times as large as its bytes (empty operations, with
# upb), so the limit is not larger.
MAX_SPEC_BYTES = 64 << 20
_PRIVATE = "_coreproof_coremltools_proto"


@cache
def module(name: str) -> ModuleType:
    """The generated module ``name``, such as ``MIL_pb2``.

    Raises CoreproofError when coremltools is not installed.
    """
    if _PRIVATE not in sys.modules:
        package = ModuleType(_PRIVATE)
        package.__path__ = [str(_folder())]
        sys.modules[_PRIVATE] = package
    return importlib.import_module(f"{_PRIVATE}.{name}")


def new_model() -> Any:
    """An empty ``Model`` message."""
    return module("Model_pb2").Model()


def read_spec(path: Path) -> Any:
    """The ``Model`` message in the file ``path``.

    Raises PackageError when the file is larger than MAX_SPEC_BYTES, is no ``Model`` message or
    is nested more deeply than protobuf allows (100 levels).
    """
    data = read_bytes(path, MAX_SPEC_BYTES)
    model = new_model()
    try:
        parse(model, data)
    except ValueError:
        raise PackageError(f"{path}: not a Core ML model, or a truncated one ({len(data)} bytes)") from None
    return model


def parse(message: Any, data: bytes) -> None:
    """Fill ``message`` from ``data``. Raises ValueError when they are no such message, or one that is
    nested more deeply than protobuf allows."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        message.ParseFromString(data)
    except (DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None


def _folder() -> Path:
    spec = importlib.util.find_spec("coremltools")
    if spec is None or not spec.submodule_search_locations:
        raise CoreproofError("coremltools is not installed; Core ML models cannot be read without it")
    return Path(spec.submodule_search_locations[0], "proto")
