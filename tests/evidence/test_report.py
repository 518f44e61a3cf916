"""``coreproof report``: the page and its short forms, of builds good, bad and hostile."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import hostile
import numpy as np
import pytest
import xmlschema
from markdown_it import MarkdownIt
from support import Cli, Ended, Made, flip_bit, sign

from coreproof.evidence.receipt import add_measured
from coreproof.evidence.report import words
from coreproof.evidence.report.junit import junit
from coreproof.evidence.report.markdown import MOST, markdown
from coreproof.evidence.report.page import MOST as MOST_OF_PAGE
from coreproof.evidence.report.page import page
from coreproof.evidence.seal import seal
from coreproof.parity.gates import Verdict

FORMS = {"html": "report.html", "markdown": "report.md", "junit": "report.xml"}
VOID = {"meta", "link", "img", "wbr"}


class Page(HTMLParser):
    """The tags of a page with their attributes, its text, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def report(cli: Cli, made: Made, folder: Path, form: str = "html", *options: object) -> tuple[Ended, str]:
    path = folder / FORMS[form]
    ended = cli("report", made.build, "--model", made.model, "-f", form, "-o", path, *options)
    return ended, path.read_text() if path.exists() else ""


@pytest.fixture(scope="module")
def passing(reported_filter: Made, tmp_path_factory: pytest.TempPathFactory) -> Page:
    from coreproof import catalog
    from coreproof.evidence.report.write import write_report

    path = tmp_path_factory.mktemp("page") / "report.html"
    assert write_report(reported_filter.build, catalog.find(reported_filter.model), path).passed
    return Page(path.read_text())


# The page


def test_the_page_says_the_verdict_first(passing: Page) -> None:
    assert "streaming_fir: pass – coreproof report" in passing.text
    words_ = passing.text.split("</style>")[-1]
    assert words_.index("2 of 2 packages pass, 7 of 7 gates hold") < words_.index("Is the evidence in order?")
    assert "What fails" not in passing.text
    assert "What was run again" not in passing.text
    for gate in ("filtered snr_db", "filtered log_spectral_distance_db", "filtered finite_ratio", "history"):
        assert gate in passing.text
    for fact in ("69.17", "≥ 50", "19.2 dB", "forgetful, nan_weight", "coremltools 9.0", "scipy"):
        assert fact in passing.text, fact


def test_the_page_asks_for_nothing_else(passing: Page) -> None:
    (policy,) = [
        m["content"] for m in passing.all("meta") if m.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    assert len(passing.all("script")) == 1
    for tag, attributes in passing.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#")), (tag, attributes)
    assert not passing.all("iframe") + passing.all("object") + passing.all("form") + passing.all("base")


def test_pictures_have_words_and_headings_descend(passing: Page) -> None:
    assert len(passing.all("img")) == 7  # histogram, time and spectrogram twice; the ops of fp16
    assert all(len(image["alt"] or "") > 40 for image in passing.all("img"))
    assert all(player["aria-label"] for player in passing.all("audio"))
    levels = [int(tag[1]) for tag, _ in passing.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
    assert passing.all("html") == [{"lang": "en"}]
    ids = [a["id"] for _, a in passing.tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_players_hold_reference_candidate_and_difference(passing: Page) -> None:
    import base64
    import io

    import soundfile

    players = passing.all("audio")
    assert [str(p["aria-label"]).split(",")[0] for p in players[:3]] == [
        "reference",
        "candidate",
        "difference",
    ]
    assert len(players) == 6
    sounds = []
    for player in players[:3]:
        head, _, data = str(player["src"]).partition(",")
        assert head == "data:audio/flac;base64"
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(data)))
        assert (rate, len(samples)) == (16000, 8000)
        sounds.append(samples)
    reference, candidate, difference = sounds
    assert 0 < np.abs(reference - candidate).max() < 2e-3
    assert np.abs(difference).max() == pytest.approx(0.98, abs=1e-3)
    assert "dB louder" in passing.text


def test_the_page_is_a_function_of_its_inputs(reported_filter: Made, tmp_path: Path, cli: Cli) -> None:
    ended, here = report(cli, reported_filter, tmp_path)
    assert ended.status == 0
    elsewhere = shutil.copytree(reported_filter.build, tmp_path / "other name")
    program = "from coreproof.cli import main; main()"
    arguments = ["report", str(elsewhere), "--model", reported_filter.model, "-o", "there.html"]
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "7",
        "TZ": "Asia/Tokyo",
        "LC_ALL": "C",
        "SOURCE_DATE_EPOCH": "1",
    }
    ran = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=tmp_path, env=environment, check=False
    )
    assert ran.returncode == 0
    assert (tmp_path / "there.html").read_text() == here
    assert str(tmp_path) not in here


# What fails


@pytest.fixture
def broken(own_reported_filter: Made, cli: Cli) -> Made:
    """One tap of the fp16 package is NaN; the build is signed and judged."""
    path = own_reported_filter.weights("fp16")
    data = bytearray(path.read_bytes())
    data[-2:] = np.float16(np.nan).tobytes()
    path.write_bytes(data)
    sign(own_reported_filter.build)
    assert cli("validate", own_reported_filter.build, "--model", own_reported_filter.model).status == 1
    return own_reported_filter


@pytest.mark.parametrize("form", FORMS)
def test_a_failing_build_shows_the_gate_and_the_op(form: str, broken: Made, tmp_path: Path, cli: Cli) -> None:
    ended, text = report(cli, broken, tmp_path, form)
    assert (ended.status, ended.err) == (1, "")
    assert ended.out.startswith("FAIL: ")
    if form == "html":
        text = Page(text).text
        start, end = text.index("What fails"), text.index("Each package")
        failing = text[start : text.index("Packages", start)]
        assert "Gate filtered snr_db: nan, where ≥ 50 is needed (case noise)" in failing
        assert "8000 of 8000 elements are NaN or Inf" in failing
        assert "Op to look at first: conv" in failing
        assert "which makes NaN or Inf from finite inputs" in failing
        assert "streaming_fir_fp32" not in failing
        assert end > start
    else:
        assert "filtered snr_db" in text
        assert "nan, ≥ 50 is needed" in text
        assert "op to look at first" in text
        assert "conv" in text


def _no_receipt(made: Made) -> str:
    (made.build / "receipt-mil.json").unlink()
    return "receipt-mil.json is missing; run coreproof validate --backend mil"


def _edited_figure(made: Made) -> str:
    path = made.build / "receipt-mil.json"
    content = json.loads(path.read_text())
    gate = content["packages"][0]["gates"][0]
    gate["value"] = 90.5
    path.write_text(json.dumps(content))
    return "value 90.5"


def _whitewashed(made: Made) -> str:
    """A failing gate file's verdict turned into a pass without touching a figure."""
    gates = Path(made.model) / "gates.toml"
    gates.write_text(gates.read_text().replace("min = 50.0", "min = 200.0"))
    return "filtered snr_db"


def _other_bytes(made: Made) -> str:
    flip_bit(made.weights("fp16"))
    sign(made.build)
    return "sha256"


def _unsigned_bytes(made: Made) -> str:
    flip_bit(made.weights("fp16"))
    return "weight.bin has sha256"


def _another_file(made: Made) -> str:
    (made.build / "notes.txt").write_text("x")
    return "notes.txt is not listed in coreproof.json"


def _package_left_out(made: Made) -> str:
    path = made.build / "receipt-mil.json"
    content = json.loads(path.read_text())
    del content["packages"][1]
    path.write_text(json.dumps(content))
    return "no receipt speaks of this package: it was not judged"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "change",
    [
        _no_receipt,
        _edited_figure,
        _whitewashed,
        _other_bytes,
        _unsigned_bytes,
        _another_file,
        _package_left_out,
    ],
)
def test_every_form_fails_closed(
    change: object, form: str, own_reported_filter: Made, tmp_path: Path, cli: Cli
) -> None:
    reason = change(own_reported_filter)  # type: ignore[operator]
    ended, text = report(cli, own_reported_filter, tmp_path, form, "--json")
    assert (ended.status, ended.err) == (1, "")
    assert json.loads(ended.out)["verdict"] == "fail"
    if form == "html":
        shown = Page(text).text
        assert "streaming_fir: FAIL" in shown
    elif form == "junit":
        root = ElementTree.fromstring(text)
        assert int(root.get("failures", "0")) > 0
        shown = " ".join(f.get("message", "") for f in root.iter("failure"))
    else:
        shown = text
        assert "**FAILS**" in shown.splitlines()[0]
    assert reason in shown


def test_what_runs_otherwise_than_the_receipt_says_fails(
    own_reported_filter: Made, tmp_path: Path, cli: Cli
) -> None:
    """A receipt consistent in itself whose figures nobody measured: only running can tell."""
    path = own_reported_filter.build / "receipt-mil.json"
    text, changed = re.subn(r"\b69\.(\d+)", r"99.\1", path.read_text())
    assert changed == 3  # the metric, the verdict's value and its sentence
    content = json.loads(text)
    path.write_text(json.dumps({**content, "seal": seal(content)}))
    ended, text = report(cli, own_reported_filter, tmp_path)
    assert ended.status == 1
    shown = Page(text).text
    assert "what was run again for this page agrees with the receipt" in shown
    assert re.search(r"filtered snr_db of case 'noise' is 69\.\d+ now, 99\.\d+ in the receipt", shown)


def test_without_a_reference_there_are_no_pictures_and_that_is_said(
    own_reported_filter: Made, tmp_path: Path, cli: Cli
) -> None:
    shutil.rmtree(Path(own_reported_filter.model) / "fixtures")
    ended, text = report(cli, own_reported_filter, tmp_path)
    assert ended.status == 0
    assert "no curves, pictures or sound: no reference for checkpoint" in Page(text).text
    assert Page(text).all("img") == []


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"schema": "coreproof.receipt/1"}'])
def test_a_file_that_is_no_receipt_is_refused(
    content: str, own_reported_filter: Made, tmp_path: Path, cli: Cli
) -> None:
    (own_reported_filter.build / "receipt-mil.json").write_text(content)
    ended, text = report(cli, own_reported_filter, tmp_path)
    assert (ended.status, ended.out, text) == (2, "", "")
    assert "receipt-mil.json" in ended.err
    assert "internal error" not in ended.err


@pytest.mark.parametrize(
    "path",
    [
        ("packages", 0, "gates", 0, "value"),
        ("packages", 0, "cases"),
        ("packages", 0, "suspects"),
        ("excitations", 0),
        ("machine",),
        ("fixture", "provenance"),
    ],
)
@pytest.mark.parametrize("value", [{}, [], [[1]], "text", 7, True, {"a": {}}])
def test_a_receipt_of_other_types_ends_in_words(
    path: tuple[str | int, ...], value: object, own_reported_filter: Made, tmp_path: Path, cli: Cli
) -> None:
    file = own_reported_filter.build / "receipt-mil.json"
    content = json.loads(file.read_text())
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    file.write_text(json.dumps(content))
    for form in ("markdown", "junit"):
        ended, _ = report(cli, own_reported_filter, tmp_path, form)
        assert "internal error" not in ended.err
        assert ended.status in (0, 1, 2)
        assert ended.status or path[0] in ("machine", "fixture", "packages")


def test_wrong_use(reported_filter: Made, tmp_path: Path, cli: Cli) -> None:
    inside = cli(
        "report",
        reported_filter.build,
        "--model",
        reported_filter.model,
        "-o",
        reported_filter.build / "r.html",
    )
    assert inside.status == 2
    assert "lies in the build, which must hold nothing else" in inside.err
    other = cli(
        "report", reported_filter.build, "--model", reported_filter.model, "-f", "pdf", "-o", tmp_path / "r"
    )
    assert other.status == 2
    assert "--format pdf: choose one of html, markdown, junit" in other.err


# Hostile names


def test_a_page_of_hostile_names_has_no_tag_more(reported_filter: Made) -> None:
    facts, runs = hostile.facts(reported_filter.build, reported_filter.model)
    text, passed = page(reported_filter.build, facts, iter(runs), "", lambda *_: None)
    assert not passed
    seen = Page(text)
    known = {"html", "head", "meta", "title", "link", "style", "body", "header", "p", "h1", "span", "dl", "div", "dt",
             "dd", "code", "main", "section", "h2", "ul", "li", "a", "strong", "table", "thead", "tr", "th", "tbody",
             "td", "details", "summary", "h3", "h4", "audio", "figure", "figcaption", "img", "footer", "script",
             "wbr"}  # fmt: skip
    assert {tag for tag, _ in seen.tags} <= known
    assert len(seen.all("script")) == 1
    assert len(seen.all("title")) == 1
    for _, attributes in seen.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("srcdoc", "action")]
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith(("#", "data:,"))
    for name in hostile.NAMES:
        assert words.shown(name) in seen.text, name
    assert "\u202e" not in text
    assert "\x00" not in text
    assert len(text) < MOST_OF_PAGE + 2_000_000


def test_markdown_of_hostile_names_is_only_code(reported_filter: Made) -> None:
    facts, _ = hostile.facts(reported_filter.build, reported_filter.model)
    text = markdown(facts)
    assert len(text) <= MOST
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    inline = [child for token in tokens for child in token.children or ()]
    assert {child.type for child in inline} <= {
        "text", "code_inline", "strong_open", "strong_close", "html_inline", "softbreak",
    }  # fmt: skip
    html = [t.content for t in (*tokens, *inline) if t.type.startswith("html_")]
    tags = re.findall(r"<(/?\w+)[^>]*>", " ".join(html))
    assert set(tags) <= {"details", "/details", "summary", "/summary", "code", "/code"}
    spans = {child.content for child in inline if child.type == "code_inline"}
    for name in hostile.NAMES[:4]:
        assert words.shown(name) in spans
    plain = " ".join(child.content for child in inline if child.type == "text")
    assert "hacked" not in plain
    assert "@" not in plain
    headings = [tokens[i + 1].content for i, t in enumerate(tokens) if t.type == "heading_open"]
    assert len(headings) == 2


def test_junit_of_hostile_names_is_xml(reported_filter: Made) -> None:
    facts, _ = hostile.facts(reported_filter.build, reported_filter.model)
    text = junit(facts)
    _schema().validate(text)
    root = ElementTree.fromstring(text)
    stages = {p.record.package for p in facts.packages}
    assert {suite.get("name") for suite in root} == {"evidence", "excitations", *stages}
    cases = [case for suite in root for case in suite.iter("testcase")]
    assert all(case.find("failure") is not None for case in cases)
    for name in hostile.NAMES:
        assert any(words.shown(name) in str(f.get("message")) + str(f.text) for f in root.iter("failure"))


# Markdown and JUnit


def _schema() -> xmlschema.XMLSchema:
    return xmlschema.XMLSchema(Path(__file__).with_name("junit.xsd"))


def test_junit_has_a_case_for_each_gate(reported_filter: Made, tmp_path: Path, cli: Cli) -> None:
    ended, text = report(cli, reported_filter, tmp_path, "junit")
    assert (ended.status, ended.err) == (0, "")
    _schema().validate(text)
    root = ElementTree.fromstring(text)
    suites = {str(suite.get("name")): suite for suite in root}
    assert list(suites) == [
        "evidence", "excitations", "streaming_fir_fp16.mlpackage", "streaming_fir_fp32.mlpackage"
    ]  # fmt: skip
    for suite in suites.values():
        assert int(suite.get("tests", "0")) == len(suite.findall("testcase"))
    names = [case.get("name") for case in suites["streaming_fir_fp16.mlpackage"].iter("testcase")]
    assert names == [
        "filtered snr_db", "filtered log_spectral_distance_db", "filtered finite_ratio",
        "outputs are what the contract says",
    ]  # fmt: skip
    assert root.get("failures") == "0"


def test_the_schema_refuses_what_is_not_junit() -> None:
    with pytest.raises(xmlschema.XMLSchemaException):
        _schema().validate('<testsuites><testsuite name="x"/></testsuites>')


def test_markdown_is_a_table_a_person_can_read(reported_filter: Made, tmp_path: Path, cli: Cli) -> None:
    ended, text = report(cli, reported_filter, tmp_path, "markdown")
    assert (ended.status, ended.err) == (0, "")
    assert text.splitlines()[0] == "## coreproof: `streaming_fir` passes"
    rows = [line for line in text.splitlines() if line.startswith("| `streaming_fir_fp16.mlpackage`")]
    assert rows == ["| `streaming_fir_fp16.mlpackage` | `fp16` | `typed` | 5.6 kB | 1 | 3 of 3 | pass |"]
    assert "| `filtered snr_db` | 69.17 | ≥ 50 | 19.2 dB | `noise` | pass |" in text
    html = MarkdownIt("commonmark").enable("table").render(text)
    assert html.count("<table>") == 4
    assert re.findall(r"<td[^>]*>\s*\|", html) == []


def test_markdown_that_is_too_long_says_what_it_left_out(reported_filter: Made) -> None:
    from dataclasses import replace

    from coreproof import catalog
    from coreproof.evidence.report.facts import gather

    facts = gather(reported_filter.build, catalog.find(reported_filter.model), "mil")
    many = replace(facts, packages=facts.packages * 100)
    text = markdown(many)
    assert len(text) <= MOST
    assert "The gates of the packages that pass are left out" in text


def _ratio(first: str, second: str) -> float:
    """Contrast of two colours. Source: WCAG 2.2, relative luminance and contrast ratio."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _schemes() -> Iterator[dict[str, str]]:
    from coreproof.evidence.report import page as module

    style = (Path(module.__file__).parent / "templates" / "report.css").read_text()
    for block in re.findall(r":root \{(.*?)\}", style, re.S)[:2]:
        yield dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block))


def test_text_stands_out_in_light_and_dark() -> None:
    schemes = list(_schemes())
    assert len(schemes) == 2
    for colours in schemes:
        pairs = [(t, b) for t in ("ink", "muted", "link", "bad", "good") for b in ("page", "card")]
        pairs += [("good", "good-soft"), ("bad", "bad-soft"), ("ink", "code")]
        assert [(t, b) for t, b in pairs if _ratio(colours[t], colours[b]) < 4.5] == []


@pytest.mark.parametrize(
    ("kind", "metric", "side", "bound", "value", "said"),
    [
        ("output", "snr_db", "min", 50.0, 69.17, "19.2 dB"),
        ("output", "log_spectral_distance_db", "max", 0.5, 0.1, "0.4 dB"),
        ("output", "max_abs_error", "max", 4e-3, 5e-4, "8 ×"),
        ("output", "max_abs_error", "max", 4e-3, 0.0, "at its best"),
        ("output", "cosine", "min", 1 - 3e-5, 1 - 3e-6, "10 ×"),
        ("output", "finite_ratio", "min", 1.0, 1.0, "at its best"),
        ("aggregate", None, "min", 20.0, 35.0, "1.75 ×"),
        ("excitation", None, "min", 0.05, 0.2, "4 ×"),
    ],
)
def test_headroom(kind: Any, metric: str | None, side: Any, bound: float, value: float, said: str) -> None:
    assert words.headroom(Verdict(kind, "x", metric, side, bound, value, True, "")) == said
    assert words.headroom(Verdict(kind, "x", metric, side, bound, value, False, "")) == ""


def test_a_name_that_hides_or_reorders_is_written_out() -> None:
    assert words.shown("a\u202eb\u200b\n\x1b[2J") == "a\\u202eb\\u200b\\n\\x1b[2J"
    assert words.shown("naïve – 音") == "naïve – 音"
    assert len(words.shown("x" * 10**6)) < 260


# Devices

LINE = {
    "package": "streaming_fir_fp16.mlpackage", "device": "Mac99,1", "system": "macOS 15.9", "compute_units": "ALL",
    "load_ms": 80.0, "first_ms": 3.5, "predictions": 30, "median_ms": 1.25, "p90_ms": 1.5,
    "placement": {"cpu": 2, "neural_engine": 9},
}  # fmt: skip


def test_what_a_device_told_is_shown_as_the_receipt_has_it(
    own_reported_filter: Made, tmp_path: Path, cli: Cli
) -> None:
    add_measured(own_reported_filter.build / "receipt-mil.json", [LINE])
    ended, text = report(cli, own_reported_filter, tmp_path)
    assert (ended.status, ended.err) == (0, "")
    shown = " ".join(Page(text).text.split())
    assert "On devices" in shown and "this page ran nothing on a device" in shown
    assert "Mac99,1" in shown and "1.25" in shown and "cpu 2, neural_engine 9" in shown
    ended, text = report(cli, own_reported_filter, tmp_path, "markdown")
    row = "| `Mac99,1`, `macOS 15.9` | `ALL` | 1.25 | 1.5 | `cpu` 2 `neural_engine` 9 |"
    assert ended.status == 0 and f"| `{LINE['package']}` {row}" in text


def test_without_a_device_nothing_is_said_of_any(passing: Page) -> None:
    assert "On devices" not in passing.text


@pytest.mark.parametrize(
    "change", [{"median_ms": "fast"}, {"device": 7}, {"placement": [1]}, {"package": None}]
)
def test_a_device_line_of_other_types_is_refused(
    change: dict[str, object], own_reported_filter: Made, tmp_path: Path, cli: Cli
) -> None:
    add_measured(own_reported_filter.build / "receipt-mil.json", [LINE | change])
    ended, text = report(cli, own_reported_filter, tmp_path, "markdown")
    assert (ended.status, text) == (2, "")
    assert "receipt-mil.json: lacks what a receipt has" in ended.err
