"""Receipts: what was compared with what, on what, and how it came out.

A receipt is canonical JSON, schema ``coreproof.receipt/1``:

    model, verdict ("pass" or "fail"), backend
    judged       {manifest, gates, suite}: sha256 of the build's coreproof.json, of the gate file and of
                 the suite's sources
    seal         sha256 of this receipt without its seal, which tells an edited figure from a measured one
                 until someone seals it again
    checkpoint   {sha256, kind: published | synthetic | other, seed}
    fixture      {sha256, provenance}: the official implementation and its versions
    toolchain    versions that shape the package's bytes
    machine      architecture, system, cpu_capability, threads, python
    excitations  [{gate, value, bound, passed}]
    measured     [one of coreproof.backends.device.Measured a line]: only where a device was measured
    packages     [{package, stage, variant, mode, sha256: {file: digest}, digest, bytes, contract,
                   precision, compression, judged_as (null, or for a package on record the variant
                   whose gates judged it), ops {total, types: {type: count}} that compute, peer_ops (how
                   many another exporter's package of the stage has, or null), target, cases, gates: [...], aggregates,
                   problems, suspects,
                   metrics: {output: {metric: [one value a case]}}}]

Numbers that JSON cannot hold are the strings "nan", "inf" and "-inf". There is no date, host or
path in a receipt, so the same run on the same machine writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from coreproof.atomic import atomic_file
from coreproof.evidence.check import load_receipt
from coreproof.evidence.seal import SCHEMA, seal
from coreproof.jsonio import canonical, json_number
from coreproof.parity.comparison import CaseComparison
from coreproof.toolchain import machine
from coreproof.validate import PackageResult, Validation


def receipt(validation: Validation) -> dict[str, Any]:
    """The receipt of a validation, as JSON values."""
    manifest, fixture = validation.manifest, validation.fixture
    content = {
        "schema": SCHEMA,
        "model": manifest.model,
        "verdict": "pass" if validation.passed else "fail",
        "backend": validation.backend,
        "judged": dict(validation.judged),
        "checkpoint": {
            "sha256": manifest.checkpoint.sha256,
            "kind": manifest.checkpoint.kind,
            "seed": manifest.checkpoint.seed,
        },
        "fixture": {"sha256": fixture.sha256, "provenance": dict(fixture.provenance)},
        "toolchain": dict(manifest.toolchain),
        "machine": machine(),
        "excitations": [v.to_json() for v in validation.excitations],
        "packages": [_package(validation, p) for p in validation.packages],
    }
    return {**content, "seal": seal(content)}


def write(validation: Validation, build: Path) -> Path:
    """Write the receipt into the build folder and return its path."""
    path = build / f"receipt-{validation.backend}.json"
    with atomic_file(path) as temporary:
        temporary.write_bytes(canonical(receipt(validation)))
    return path


def record(validation: Validation, receipts: Path) -> Path:
    """Write the receipt into the repository's evidence, ``receipts/<model>/``."""
    name = f"{validation.manifest.checkpoint.sha256[:12]}-{validation.backend}.json"
    folder = receipts / validation.manifest.model
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / name) as temporary:
        temporary.write_bytes(canonical(receipt(validation)))
    return folder / name


def _package(validation: Validation, result: PackageResult) -> dict[str, Any]:
    return {
        "package": result.record.package,
        "stage": result.record.stage,
        "variant": result.record.variant,
        "mode": result.mode,
        "sha256": {f.path: f.sha256 for f in validation.manifest.package_files(result.record.package)},
        "digest": validation.manifest.package_digest(result.record.package),
        "contract": asdict(result.record.contract),
        "precision": asdict(result.record.precision),
        "compression": asdict(c) if (c := result.record.compression) else None,
        "judged_as": result.judged_as,
        "ops": {"total": sum(result.ops.values()), "types": dict(result.ops)},
        "peer_ops": result.peer_ops,
        "target": result.record.target,
        "bytes": sum(f.size for f in validation.manifest.package_files(result.record.package)),
        "cases": [c.case for c in result.comparisons],
        "gates": [v.to_json() for v in result.judgement.verdicts],
        "problems": list(result.judgement.problems),
        "suspects": [s.to_json() for s in result.suspects],
        "aggregates": {k: json_number(v) for k, v in result.aggregates.items()},
        "metrics": _columns(result.comparisons),
    }


def _columns(comparisons: Sequence[CaseComparison]) -> dict[str, dict[str, list[float | str | None]]]:
    """Metrics as one list a metric, in the order of ``cases``; null where a case lacks it."""
    names = sorted({(o, m) for c in comparisons for o, output in c.outputs.items() for m in output.metrics})
    columns: dict[str, dict[str, list[float | str | None]]] = {}
    for output, metric in names:
        values = [c.outputs[output].metrics.get(metric) if output in c.outputs else None for c in comparisons]
        columns.setdefault(output, {})[metric] = [None if v is None else json_number(v) for v in values]
    return columns


def add_measured(path: Path, measured: Sequence[Mapping[str, Any]]) -> None:
    """Put a device's lines into the receipt ``path``, beside those of other devices, and seal it again."""
    content = dict(load_receipt(path))
    own = {(line["device"], line["system"], line["compute_units"], line["package"]) for line in measured}
    kept = [
        line
        for line in content.get("measured", [])
        if (line["device"], line["system"], line["compute_units"], line["package"]) not in own
    ]
    content["measured"] = [*kept, *measured]
    content["seal"] = seal(content)
    with atomic_file(path) as temporary:
        temporary.write_bytes(canonical(content))
