"""Carries out a plan: large files first, one by one, then a single commit of everything.

The large files' storage is addressed by sha256 and keeps what has arrived, so that a run that was killed
is continued by running the same command again; the repository itself changes only with the commit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coreproof.convert.convert import Report
from coreproof.errors import JudgedBadError
from coreproof.publication.client import explained, patiently
from coreproof.publication.plan import Item, Plan, is_there, remote_files

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi


@dataclass(frozen=True, slots=True)
class Published:
    """``commit``: the revision that holds the publication, checked after it was made."""

    commit: str
    url: str


def upload(api: HfApi, plan: Plan, summary: str, report: Report) -> Published:
    """Make the repository what ``plan`` says, in one commit with the message ``summary``.

    Raises HubError for whatever the Hub refuses, and when the repository has changed since the plan was
    made; JudgedBadError when a file was changed meanwhile, or when the Hub holds other bytes afterwards.
    """
    with explained(plan.repo):
        patiently(api.whoami)  # a token that is wrong is found out before anything is made or sent
        head = plan.head or _create(api, plan.repo)
        changes = plan.to_send or plan.to_remove
        commit = _commit(api, plan, head, summary, report) if changes else head
        report("checking what the Hub holds", 0, 1)
        _check(api, plan, commit)
        if plan.opens:
            patiently(lambda: api.update_repo_settings(plan.repo, private=False))
    return Published(commit, f"{api.endpoint}/{plan.repo}/tree/{commit}")


def _create(api: HfApi, repo: str) -> str:
    patiently(lambda: api.create_repo(repo, private=True, exist_ok=True))
    return str(patiently(lambda: api.model_info(repo)).sha)


def _commit(api: HfApi, plan: Plan, head: str, summary: str, report: Report) -> str:
    from huggingface_hub import CommitOperationDelete

    sent = [(item, _operation(item)) for item in plan.to_send]
    done, total = 0, sum(item.digest.size for item, _ in sent)
    for item, operation in sent:
        report(f"sending {item.digest.path}", done, total)
        api.preupload_lfs_files(plan.repo, [operation], free_memory=False)
        if operation.upload_info.sha256.hex() != item.digest.sha256:
            raise JudgedBadError(f"{item.digest.path} changed while it was published; nothing was committed")
        done += item.digest.size
    operations = [
        *(o for _, o in sent),
        *(CommitOperationDelete(path, is_folder=False) for path in plan.to_remove),
    ]
    report("committing", total, total)
    return _commit_once(api, plan, head, summary, operations)


def _commit_once(api: HfApi, plan: Plan, head: str, summary: str, operations: list[object]) -> str:
    """The commit on top of ``head``. It is tried again when no answer comes: should the first have
    reached the Hub after all, its head is no longer ``head`` and holds the plan's files already."""

    def attempt() -> str:
        now = str(api.model_info(plan.repo).sha)
        if now != head and _holds(api, plan, now):
            return now
        made = api.create_commit(plan.repo, operations, commit_message=summary, parent_commit=head)  # type: ignore[arg-type]
        return str(made.oid)

    return patiently(attempt)


def _holds(api: HfApi, plan: Plan, revision: str) -> bool:
    there = remote_files(api, plan.repo, revision)
    return all(is_there(item, there.get(item.digest.path)) for item in plan.items)


def _check(api: HfApi, plan: Plan, commit: str) -> None:
    there = patiently(lambda: remote_files(api, plan.repo, commit))
    for item in plan.items:
        if not is_there(item, there.get(item.digest.path)):
            raise JudgedBadError(
                f"{plan.repo} at {commit[:12]} does not hold the {item.digest.path} that was sent; publish again"
            )


def _operation(item: Item) -> CommitOperationAdd:
    from huggingface_hub import CommitOperationAdd

    return CommitOperationAdd(item.digest.path, item.source)
