"""The errors coreproof raises on purpose.

Every message says what was wrong, where (file, key, op, input), what was expected and what to do.
The command line prints them without a traceback; anything else that escapes is a bug in coreproof.
"""

import re

LONGEST_MESSAGE = 4000  # characters; what a hostile file says may be of any length
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: str) -> str:
    """``text`` with what a terminal would obey, and what no file can hold, written as escapes."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class CoreproofError(Exception):
    """Base of every deliberate error. ``exit_code`` is what the command line ends with.

    The middle of a message of more than LONGEST_MESSAGE characters is left out, and what is not printable
    is escaped.
    """

    exit_code = 2

    def __init__(self, message: str = "") -> None:
        if len(message) > LONGEST_MESSAGE:
            half = LONGEST_MESSAGE // 2
            message = f"{message[:half]} ... {message[-half:]}"
        super().__init__(printable(message))


class UsageError(CoreproofError):
    """A name, path or option that does not exist or does not fit."""


class PackageError(CoreproofError):
    """An ``.mlpackage``, spec, weight file or manifest that is malformed, truncated or hostile."""


class CheckpointError(CoreproofError):
    """A checkpoint whose files, keys, shapes or dtypes are not what the recipe reads."""


class ConversionError(CoreproofError):
    """A Stage that could not be turned into a package, or whose package is not reproducible."""


class UnsupportedOpError(CoreproofError):
    """An op, op version or argument the runtime does not implement."""


class InputError(CoreproofError):
    """An input that does not fit the model's contract: name, shape or dtype."""


class ExecutionError(CoreproofError):
    """An op that failed while a program ran, or a result that breaks the contract."""


class BackendError(CoreproofError):
    """A backend that is absent on this machine, or that failed to load or run a package."""


class HubError(CoreproofError):
    """The Hugging Face Hub could not be reached, refused, or failed."""


class FixtureError(CoreproofError):
    """Expected tensors that are missing, or that belong to another checkpoint."""


class JudgedBadError(CoreproofError):
    """The work was done and the verdict is bad: a gate failed, bytes differ."""

    exit_code = 1


class MetricError(CoreproofError):
    """Arrays that a metric cannot compare: shapes that differ, a dtype or sample rate it cannot read."""


class GateError(CoreproofError):
    """A gate file that is missing, empty or malformed. It ends as a failed gate does, because work
    that no gate judged must never pass."""

    exit_code = 1
