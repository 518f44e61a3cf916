"""What a build must bring to be published or taken over: green receipts of exactly what lies there.

:mod:`coreproof.evidence.check` holds each receipt to the bytes, to the gates and to itself; this adds
what it was made with. What neither can see is a receipt whose every figure was rewritten and which was
sealed again: only running the suite can.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from coreproof.catalog import ModelParts
from coreproof.errors import JudgedBadError
from coreproof.evidence.check import Receipt, find_receipts, passes, require_green
from coreproof.files import sha256_of
from coreproof.package.manifest import MANIFEST, Manifest
from coreproof.parity.gates import load_gates


def require_proof(build: Path, manifest: Manifest, parts: ModelParts | None) -> dict[str, Receipt]:
    """The receipts in ``build`` by file name: sealed, green, of these bytes and this manifest, and judged
    by the gates and the suite that ``parts`` has now.

    Without ``parts``, for who has not the model's gates, no more is asked of the verdicts than that they
    are good. The caller has compared the files with the manifest. Raises JudgedBadError with the first
    reason for which the build is not proven, PackageError for a file that is no receipt.
    """
    receipts = require_green(build, manifest, load_gates(parts.gates) if parts else None)
    digest = sha256_of(build / MANIFEST)
    found = {path.name: receipt for path, receipt in zip(find_receipts(build), receipts, strict=True)}
    for name, receipt in found.items():
        fault = next(chain(_unproven(receipt), origin_faults(receipt, digest, parts)), None)
        if fault:
            raise JudgedBadError(f"{build / name}: {fault}; run coreproof validate {build}")
    return found


def _unproven(receipt: Receipt) -> Iterator[str]:
    for entry in receipt["packages"]:
        if not passes(entry):  # what is judged for the record only may fail in a build that passes
            yield f"{entry['package']} did not pass; export without its variant {entry['variant']!r}"


def origin_faults(receipt: Receipt, manifest_sha256: str, parts: ModelParts | None) -> Iterator[str]:
    """What shows that ``receipt`` was not made with this manifest, and with the gates and the suite that
    ``parts`` has now."""
    judged = receipt.get("judged")
    if not isinstance(judged, dict) or "seal" not in receipt:
        yield "written by an earlier version, without a seal and what it was judged with"
        return
    if judged.get("manifest") != manifest_sha256:
        yield f"of another {MANIFEST} than the one here, or of this one as it was before"
    if parts and judged.get("gates") != sha256_of(parts.gates):
        yield f"judged by other gates than {parts.name} has now"
    if parts and judged.get("suite") != parts.suite_digest():
        yield f"judged by another suite than {parts.name} has now"
