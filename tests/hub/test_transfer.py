"""What can go wrong on the way to the Hub, and that running again ends where it should."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_server import TOKEN, Hub
from published import REPO, Publish, judge, put_by_hand
from support import Cli, Made, digests


def large(hub: Hub) -> dict[str, int]:
    """sha256 -> size of the publication's large files, as the Hub took them."""
    files = hub.files(REPO).items()
    return {stored.sha256: stored.size for path, stored in files if stored.content is None}


def is_complete(hub: Hub, made: Made) -> bool:
    """Whether ``main`` holds every file of the build, byte for byte, and came in one commit."""
    there = {path: hub.content(REPO, path) for path in digests(made.build)}
    here = {path: (made.build / path).read_bytes() for path in digests(made.build)}
    return there == here and len(hub.repositories[REPO].history) == 2


@pytest.mark.parametrize(
    "fault",
    [
        ("PUT /put/", {"drop_after": 1024}),
        ("PUT /put/", {"status": 503}),
        ("PUT /put/", {"lose_answer": True}),
        ("POST /lfs/verify", {"status": 500}),
        ("POST .*/preupload/", {"status": 502}),
        ("POST .*/objects/batch", {"status": 504}),
        ("POST .*/commit/", {"status": 503}),
        ("POST .*/commit/", {"drop_after": 1024}),
        ("POST .*/commit/", {"lose_answer": True, "times": 1}),
        ("POST /api/repos/create", {"lose_answer": True, "times": 1}),
        ("GET /api/whoami", {"status": 500}),
        ("GET /api/models/[^/]+/[^/]+$", {"drop_after": 8}),
        ("GET .*/tree/", {"status": 503}),
    ],
    ids=lambda fault: f"{fault[0]} {fault[1]}",
)
def test_a_hub_that_stumbles(
    fault: tuple[str, dict[str, Any]], judged: Made, hub: Hub, publish: Publish
) -> None:
    pattern, how = fault
    hub.fail(pattern, **{"times": 2, **how})
    ended = publish(judged)
    assert (ended.status, ended.err) == (0, "")
    assert hub.faults[0].times == 0
    assert is_complete(hub, judged)


@pytest.mark.parametrize(
    ("pattern", "how", "reason"),
    [
        ("PUT /put/", {"drop_after": 1024}, "the connection to the Hub failed"),
        ("PUT /put/", {"status": 503}, "the Hub failed (503)"),
        ("POST .*/commit/", {"status": 500}, "the Hub failed (500)"),
        ("POST .*/commit/", {"status": 401}, "the Hub does not accept the token (401)"),
        ("POST .*/objects/batch", {"status": 403}, "the token may not do this (403)"),
        ("POST .*/preupload/", {"status": 429}, "too many requests (429)"),
    ],
)
def test_a_hub_that_stays_down(
    pattern: str, how: dict[str, Any], reason: str, judged: Made, hub: Hub, publish: Publish
) -> None:
    """It ends with the reason; the repository is as it was; the next run finishes and sends the rest."""
    hub.fail(pattern, times=99, **how)
    ended = publish(judged)
    assert ended.status == 2
    assert f"error: {REPO}: {reason}" in ended.err
    assert len(hub.repositories[REPO].history) == 1
    hub.faults.clear()
    assert publish(judged).status == 0
    assert is_complete(hub, judged)
    assert hub.sent_again == []


def test_a_token_that_is_refused(
    judged: Made, hub: Hub, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    ended = publish(judged)
    assert (ended.status, ended.out) == (2, "")
    assert "the Hub does not accept the token (401); run hf auth login, or set HF_TOKEN" in ended.err
    assert hub.repositories == {}


def test_no_token(judged: Made, hub: Hub, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    ended = publish(judged)
    assert ended.status == 2
    assert "this needs a token with write access; run hf auth login, or set HF_TOKEN" in ended.err
    assert hub.repositories == {}


def test_no_hub(judged: Made, hub: Hub, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    ended = publish(judged)
    assert ended.status == 2
    assert f"error: {REPO}: the connection to the Hub failed (ConnectError)" in ended.err


def test_a_hub_that_says_nothing(
    judged: Made, hub: Hub, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coreproof.publication.client.SILENCE", 0.2)
    hub.fail("POST .*/commit/", times=99, silent=True)
    ended = publish(judged)
    assert ended.status == 2
    assert f"error: {REPO}: the connection to the Hub failed (ReadTimeout); run the same command" in ended.err
    assert hub.asked("POST .*/commit/") == 4


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a/b/c", "--repo a/b/c: write OWNER/NAME"),
        ("alone", "--repo alone: write OWNER/NAME"),
        ("a/b..c", "a/b..c: not a repository's name: "),
    ],
)
def test_a_name_that_no_repository_can_have(name: str, reason: str, judged: Made, hub: Hub, cli: Cli) -> None:
    where = ("--model", judged.model, "--allow-synthetic", "--repo", name)
    ended = cli("publish", judged.build, *where)
    assert ended.status == 2
    assert f"error: {reason}" in ended.err
    assert hub.requests == []


def test_someone_else_commits_meanwhile(judged: Made, hub: Hub, publish: Publish) -> None:
    publish(judged)
    put_by_hand({"README.md": b"---\nlicense: mit\n---\n", "mine.txt": b"?"})
    seen = hub.on_piece

    def interfere(path: str, count: int) -> bool:
        if "/preupload/" in path and hub.on_piece is not seen:
            hub.on_piece = seen
            put_by_hand({"theirs.txt": b"!"})
        return False

    hub.on_piece = interfere
    ended = publish(judged)
    assert ended.status == 2
    assert "someone else has changed the repository meanwhile (412)" in ended.err
    assert hub.content(REPO, "README.md") == b"---\nlicense: mit\n---\n"


def test_a_file_that_changes_while_it_is_published(judged: Made, hub: Hub, publish: Publish) -> None:
    """The client reads a file again when it sends it."""
    weights = judged.weights("fp32")

    def change(path: str, count: int) -> bool:
        if path.startswith("/api/models") and path.endswith("/preupload/main"):
            weights.write_bytes(b"?" * weights.stat().st_size)
        return False

    hub.on_piece = change
    ended = publish(judged)
    assert ended.status == 1
    assert "weights/weight.bin changed while it was published; nothing was committed" in ended.err
    assert len(hub.repositories[REPO].history) == 1


def test_parts_of_a_large_file(judged: Made, hub: Hub, publish: Publish, cli: Cli, tmp_path: Path) -> None:
    hub.multipart_from, hub.part_size = 4000, 1500
    hub.fail("PUT /part/", times=2, status=500)
    hub.fail("PUT /part/", times=1, drop_after=1)
    assert publish(judged).status == 0
    assert is_complete(hub, judged)
    assert hub.asked("PUT /part/") > 3
    assert cli("fetch", REPO, "-o", tmp_path / "got").status == 0


def test_killed_in_mid_upload(minilm: Made, minilm_reference: Path, hub: Hub, tmp_path: Path) -> None:
    """SIGKILL while the fifth large file is half sent; the same command again finishes, and of what had
    arrived whole nothing is sent a second time."""
    from coreproof.validate import cached_fixtures

    cache = cached_fixtures("minilm")
    cache.mkdir(parents=True)
    (cache / minilm_reference.name).symlink_to(minilm_reference)
    judge(minilm)
    command = [sys.executable, "-c", "from coreproof.cli import main; main()", "publish", str(minilm.build)]
    command += ["--repo", REPO, "--allow-synthetic"]
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
    client: list[subprocess.Popen[bytes]] = []

    def kill(path: str, count: int) -> bool:
        begun = {oid for oid, _ in hub.uploaded}
        if not path.startswith("/put/") or len(begun) < 2 or count < 1 << 16:
            return False
        client[0].send_signal(signal.SIGKILL)
        client[0].wait()
        return True

    hub.on_piece = kill
    client.append(subprocess.Popen(command, env=environment))
    assert client[0].wait() == -signal.SIGKILL
    assert len(hub.repositories[REPO].history) == 1
    arrived = set(hub.storage)

    hub.on_piece = lambda path, count: False
    subprocess.run(command, env=environment, check=True)
    assert is_complete(hub, minilm)
    whole = [oid for oid, count in hub.uploaded if count == len(hub.storage[oid])]
    cut = [count for oid, count in hub.uploaded if count < len(hub.storage[oid])]
    assert len(arrived) > 2
    assert len(whole) == len(set(whole)) == len(hub.storage)
    assert (hub.sent_again, cut) == ([], [1 << 16])  # sent again: only the half of the file that was cut
    total = sum(large(hub).values())
    assert sum(count for _, count in hub.uploaded) == total + (1 << 16)

    card = hub.content(REPO, "README.md").decode()
    assert "Beside the packages, for the program that drives them: `tokenizer.json`." in card
    assert card.count("\nSentence encoder: 128 tokens to one embedding") == 2
