"""Fetching a pinned checkpoint, with the Hugging Face client replaced by a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest

from coreproof import catalog
from coreproof.convert.recipe import Published
from coreproof.errors import CheckpointError
from coreproof.hub import fetch_checkpoint

CONTENT = {"a.json": b"{}", "b.bin": b"weights"}
PINNED = Published(
    repo="someone/model",
    revision="0123456789abcdef0123",
    files={name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()},
    licence="MIT",
)
RECIPE = replace(catalog.find("minilm").recipe(), name="model", published=PINNED)

Serve = Callable[..., None]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Makes the client hand out ``content``, or raise ``error``."""

    def install(content: dict[str, bytes], error: Exception | None = None) -> None:
        def download(repo: str, name: str, revision: str) -> str:
            assert (repo, revision) == (PINNED.repo, PINNED.revision)
            if error is not None:
                raise error
            (tmp_path / name).write_bytes(content[name])
            return str(tmp_path / name)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)

    return install


def test_the_folder_of_the_checked_files(serve: Serve, tmp_path: Path) -> None:
    serve(CONTENT)
    assert fetch_checkpoint(RECIPE) == tmp_path
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == CONTENT


def test_another_content_is_refused(serve: Serve) -> None:
    serve({**CONTENT, "b.bin": b"Weights"})
    found = hashlib.sha256(b"Weights").hexdigest()
    with pytest.raises(CheckpointError) as caught:
        fetch_checkpoint(RECIPE)
    assert str(caught.value) == (
        f"someone/model@0123456789ab: b.bin has sha256 {found}, pinned is {PINNED.files['b.bin']}; "
        "delete the cached file and fetch it again"
    )


@pytest.mark.parametrize("error", [OSError("no route"), ValueError("no such revision"), TimeoutError()])
def test_a_failing_download_names_the_command(error: Exception, serve: Serve) -> None:
    serve({}, error)
    with pytest.raises(CheckpointError) as caught:
        fetch_checkpoint(RECIPE)
    assert str(caught.value) == (
        f"could not download the model checkpoint ({type(error).__name__}). Where there is a network, run\n"
        "  hf download someone/model a.json b.bin --revision 0123456789abcdef0123 "
        "--local-dir checkpoints/model\n"
        "then pass --checkpoint checkpoints/model"
    )


def test_a_recipe_without_a_publication_needs_a_checkpoint() -> None:
    with pytest.raises(CheckpointError, match="model has no published checkpoint; pass --checkpoint"):
        fetch_checkpoint(replace(RECIPE, published=None))
