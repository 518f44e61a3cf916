"""The report's page as a person meets it: in a real browser, from disk, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

PAGES = ("sound_page", "mrt2_page", "hostile_page")

_PLAY = """
const [player, done] = arguments;
player.play().then(() => setTimeout(() => done([player.currentTime, player.duration, player.error]), 700),
                   (error) => done(String(error)));
"""
_OPEN_ALL = "for (const d of document.querySelectorAll('details')) d.open = true;"
_COLUMN = """
return [...arguments[0].tBodies[0].rows].map((row) => row.cells[arguments[1]].innerText.trim());
"""
_PICTURES = "return [...document.images].map((i) => [i.complete && i.naturalWidth > 0, i.alt.length > 0]);"


@pytest.fixture(params=PAGES)
def page(request: pytest.FixtureRequest, browser: webdriver.Chrome) -> webdriver.Chrome:
    path: Path = request.getfixturevalue(request.param)
    browser.get("about:blank")
    browser.get_log("performance")  # what the browser's own first page asked for
    browser.get(path.as_uri())
    return browser


def _complaints(browser: webdriver.Chrome) -> list[Any]:
    return browser.get_log("browser")


def _requests(browser: webdriver.Chrome) -> list[str]:
    """What was asked for over a network or from the disk, of the page and of what lies in it."""
    entries = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [
        entry["params"]["request"]["url"]
        for entry in entries
        if entry["method"] == "Network.requestWillBeSent"
    ]


def test_it_loads_without_a_complaint_or_another_request(page: webdriver.Chrome) -> None:
    page.execute_script(_OPEN_ALL)
    pictures = page.execute_script(_PICTURES)
    assert pictures
    assert all(drawn and described for drawn, described in pictures)
    asked = _requests(page)
    assert [url for url in asked if not url.startswith("data:")] == [page.current_url]
    assert _complaints(page) == []


@pytest.mark.parametrize("width", [1200, 390, 320])
def test_nothing_is_wider_than_the_window(width: int, page: webdriver.Chrome, resize: Any) -> None:
    resize(width, 800)
    page.execute_script(_OPEN_ALL)
    wide, inner = page.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= width
    assert inner == width


def test_no_name_runs(browser: webdriver.Chrome, hostile_page: Path) -> None:
    browser.get(hostile_page.as_uri())
    browser.execute_script(_OPEN_ALL)
    for button in browser.find_elements(By.CSS_SELECTOR, "thead button")[:12]:
        browser.execute_script("arguments[0].click()", button)
    assert browser.execute_script("return window.hacked") is None
    assert len(browser.find_elements(By.TAG_NAME, "script")) == 1
    assert "<script>window.hacked=1</script>" in browser.find_element(By.TAG_NAME, "h1").text
    assert browser.title.startswith("<script>window.hacked=1</script>: FAIL")


def test_the_policy_stops_a_script_that_got_in(
    browser: webdriver.Chrome, sound_page: Path, tmp_path: Path
) -> None:
    """If a name ever did become a tag, it would still not run, and nothing could be sent anywhere."""
    text = sound_page.read_text()
    broken = tmp_path / "broken.html"
    planted = '<script>window.hacked=1</script><img src="http://127.0.0.1:9/x" onerror="window.hacked=1">'
    broken.write_text(text.replace("<main>", f"<main>{planted}", 1))
    browser.get(broken.as_uri())
    assert browser.execute_script("return window.hacked") is None
    refused = [entry["message"] for entry in _complaints(browser)]
    assert any("script" in message and "Content Security Policy" in message for message in refused)
    assert any("127.0.0.1:9" in message and "Content Security Policy" in message for message in refused)


@pytest.mark.parametrize("name", ["sound_page", "mrt2_page"])
def test_players_play(name: str, request: pytest.FixtureRequest, browser: webdriver.Chrome) -> None:
    browser.get(request.getfixturevalue(name).as_uri())
    browser.execute_script(_OPEN_ALL)
    players = browser.find_elements(By.TAG_NAME, "audio")
    assert len(players) >= 3
    for player in players[:3]:
        played = browser.execute_async_script(_PLAY, player)
        assert isinstance(played, list), played
        now, duration, error = played
        assert error is None
        assert duration > 0.4
        assert now > 0.2
    # One at a time: the last one playing has paused the others.
    assert [browser.execute_script("return arguments[0].paused", p) for p in players[:2]] == [True, True]
    assert _complaints(browser) == []


def test_tables_sort_by_name_and_by_number(browser: webdriver.Chrome, mrt2_page: Path) -> None:
    browser.get(mrt2_page.as_uri())
    table = browser.find_element(By.ID, "summary")
    headings = table.find_elements(By.CSS_SELECTOR, "thead th")
    names = [heading.text.split()[0] for heading in headings]
    for column, key in ((names.index("package"), str), (names.index("cases"), int)):
        button = headings[column].find_element(By.TAG_NAME, "button")
        for direction in ("ascending", "descending"):
            button.click()
            found = [key(cell) for cell in browser.execute_script(_COLUMN, table, column)]
            assert len(set(found)) == 2
            assert found == sorted(found, reverse=direction == "descending")
            assert headings[column].get_attribute("aria-sort") == direction
    assert headings[names.index("package")].get_attribute("aria-sort") is None


def test_tables_sort_by_measured_values(browser: webdriver.Chrome, sound_page: Path) -> None:
    """As numbers: 0.01849 comes before 1 and 69.17, whatever they look like as text."""
    browser.get(sound_page.as_uri())
    browser.execute_script(_OPEN_ALL)
    table = browser.find_element(By.CSS_SELECTOR, "#package-0 table")
    texts = [heading.text.split()[0] for heading in table.find_elements(By.CSS_SELECTOR, "thead th")]
    column = texts.index("worst")
    table.find_elements(By.CSS_SELECTOR, "thead button")[column].click()
    assert browser.execute_script(_COLUMN, table, column) == ["0.01849", "1", "69.17"]


def test_a_link_opens_the_package_it_leads_to(browser: webdriver.Chrome, mrt2_page: Path) -> None:
    browser.get(mrt2_page.as_uri())
    link = browser.find_elements(By.CSS_SELECTOR, "#summary a")[1]
    target = browser.find_element(
        By.CSS_SELECTOR, str(link.get_attribute("href")).partition("#")[2].join(["#", ""])
    )
    assert target.get_attribute("open") is None
    link.click()
    assert target.get_attribute("open") is not None
    top = browser.execute_script("return arguments[0].getBoundingClientRect().top", target)
    assert abs(top) < 5


def test_without_its_script_the_page_says_the_same(browser: webdriver.Chrome, sound_page: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.get(sound_page.as_uri())
    text = browser.find_element(By.TAG_NAME, "main").text
    assert "filtered snr_db" in text
    assert "Error through the graph" in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_schemes_are_drawn(scheme: str, browser: webdriver.Chrome, sound_page: Path) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(sound_page.as_uri())
    script = "return getComputedStyle(document.body)[arguments[0]].match(/[0-9]+/g).slice(0, 3).map(Number)"
    page, ink = (sum(browser.execute_script(script, key)) for key in ("backgroundColor", "color"))
    assert (page > ink) is (scheme == "light")
