"""Holds receipts against the build they lie in: does each say of these very bytes that they pass?

Two questions, because the second needs the model's gates and suite, which a stranger may not have.
:func:`check_receipts` asks whether a receipt is whole, green and of this manifest and these packages;
:func:`check_figures` whether its verdicts follow from its figures at the gates of today. What neither
can see is a receipt whose every figure was rewritten and sealed again: only running the suite can.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from coreproof.catalog import ModelParts
from coreproof.errors import JudgedBadError, PackageError
from coreproof.evidence.seal import SCHEMA, seal
from coreproof.files import sha256_of
from coreproof.jsonio import canonical, read_json
from coreproof.package.manifest import MANIFEST, Manifest, PackageRecord
from coreproof.parity.comparison import CaseComparison, OutputComparison, judge, judge_excitations
from coreproof.parity.gates import Gates, load_gates

RUNS_PACKAGES = ("mil", "coreml")  # other backends run the Stage's module, which shows nothing of a package
_MAX_BYTES = 64 << 20

Receipt = dict[str, Any]


def check_receipts(build: Path, manifest: Manifest) -> dict[str, Receipt]:
    """The receipts in the folder ``build``, by file name, each of them sealed, green and of this build.

    Raises JudgedBadError when one is not, or when a package has none by a backend that runs packages;
    PackageError for a file that is no receipt.
    """
    found = {path.name: read_receipt(path) for path in sorted(build.glob("receipt*.json"))}
    digest = sha256_of(build / MANIFEST)
    for name, content in found.items():
        with _readable(build / name):
            _check_receipt(str(build / name), content, manifest, digest)
    running = [r for r in found.values() if r["backend"] in RUNS_PACKAGES]
    for record in manifest.packages:
        if not any(record.package in (p["package"] for p in r["packages"]) for r in running):
            raise JudgedBadError(f"{build}: {record.package} has no receipt; {_AGAIN}")
    if not manifest.packages:
        raise JudgedBadError(f"{build}: no packages, so nothing was judged")
    return found


def read_receipt(path: Path) -> Receipt:
    """The receipt in the file ``path``. Raises PackageError when it is none."""
    content = read_json(path, _MAX_BYTES)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise PackageError(f"{path}: not a {SCHEMA} file")
    return content


def check_figures(
    build: Path, receipts: Mapping[str, Receipt], manifest: Manifest, parts: ModelParts
) -> None:
    """Judge the figures of ``receipts`` again and compare the verdicts.

    Raises JudgedBadError when a receipt was made with other gates or another suite than ``parts`` has, or
    when a verdict in it is not the one that its own figures give.
    """
    gates = load_gates(parts.gates)
    for name, content in receipts.items():
        path = str(build / name)
        with _readable(build / name):
            if content["judged"]["gates"] != sha256_of(parts.gates):
                raise JudgedBadError(f"{path}: judged by other gates than {parts.name} has now; {_AGAIN}")
            if content["judged"]["suite"] != parts.suite_digest():
                raise JudgedBadError(f"{path}: judged by another suite than {parts.name} has now; {_AGAIN}")
            _check_excitations(path, content, gates)
            for package, record in zip(content["packages"], _records(content, manifest), strict=True):
                _check_verdicts(f"{path}: {record.package}", package, record, gates)


_AGAIN = "run coreproof validate on it"


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what a malformed receipt makes Python raise into one PackageError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise PackageError(
            f"{path}: lacks what a receipt has ({type(error).__name__}: {error}); {_AGAIN}"
        ) from None


def _check_receipt(path: str, content: Receipt, manifest: Manifest, manifest_sha256: str) -> None:
    if content["seal"] != seal(content):
        raise JudgedBadError(f"{path}: edited after it was written: it does not match its seal; {_AGAIN}")
    if content["judged"]["manifest"] != manifest_sha256:
        raise JudgedBadError(
            f"{path}: of another build, or of this one as it was before: it judged the {MANIFEST} with sha256 "
            f"{str(content['judged']['manifest'])[:12]}, this one has {manifest_sha256[:12]}; {_AGAIN}"
        )
    of = {key: content["checkpoint"][key] for key in ("sha256", "kind", "seed")}
    checkpoint = manifest.checkpoint
    if content["model"] != manifest.model or of != {
        "sha256": checkpoint.sha256,
        "kind": checkpoint.kind,
        "seed": checkpoint.seed,
    }:
        raise JudgedBadError(f"{path}: of another model or checkpoint than {MANIFEST} names; {_AGAIN}")
    for package, record in zip(content["packages"], _records(content, manifest), strict=True):
        _check_package(f"{path}: {record.package}", package, record, manifest)
    if content["verdict"] != "pass":
        raise JudgedBadError(f"{path}: its verdict is {content['verdict']!r}; only what passes is accepted")


def _records(content: Receipt, manifest: Manifest) -> list[PackageRecord]:
    """The manifest's record of each package of a receipt."""
    known = {record.package: record for record in manifest.packages}
    for package in content["packages"]:
        if package["package"] not in known:
            raise JudgedBadError(f"the receipt judges {package['package']}, which {MANIFEST} does not list")
    return [known[package["package"]] for package in content["packages"]]


def _check_package(where: str, package: Receipt, record: PackageRecord, manifest: Manifest) -> None:
    digest = manifest.package_digest(record.package)
    files = {f.path: f.sha256 for f in manifest.package_files(record.package)}
    if package["digest"] != digest or package["sha256"] != files:
        raise JudgedBadError(
            f"{where}: the receipt judged other bytes, sha256 {str(package['digest'])[:12]} and not {digest[:12]}; "
            f"{_AGAIN}"
        )
    same = {
        "stage": record.stage,
        "variant": record.variant,
        "target": record.target,
        "contract": asdict(record.contract),
        "precision": asdict(record.precision),
    }
    for key, value in same.items():
        if canonical(package[key]) != canonical(value):
            raise JudgedBadError(f"{where}: {key} is not what {MANIFEST} says; {_AGAIN}")
    failed = [gate for gate in package["gates"] if gate["passed"] is not True]
    if failed or package["problems"] or not package["gates"] or not package["cases"]:
        raise JudgedBadError(f"{where}: did not pass; only what passes is accepted")


def _check_excitations(path: str, content: Receipt, gates: Gates) -> None:
    values = {v["excitation"]: _number(v["value"]) for v in content["excitations"] if v["value"] is not None}
    again = judge_excitations(values, gates)
    if canonical([v.to_json() for v in again]) != canonical(content["excitations"]):
        raise JudgedBadError(f"{path}: its excitations are not what the gates make of them; {_AGAIN}")
    if not all(v.passed for v in again):
        raise JudgedBadError(f"{path}: the reference does not excite what the suite tests")


def _check_verdicts(where: str, package: Receipt, record: PackageRecord, gates: Gates) -> None:
    aggregates = {name: _number(value) for name, value in package["aggregates"].items()}
    again = judge(_comparisons(package, record), aggregates, gates, record.stage, record.variant)
    for recorded, verdict in zip(package["gates"], again.verdicts, strict=False):
        if canonical(recorded) != canonical(verdict.to_json()):
            name = f"{verdict.name} {verdict.metric}" if verdict.metric else verdict.name
            own = verdict.to_json()["value"]
            if recorded["value"] == own:
                raise JudgedBadError(f"{where}: its verdict on {name} is not the one of the gates; {_AGAIN}")
            raise JudgedBadError(
                f"{where}: the receipt says {recorded['value']} of {name}, its own figures give {own}; {_AGAIN}"
            )
    if len(package["gates"]) != len(again.verdicts) or not again.passed:
        raise JudgedBadError(f"{where}: does not pass the gates as they are now; {_AGAIN}")


def _comparisons(package: Receipt, record: PackageRecord) -> list[CaseComparison]:
    """The comparisons a receipt's columns of metrics were written from."""
    comparisons = []
    for row, case in enumerate(package["cases"]):
        outputs = {}
        for output, columns in package["metrics"].items():
            values = {name: column[row] for name, column in columns.items()}
            metrics = {name: _number(value) for name, value in values.items() if value is not None}
            if metrics:
                outputs[output] = OutputComparison(True, metrics)
        comparisons.append(CaseComparison(case, record.stage, outputs))
    return comparisons


def _number(value: float | str) -> float:
    if isinstance(value, bool):
        raise TypeError("a truth value where a number is expected")
    return math.nan if value == "nan" else float(value)
