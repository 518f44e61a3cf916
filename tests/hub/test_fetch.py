"""A download becomes a build only when every byte of it is what it should be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub
from published import REPO, Publish, judge, put_by_hand
from support import Cli, Ended, Made, digests, flip_bit, sign

from coreproof.jsonio import canonical
from coreproof.package.manifest import MANIFEST

WEIGHTS = "streaming_fir_fp32.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
MODEL = "streaming_fir_fp32.mlpackage/Data/com.apple.CoreML/model.mlmodel"


@pytest.fixture
def fetch(cli: Cli, hub: Hub, judged: Made, publish: Publish, tmp_path: Path) -> Callable[..., Ended]:
    """``coreproof fetch`` of the published filter into ``tmp_path / "got"``."""
    assert publish(judged).status == 0
    hub.requests.clear()
    return lambda *options: cli("fetch", REPO, "-o", tmp_path / "got", *options)


def nothing_is_left(tmp_path: Path) -> bool:
    """Neither the result nor anything half-written."""
    return [path.name for path in tmp_path.iterdir() if "got" in path.name] == []


def test_json(fetch: Callable[..., Ended], judged: Made, hub: Hub) -> None:
    ended = fetch("--json")
    assert (ended.status, ended.err) == (0, "")
    said = json.loads(ended.out)
    assert said["commit"] == hub.repositories[REPO].head
    assert said["manifest_sha256"] == digests(judged.build)[MANIFEST]
    assert (said["pinned"], said["receipts"]) == (False, {"receipt-mil.json": "pass"})


def test_without_a_pinned_digest_it_says_whom_it_believed(fetch: Callable[..., Ended]) -> None:
    ended = fetch()
    assert ended.status == 0
    assert "as --expect: without, whoever wrote the repository is believed" in ended.err


def test_a_revision_by_its_commit(
    fetch: Callable[..., Ended], judged: Made, hub: Hub, tmp_path: Path
) -> None:
    commit = hub.repositories[REPO].head
    put_by_hand({MODEL: b"something else"})
    assert fetch().status == 1
    assert fetch("--revision", commit).status == 0
    assert digests(tmp_path / "got").items() >= digests(judged.build).items()


def test_what_is_not_there(fetch: Callable[..., Ended], cli: Cli, tmp_path: Path) -> None:
    ended = fetch("--revision", "v9")
    assert (ended.status, ended.err) == (
        2,
        f"error: {REPO}: no such revision; give a branch, a tag or a commit\n",
    )
    ended = cli("fetch", "someone/nothing", "-o", tmp_path / "got")
    assert ended.status == 2
    assert "no such model repository, or a private one that your token does not reach" in ended.err
    assert nothing_is_left(tmp_path)


def test_a_private_repository_without_a_token(
    fetch: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    ended = fetch()
    assert ended.status == 2
    assert "or a private one that your token does not reach" in ended.err or "(401)" in ended.err
    assert nothing_is_left(tmp_path)


@pytest.mark.parametrize("digest", ["0" * 63, "x" * 64, ""])
def test_a_digest_that_is_none(digest: str, fetch: Callable[..., Ended]) -> None:
    ended = fetch("--expect", digest)
    assert ended.status == 2
    assert "not a sha256, which has 64 hexadecimal digits" in ended.err


def forge(judged: Made) -> None:
    """Weight, manifest and receipt rewritten together, so that each is true of the others."""
    flip_bit(judged.weights("fp32"), position=200)
    sign(judged.build)
    judge(judged)


def test_a_consistent_forgery_needs_a_pin_or_a_checkpoint(
    fetch: Callable[..., Ended], judged: Made, publish: Publish, cli: Cli, tmp_path: Path
) -> None:
    genuine = digests(judged.build)[MANIFEST]
    forge(judged)
    assert digests(judged.build)[MANIFEST] != genuine
    assert publish(judged).status == 0  # its publisher believes it, and so does who only fetches
    assert fetch().status == 0
    got = tmp_path / "got"
    ended = cli("verify", got, "--model", judged.model, "-c", judged.checkpoint)
    assert ended.status == 1
    assert WEIGHTS in ended.out + ended.err
    shutil.rmtree(got)
    ended = fetch("--expect", genuine)
    assert ended.status == 1
    assert f"{MANIFEST} has sha256 {digests(judged.build)[MANIFEST]}, expected is {genuine}" in ended.err
    assert nothing_is_left(tmp_path)


# On the way


def test_a_download_that_is_corrupted_once_comes_again(fetch: Callable[..., Ended], hub: Hub) -> None:
    hub.fail(f"GET .*/{WEIGHTS}$", corrupt=True)
    hub.fail(f"GET /get/{hub.files(REPO)[MODEL].sha256}", corrupt=True)
    assert fetch().status == 0
    assert sum(fault.times for fault in hub.faults) == 0


@pytest.mark.parametrize("name", [WEIGHTS, MODEL, MANIFEST, "SHA256SUMS", "README.md"])
def test_a_download_that_is_always_corrupted(
    name: str, fetch: Callable[..., Ended], hub: Hub, tmp_path: Path
) -> None:
    """Nothing is kept, in the client's cache neither: the next fetch is a good one."""
    stored = hub.files(REPO)[name]
    where = f"GET .*/{name}$" if stored.content is not None else f"GET /get/{stored.sha256}"
    hub.fail(where, times=99, corrupt=True)
    ended = fetch()
    assert (ended.status, ended.out) == (1, "")
    assert f": {name} arrived damaged, twice; nothing was kept, fetch again" in ended.err
    assert nothing_is_left(tmp_path)
    hub.faults.clear()
    assert fetch().status == 0


def test_a_connection_that_drops_is_taken_up_where_it_broke(
    fetch: Callable[..., Ended], hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client writes what has arrived in pieces of 10 MB; here, of 500 bytes."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)
    hub.fail(f"GET /get/{hub.files(REPO)[MODEL].sha256}", times=2, drop_after=1500)
    assert fetch().status == 0
    assert [asked for asked in hub.ranges if asked] == ["bytes=1500-", "bytes=3000-"]


@pytest.mark.parametrize("how", [{"status": 503}, {"drop_after": 10}])
def test_a_hub_that_stays_down(
    how: dict[str, Any], fetch: Callable[..., Ended], hub: Hub, tmp_path: Path
) -> None:
    hub.fail("GET /get/", times=999, **how)
    ended = fetch()
    assert ended.status == 2
    assert f"error: {REPO}: " in ended.err
    assert "run the same command again" in ended.err
    assert nothing_is_left(tmp_path)


def test_what_has_arrived_does_not_come_again(fetch: Callable[..., Ended], hub: Hub) -> None:
    hub.fail(f"GET /get/{hub.files(REPO)[MODEL].sha256}", times=99, status=500)
    assert fetch().status == 2
    hub.faults.clear()
    hub.requests.clear()
    assert fetch().status == 0
    assert hub.asked("GET /get/") == 1


# What lies there already


def test_an_earlier_build_is_replaced_only_by_a_whole_one(
    fetch: Callable[..., Ended], hub: Hub, tmp_path: Path
) -> None:
    assert fetch().status == 0
    before = digests(tmp_path / "got")
    put_by_hand({WEIGHTS: b"something else"})
    assert fetch().status == 1
    assert digests(tmp_path / "got") == before


def test_what_is_no_build_is_not_replaced(fetch: Callable[..., Ended], hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "got").mkdir()
    (tmp_path / "got" / "mine").write_text("?")
    ended = fetch()
    assert ended.status == 2
    assert "got exists and is not something to overwrite" in ended.err
    assert (tmp_path / "got" / "mine").read_text() == "?"
    assert hub.asked("GET /get/") == 0


# What the repository says of itself


def manifest_with(judged: Made, change: Callable[[Any], None]) -> bytes:
    content = json.loads((judged.build / MANIFEST).read_text())
    change(content)
    return canonical(content)


def sums_with(hub: Hub, old: str, new: str) -> bytes:
    text = hub.content(REPO, "SHA256SUMS").decode()
    assert old in text
    return text.replace(old, new).encode()


def escape_in_manifest(judged: Made, hub: Hub) -> dict[str, bytes | None]:
    return {
        MANIFEST: manifest_with(judged, lambda m: m["files"].insert(0, {**m["files"][0], "path": "../out"}))
    }


def escape_in_sums(judged: Made, hub: Hub) -> dict[str, bytes | None]:
    return {"SHA256SUMS": sums_with(hub, "README.md", "../README.md")}


def absolute_path_in_sums(judged: Made, hub: Hub) -> dict[str, bytes | None]:
    return {"SHA256SUMS": sums_with(hub, "README.md", "/tmp/README.md")}


def another_file_in_sums(judged: Made, hub: Hub) -> dict[str, bytes | None]:
    return {"SHA256SUMS": sums_with(hub, "README.md", "run.sh"), "run.sh": b"#!/bin/sh\n"}


def a_sum_less(judged: Made, hub: Hub) -> dict[str, bytes | None]:
    lines = hub.content(REPO, "SHA256SUMS").splitlines(keepends=True)
    return {"SHA256SUMS": b"".join(line for line in lines if b"fp32" not in line)}


def a_sum_twice(judged: Made, hub: Hub) -> dict[str, bytes | None]:
    return {"SHA256SUMS": hub.content(REPO, "SHA256SUMS") * 2}


def another_sum(judged: Made, hub: Hub) -> dict[str, bytes | None]:
    digest = hub.files(REPO)[WEIGHTS].sha256
    return {"SHA256SUMS": sums_with(hub, digest, "0" * 64)}


def sums_that_are_no_text(judged: Made, hub: Hub) -> dict[str, bytes | None]:
    return {"SHA256SUMS": b"\xff\n"}


def sums_that_are_large(judged: Made, hub: Hub) -> dict[str, bytes | None]:
    return {"SHA256SUMS": b"\n" * ((4 << 20) + 1)}


def another_weight(judged: Made, hub: Hub) -> dict[str, bytes | None]:
    data = bytearray(hub.content(REPO, WEIGHTS))
    data[-1] ^= 1
    return {WEIGHTS: bytes(data)}


def a_shorter_weight_file(judged: Made, hub: Hub) -> dict[str, bytes | None]:
    return {WEIGHTS: hub.content(REPO, WEIGHTS)[:-1]}


def another_receipt_figure(judged: Made, hub: Hub) -> dict[str, bytes | None]:
    content = json.loads(hub.content(REPO, "receipt-mil.json"))
    content["packages"][0]["gates"][0]["value"] += 1
    return {"receipt-mil.json": canonical(content)}


def another_receipt_figure_summed(judged: Made, hub: Hub) -> dict[str, bytes | None]:
    import hashlib

    changed = another_receipt_figure(judged, hub)
    digest = hashlib.sha256(changed["receipt-mil.json"] or b"").hexdigest()
    return {**changed, "SHA256SUMS": sums_with(hub, hub.files(REPO)["receipt-mil.json"].sha256, digest)}


def no_receipt(judged: Made, hub: Hub) -> dict[str, bytes | None]:
    lines = hub.content(REPO, "SHA256SUMS").splitlines(keepends=True)
    return {"SHA256SUMS": b"".join(line for line in lines if b"receipt" not in line)}


def no_manifest(judged: Made, hub: Hub) -> dict[str, bytes | None]:
    return {MANIFEST: None}


def no_weights(judged: Made, hub: Hub) -> dict[str, bytes | None]:
    return {WEIGHTS: None}


def a_manifest_that_is_none(judged: Made, hub: Hub) -> dict[str, bytes | None]:
    return {MANIFEST: b"[" * 100_000}


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        (escape_in_manifest, 2, "'../out' is not a plain relative path"),
        (escape_in_sums, 2, "is not a sha256, two spaces and a plain relative path"),
        (absolute_path_in_sums, 2, "is not a sha256, two spaces and a plain relative path"),
        (another_file_in_sums, 1, "SHA256SUMS lists run.sh, which coreproof.json does not know"),
        (a_sum_less, 1, "SHA256SUMS says nothing of streaming_fir_fp32.mlpackage/"),
        (a_sum_twice, 2, "is there twice"),
        (another_sum, 1, f"SHA256SUMS says {'0' * 64} of {WEIGHTS}, coreproof.json makes it "),
        (sums_that_are_no_text, 2, "SHA256SUMS: not text in UTF-8"),
        (sums_that_are_large, 1, "SHA256SUMS has 4194305 bytes, expected are at most 4194304"),
        (another_weight, 1, f"{WEIGHTS} has sha256 "),
        (a_shorter_weight_file, 1, f"{WEIGHTS} has 259 bytes, expected are 260"),
        (another_receipt_figure, 1, "receipt-mil.json has sha256 "),
        (another_receipt_figure_summed, 1, "was edited after it was written"),
        (no_receipt, 1, "has no receipt of a backend that runs the packages"),
        (no_manifest, 1, "has no coreproof.json; it is not a coreproof publication, or not a whole one"),
        (no_weights, 1, f"has no {WEIGHTS}; it is not a coreproof publication, or not a whole one"),
        (a_manifest_that_is_none, 2, "coreproof.json: "),
    ],
)
def test_a_repository_that_contradicts_itself(
    change: Callable[[Made, Hub], dict[str, bytes | None]],
    status: int,
    reason: str,
    fetch: Callable[..., Ended],
    judged: Made,
    hub: Hub,
    tmp_path: Path,
) -> None:
    put_by_hand(change(judged, hub))
    ended = fetch()
    assert (ended.status, ended.out) == (status, "")
    assert reason in ended.err
    assert nothing_is_left(tmp_path)
    assert not (tmp_path / "out").exists()
