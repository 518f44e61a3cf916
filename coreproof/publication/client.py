"""The huggingface_hub client as coreproof uses it: quiet, patient with a Hub that stumbles, and with
errors that say what to do and never hold a token."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import coreproof
from coreproof.errors import CoreproofError, HubError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")

TRIES = 4
SILENCE = 300.0  # seconds without a byte after which a connection counts as broken
_TOKEN = re.compile(r"hf_\w+|Bearer\s+[^\s'\"]+")
_ASKS = "run hf auth login, or set HF_TOKEN"
_RESUME = "run the same command again: what has arrived is not sent again"


def connect(progress_bars: bool) -> HfApi:
    """The client, with the endpoint (HF_ENDPOINT) and the token (HF_TOKEN, else that of ``hf auth
    login``) that it finds by itself. ``progress_bars``: whether it may show its own."""
    from huggingface_hub import HfApi, constants, set_client_factory
    from huggingface_hub.utils._http import default_client_factory
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    (enable_progress_bars if progress_bars else disable_progress_bars)()
    # The client reports each retry; the one error at the end says it all.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    # Git LFS, which asks the Hub for each file whether it is there before sending any of it. Xet takes its
    # place wherever its library is installed, fails at a Hub without it, and cannot be tried here.
    constants.HF_HUB_DISABLE_XET = True

    def patient_client() -> Any:
        client = default_client_factory()
        client.timeout = SILENCE  # the client's own waits for ever
        return client

    set_client_factory(patient_client)
    return HfApi(library_name="coreproof", library_version=coreproof.__version__)


def patiently(call: Callable[[], T]) -> T:
    """The result of ``call``, tried TRIES times while the Hub fails (5xx, 429) or the connection drops.

    For the calls that the client itself tries only once. They must be safe to repeat.
    """
    for attempt in range(1, TRIES):
        try:
            return call()
        except Exception as error:
            if not _is_passing(error):
                raise
        time.sleep(2 ** (attempt - 1))
    return call()


@contextmanager
def explained(repo: str) -> Iterator[None]:
    """Turn whatever the client raises about the repository ``repo`` into a HubError.

    Nothing of the original is kept, because an error of the transport can quote the headers it sent.
    """
    try:
        yield
    except CoreproofError:
        raise
    except Exception as error:  # the client raises a different type for every way of failing
        message = f"{repo}: {_explain(error)}"
    else:
        return
    raise HubError(_TOKEN.sub("(token)", message))


def _is_passing(error: Exception) -> bool:
    status = _status(error)
    return status >= 500 or status == 429 if status is not None else _is_transport(error)


def _is_transport(error: BaseException) -> bool:
    """Whether the connection failed; the client's HTTP library has another name in each of its versions."""
    library = type(error).__module__.partition(".")[0]
    return library.startswith(("httpx", "httpcore")) or isinstance(error, ConnectionError)


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _explain(error: BaseException) -> str:
    from huggingface_hub import errors

    root = error
    while root.__cause__ is not None and _status(root) is None and not _is_transport(root):
        root = root.__cause__
    status = _status(root)
    kinds: list[tuple[type[BaseException], str]] = [
        (errors.LocalTokenNotFoundError, f"this needs a token with write access; {_ASKS}"),
        (errors.OfflineModeIsEnabled, "HF_HUB_OFFLINE is set; unset it to reach the Hub"),
        (errors.GatedRepoError, "access is gated; ask for it on the repository's page"),
        (errors.RevisionNotFoundError, "no such revision; give a branch, a tag or a commit"),
        (errors.RemoteEntryNotFoundError, "not published by coreproof: a file that belongs to it is missing"),
        (
            errors.RepositoryNotFoundError,
            f"no such model repository, or a private one that your token does not reach; {_ASKS}",
        ),
        (errors.HFValidationError, f"not a repository's name: {root}"),
        (errors.LocalEntryNotFoundError, f"the Hub cannot be reached; {_RESUME}"),
    ]
    for kind, message in kinds:
        if isinstance(error, kind) or isinstance(root, kind):
            return message
    if status is not None:
        return _explain_status(status, root)
    if _is_transport(root):
        return f"the connection to the Hub failed ({type(root).__name__}); {_RESUME}"
    return f"{type(root).__name__}: {root}"


def _explain_status(status: int, error: BaseException) -> str:
    known = {
        401: f"the Hub does not accept the token (401); {_ASKS} to one with write access",
        403: f"the token may not do this (403); {_ASKS} to one with write access to it",
        412: "someone else has changed the repository meanwhile (412); look at the plan again with --dry-run",
        429: f"too many requests (429); wait, then {_RESUME}",
    }
    if status >= 500:
        return f"the Hub failed ({status}) {TRIES} times or more; {_RESUME}"
    return known.get(status, f"the Hub answered {status}: {str(error).splitlines()[0]}")
