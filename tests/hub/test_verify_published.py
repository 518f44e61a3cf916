"""``coreproof verify`` of a publication: fetched, held to the checkpoint, and gone afterwards."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import pytest
from hub_server import Hub
from published import REPO, Publish, put_by_hand
from support import Cli, Made


def test_each_check_of_a_publication(
    judged: Made, hub: Hub, publish: Publish, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(judged)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    head = hub.repositories[REPO].head
    source = ("-c", judged.checkpoint, "--model", judged.model)
    ended = cli("verify", f"hf:{REPO}", *source)
    assert (ended.status, ended.err) == (0, f"fetched {REPO} at {head}\n")
    assert "identical: all 6 files of " in ended.out
    assert cli("verify", f"hf:{REPO}@{head}", "--weights-only", *source).status == 0
    receipt = cli("verify", f"hf:{REPO}", "--receipt", "receipt-mil.json", *source)
    assert receipt.status == 0, receipt.err
    digest = hashlib.sha256((judged.build / "coreproof.json").read_bytes()).hexdigest()
    pinned = cli("verify", f"hf:{REPO}", "--expect", digest, "--model", judged.model)
    assert (pinned.status, "pinned: " in pinned.out) == (0, True)
    assert list(scratch.glob("coreproof-*")) == []  # coremltools keeps some of its own till it exits


def test_a_publication_of_another_weight_is_refused(
    judged: Made, hub: Hub, publish: Publish, cli: Cli
) -> None:
    publish(judged)
    name = "streaming_fir_fp16.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    data = bytearray((judged.build / name).read_bytes())
    data[-1] ^= 1
    put_by_hand({name: bytes(data)})
    ended = cli("verify", f"hf:{REPO}", "-c", judged.checkpoint, "--model", judged.model)
    assert (ended.status, ended.out) == (1, "")
    assert f"{name} has sha256 " in ended.err


def test_a_repository_that_is_not_there(hub: Hub, cli: Cli) -> None:
    ended = cli("verify", "hf:someone/else")
    assert (ended.status, ended.out) == (2, "")
    assert "someone/else" in ended.err
