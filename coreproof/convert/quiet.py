"""coremltools without its start-up noise and progress bars, and with its real warnings."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any
from unittest import mock

from coreproof.errors import ConversionError

# Said at every import off a Mac, or for every torch newer than the release coremltools was tested
# with. Neither says anything about the conversion at hand.
_NOISE = (
    "Failed to load _ML",
    "Failed to load '_ML",
    "has not been tested with coremltools",
    "Disabling scikit-learn conversion API",
    "Tuple detected at graph output",  # said of every module with several outputs
    "is added again",  # said of every state the traced module also holds as a buffer
    # Weights that stay as they are; the manifest lists them.
    "Can't perform palettization",
    "Cannot perform palettization",
    "Unable to perform structured quantization",
    "Cannot perform quantization",
    "Can't decide input axis",
    "Can't decide output axis",
)
# A range analysis of its passes casts int32 limits to fp16; no value of the program is touched.
_RANGES = r"coremltools\.converters\.mil\.mil\.passes\.defs\.optimize_repeat_ops"
_BARS = {
    "coremltools.converters.mil.frontend.torch.ops": "_tqdm",
    "coremltools.converters.mil.mil.passes.pass_pipeline": "tqdm",
    "coremltools.optimize.coreml._quantization_passes": "tqdm",
}


class _Known(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not any(noise in record.getMessage() for noise in _NOISE)


def coremltools() -> Any:
    """The coremltools module, imported with the known noise filtered out of its logger."""
    logger = logging.getLogger("coremltools")
    if not any(isinstance(f, _Known) for f in logger.filters):
        logger.addFilter(_Known())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_module("coremltools")


@contextmanager
def bars_into(report: Callable[[str, int, int], None]) -> Iterator[None]:
    """Inside the block coremltools' tqdm bars become calls ``report(description, done, total)``.

    Raises ConversionError when coremltools no longer has them where 9.0 does.
    """
    coremltools()

    def bar(iterable: Iterable[Any], desc: str = "", total: int | None = None, **_: Any) -> Iterator[Any]:
        items = list(iterable)
        for done, item in enumerate(items):
            report(desc, done, total or len(items))
            yield item

    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "overflow encountered in cast", RuntimeWarning, _RANGES)
        for name, attribute in _BARS.items():
            module = import_module(name)
            if not hasattr(module, attribute):
                raise ConversionError(f"{name} has no {attribute}; coreproof is made for coremltools 9.0")
            stack.enter_context(mock.patch.object(module, attribute, bar))
        yield
