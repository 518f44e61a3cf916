"""``coreproof export``, ``synth`` and ``reference``: what they say, refuse and leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import Cli, Made, digests

from coreproof_exporters.minilm.checkpoint import PUBLISHED

COREPROOF = [sys.executable, "-c", "from coreproof.cli import main; main()"]  # in a process of its own


@pytest.fixture
def checkpoint(tmp_path: Path, cli: Cli) -> Path:
    cli("synth", "minilm", "-o", tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_synth_says_what_it_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.chdir(tmp_path)
    ended = cli("synth", "minilm", "--size", "small", "--seed", 3)
    assert ended.out == "synthetic minilm checkpoint, small, seed 3 -> checkpoints/minilm-small-3\n"
    as_json = json.loads(cli("synth", "minilm", "--seed", 3, "-o", "again", "--json").out)
    assert as_json == {"model": "minilm", "size": "small", "seed": 3, "folder": "again"}
    assert digests(tmp_path / "again") == digests(tmp_path / "checkpoints/minilm-small-3")


def test_reference_says_what_it_computed(shared_filter: Made, tmp_path: Path, cli: Cli) -> None:
    command = ("reference", shared_filter.model, "-c", shared_filter.checkpoint, "-o", tmp_path)
    found = json.loads(cli(*command, "--json").out)
    digest = found["checkpoint_sha256"]
    assert found == {
        "model": "streaming_fir",
        "checkpoint_sha256": digest,
        "folder": str(tmp_path / digest[:12]),
    }
    said = f"3 arrays for synthetic checkpoint {digest[:12]} -> {tmp_path / digest[:12]}\n"
    assert cli(*command).out == said


BIAS = "encoder.layer.1.output.dense.bias"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(BIAS), f"missing {BIAS}; expected the 37 keys of a BertModel"),
        (lambda t: t.update(extra=t[BIAS]), "unknown extra; expected the 37 keys of a BertModel"),
        (
            lambda t: t.update({BIAS: np.zeros(31, np.float32)}),
            f"{BIAS} (float32 (31,), expected float32 (32,))",
        ),
        (lambda t: t.update({BIAS: np.full(32, np.nan, np.float32)}), f"NaN or infinity in {BIAS}"),
    ],
)
def test_a_bad_checkpoint_is_refused(
    edit: Callable[[dict[str, np.ndarray]], object], message: str, checkpoint: Path, cli: Cli
) -> None:
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)
    build = checkpoint.parent / "build"
    ended = cli("export", "minilm", "-c", checkpoint, "-o", build)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith(f"error: {file}: ")
    assert message in ended.err
    assert not build.exists()


def test_offline_the_download_command_is_named(tmp_path: Path) -> None:
    """In a process of its own: the client reads its settings when it is first imported."""
    ended = subprocess.run(
        [*COREPROOF, "export", "minilm", "-o", tmp_path / "build"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    files = "config.json model.safetensors tokenizer.json"
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: could not download the minilm checkpoint (")
    assert (
        f"  hf download sentence-transformers/all-MiniLM-L6-v2 {files} "
        f"--revision {PUBLISHED.revision} --local-dir checkpoints/minilm\n"
        "then pass --checkpoint checkpoints/minilm\n"
    ) in ended.stderr
    assert list(tmp_path.iterdir()) == []


# Interruptions

# The streaming filter as two packages, of which the second takes for ever to make.
SLOW = """
import time
from dataclasses import replace
from pathlib import Path
from coreproof import catalog

filter_ = catalog.find({folder!r}).recipe()

def wait(checkpoint):
    Path({marker!r}).touch()
    while Path({hold!r}).exists():
        time.sleep(0.01)
    return filter_.stages(checkpoint, "fp32")[0].module(checkpoint)

def stages(checkpoint, variant):
    (stage,) = filter_.stages(checkpoint, variant)
    return (stage, replace(stage, name="slow", package="slow", module=wait))

RECIPE = replace(filter_, name="slow", variants=("fp32",), stages=stages)
"""


@pytest.mark.parametrize("earlier", [False, True])
def test_an_interrupted_export_leaves_what_was_there(
    earlier: bool, shared_filter: Made, tmp_path: Path, cli: Cli
) -> None:
    """Killed in the middle, then interrupted in the middle, then left alone."""
    marker, hold, parent = tmp_path / "marker", tmp_path / "hold", tmp_path / "builds"
    recipe = tmp_path / "slow"
    recipe.mkdir()
    parent.mkdir()
    text = SLOW.format(folder=shared_filter.model, marker=str(marker), hold=str(hold))
    (recipe / "recipe.py").write_text(text)
    command = ["export", str(recipe), "-c", str(shared_filter.checkpoint), "-o", str(parent / "build")]
    if earlier:
        assert cli(*command, "--stage", "filter").status == 0
    before = digests(parent)
    hold.touch()
    for sent in (signal.SIGKILL, signal.SIGINT):
        marker.unlink(missing_ok=True)
        process = subprocess.Popen([*COREPROOF, *command], stderr=subprocess.PIPE, text=True)
        _wait_for(marker, process)
        os.kill(process.pid, sent)
        _, stderr = process.communicate(timeout=60)
        whole = {n: d for n, d in digests(parent).items() if not n.startswith(".build.coreproof-")}
        assert whole == before
        if sent == signal.SIGINT:
            assert (process.returncode, stderr) == (
                130,
                "interrupted; nothing half-written was left behind\n",
            )
            assert digests(parent) == before  # nor is anything left of the killed one
    hold.unlink()
    assert cli(*command).status == 0
    assert sorted(p.name for p in parent.iterdir()) == ["build"]
    packages = sorted(p.name for p in (parent / "build").glob("*.mlpackage"))
    assert packages == ["slow.mlpackage", "streaming_fir_fp32.mlpackage"]


def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, "it ended before it was interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.02)
