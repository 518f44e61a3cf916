"""What the tests of publishing share: the repository they publish to, judging, commits by hand."""

from __future__ import annotations

from collections.abc import Callable

from support import Ended, Made

REPO = "someone/filter"
Publish = Callable[..., Ended]


def judge(made: Made, backend: str = "mil") -> None:
    """Validate a build and write its receipt, whatever the verdict."""
    from coreproof import catalog
    from coreproof.evidence.receipt import write
    from coreproof.validate import validate

    write(validate(made.build, catalog.find(made.model), backend, made.checkpoint), made.build)


def put_by_hand(files: dict[str, bytes | None]) -> str:
    """A commit of these files (None: of their removal) that coreproof did not make, and its hash."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    operations = [
        CommitOperationDelete(path) if content is None else CommitOperationAdd(path, content)
        for path, content in files.items()
    ]
    return HfApi().create_commit(REPO, operations, commit_message="by hand").oid
