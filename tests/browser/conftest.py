"""A headless Chromium, and the pages it opens from disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import hostile
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from support import Made

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
)  # fmt: skip


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    """A browser with an empty profile that keeps a log of its console and its requests."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.fail("chromium and chromedriver are needed; Debian has them in chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*_FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver))
    started.set_script_timeout(60)
    yield started
    started.quit()


Show = Callable[[int, int], None]


@pytest.fixture
def resize(browser: webdriver.Chrome) -> Show:
    """Gives the page this many CSS pixels, as a phone's where there are few."""

    def show(width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    return show


@pytest.fixture(scope="session")
def sound_page(reported_filter: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the streaming filter, whose output is sound."""
    from coreproof import catalog
    from coreproof.evidence.report.write import write_report

    path = tmp_path_factory.mktemp("pages") / "report.html"
    assert write_report(reported_filter.build, catalog.find(reported_filter.model), path).passed
    return path


@pytest.fixture(scope="session")
def mrt2_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of one variant of Magenta RealTime 2's decoder, small, against its recorded fixture."""
    from coreproof import catalog
    from coreproof.convert.export import export, select
    from coreproof.evidence import receipt
    from coreproof.evidence.report.write import write_report
    from coreproof.validate import validate

    folder = tmp_path_factory.mktemp("mrt2")
    parts = catalog.find("mrt2")
    recipe = parts.recipe()
    (folder / "checkpoint").mkdir()
    recipe.synth(folder / "checkpoint", "small", 0)
    loaded = recipe.load(folder / "checkpoint")
    pairs = select(recipe, loaded, ("fp16",), ("spectrostream_decoder_streaming", "depth_rollout"))
    export(recipe, folder / "checkpoint", loaded, pairs, folder / "build", lambda *_: None)
    receipt.write(validate(folder / "build", parts), folder / "build")
    assert write_report(folder / "build", parts, folder / "report.html").passed
    return folder / "report.html"


@pytest.fixture(scope="session")
def hostile_page(reported_filter: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A failing report in which every name tries to run a script."""
    from coreproof.evidence.report.page import page

    facts, runs = hostile.facts(reported_filter.build, reported_filter.model)
    text, _ = page(reported_filter.build, facts, iter(runs), "", lambda *_: None)
    path = tmp_path_factory.mktemp("pages") / "hostile.html"
    path.write_text(text)
    return path
