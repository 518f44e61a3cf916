"""The schema of receipts, and the seal that tells an edited one from one as it was written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from coreproof.jsonio import canonical

SCHEMA = "coreproof.receipt/1"


def seal(content: Mapping[str, Any]) -> str:
    """sha256 of a receipt's JSON values without its own ``seal``."""
    return hashlib.sha256(canonical({k: v for k, v in content.items() if k != "seal"})).hexdigest()
