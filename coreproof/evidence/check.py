"""A receipt held to the bytes it speaks of, to the gate file, and to itself. Nothing is run.

A receipt that passes here is of these very packages, and its verdicts follow from its own metrics at
the gate file's bounds. That the metrics were measured at all is what ``coreproof verify --receipt``
shows, by measuring again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from coreproof.errors import JudgedBadError, PackageError
from coreproof.evidence.seal import SCHEMA, seal
from coreproof.jsonio import canonical, read_json
from coreproof.package.manifest import Manifest, PackageRecord
from coreproof.parity.comparison import CaseComparison, OutputComparison, judge, judge_excitations
from coreproof.parity.gates import Gates

JUDGES = ("mil", "coreml")  # backends that run the package's own bytes

Receipt = Mapping[str, Any]

_MAX_BYTES = 64 << 20
_KEYS = {
    "schema", "model", "verdict", "backend", "checkpoint", "fixture", "toolchain", "machine", "excitations",
    "packages",
}  # fmt: skip
_OPTIONAL = {"judged", "measured", "seal"}
_PACKAGE_KEYS = {
    "package", "stage", "variant", "mode", "sha256", "digest", "contract", "precision", "target", "bytes",
    "cases", "gates", "problems", "suspects", "aggregates", "metrics",
}  # fmt: skip
# What older receipts lack; a package without has none of it.
_PACKAGE_OPTIONAL = {"compression", "judged_as", "ops", "peer_ops"}
_NONFINITE = ("nan", "inf", "-inf")
_SHOWN = 60  # characters of a value in a message


def find_receipts(build: Path) -> tuple[Path, ...]:
    """The receipts that lie in a build folder, sorted."""
    return tuple(sorted(build.glob("receipt*.json")))


def load_receipt(path: Path) -> Receipt:
    """The receipt in the file ``path``. Raises PackageError for a file that is none."""
    content = read_json(path, _MAX_BYTES)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise PackageError(f"{path}: not a {SCHEMA} file")
    keys = content.keys() - _OPTIONAL
    if keys != _KEYS:
        raise PackageError(f"{path}: has the keys {sorted(keys)}, expected exactly {sorted(_KEYS)}")
    if not isinstance(content["packages"], list) or not isinstance(content["excitations"], list):
        raise PackageError(f"{path}: packages or excitations is no list")
    for entry in content["packages"]:
        if not isinstance(entry, dict) or entry.keys() - _PACKAGE_OPTIONAL != _PACKAGE_KEYS:
            raise PackageError(f"{path}: a package has not exactly the keys {sorted(_PACKAGE_KEYS)}")
    return content


def check_receipt(path: Path, manifest: Manifest, gates: Gates | None) -> Receipt:
    """The receipt in ``path``, which must be one of the build that ``manifest`` describes.

    The caller has compared the build's files with the manifest (``check_files``). ``gates``: the
    model's; without them the verdicts are not judged again. A receipt of a failing build may be read
    too; ask :func:`is_green`.

    Raises JudgedBadError with the first reason for which it is not, PackageError for a file that is
    no receipt.
    """
    receipt = load_receipt(path)
    try:
        fault = next(faults(receipt, manifest, gates), None)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise PackageError(f"{path}: malformed ({type(error).__name__}: {error})") from None
    if fault:
        raise JudgedBadError(f"{path}: {fault}")
    return receipt


def is_green(receipt: Receipt) -> bool:
    """Whether a checked receipt says that the packages themselves pass."""
    return receipt["verdict"] == "pass" and receipt["backend"] in JUDGES


def require_green(build: Path, manifest: Manifest, gates: Gates | None) -> tuple[Receipt, ...]:
    """Every receipt in ``build``, of which at least one judged the packages, and none is bad.

    Raises JudgedBadError when there is none, when one is not of these bytes or contradicts itself,
    and when one says that the build fails.
    """
    paths = find_receipts(build)
    receipts = tuple(check_receipt(path, manifest, gates) for path in paths)
    for path, receipt in zip(paths, receipts, strict=True):
        if receipt["verdict"] != "pass":
            raise JudgedBadError(
                f"{path}: its verdict is {receipt['verdict']}; see coreproof validate {build}"
            )
    if not any(map(is_green, receipts)):
        raise JudgedBadError(
            f"{build} has no receipt of a backend that runs the packages ({', '.join(JUDGES)}); run "
            f"coreproof validate {build}"
        )
    return receipts


def faults(receipt: Receipt, manifest: Manifest, gates: Gates | None) -> Iterator[str]:
    """What shows that ``receipt`` is not of this build or contradicts itself, most telling first.

    Raises KeyError, TypeError, ValueError or AttributeError where a value is not what a receipt has.
    """
    yield from byte_faults(receipt, manifest)
    yield from verdict_faults(receipt, gates) if gates else _of_the_verdict(receipt)
    # Last, because it does not say what was edited; it alone knows of a figure that decides nothing.
    if "seal" in receipt and receipt["seal"] != seal(receipt):
        yield "was edited after it was written: its seal is of another content"


def byte_faults(receipt: Receipt, manifest: Manifest) -> Iterator[str]:
    """What shows that ``receipt`` is of other packages than the build's.

    Raises as :func:`faults`.
    """
    yield from _of_the_build(receipt, manifest)
    for entry, record in zip(receipt["packages"], manifest.packages, strict=False):
        yield from _of_the_package(entry, record, manifest)


def verdict_faults(receipt: Receipt, gates: Gates) -> Iterator[str]:
    """What shows that the verdicts of ``receipt`` do not follow from its metrics at the gates' bounds.

    Raises as :func:`faults`.
    """
    for entry in receipt["packages"]:
        yield from _of_the_gates(entry, receipt["backend"], gates)
    yield from _excitations(receipt, gates)
    yield from _of_the_verdict(receipt)


def _of_the_verdict(receipt: Receipt) -> Iterator[str]:
    shipping = [e for e in receipt["packages"] if e.get("judged_as") is None]
    passed = (
        bool(shipping)
        and all(v["passed"] is True for v in receipt["excitations"])
        and all(passes(entry) for entry in shipping)
    )
    if receipt["verdict"] != ("pass" if passed else "fail"):
        yield f"its verdict is {receipt['verdict']!r}, its gates say {'pass' if passed else 'fail'!r}"


def comparisons(entry: Mapping[str, Any]) -> list[CaseComparison]:
    """What the columns of a package's ``metrics`` were made from.

    Raises ValueError for a column that has not one value a case, or a value that is no number.
    """
    cases = entry["cases"]
    if not isinstance(cases, list) or not all(isinstance(case, str) for case in cases):
        raise ValueError("cases is no list of names")
    outputs: dict[str, dict[str, list[float | None]]] = {}
    for output, metrics in entry["metrics"].items():
        for metric, values in metrics.items():
            if not isinstance(values, list) or len(values) != len(cases):
                raise ValueError(f"{output} {metric} is not one value for each of {len(cases)} cases")
            outputs.setdefault(output, {})[metric] = [None if v is None else number(v) for v in values]
    return [
        CaseComparison(case, entry["stage"], {o: _output(m, i) for o, m in outputs.items()})
        for i, case in enumerate(cases)
    ]


def number(value: object) -> float:
    """A number as receipts write it. Raises ValueError for anything else."""
    if isinstance(value, str) and value in _NONFINITE:
        return float(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise ValueError(f"{value!r} is no number")


def _output(metrics: Mapping[str, Sequence[float | None]], index: int) -> OutputComparison:
    found = {name: value for name, column in metrics.items() if (value := column[index]) is not None}
    return OutputComparison(bool(found), found)


def _of_the_build(receipt: Receipt, manifest: Manifest) -> Iterator[str]:
    checkpoint = manifest.checkpoint
    yield from _unequal(
        receipt,
        {
            "model": manifest.model,
            "checkpoint": {"sha256": checkpoint.sha256, "kind": checkpoint.kind, "seed": checkpoint.seed},
            "toolchain": dict(manifest.toolchain),
        },
        "",
    )
    names = [entry["package"] for entry in receipt["packages"]]
    expected = [record.package for record in manifest.packages]
    if names != expected:
        yield f"it is of the packages {', '.join(names)}; the build has {', '.join(expected)}"


def _of_the_package(entry: Mapping[str, Any], record: PackageRecord, manifest: Manifest) -> Iterator[str]:
    files = manifest.package_files(record.package)
    for path, wanted in sorted((f.path, f.sha256) for f in files):
        found = entry["sha256"].get(path)
        if found != wanted:
            yield (
                f"{path} has sha256 {_short(found)} in the receipt, {_short(wanted)} in the build: the receipt is "
                "of other bytes; an old one, or of another package"
            )
    yield from _unequal(
        {"compression": None, **entry},
        {
            "sha256": {f.path: f.sha256 for f in files},
            "digest": manifest.package_digest(record.package),
            "bytes": sum(f.size for f in files),
            "stage": record.stage,
            "variant": record.variant,
            "contract": asdict(record.contract),
            "precision": asdict(record.precision),
            "compression": asdict(record.compression) if record.compression else None,
            "target": record.target,
        },
        f"{record.package}: ",
    )


def _of_the_gates(entry: Mapping[str, Any], backend: str, gates: Gates) -> Iterator[str]:
    """Judge the package's metrics again, at the gate file's bounds."""
    name = entry["package"]
    judged_as = gates.recorded.get(entry["variant"])
    if entry.get("judged_as") != judged_as:
        yield f"{name}: judged as {entry.get('judged_as')!r}, the gate file says {judged_as!r}"
    variant = judged_as or entry["variant"]
    mode = gates.modes.get(variant) if backend == "mil" else None
    if entry["mode"] != mode:
        yield f"{name}: judged in mode {entry['mode']!r}, the gate file says {mode!r}"
    aggregates = {k: number(v) for k, v in entry["aggregates"].items()}
    try:
        judgement = judge(comparisons(entry), aggregates, gates, entry["stage"], variant)
    except ValueError as error:
        yield f"{name}: {error}"
        return
    if entry["problems"]:  # what they leave unmeasured is not in the columns, and they fail it anyway
        return
    if judgement.problems:
        yield f"{name}: {judgement.problems[0]}"
    expected = [verdict.to_json() for verdict in judgement.verdicts]
    yield from _verdicts(entry["gates"], expected, name)


def _excitations(receipt: Receipt, gates: Gates) -> Iterator[str]:
    values = {v["excitation"]: number(v["value"]) for v in receipt["excitations"] if v["value"] is not None}
    expected = [verdict.to_json() for verdict in judge_excitations(values, gates)]
    yield from _verdicts(receipt["excitations"], expected, "excitations")


def _verdicts(
    found: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]], where: str
) -> Iterator[str]:
    names = [[_named(v) for v in verdicts] for verdicts in (found, expected)]
    if names[0] != names[1]:
        yield (
            f"{where}: judged by the gates {', '.join(names[0]) or 'none'}; the gate file has "
            f"{', '.join(names[1]) or 'none'}"
        )
        return
    for verdict, own in zip(found, expected, strict=True):
        for key in sorted(own.keys() | verdict.keys()):
            if verdict.get(key) != own.get(key):
                yield (
                    f"{where}: gate {_named(own)} has {key} {_text(verdict.get(key))}, its metrics and the gate file "
                    f"say {_text(own.get(key))}"
                )


def _named(verdict: Mapping[str, Any]) -> str:
    kind = next((k for k in ("output", "aggregate", "excitation") if k in verdict), None)
    name = str(verdict[kind]) if kind else "without a name"
    return f"{name} {verdict['metric']}" if "metric" in verdict else name


def passes(entry: Mapping[str, Any]) -> bool:
    """Whether a package of a receipt passed every gate."""
    return not entry["problems"] and bool(entry["gates"]) and all(v["passed"] is True for v in entry["gates"])


def _unequal(found: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> Iterator[str]:
    # As the receipt would hold it: tuples are lists there.
    values = json.loads(canonical(expected))
    for key in expected:
        if found[key] != values[key]:
            yield f"{where}its {key} is {_text(found[key])}, the build's {_text(values[key])}"


def _text(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _short(digest: object) -> str:
    return f"{digest[:12]}..." if isinstance(digest, str) else "none"
