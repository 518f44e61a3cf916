"""MODELS.md: every model with its contract and verdict, written from recorded receipts alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from coreproof.cli.console import number
from coreproof.errors import PackageError
from coreproof.evidence.seal import SCHEMA
from coreproof.jsonio import read_json

_TEMPLATE = jinja2.Environment(
    loader=jinja2.PackageLoader("coreproof.evidence"),
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    undefined=jinja2.StrictUndefined,
)


def models_page(receipts: Path) -> str:
    """The text of MODELS.md for the receipts under ``receipts`` (one folder a model).

    Raises PackageError for a file there that is not a receipt.
    """
    models: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(receipts.glob("*/*.json")):
        content = read_json(path, max_bytes=64 << 20)
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            raise PackageError(f"{path}: not a {SCHEMA} file")
        models.setdefault(path.parent.name, []).append(content)
    try:
        return _TEMPLATE.get_template("models.md.jinja").render(models=models, number=number)
    except (jinja2.UndefinedError, TypeError, ValueError) as error:
        raise PackageError(f"{receipts}: a receipt lacks what the page says ({error})") from None
