"""Fetches pinned checkpoints from Hugging Face, checking every sha256 before use."""

from __future__ import annotations

import logging
from pathlib import Path

from coreproof.convert.recipe import Published, Recipe
from coreproof.errors import CheckpointError
from coreproof.files import sha256_of


def fetch_checkpoint(recipe: Recipe) -> Path:
    """The folder with the published checkpoint of ``recipe``, downloaded into the Hugging Face
    cache when it is not there.

    Raises CheckpointError when the recipe pins none, when the download fails (with the command
    that does it by hand), or when a file's sha256 is not the pinned one.
    """
    pinned = recipe.published
    if pinned is None:
        raise CheckpointError(f"{recipe.name} has no published checkpoint; pass --checkpoint DIR_OR_FILE")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    # The client reports each retry; the one error at the end says it all.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        paths = {
            name: Path(hf_hub_download(pinned.repo, name, revision=pinned.revision)) for name in pinned.files
        }
    except Exception as error:  # the client raises a different type for every way of being offline
        raise CheckpointError(_by_hand(recipe.name, pinned, type(error).__name__)) from None
    for name, path in paths.items():
        found = sha256_of(path)
        if found != pinned.files[name]:
            raise CheckpointError(
                f"{pinned.repo}@{pinned.revision[:12]}: {name} has sha256 {found}, pinned is {pinned.files[name]}; "
                "delete the cached file and fetch it again"
            )
    return next(iter(paths.values())).parent


def _by_hand(model: str, pinned: Published, cause: str) -> str:
    files = " ".join(pinned.files)
    folder = f"checkpoints/{model}"
    return (
        f"could not download the {model} checkpoint ({cause}). Where there is a network, run\n"
        f"  hf download {pinned.repo} {files} --revision {pinned.revision} --local-dir {folder}\n"
        f"then pass --checkpoint {folder}"
    )
