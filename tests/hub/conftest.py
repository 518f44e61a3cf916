"""A Hub to publish to, and builds with green receipts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import TOKEN, Hub, serving
from published import REPO, Publish, judge
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


@pytest.fixture(scope="session")
def judged_filter(
    shared_filter: Made, filter_reference: Path, tmp_path_factory: pytest.TempPathFactory
) -> Made:
    """The streaming filter with a recipe folder of its own and a green receipt. Do not write into it."""
    folder = tmp_path_factory.mktemp("judged")
    model = shutil.copytree(shared_filter.model, folder / "streaming_fir", ignore=_no_caches)
    shutil.copytree(filter_reference, model / "fixtures" / filter_reference.name)
    build = shutil.copytree(shared_filter.build, folder / "build")
    made = Made(str(model), shared_filter.checkpoint, build)
    judge(made)
    return made


@pytest.fixture
def judged(judged_filter: Made, tmp_path: Path) -> Made:
    """The filter, judged, with a build and a recipe folder to change."""
    model = shutil.copytree(judged_filter.model, tmp_path / "recipe" / "streaming_fir", ignore=_no_caches)
    return replace(
        judged_filter, model=str(model), build=shutil.copytree(judged_filter.build, tmp_path / "build")
    )


def _no_caches(_: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "__pycache__"]


@pytest.fixture
def publish(cli: Cli, hub: Hub) -> Publish:
    """``coreproof publish`` of a synthetic build, and whatever options are given."""

    def run(made: Made, *options: object) -> Ended:
        where = ("--repo", REPO, "--model", made.model, "--allow-synthetic")
        return cli("publish", made.build, *where, *options)

    return run
