"""A pytest plugin: a test fails when a program that it loads is another one once written as protobuf and
read again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest

from coreproof.dropin import proxy
from coreproof.errors import CoreproofError
from coreproof.mil.to_proto import require_round_trip
from coreproof.package.reader import open_package
from coreproof.runtime.model import Model

Load = Callable[..., Model]


def checked(load: Load) -> Load:
    """``load``, after which the program at the same path is held to its own copy.

    Raises AssertionError, which no test expects of Core ML.
    """

    def call(path: str | Path, *arguments: object) -> Model:
        model = load(path, *arguments)
        try:
            require_round_trip(open_package(Path(path)).program)
        except CoreproofError as error:
            raise AssertionError(str(error)) from error
        return model

    return call


@contextmanager
def every_load() -> Iterator[None]:
    with mock.patch.object(proxy, "load", checked(proxy.load)):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    with every_load():
        return (yield)
