"""A build that may be published: checked, judged and described."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from coreproof.catalog import ModelParts
from coreproof.errors import UsageError
from coreproof.evidence.card import model_card, source_of
from coreproof.evidence.proof import require_proof
from coreproof.files import sha256_of
from coreproof.package.manifest import MANIFEST, Manifest, check_files, load_manifest
from coreproof.package.reader import open_package
from coreproof.publication.plan import Item, contents


@dataclass(frozen=True, slots=True)
class Release:
    """What is to be published. ``manifest_sha256`` is that of the file ``coreproof.json``."""

    manifest: Manifest
    manifest_sha256: str
    items: tuple[Item, ...]
    card: str

    @property
    def summary(self) -> str:
        """The message of the commit."""
        packages = ", ".join(record.package for record in self.manifest.packages)
        return f"{self.manifest.model}: {packages}, manifest {self.manifest_sha256[:12]}"


def prepare(
    build: Path, parts: ModelParts, repo: str, allow_synthetic: bool = False, licence: str | None = None
) -> Release:
    """Check the folder ``build`` and write its card for the repository ``repo``.

    Raises JudgedBadError when a file is not the manifest's, when a package has no green receipt of these
    bytes, this manifest, these gates and this suite, or when a receipt's verdicts do not follow from its
    figures; UsageError for synthetic weights that were not asked for and for an unknown licence.
    """
    manifest = load_manifest(build)
    check_files(build, manifest)
    receipts = require_proof(build, manifest, parts)
    if manifest.checkpoint.kind == "synthetic" and not allow_synthetic:
        raise UsageError(
            f"{build} holds synthetic weights (seed {manifest.checkpoint.seed}), of use to nobody but a test; "
            "pass --allow-synthetic to publish them all the same"
        )
    digest = sha256_of(build / MANIFEST)
    source = source_of(manifest, parts.recipe().published, licence)
    card = model_card(repo, manifest, digest, receipts, source, _descriptions(build, manifest))
    return Release(manifest, digest, contents(build, manifest, list(receipts), card), card)


def _descriptions(build: Path, manifest: Manifest) -> dict[str, str]:
    """What each package's own metadata says that it does."""
    texts = {}
    for record in manifest.packages:
        text = open_package(build / record.package).description.metadata.shortDescription
        texts[record.package] = text.strip().rstrip(".")
    return texts
