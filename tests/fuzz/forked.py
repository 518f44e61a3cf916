"""Give mutants to a reader in forked processes, so that one that crashes, hangs or takes all the memory
is named and the rest go on."""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import resource
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from coreproof.errors import CoreproofError

MEMORY = 1 << 30  # bytes that a mutant may take beside what the process has
CPU_SECONDS = 10.0
SECONDS = 60.0
LONGEST_MESSAGE = 20_000  # characters
_BATCH = 1000  # mutants a process
_OUR_CODE = f"{os.sep}coreproof{os.sep}"
# What torch, glibc and Python say when there is no memory.
_NO_MEMORY = ("allocate", "bad_alloc", "MemoryError", "not enough memory")

Judge = Callable[[int], str]
"""Reads the mutant of that number and says how far it got; raises CoreproofError to refuse it."""


class Finding(AssertionError):
    """What a judge saw that must not be: ``kind`` names it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """``outcome``: what the judge said, or ``refused``; ``finding``: what went wrong, and where."""

    index: int
    outcome: str
    finding: str = ""


def run(judge: Judge, count: int, first: int = 0, memory: int = MEMORY) -> Iterator[Verdict]:
    """A verdict for each of the mutants ``first`` to ``first + count - 1``, in order."""
    done, end = first, first + count
    gc.collect()
    gc.freeze()  # or each child's first collection would copy the whole heap
    while done < end:
        with tempfile.TemporaryFile() as log:
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(reader)
                _child(judge, range(done, min(end, done + _BATCH)), writer, log, memory)
            os.close(writer)
            with os.fdopen(reader) as verdicts:
                for line in verdicts:
                    yield Verdict(*json.loads(line))
                    done += 1
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if status != 0:
                yield Verdict(done, "died", _death(status, log))
                done += 1


def _death(status: int, log: IO[bytes]) -> str:
    """What ended a process, and the line of ours that it was at."""
    log.seek(0)
    said = log.read().decode("utf-8", "replace").splitlines()
    name = signal.Signals(-status).name if status < 0 else f"exit {status}"
    hung = "" if name not in ("SIGPROF", "SIGALRM") else ", more time than it may take"
    places = [line.strip() for line in said if _OUR_CODE in line]
    return f"{name}{hung} at {_short(places[0]) if places else '; '.join(said[-3:])}"


def _child(judge: Judge, indices: range, writer: int, log: IO[bytes], memory: int) -> None:
    status = 1
    try:
        os.setsid()
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
        warnings.simplefilter("ignore")
        faulthandler.enable(log)
        for number in (signal.SIGPROF, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
            faulthandler.register(number, log, chain=True)
        _limit_memory(memory)
        for index in indices:
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            outcome, finding = _judged(judge, index)
            os.write(writer, json.dumps((index, outcome, finding)).encode() + b"\n")
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _limit_memory(memory: int) -> None:
    """Let this process have ``memory`` bytes more than it has, where the system says how many it has."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        limit = int(statm.read_text().split()[0]) * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _judged(judge: Judge, index: int) -> tuple[str, str]:
    try:
        return judge(index), ""
    except CoreproofError as error:
        return "refused", objection(error)
    except BaseException as error:
        return "escaped", f"{type(error).__name__} at {_place(error)}: {str(error)[:200]!r}"


def objection(error: CoreproofError) -> str:
    """What is wrong with a deliberate error: that memory ran out, or that nobody can read it."""
    text = str(error)
    if any(sign in text for sign in _NO_MEMORY):
        return f"memory ran out at {_place(error)}: {text[:200]!r}"
    if len(text) > LONGEST_MESSAGE:
        return f"a message of {len(text)} characters at {_place(error)}: {text[:200]!r}"
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"a message that is not Unicode at {_place(error)}: {text[:200]!r}"
    return ""


def _place(error: BaseException) -> str:
    """The innermost line of coreproof that ``error`` or what it came from passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if _OUR_CODE in f.filename or f.filename.startswith("<mil")]
    frame = (ours or frames)[-1]
    return f"{_short(frame.filename)}:{frame.lineno} {frame.name}"


def _short(path: str) -> str:
    return path.rpartition(_OUR_CODE)[2] or path
