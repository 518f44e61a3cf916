"""Recipe to build folder: what is selected, what is refused, and that a build is whole or absent."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import coremltools as ct
import numpy as np
import pytest
import torch
from support import Cli, Made, digests
from torch import Tensor, nn

from coreproof import catalog
from coreproof.atomic import require_space
from coreproof.convert.checkpoint import Checkpoint, FileDigest, Origin
from coreproof.convert.export import export, select
from coreproof.convert.recipe import Precision, Recipe, Stage, StateSpec, TensorSpec
from coreproof.errors import ConversionError, CoreproofError, UsageError
from coreproof.package.manifest import Manifest, load_manifest
from coreproof.package.reader import open_package

QUIET: Callable[[str, int, int], None] = lambda step, done, total: None  # noqa: E731

WEIGHT = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
CHECKPOINT = Checkpoint(
    files=(FileDigest("a.bin", 1, "0" * 64),),
    config={},
    tensors={"weight": WEIGHT},
    origins={"weight": Origin(("weight",))},
)


class Linear(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(nn.functional.linear(x, self.weight))


class Folded(Linear):
    """Doubles its weight, as a constant expression that coremltools folds."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * 2)


class Untraceable(Linear):
    """Uses an op that coremltools has no translation of."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.airy_ai(nn.functional.linear(x, self.weight))


def stage(kind: type[Linear] = Linear, **changes: object) -> Stage:
    plain = Stage(
        name="linear",
        package="linear_fp32",
        module=lambda checkpoint: kind(torch.from_numpy(checkpoint.tensors["weight"])),
        inputs=(TensorSpec("x", (1, 4), "fp32"),),
        outputs=(TensorSpec("y", (1, 3), "fp32"),),
        precision=Precision("fp32"),
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def never(folder: Path, size: str, seed: int) -> None:
    raise AssertionError("not asked for")


def make(build: Path, *stages: Stage) -> Manifest:
    recipe = Recipe("linear", lambda path: CHECKPOINT, ("fp32",), lambda checkpoint, variant: stages, never)
    pairs = [("fp32", s) for s in stages]
    return export(recipe, build.parent, CHECKPOINT, pairs, build, QUIET)


# Selection


@pytest.mark.parametrize(
    ("variants", "stages", "expected"),
    [
        ((), (), ["streaming_fir_fp16", "streaming_fir_fp32"]),
        (("fp32",), (), ["streaming_fir_fp32"]),
        (("fp32", "fp16", "fp32"), (), ["streaming_fir_fp16", "streaming_fir_fp32"]),
        (("fp16",), ("filter",), ["streaming_fir_fp16"]),
    ],
)
def test_selection_keeps_the_recipes_order(
    variants: tuple[str, ...], stages: tuple[str, ...], expected: list[str], shared_filter: Made
) -> None:
    recipe = catalog.find(shared_filter.model).recipe()
    pairs = select(recipe, recipe.load(shared_filter.checkpoint), variants, stages)
    assert [s.package for _, s in pairs] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--variant", "int4"), "streaming_fir has no variant 'int4'; it has fp16, fp32"),
        (("--stage", "decoder"), "streaming_fir has no stage 'decoder'; it has filter"),
    ],
)
def test_an_unknown_name_is_refused(
    options: tuple[str, ...], message: str, shared_filter: Made, tmp_path: Path, cli: Cli
) -> None:
    build = tmp_path / "build"
    ended = cli("export", shared_filter.model, "-c", shared_filter.checkpoint, "-o", build, *options)
    assert (ended.status, ended.err) == (2, f"error: {message}\n")
    assert list(tmp_path.iterdir()) == []


def test_one_variant_gives_the_same_package_as_all_together(
    shared_filter: Made, tmp_path: Path, cli: Cli
) -> None:
    build = tmp_path / "build"
    command = ("export", shared_filter.model, "-c", shared_filter.checkpoint, "-o", build)
    ended = cli(*command, "--variant", "fp32", "--stage", "filter", "--json")
    assert ended.status == 0
    manifest = json.loads(ended.out)
    assert manifest == json.loads((build / "coreproof.json").read_bytes())
    assert [p["package"] for p in manifest["packages"]] == ["streaming_fir_fp32.mlpackage"]
    assert digests(build / "streaming_fir_fp32.mlpackage") == digests(shared_filter.package("fp32"))


# Whole or absent


def test_a_failing_stage_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="stage 'second'"):
        make(tmp_path / "build", stage(), stage(Folded, name="second", package="second"))
    assert list(tmp_path.iterdir()) == []


def test_a_failing_stage_leaves_the_earlier_build(tmp_path: Path) -> None:
    make(tmp_path / "build", stage())
    before = digests(tmp_path)
    with pytest.raises(ConversionError, match="stage 'second'"):
        make(tmp_path / "build", stage(), stage(Folded, name="second", package="second"))
    assert digests(tmp_path) == before


def test_a_build_replaces_an_earlier_one_whole(tmp_path: Path) -> None:
    make(tmp_path / "build", stage(package="first"))
    make(tmp_path / "build", stage(package="second"))
    assert [p.name for p in sorted((tmp_path / "build").iterdir())] == ["coreproof.json", "second.mlpackage"]


def test_a_folder_of_someone_elses_is_refused(tmp_path: Path) -> None:
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "thesis.txt").write_text("the only copy")
    with pytest.raises(UsageError, match=r"is not a coreproof build \(no coreproof.json\); choose another"):
        make(tmp_path / "build", stage())
    assert [p.name for p in (tmp_path / "build").iterdir()] == ["thesis.txt"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nearly_full(path: Path, nbytes: int) -> None:
        require_space(path, nbytes + (1 << 60))

    monkeypatch.setattr("coreproof.package.writer.require_space", nearly_full)
    with pytest.raises(
        CoreproofError, match=r"needs 1,152,921,504,6.* bytes, the disk has .* free; make room"
    ):
        make(tmp_path / "build", stage())
    assert list(tmp_path.iterdir()) == []


# What a Stage may ask for


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": (TensorSpec("x", (1, 4), "fp64"),)}, "feature 'x': dtype 'fp64', choose one of fp16, fp32"),
        ({"target": "iOS99"}, "coremltools has no deployment target 'iOS99'"),
        ({"precision": Precision("bf16")}, "precision 'bf16' does not exist; choose fp16 or fp32"),
        ({"outputs": (TensorSpec("y", (1, 5), "fp32"),)}, r"outputs are .*\(1, 3\).*, the Stage asks for .*\(1, 5\)"),
        ({"outputs": (TensorSpec("y", (1, 3), "fp32"), TensorSpec("z", (1, 3), "fp32"))}, "outputs"),
        ({"states": (StateSpec("memory", (1, 2)),), "target": "iOS18"}, "memory"),
        ({"states": (StateSpec("memory", (1, 2), "fp8"),), "target": "iOS18"}, "feature 'memory': dtype 'fp8'"),
        ({"module": lambda _: Linear(None)}, "stage 'linear': its module could not be traced: "),
        ({"inputs": (TensorSpec("x", (1, 5), "fp32"),)}, "could not be traced: RuntimeError: "),
    ],
)  # fmt: skip
def test_a_stage_that_asks_for_what_is_not_there(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConversionError, match=message):
        make(tmp_path / "build", stage(**changes))
    assert list(tmp_path.iterdir()) == []


def test_an_op_that_coremltools_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"stage 'linear': coremltools could not convert it: .*airy_ai"):
        make(tmp_path / "build", stage(Untraceable))


def test_ops_kept_in_fp32_are_recorded_with_the_reason(tmp_path: Path) -> None:
    precision = Precision("fp16", lambda op: op.op_type == "exp", "exp overflows fp16 from 11.1 on")
    manifest = make(tmp_path / "build", stage(precision=precision))
    (record,) = manifest.packages
    program = open_package(tmp_path / "build" / record.package).program
    exps = [o for o in program.functions["main"].block.walk() if o.type == "exp"]
    assert record.precision.kept_fp32 == tuple(o.name for o in exps) != ()
    assert record.precision.reason == "exp overflows fp16 from 11.1 on"
    assert [o.outputs[0].type.dtype for o in exps] == ["fp32"]


@pytest.mark.parametrize("variant", ["fp16", "fp32"])
def test_nothing_is_kept_in_fp32_unasked(variant: str, shared_filter: Made) -> None:
    manifest = load_manifest(shared_filter.build)
    (record,) = [p for p in manifest.packages if p.variant == variant]
    assert (record.precision.compute, record.precision.kept_fp32) == (variant, ())


def test_metadata_goes_to_core_mls_fields_and_the_rest_to_user_fields(tmp_path: Path) -> None:
    metadata = {"author": "A", "license": "L", "version": "V", "description": "D", "weights": "W"}
    make(tmp_path / "build", stage(metadata=metadata))
    found = open_package(tmp_path / "build" / "linear_fp32.mlpackage").spec.description.metadata
    assert (found.author, found.license, found.versionString, found.shortDescription) == ("A", "L", "V", "D")
    assert found.userDefined["weights"] == "W"


def test_coremltools_reads_what_is_written(shared_filter: Made) -> None:
    """The contract, through coremltools' own loader."""
    model = ct.models.MLModel(str(shared_filter.package("fp16")), skip_model_load=True)
    described = model.get_spec().description
    assert [f.name for f in described.input] == ["audio"]
    assert [f.name for f in described.state] == ["history"]
    (output,) = described.output
    assert (output.name, list(output.type.multiArrayType.shape)) == ("filtered", [1, 1, 320])
    assert output.type.multiArrayType.dataType == ct.proto.FeatureTypes_pb2.ArrayFeatureType.FLOAT32


def test_progress_is_reported_by_package(tmp_path: Path) -> None:
    steps: list[str] = []
    recipe = Recipe("linear", lambda path: CHECKPOINT, ("fp32",), lambda c, v: (stage(),), never)
    pairs = [("fp32", stage())]
    export(recipe, tmp_path, CHECKPOINT, pairs, tmp_path / "build", lambda s, done, total: steps.append(s))
    assert steps[0] == "linear_fp32: tracing"
    assert steps[-1] == "linear_fp32: writing"
    assert any("pipeline" in s for s in steps[1:-1])
