"""What is published comes back the same, and says of itself what is true."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hub_server import TOKEN, Hub
from published import REPO, Publish, judge, put_by_hand
from support import Cli, Made, digests

from coreproof import catalog
from coreproof.convert.export import export, select
from coreproof.package.manifest import load_manifest


def card_of(hub: Hub) -> str:
    return hub.content(REPO, "README.md").decode()


def test_publish_then_fetch(
    judged: Made, hub: Hub, publish: Publish, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = publish(judged)
    assert (ended.status, ended.err) == (0, "")
    repository = hub.repositories[REPO]
    assert repository.private
    assert len(repository.history) == 2  # one commit on the Hub's own first one
    assert hub.asked("xet") == 0
    assert f"10 files, checked at commit {repository.head}\n" in ended.out

    got = tmp_path / "got"
    digest = digests(judged.build)["coreproof.json"]
    ended = cli("fetch", REPO, "-o", got, "--expect", digest)
    assert (ended.status, ended.err) == (0, "")
    assert f"whole: 6 files of {REPO} at {repository.head} -> {got}\n" in ended.out
    added = {"README.md", "SHA256SUMS"}
    assert {n: d for n, d in digests(got).items() if n not in added} == digests(judged.build)
    assert [p.name for p in tmp_path.iterdir() if "coreproof-" in p.name] == []
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=got, check=True)

    monkeypatch.chdir(got)
    example = re.search(r"```python\n(.*?)```", (got / "README.md").read_text(), re.DOTALL)
    assert example
    exec(example[1], seen := {})
    assert seen["outputs"]["filtered"].shape == (1, 1, 320)

    checks = ("--model", judged.model, "-c", judged.checkpoint)
    assert cli("verify", got, *checks).status == 0
    assert cli("validate", got, *checks).status == 0


def test_the_dry_run_changes_nothing(judged: Made, hub: Hub, publish: Publish) -> None:
    before = digests(judged.build)
    ended = publish(judged, "--dry-run")
    assert (ended.status, ended.err) == (0, "")
    assert "# streaming_fir for Core ML" in ended.out
    assert f"{REPO}: new -> private; one commit" in ended.out
    assert [line.split()[0] for line in ended.out.splitlines() if "mlpackage/" in line] == ["add"] * 6
    assert (hub.repositories, hub.uploaded) == ({}, [])
    assert hub.asked("^(POST|PUT) ") == 0
    assert digests(judged.build) == before


def test_a_second_publication_changes_only_what_differs(
    judged: Made, hub: Hub, publish: Publish, cli: Cli
) -> None:
    publish(judged)
    put_by_hand({"notes.txt": b"not by coreproof"})
    first = hub.repositories[REPO].head
    recipe = catalog.find(judged.model).recipe()
    loaded = recipe.load(judged.checkpoint)
    pairs = select(recipe, loaded, ["fp32"], ())
    shutil.rmtree(judged.build)
    export(recipe, judged.checkpoint, loaded, pairs, judged.build, lambda *_: None)
    judge(judged)
    sent = len(hub.uploaded)

    ended = publish(judged, "--dry-run", "--json")
    actions = {c["path"]: c["action"] for c in json.loads(ended.out)["plan"]["changes"]}
    made = {"README.md", "SHA256SUMS", "coreproof.json", "receipt-mil.json"}
    assert {path for path, action in actions.items() if action == "replace"} == made
    assert {path.partition("/")[0] for path, action in actions.items() if action == "remove"} == {
        "streaming_fir_fp16.mlpackage"
    }
    assert {path.partition("/")[0] for path, action in actions.items() if action == "keep"} == {
        "streaming_fir_fp32.mlpackage"
    }
    assert "-2 Core ML packages" in publish(judged, "--dry-run").out

    assert publish(judged).status == 0
    assert hub.repositories[REPO].history[-2] == first
    large = {"README.md", "coreproof.json", "receipt-mil.json"}
    assert {oid for oid, _ in hub.uploaded[sent:]} == {hub.files(REPO)[path].sha256 for path in large}
    there = {*digests(judged.build), "README.md", "SHA256SUMS", "notes.txt", ".gitattributes"}
    assert hub.files(REPO).keys() == there


def test_what_is_there_already_is_not_published_again(judged: Made, hub: Hub, publish: Publish) -> None:
    publish(judged)
    head, sent = hub.repositories[REPO].head, len(hub.uploaded)
    ended = publish(judged)
    assert (ended.status, ended.err) == (0, "")
    assert f"{REPO}: private -> private; holds all of it already\n" in ended.out
    assert (hub.repositories[REPO].head, len(hub.uploaded)) == (head, sent)


def test_nothing_becomes_public_unless_asked(judged: Made, hub: Hub, publish: Publish) -> None:
    publish(judged)
    assert hub.repositories[REPO].private
    assert publish(judged, "--public").status == 0
    assert not hub.repositories[REPO].private
    ended = publish(judged)
    assert (ended.status, ended.out) == (2, "")
    assert f"{REPO} is public; pass --public to publish there" in ended.err


def test_a_failed_publication_is_not_made_public(judged: Made, hub: Hub, publish: Publish) -> None:
    hub.fail("POST .*/commit/", times=99, status=500)
    assert publish(judged, "--public").status == 2
    assert hub.repositories[REPO].private


def test_the_card(judged: Made, hub: Hub, publish: Publish) -> None:
    publish(judged)
    manifest = load_manifest(judged.build)
    card = card_of(hub)
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "coreml",
        "license": "unknown",
        "tags": ["coreml", "coreproof", "streaming_fir", "synthetic"],
    }
    assert "**These weights are synthetic.**" in body
    for record in manifest.packages:
        assert f"sha256 of the package `{manifest.package_digest(record.package)}`" in body
    receipt = json.loads((judged.build / "receipt-mil.json").read_text())
    for package in receipt["packages"]:
        for gate in package["gates"]:
            row = f"| {gate['output']} {gate['metric']} | {gate['value']:.4g} |"
            assert row in body
    assert f"--expect {digests(judged.build)['coreproof.json']}" in body
    assert "scipy" in body
    assert manifest.checkpoint.files[0].sha256 in body
    assert "Nobody has run these packages through Core ML on a device" in body


def test_the_same_build_has_the_same_card(judged: Made, hub: Hub, publish: Publish) -> None:
    cards = [json.loads(publish(judged, "--dry-run", "--json").out)["card"] for _ in range(2)]
    assert cards[0] == cards[1]


def test_the_token_is_neither_printed_nor_stored(
    judged: Made, hub: Hub, publish: Publish, cli: Cli, tmp_path: Path
) -> None:
    ended = [publish(judged, "--json"), cli("fetch", REPO, "-o", tmp_path / "got", "--json")]
    hub.fail("GET .*", times=99, status=500)
    ended += [publish(judged), cli("--debug", "fetch", REPO, "-o", tmp_path / "again")]
    assert [e.status for e in ended] == [0, 0, 2, 2]
    assert [e for e in ended if TOKEN in e.out + e.err] == []
    assert [p for p in tmp_path.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()] == []
    assert hub.stray_tokens == []


def test_a_token_that_no_header_can_hold_is_not_quoted(
    judged: Made, hub: Hub, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}\x01é")
    ended = publish(judged)
    assert ended.status == 2
    assert TOKEN not in ended.out + ended.err
    assert "internal error" not in ended.err


def test_the_card_of_a_package_with_several_functions(judged: Made) -> None:
    from coreproof.convert.recipe import FunctionSpec
    from coreproof.evidence.card import model_card, source_of

    manifest = load_manifest(judged.build)
    first, second = manifest.packages
    short = FunctionSpec("short", first.contract.inputs, first.contract.outputs)
    contract = replace(first.contract, functions=(short, replace(short, name="long")))
    manifest = replace(manifest, packages=(replace(first, contract=contract), second))
    card = model_card(REPO, manifest, "0" * 64, {}, source_of(manifest, None, None), {})
    said = "the package has `short`, `long`, each with its contract in `coreproof.json`."
    assert card.count(said) == 1
