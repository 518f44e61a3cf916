"""A pytest plugin: two of Apple's test files import packages at their head that a few of their tests need.

Where those packages are absent, stand-ins let the files be collected, and are taken away again. A test that
needs the package then fails with an ImportError, and all others run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NoReturn

import pytest

FILES = ("test_torch_conversion_api.py", "test_torch_quantization_ops.py")  # the latter imports the former
PACKAGES = ("torchvision", "peft")


class StandIn(ModuleType):
    """A module whose every attribute is a function that raises ImportError."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)

    def __getattr__(self, attribute: str) -> Callable[..., NoReturn]:
        if attribute.startswith("__"):
            raise AttributeError(attribute)

        def refuse(*arguments: object, **named: object) -> NoReturn:
            raise ImportError(f"package absent: {self.__name__}, whose {attribute} was called")

        return refuse


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    needed = isinstance(collector, pytest.Module) and collector.path.name in FILES
    absent = [name for name in PACKAGES if needed and find_spec(name) is None]
    sys.modules.update({name: StandIn(name) for name in absent})
    try:
        return (yield)
    finally:
        for name in absent:
            del sys.modules[name]
