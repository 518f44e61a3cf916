"""Models, small and synthetic, exported once a session, with the official results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from support import Export, Variants

from coreproof.convert.checkpoint import Checkpoint

FIXTURES = Path(__file__).parents[2] / "fixtures" / "mrt2"
# What the tests need; of the others a stage takes long (rollout fp16).
MRT2_PACKAGES = {
    "fp16": ("temporal_carry", "temporal_stateful", "spectrostream_decoder_streaming"),
    "fp32": (
        "temporal_carry",
        "depth_rollout",
        "spectrostream_decoder_5",
        "spectrostream_decoder_25",
        "spectrostream_decoder_streaming",
        "depth_logits",
        "conditioning_encoder",
    ),
    "published_contract": ("temporal_published_contract",),
}


@pytest.fixture(scope="session")
def mrt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoint of seed 0. Do not write into it."""
    from coreproof_exporters.mrt2 import synth

    made = tmp_path_factory.mktemp("mrt2")
    synth.synth(made, "small", 0)
    return made


@pytest.fixture(scope="session")
def mrt2_loaded(mrt2_folder: Path) -> Checkpoint:
    """The checkpoint as the recipe reads it."""
    from coreproof_exporters.mrt2 import checkpoint

    return checkpoint.load(mrt2_folder)


@pytest.fixture(scope="session")
def mrt2_export(
    mrt2_folder: Path, mrt2_loaded: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Export:
    """Exports stages by variant into a build of its own."""
    from coreproof.convert.export import export, select
    from coreproof_exporters.mrt2 import recipe

    def exported(wanted: Variants) -> Path:
        build = tmp_path_factory.mktemp("mrt2") / "build"
        pairs = [
            pair for v, stages in wanted.items() for pair in select(recipe.RECIPE, mrt2_loaded, (v,), stages)
        ]
        export(recipe.RECIPE, mrt2_folder, mrt2_loaded, pairs, build, lambda *_: None)
        return build

    return exported


@pytest.fixture(scope="session")
def mrt2_packages() -> Variants:
    return MRT2_PACKAGES


@pytest.fixture(scope="session")
def mrt2_build(mrt2_export: Export) -> Path:
    """Its build of MRT2_PACKAGES. Do not write into it."""
    return mrt2_export(MRT2_PACKAGES)


@pytest.fixture(scope="session")
def mrt2_official(mrt2_loaded: Checkpoint) -> Mapping[str, np.ndarray]:
    """What the official code computed on it."""
    from coreproof.package.manifest import checkpoint_digest
    from coreproof.parity.fixture import find

    fixture = find([FIXTURES], "mrt2", checkpoint_digest(mrt2_loaded.files))
    assert fixture is not None, "make reference-mrt2"
    return fixture.arrays


@pytest.fixture(scope="session")
def tangoflux_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with TangoFlux's small checkpoint of seed 0. Do not write into it."""
    from coreproof_exporters.tangoflux import synth

    made = tmp_path_factory.mktemp("tangoflux")
    synth.synth(made, "small", 0)
    return made


@pytest.fixture(scope="session")
def tangoflux_build(tangoflux_folder: Path) -> Path:
    """Its whole build. Do not write into it."""
    from coreproof.convert.export import export, select
    from coreproof_exporters.tangoflux import checkpoint, recipe

    loaded = checkpoint.load(tangoflux_folder)
    pairs = select(recipe.RECIPE, loaded, (), ())
    export(recipe.RECIPE, tangoflux_folder, loaded, pairs, tangoflux_folder / "build", lambda *_: None)
    return tangoflux_folder / "build"


@pytest.fixture(scope="session")
def tangoflux_official(tangoflux_folder: Path) -> Mapping[str, np.ndarray]:
    """What the official code computed on it."""
    from coreproof.package.manifest import checkpoint_digest
    from coreproof.parity.fixture import find
    from coreproof_exporters.tangoflux import checkpoint

    digest = checkpoint_digest(checkpoint.load(tangoflux_folder).files)
    fixture = find([FIXTURES.with_name("tangoflux")], "tangoflux", digest)
    assert fixture is not None, "make reference-tangoflux"
    return fixture.arrays
