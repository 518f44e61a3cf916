"""A receipt's comparison made again: the same numbers here, near ones elsewhere, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import Cli, Ended, Made

from coreproof.evidence.check import load_receipt
from coreproof.evidence.seal import seal
from coreproof.jsonio import canonical
from coreproof.package.manifest import load_manifest
from coreproof.recheck import Rechecked, compare

Edit = Callable[[dict[str, Any]], object]
FP16 = "streaming_fir_fp16.mlpackage"


def verify(cli: Cli, made: Made, fixture: Path, *options: object) -> Ended:
    receipt = made.build / "receipt-mil.json"
    command = ("verify", "--receipt", receipt, made.build, "--model", made.model, "--fixture", fixture)
    return cli(*command, *options)


def rewrite(path: Path, edit: Edit) -> None:
    """Edit a receipt, and seal it again."""
    content = json.loads(path.read_bytes())
    edit(content)
    content["seal"] = seal(content)
    path.write_bytes(canonical(content))


def test_here_every_figure_is_the_same_number(judged_filter: Made, filter_reference: Path, cli: Cli) -> None:
    ended = verify(cli, judged_filter, filter_reference, "--json")
    found = json.loads(ended.out)
    assert (ended.status, found["verdict"], found["exact"], found["why"]) == (0, "pass", True, "")
    assert found["figures"] > 20
    assert found["largest_relative_difference"] == found["largest_difference_db"] == 0
    said = verify(cli, judged_filter, filter_reference).out
    receipt = judged_filter.build / "receipt-mil.json"
    assert said == f"same: {found['figures']} figures of {receipt}, measured again, are the same numbers\n"


def test_as_many_threads_as_then(judged_filter: Made, filter_reference: Path, cli: Cli) -> None:
    """And as many as before when it is done."""
    here = torch.get_num_threads()
    seen = []
    threads = load_receipt(judged_filter.build / "receipt-mil.json")["machine"]["threads"]
    torch.set_num_threads(threads + 1)
    original = torch.set_num_threads
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "set_num_threads", lambda n: (seen.append(n), original(n)))
            assert verify(cli, judged_filter, filter_reference).status == 0
    finally:
        original(here)
    assert seen == [threads, threads + 1]


def _consistently(content: dict[str, Any], change: Callable[[float], float]) -> None:
    """Rewrite the snr of the fp16 package so that the receipt does not contradict itself."""
    entry = content["packages"][0]
    (old,) = entry["metrics"]["filtered"]["snr_db"]
    new = change(old)
    entry["metrics"]["filtered"]["snr_db"] = [new]
    verdict = entry["gates"][0]
    verdict["value"] = new
    verdict["detail"] = f"{new:.9g} in case 'noise', the worst of 1; min 50"


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_figure_that_was_never_measured(
    elsewhere: bool, judged_filter: Made, filter_reference: Path, cli: Cli
) -> None:
    """The receipt is of these bytes and agrees with itself: only measuring shows it."""

    def forge(content: dict[str, Any]) -> None:
        _consistently(content, lambda snr: snr + 2)
        if elsewhere:
            content["machine"]["cpu_capability"] = "AVX1024"

    rewrite(judged_filter.build / "receipt-mil.json", forge)
    ended = verify(cli, judged_filter, filter_reference)
    assert ended.status == 1
    limit = "within 1 dB" if elsewhere else "the same number"
    (line,) = (line for line in ended.out.splitlines() if line.startswith("metric "))
    assert line.startswith(f"metric {FP16}: filtered snr_db")
    assert f"not {limit}" in line
    assert ("cpu_capability AVX1024 then, " in ended.out) == elsewhere


@pytest.mark.parametrize(("by", "here", "there"), [(0.5, 1, 0), (1e-9, 1, 0), (-0.99, 1, 0), (1.01, 1, 1)])
def test_elsewhere_one_decibel_is_near_enough(
    by: float, here: int, there: int, judged_filter: Made, filter_reference: Path, cli: Cli
) -> None:
    path = judged_filter.build / "receipt-mil.json"
    rewrite(path, lambda c: _consistently(c, lambda snr: snr + by))
    assert verify(cli, judged_filter, filter_reference).status == here
    rewrite(path, lambda c: c["machine"].update(cpu_capability="AVX1024"))
    ended = verify(cli, judged_filter, filter_reference)
    assert ended.status == there
    if there == 0:
        assert "near: " in ended.out and "verdicts are the same\n" in ended.out


def compared(made: Made, edit: Edit, elsewhere: bool = False) -> Rechecked:
    """Two receipts, of which ``edit`` changed the first: what the comparison says, without a run."""
    now = json.loads((made.build / "receipt-mil.json").read_bytes())
    then = json.loads(canonical(now))
    if elsewhere:
        then["machine"]["cpu_capability"] = "AVX1024"
    edit(then)
    return compare(then, now, load_manifest(made.build))


def _first(content: dict[str, Any]) -> dict[str, Any]:
    return content["packages"][0]


def _columns(content: dict[str, Any]) -> dict[str, Any]:
    return _first(content)["metrics"]["filtered"]


DIFFERENT: dict[str, tuple[Edit, str]] = {
    "a missing metric": (
        lambda c: _columns(c).pop("cosine"),
        "the receipt lacks the metrics filtered cosine",
    ),
    "an extra metric": (
        lambda c: _columns(c).update(loudness=[1.0]),
        "the receipt has the metrics filtered loudness, measured here is none such",
    ),
    "a missing case": (lambda c: _first(c).update(cases=[]), "the receipt lacks the cases noise"),
    "an extra aggregate": (
        lambda c: _first(c)["aggregates"].update(more=1.0),
        "the receipt has the aggregates more, measured here is none such",
    ),
    "null": (lambda c: _columns(c).update(cosine=[None]), "filtered cosine: None in the receipt, 0.9999"),
    "nan": (lambda c: _columns(c).update(cosine=["nan"]), "filtered cosine: nan in the receipt, 0.9999"),
    "a verdict": (
        lambda c: _first(c)["gates"][0].update(passed=False),
        "filtered snr_db: fail in the receipt, pass here",
    ),
    "problems": (lambda c: _first(c).update(problems=["?"]), "its problems are others than the receipt's"),
    "the whole": (lambda c: c.update(verdict="fail"), "fail in the receipt, pass here"),
    "another official implementation": (
        lambda c: c["fixture"]["provenance"].update(packages={"scipy": "0.1"}),
        "expected values come from another implementation or configuration",
    ),
    "an excitation": (
        lambda c: c["excitations"][0].update(value=0.01),
        "excitation history: 0.01 in the receipt",
    ),
}


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("name", DIFFERENT)
def test_what_no_machine_explains(name: str, elsewhere: bool, judged_filter: Made) -> None:
    edit, reason = DIFFERENT[name]
    found = compared(judged_filter, edit, elsewhere)
    assert not found.passed
    assert found.exact != elsewhere
    assert any(reason in f.what for f in found.findings), found.findings


@pytest.mark.parametrize(
    ("metric", "factor", "passes"),
    [("relative_error", 1.09, True), ("relative_error", 1.2, False), ("relative_error", 3.0, False)],
)
@pytest.mark.parametrize("mode", ["typed", "fp32"])
def test_elsewhere_a_mean_has_its_share(
    mode: str, metric: str, factor: float, passes: bool, judged_filter: Made
) -> None:
    """Ten per cent, thirty where float32's own rounding is all there is."""

    def change(content: dict[str, Any]) -> None:
        entry = content["packages"][("typed", "fp32").index(mode)]
        column = entry["metrics"]["filtered"][metric]
        entry["metrics"]["filtered"][metric] = [value * factor for value in column]

    found = compared(judged_filter, change, elsewhere=True)
    assert found.passed == (passes or (mode == "fp32" and factor < 1.3))
    assert found.largest == pytest.approx(1 - 1 / factor)


def test_versions_that_differ_are_named(judged_filter: Made) -> None:
    found = compared(judged_filter, lambda c: c["toolchain"].update(torch="2.0.0"))
    assert not found.exact
    assert found.why.startswith("torch 2.0.0 then, ")


def test_a_receipt_of_other_bytes_runs_nothing(judged_filter: Made, filter_reference: Path, cli: Cli) -> None:
    rewrite(judged_filter.build / "receipt-mil.json", lambda c: _first(c)["gates"][0].update(value=99.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coreproof.recheck.validate", lambda *a, **k: pytest.fail("it ran"))
        ended = verify(cli, judged_filter, filter_reference, "--json")
    found = json.loads(ended.out)
    assert (ended.status, found["figures"]) == (1, 0)
    assert "has value 99.0, its metrics and the gate file say" in found["findings"][0]["what"]


def test_one_check_at_a_time(judged_filter: Made, filter_reference: Path, cli: Cli) -> None:
    ended = verify(cli, judged_filter, filter_reference, "--weights-only")
    assert (ended.status, ended.err) == (
        2,
        "error: --weights-only, --receipt and --expect are three checks; give one at a time\n",
    )
