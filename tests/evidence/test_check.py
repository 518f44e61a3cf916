"""A receipt against the build it lies in: every edit of either is refused with its reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import Cli, Made, flip_bit, sign

from coreproof import catalog
from coreproof.errors import JudgedBadError, PackageError
from coreproof.evidence.check import (
    check_receipt,
    find_receipts,
    is_green,
    load_receipt,
    require_green,
    verdict_faults,
)
from coreproof.evidence.seal import seal
from coreproof.jsonio import canonical
from coreproof.package.manifest import load_manifest
from coreproof.parity.gates import Gates, load_gates

FP16 = "streaming_fir_fp16.mlpackage"
WEIGHTS = f"{FP16}/Data/com.apple.CoreML/weights/weight.bin"
Edit = Callable[[dict[str, Any]], object]


def gates(made: Made) -> Gates:
    return load_gates(catalog.find(made.model).gates)


def check(made: Made) -> Any:
    (path,) = find_receipts(made.build)
    return check_receipt(path, load_manifest(made.build), gates(made))


def edit_receipt(build: Path, edit: Edit) -> None:
    path = build / "receipt-mil.json"
    content = json.loads(path.read_bytes())
    edit(content)
    content["seal"] = seal(content)
    path.write_bytes(canonical(content))


def test_a_fresh_receipt_is_of_its_build(judged_filter: Made) -> None:
    receipt = check(judged_filter)
    assert is_green(receipt)
    manifest = load_manifest(judged_filter.build)
    assert require_green(judged_filter.build, manifest, gates(judged_filter)) == (receipt,)


def _first(content: dict[str, Any]) -> dict[str, Any]:
    return content["packages"][0]


def _better_figure(content: dict[str, Any]) -> None:
    _first(content)["gates"][0]["value"] = 300.0


def _better_column(content: dict[str, Any]) -> None:
    _first(content)["metrics"]["filtered"]["snr_db"] = [300.0]


def _lower_bound(content: dict[str, Any]) -> None:
    _first(content)["gates"][0]["min"] = 1.0


def _drop_gate(content: dict[str, Any]) -> None:
    _first(content)["gates"].pop()


def _drop_package(content: dict[str, Any]) -> None:
    content["packages"].pop()


def _hide_failure(content: dict[str, Any]) -> None:
    """Worse metrics, with verdicts that follow from them, but not the verdict on the whole."""
    entry = _first(content)
    entry["problems"] = ["case 'noise', output 'filtered': 1 of 8000 elements are NaN or Inf"]


EDITS: dict[str, tuple[Edit, str]] = {
    "figure": (
        _better_figure,
        f"{FP16}: gate filtered snr_db has value 300.0, its metrics and the gate file say",
    ),
    "metric": (_better_column, f"{FP16}: gate filtered snr_db has detail"),
    "bound": (
        _lower_bound,
        f"{FP16}: gate filtered snr_db has min 1.0, its metrics and the gate file say 50.0",
    ),
    "gate": (
        _drop_gate,
        f"{FP16}: judged by the gates filtered snr_db, filtered log_spectral_distance_db; the",
    ),
    "package": (_drop_package, f"it is of the packages {FP16}; the build has {FP16}, streaming_fir_fp32"),
    "problem": (_hide_failure, "its verdict is 'pass', its gates say 'fail'"),
    "verdict": (lambda c: c.update(verdict="fail"), "its verdict is 'fail', its gates say 'pass'"),
    "model": (lambda c: c.update(model="minilm"), 'its model is "minilm", the build\'s "streaming_fir"'),
    "kind": (lambda c: c["checkpoint"].update(kind="published"), "its checkpoint is {"),
    "toolchain": (lambda c: c["toolchain"].update(torch="1.0"), "its toolchain is {"),
    "mode": (
        lambda c: _first(c).update(mode="fp32"),
        f"{FP16}: judged in mode 'fp32', the gate file says 'typed'",
    ),
    "excitation": (
        lambda c: c["excitations"][0].update(value=0.0),
        'excitations: gate history has detail "',
    ),
    "no excitation": (lambda c: c["excitations"].clear(), "excitations: judged by the gates none; the gate"),
    "case": (lambda c: _first(c)["cases"].append("more"), "filtered cosine is not one value for each of 2"),
    "contract": (lambda c: _first(c)["contract"]["inputs"][0].update(dtype="fp16"), "its contract is {"),
    "hash": (
        lambda c: _first(c)["sha256"].update({WEIGHTS: "0" * 64}),
        f"{WEIGHTS} has sha256 000000000000... in the receipt,",
    ),
    "unlisted file": (lambda c: _first(c)["sha256"].update(more="0" * 64), f"{FP16}: its sha256 is {{"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_receipt_is_refused(name: str, judged_filter: Made) -> None:
    edit, reason = EDITS[name]
    edit_receipt(judged_filter.build, edit)
    with pytest.raises(JudgedBadError) as caught:
        check(judged_filter)
    path = judged_filter.build / "receipt-mil.json"
    assert str(caught.value).startswith(f"{path}: ")
    assert reason in str(caught.value)


MALFORMED: dict[str, Edit] = {
    "schema": lambda c: c.update(schema="coreproof.receipt/2"),
    "extra key": lambda c: c.update(more=1),
    "missing key": lambda c: c.pop("machine"),
    "package key": lambda c: _first(c).pop("cases"),
    "no list": lambda c: c.update(packages={}),
    "text figure": lambda c: _first(c)["aggregates"].update(worst="best"),
    "no gates": lambda c: _first(c).update(gates=[1]),
    "no hashes": lambda c: _first(c).update(sha256=[]),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_receipt_is_refused(name: str, judged_filter: Made) -> None:
    edit_receipt(judged_filter.build, MALFORMED[name])
    with pytest.raises(PackageError, match=r"receipt-mil.json: "):
        check(judged_filter)


def test_an_old_receipt_is_refused(judged_filter: Made) -> None:
    """The package was exported anew, with another weight; the receipt was not made again."""
    flip_bit(judged_filter.build / WEIGHTS)
    sign(judged_filter.build)
    with pytest.raises(JudgedBadError, match=f"{WEIGHTS} has sha256 .* the receipt is of other bytes"):
        check(judged_filter)


def test_a_receipt_of_other_gates_is_refused(judged_filter: Made) -> None:
    known = gates(judged_filter)
    (path,) = find_receipts(judged_filter.build)
    stricter = replace(known, gates=tuple(replace(g, bound=60.0) for g in known.gates[1:2]) + known.gates)
    with pytest.raises(JudgedBadError, match="judged by the gates"):
        check_receipt(path, load_manifest(judged_filter.build), stricter)


def test_only_a_backend_that_runs_the_package_makes_it_green(judged_filter: Made, cli: Cli) -> None:
    build, manifest, known = judged_filter.build, load_manifest(judged_filter.build), gates(judged_filter)
    ended = cli(
        "validate", build, "--model", judged_filter.model, "-c", judged_filter.checkpoint, "-b", "torch"
    )
    assert ended.status == 0, ended.err
    assert len(require_green(build, manifest, known)) == 2
    (build / "receipt-mil.json").unlink()
    with pytest.raises(
        JudgedBadError, match=r"no receipt of a backend that runs the packages \(mil, coreml\)"
    ):
        require_green(build, manifest, known)
    (build / "receipt-torch.json").unlink()
    with pytest.raises(JudgedBadError, match="has no receipt"):
        require_green(build, manifest, known)


def test_a_red_receipt_is_read_but_not_green(judged_filter: Made, tmp_path: Path) -> None:
    """With a bound that the filter misses, in gate file and receipt alike."""
    known = gates(judged_filter)
    raised = replace(known, gates=(replace(known.gates[0], bound=1e9), *known.gates[1:]))

    def fail(content: dict[str, Any]) -> None:
        content["verdict"] = "fail"
        for entry in content["packages"]:
            for verdict in entry["gates"]:
                if verdict["min" if "min" in verdict else "max"] == known.gates[0].bound:
                    verdict.update(
                        min=1e9, passed=False, detail=verdict["detail"].rpartition(";")[0] + "; min 1e+09"
                    )

    edit_receipt(judged_filter.build, fail)
    (path,) = find_receipts(judged_filter.build)
    manifest = load_manifest(judged_filter.build)
    assert not is_green(check_receipt(path, manifest, raised))
    with pytest.raises(JudgedBadError, match="its verdict is fail"):
        require_green(judged_filter.build, manifest, raised)


RECORDED = sorted(Path(__file__).parents[2].glob("receipts/*/*.json"))


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_a_recorded_receipts_verdicts_follow_from_its_metrics(recorded: Path) -> None:
    receipt = load_receipt(recorded)
    assert list(verdict_faults(receipt, load_gates(catalog.find(receipt["model"]).gates))) == []


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_a_recorded_receipt_belongs_to_no_other_build(
    recorded: Path, judged_filter: Made, tmp_path: Path
) -> None:
    shutil.copy(recorded, judged_filter.build / "receipt-mil.json")
    with pytest.raises(JudgedBadError, match="its model is "):
        check(judged_filter)


def test_whose_gates_judged_it_is_the_gate_files_to_say(judged_filter: Made) -> None:
    edit_receipt(judged_filter.build, lambda receipt: receipt["packages"][0].update(judged_as="fp32"))
    with pytest.raises(JudgedBadError, match="judged as 'fp32', the gate file says None"):
        check(judged_filter)


def test_a_compression_that_the_build_has_not_is_refused(judged_filter: Made) -> None:
    packed = {"kind": "palette", "bits": 4, "group_size": None, "threshold": 2048, "left": []}
    edit_receipt(judged_filter.build, lambda receipt: receipt["packages"][0].update(compression=packed))
    with pytest.raises(JudgedBadError, match=r"its compression is .*, the build's null"):
        check(judged_filter)


def test_a_failing_package_on_record_fails_nothing_and_passes_nothing(judged_filter: Made) -> None:
    own = gates(judged_filter)
    (path,) = find_receipts(judged_filter.build)
    receipt = json.loads(path.read_bytes())
    variants = [entry["variant"] for entry in receipt["packages"]]
    on_record = replace(own, recorded={variants[0]: variants[0]})
    receipt["packages"][0]["judged_as"] = variants[0]
    receipt["packages"][0]["problems"] = ["a problem"]
    assert list(verdict_faults(receipt, on_record)) == []
    alone = {**receipt, "packages": receipt["packages"][:1]}
    assert any("its verdict is 'pass'" in fault for fault in verdict_faults(alone, on_record))
