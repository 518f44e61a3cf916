"""A Hub to publish to, and builds with green receipts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import TOKEN, Hub, serving
from published import REPO, Publish
from support import Cli, Ended, Made


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub that the client in this process takes for the real one, with a token that it accepts.

    Waiting between tries is left out.
    """
    from huggingface_hub import close_session, constants

    with serving() as hub:
        home = tmp_path / "hf-home"
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        yield hub
        close_session()


@pytest.fixture
def judged(judged_filter: Made, filter_reference: Path, tmp_path: Path) -> Made:
    """The streaming filter with its receipt; build and recipe folder are there to change."""
    ignore = shutil.ignore_patterns("__pycache__")
    model = shutil.copytree(judged_filter.model, tmp_path / "recipe" / "streaming_fir", ignore=ignore)
    shutil.copytree(filter_reference, model / "fixtures" / filter_reference.name)
    return replace(judged_filter, model=str(model))


@pytest.fixture
def publish(cli: Cli, hub: Hub) -> Publish:
    """``coreproof publish`` of a synthetic build, and whatever options are given."""

    def run(made: Made, *options: object) -> Ended:
        where = ("--repo", REPO, "--model", made.model, "--allow-synthetic")
        return cli("publish", made.build, *where, *options)

    return run
