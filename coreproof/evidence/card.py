"""The model card of a published build: ``README.md`` with YAML front matter, written from the manifest
and the receipts alone, so that the same publication has the same card.

Front matter: https://huggingface.co/docs/hub/model-cards#model-card-metadata.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import jinja2

from coreproof.cli.console import number, size
from coreproof.convert.recipe import NUMPY, Published, TensorSpec
from coreproof.errors import UsageError
from coreproof.package.manifest import MANIFEST, Manifest, PackageRecord

_SWIFT = {"fp16": "Float16", "fp32": "Float", "int32": "Int32"}
_MODES = {"mil": "coreproof's runtime", "coreml": "Core ML"}


@dataclass(frozen=True, slots=True)
class Source:
    """Where the weights come from. ``licence``: an SPDX identifier or the Hub's name for another one."""

    kind: str
    licence: str
    published: Published | None


def source_of(manifest: Manifest, published: Published | None, given: str | None) -> Source:
    """The source of a build's weights. ``given``: the licence that the publisher states, which is needed
    for a checkpoint that the recipe does not pin and refused where it does.

    Raises UsageError when the licence is not known, or stated though it is.
    """
    kind = manifest.checkpoint.kind
    if kind == "other" and not given:
        raise UsageError(
            f"the weights of this {manifest.model} are not the pinned publication, so their licence is not known; "
            "pass --license with its SPDX identifier"
        )
    if kind != "other" and given:
        raise UsageError(f"--license {given}: the weights are {kind}, so their licence is known already")
    if kind == "published" and published is None:
        raise UsageError(f"the recipe of {manifest.model} names no publication; its licence is not known")
    pinned = published if kind == "published" else None
    return Source(kind, given or (pinned.licence if pinned else "unknown"), pinned)


def model_card(
    repo: str,
    manifest: Manifest,
    manifest_sha256: str,
    receipts: Mapping[str, Mapping[str, Any]],
    source: Source,
    descriptions: Mapping[str, str],
) -> str:
    """The card of ``manifest``'s build in the repository ``repo``.

    ``receipts``: by file name, checked by :func:`coreproof.evidence.proof.require_proof`.
    ``descriptions``: what the packages say they do, by package.
    """
    packages = [_package(manifest, record, receipts, descriptions) for record in manifest.packages]
    return _TEMPLATE.get_template("card.md.jinja").render(
        front=_front_matter(manifest, source),
        repo=repo,
        folder=PurePosixPath(repo).name,
        model=manifest.model,
        manifest=manifest,
        manifest_name=MANIFEST,
        manifest_sha256=manifest_sha256,
        receipts=receipts,
        source=source,
        packages=packages,
        beside=[f.path for f in manifest.files if not any(f.path in p["files"] for p in packages)],
        example=_example(manifest.packages[0], receipts),
        number=number,
        size=size,
        where=_MODES,
    )


def _front_matter(manifest: Manifest, source: Source) -> str:
    from huggingface_hub import ModelCardData

    name = source.licence.lower()
    known = re.fullmatch(r"[a-z0-9.+-]+", name) is not None
    licence: dict[str, Any] = (
        {"license": name} if known else {"license": "other", "license_name": source.licence}
    )
    return ModelCardData(
        **licence,
        library_name="coreml",
        base_model=source.published.repo if source.published else None,
        tags=["coreml", "coreproof", manifest.model, *(["synthetic"] if source.kind == "synthetic" else [])],
    ).to_yaml()


def _package(
    manifest: Manifest,
    record: PackageRecord,
    receipts: Mapping[str, Mapping[str, Any]],
    descriptions: Mapping[str, str],
) -> dict[str, Any]:
    files = manifest.package_files(record.package)
    contract = record.contract
    features = [("input", f) for f in contract.inputs] + [("output", f) for f in contract.outputs]
    features += [("state", f) for f in contract.states]
    judged = [
        {"receipt": name, "backend": receipt["backend"], **package}
        for name, receipt in receipts.items()
        for package in receipt["packages"]
        if package["package"] == record.package
    ]
    return {
        "record": record,
        "description": descriptions.get(record.package, ""),
        "files": {f.path for f in files},
        "bytes": sum(f.size for f in files),
        "digest": manifest.package_digest(record.package),
        "features": features,
        "judged": judged,
    }


def _example(record: PackageRecord, receipts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the snippets of Python and Swift need to know of a package."""
    modes = [p["mode"] for r in receipts.values() for p in r["packages"] if p["package"] == record.package]
    return {
        "package": record.package,
        "mode": next((mode for mode in modes if mode), "typed"),
        "inputs": [_feature(f) for f in record.contract.inputs],
        "outputs": [_feature(f) for f in record.contract.outputs],
        "states": bool(record.contract.states),
        "units": _UNITS.get(record.compute_units, "all"),
    }


# coremltools' names -> Swift's MLComputeUnits.
_UNITS = {
    "ALL": "all",
    "CPU_ONLY": "cpuOnly",
    "CPU_AND_GPU": "cpuAndGPU",
    "CPU_AND_NE": "cpuAndNeuralEngine",
}


def _feature(spec: TensorSpec) -> dict[str, Any]:
    words = re.split(r"\W|_", spec.name)
    swift = words[0] + "".join(word.capitalize() for word in words[1:])
    return {
        "name": spec.name,
        "shape": spec.shape,
        "numpy": NUMPY[spec.dtype],
        "swift": _SWIFT[spec.dtype],
        "as": swift,
    }


def _cell(text: object) -> str:
    """``text`` inside a table or a line: no bar ends its cell, no line its row."""
    return re.sub(r"\s+", " ", str(text)).replace("|", r"\|")


def _shape(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape)) or "scalar"


_TEMPLATE = jinja2.Environment(
    loader=jinja2.PackageLoader("coreproof.evidence"),
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    undefined=jinja2.StrictUndefined,
)
_TEMPLATE.filters.update(cell=_cell, shape=_shape)
