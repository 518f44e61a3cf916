"""Judging a build: it passes where it should, fails closed everywhere else, and says why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import Cli, Ended, Made, digests, sign

from coreproof import catalog
from coreproof.convert.export import export
from coreproof.package.manifest import digest_files, load_manifest
from coreproof.parity.fixture import save
from coreproof.parity.suite import Reference

# Gate and metric names as the table of verdicts prints them.
FILTER_GATES = ["filtered snr_db", "filtered log_spectral_distance_db", "filtered finite_ratio"]
MINILM_GATES = ["embedding max_abs_error", "embedding cosine", "nearest_neighbour_agreement"]


@pytest.fixture
def recipe_folder(streaming_fir: Made, filter_reference: Path, tmp_path: Path) -> Made:
    """The filter with a recipe folder to change, and its reference where validate looks for it."""
    folder = shutil.copytree(streaming_fir.model, tmp_path / "streaming_fir")
    shutil.copytree(filter_reference, folder / "fixtures" / filter_reference.name)
    return replace(streaming_fir, model=str(folder))


def validate(cli: Cli, made: Made, *options: object) -> Ended:
    return cli("validate", made.build, "--model", made.model, *options)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# Passing


@pytest.mark.parametrize("backend", ["mil", "torch"])
def test_the_filter_passes(backend: str, recipe_folder: Made, cli: Cli) -> None:
    ended = validate(cli, recipe_folder, "--backend", backend, "-c", recipe_folder.checkpoint)
    assert (ended.status, ended.err) == (0, "")
    assert "FAIL" not in ended.out
    assert "pass: 2 of 2 packages\n" in ended.out
    assert [gate for gate in FILTER_GATES if ended.out.count(gate) != 2] == []
    assert f"receipt: {recipe_folder.build}/receipt-{backend}.json\n" in ended.out


@pytest.mark.parametrize("backend", ["mil", "torch"])
def test_minilm_passes(backend: str, minilm: Made, minilm_reference: Path, cli: Cli) -> None:
    options = ("--fixture", minilm_reference, "--backend", backend, "-c", minilm.checkpoint)
    ended = cli("validate", minilm.build, *options)
    assert (ended.status, ended.err) == (0, "")
    assert "pass: 2 of 2 packages\n" in ended.out
    assert "268 cases" in ended.out


def test_without_a_recorded_reference_it_is_computed_once(streaming_fir: Made, cli: Cli) -> None:
    first = validate(cli, streaming_fir, "-c", streaming_fir.checkpoint)
    second = validate(cli, streaming_fir)  # no checkpoint: the reference is in the cache now
    assert (first.status, second.status) == (0, 0)
    assert first.out == second.out


def test_a_recipe_may_be_in_a_folder_of_another_name(streaming_fir: Made, tmp_path: Path, cli: Cli) -> None:
    folder = shutil.copytree(streaming_fir.model, tmp_path / "my model")
    assert cli("reference", folder, "-c", streaming_fir.checkpoint).status == 0
    assert validate(cli, replace(streaming_fir, model=str(folder))).status == 0


# Defects in the package


def _controls() -> list[Any]:
    suite = catalog.find("minilm").suite()
    return [pytest.param(control, id=control.name) for control in suite.controls]


@pytest.mark.parametrize("control", _controls())
def test_minilms_gates_catch_each_planted_defect(
    control: Any, minilm: Made, minilm_reference: Path, cli: Cli
) -> None:
    """The build is signed, so that the gates must catch the defect and not a checksum."""
    recipe = catalog.find("minilm").recipe()
    checkpoint = recipe.load(minilm.checkpoint)
    if control.stage is not None:
        pairs = [
            (v, control.stage(s, checkpoint)) for v in recipe.variants for s in recipe.stages(checkpoint, v)
        ]
        export(recipe, minilm.checkpoint, checkpoint, pairs, minilm.build, lambda *_: None)
    else:
        for variant in recipe.variants:
            control.package(minilm.package(variant))
        sign(minilm.build)
    ended = cli("validate", minilm.build, "--fixture", minilm_reference)
    assert (ended.status, ended.err) == (1, "")
    assert "FAIL: 0 of 2 packages\n" in ended.out
    for gate in MINILM_GATES:
        lines = [line for line in ended.out.splitlines() if line.startswith(gate)]
        assert [line.split()[-1] for line in lines] == ["FAIL", "FAIL"], gate


def test_a_nan_is_said_to_be_one(recipe_folder: Made, cli: Cli) -> None:
    path = recipe_folder.weights("fp32")
    data = bytearray(path.read_bytes())
    data[-4:] = np.float32(np.nan).tobytes()
    path.write_bytes(data)
    sign(recipe_folder.build)
    ended = validate(cli, recipe_folder)
    assert ended.status == 1
    assert "problem: case 'noise', output 'filtered': 8000 of 8000 elements are NaN or Inf\n" in ended.out
    assert "FAIL: 1 of 2 packages\n" in ended.out


# Builds that are not what they claim


def _remove_spec(build: Path) -> str:
    path = "streaming_fir_fp32.mlpackage/Data/com.apple.CoreML/model.mlmodel"
    (build / path).unlink()
    return f"{path} is missing"


def _add_file(build: Path) -> str:
    (build / "notes.txt").write_text("x")
    return "notes.txt is not listed in coreproof.json"


def _grow_file(build: Path) -> str:
    path = build / "streaming_fir_fp32.mlpackage" / "Manifest.json"
    path.write_bytes(path.read_bytes() + b"\n")
    return "streaming_fir_fp32.mlpackage/Manifest.json has "


@pytest.mark.parametrize("change", [_remove_spec, _add_file, _grow_file])
def test_files_that_are_not_the_manifests(
    change: Callable[[Path], str], recipe_folder: Made, cli: Cli
) -> None:
    message = change(recipe_folder.build)
    ended = validate(cli, recipe_folder)
    assert (ended.status, ended.out) == (1, "")
    assert message in ended.err


def test_a_build_without_packages_fails(recipe_folder: Made, cli: Cli) -> None:
    for package in recipe_folder.build.glob("*.mlpackage"):
        shutil.rmtree(package)
    manifest = replace(load_manifest(recipe_folder.build), packages=(), files=digest_files(Path(), ()))
    (recipe_folder.build / "coreproof.json").write_bytes(manifest.to_bytes())
    ended = validate(cli, recipe_folder)
    assert ended.status == 1
    assert "FAIL: 0 of 0 packages\n" in ended.out


def test_a_stage_without_cases_fails(recipe_folder: Made, cli: Cli) -> None:
    records = load_manifest(recipe_folder.build).packages
    sign(recipe_folder.build, packages=tuple(replace(r, stage="reverb") for r in records))
    ended = validate(cli, recipe_folder)
    assert ended.status == 1
    assert "problem: no cases for stage 'reverb'; nothing was compared\n" in ended.out


def test_an_output_that_the_manifest_declares_otherwise_fails(recipe_folder: Made, cli: Cli) -> None:
    record, *others = load_manifest(recipe_folder.build).packages
    (output,) = record.contract.outputs
    contract = replace(record.contract, outputs=(replace(output, dtype="fp16"),))
    sign(recipe_folder.build, packages=(replace(record, contract=contract), *others))
    ended = validate(cli, recipe_folder)
    assert ended.status == 1
    assert "output 'filtered': dtype float32 where the contract has float16\n" in ended.out


# Gate files


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('metric = "snr_db"', 'metric = "snr_bd"', "gate 1: unknown metric 'snr_bd'; did you mean 'snr_db'?"),
        ('output = "filtered"', 'output = "filterd"', None),
        ('fp16 = "typed"\n', "", "[modes] has no numeric mode for variant 'fp16'"),
        ('fp16 = "typed"', 'fp16 = "bf16"', "variant 'fp16' has the unknown mode 'bf16'"),
        ('variant = "fp32"', 'variant = "fp23"', "gate 1: unknown variant 'fp23'; did you mean 'fp32'?"),
        ('"nan_weight"]', '"inf_weight"]', "gate 1: unknown control 'inf_weight'"),
        ("min = 0.05", "min = 0.5", None),
        ('name = "history"', 'name = "future"', None),
        ("min = 100.0", "min = 200.0", None),
    ],
)
def test_a_changed_gate_file_fails(
    old: str, new: str, message: str | None, recipe_folder: Made, cli: Cli
) -> None:
    edit(Path(recipe_folder.model) / "gates.toml", old, new)
    ended = validate(cli, recipe_folder)
    assert ended.status == 1
    assert (message in ended.err) if message else ("FAIL" in ended.out)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "the gate file is empty"), (None, "cannot be read"), (b"\xff", "not a TOML file in UTF-8")],
)
def test_no_gates_no_pass(content: bytes | None, message: str, recipe_folder: Made, cli: Cli) -> None:
    gates = Path(recipe_folder.model) / "gates.toml"
    gates.unlink()
    if content is not None:
        gates.write_bytes(content)
    ended = validate(cli, recipe_folder)
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith(f"error: {gates}: ")
    assert message in ended.err


# References


def test_without_a_reference_the_command_to_make_one_is_named(streaming_fir: Made, cli: Cli) -> None:
    ended = validate(cli, streaming_fir)
    model, digest = streaming_fir.model, load_manifest(streaming_fir.build).checkpoint.sha256
    assert (ended.status, ended.out) == (2, "")
    assert ended.err == (
        f"error: no reference for checkpoint {digest[:12]} of streaming_fir; pass --checkpoint, or run "
        f"coreproof reference {model} --checkpoint CHECKPOINT -o {model}/fixtures\n"
    )


def test_that_command_works(recipe_folder: Made, cli: Cli) -> None:
    shutil.rmtree(Path(recipe_folder.model) / "fixtures")
    words = validate(cli, recipe_folder).err.partition("coreproof ")[2].split()
    assert words[0] == "reference"
    made = cli(*(str(recipe_folder.checkpoint) if word == "CHECKPOINT" else word for word in words))
    assert made.status == 0
    assert validate(cli, recipe_folder).status == 0


def test_another_checkpoints_fixture_is_refused(streaming_fir: Made, tmp_path: Path, cli: Cli) -> None:
    other, fixtures = tmp_path / "other", tmp_path / "fixtures"
    cli("synth", streaming_fir.model, "--seed", 1, "-o", other)
    cli("reference", streaming_fir.model, "-c", other, "-o", fixtures)
    (fixture,) = fixtures.iterdir()
    ended = validate(cli, streaming_fir, "--fixture", fixture)
    digest = load_manifest(streaming_fir.build).checkpoint.sha256
    assert (ended.status, ended.out) == (2, "")
    assert f"{fixture}/fixture.json: made for checkpoint sha256 {fixture.name}" in ended.err
    assert f"the build under test is of {digest}" in ended.err


def test_another_checkpoint_is_refused(streaming_fir: Made, tmp_path: Path, cli: Cli) -> None:
    other = tmp_path / "other"
    cli("synth", streaming_fir.model, "--seed", 1, "-o", other)
    ended = validate(cli, streaming_fir, "-c", other)
    digest = load_manifest(streaming_fir.build).checkpoint.sha256
    assert (ended.status, ended.out) == (2, "")
    assert f"{other} is not the checkpoint of this build: its sha256 is " in ended.err
    assert f"the manifest's {digest[:12]}" in ended.err


def test_a_tampered_array_is_refused(recipe_folder: Made, cli: Cli) -> None:
    (fixture,) = (Path(recipe_folder.model) / "fixtures").iterdir()
    with np.load(fixture / "reference.npz") as stored:
        arrays = dict(stored)
    arrays["filtered"][17] += 1e-3
    np.savez_compressed(fixture / "reference.npz", **arrays)
    ended = validate(cli, recipe_folder)
    assert (ended.status, ended.out) == (2, "")
    assert "array 'filtered' is not the one recorded in fixture.json" in ended.err


def test_a_reference_that_excites_nothing_fails(recipe_folder: Made, tmp_path: Path, cli: Cli) -> None:
    """The official output repeated as its own variation: no case can show that history matters."""
    (fixture,) = (Path(recipe_folder.model) / "fixtures").iterdir()
    with np.load(fixture / "reference.npz") as stored:
        arrays = dict(stored) | {"without_history": stored["filtered"]}
    digest = load_manifest(recipe_folder.build).checkpoint.sha256
    dull = save(Reference(arrays, {"packages": {}}), "streaming_fir", digest, tmp_path / "dull")
    ended = validate(cli, recipe_folder, "--fixture", dull)
    assert ended.status == 1
    (line,) = [line for line in ended.out.splitlines() if line.startswith("history")]
    assert line.split()[-1] == "FAIL"
    assert "FAIL: 2 of 2 packages\n" in ended.out


# Wrong use


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--backend", "onnx"), "no backend 'onnx'; choose one of mil, torch, coreml, coreai, mlx"),
        (("--backend", "torch"), "backend 'torch' runs the Stage's module: it needs --checkpoint"),
        (("--controls", "--backend", "torch"), "--controls runs the mil backend and records nothing"),
        (("--controls", "--record"), "--controls runs the mil backend and records nothing"),
    ],
)
def test_wrong_use(options: tuple[str, ...], message: str, recipe_folder: Made, cli: Cli) -> None:
    ended = validate(cli, recipe_folder, *options)
    assert (ended.status, ended.out) == (2, "")
    assert message in ended.err


# Receipts


def test_the_receipt_says_what_was_judged(recipe_folder: Made, cli: Cli) -> None:
    ended = validate(cli, recipe_folder, "--json")
    receipt = json.loads(ended.out)
    manifest = load_manifest(recipe_folder.build)
    assert (receipt["schema"], receipt["model"]) == ("coreproof.receipt/1", "streaming_fir")
    assert (receipt["verdict"], receipt["backend"]) == ("pass", "mil")
    assert receipt["checkpoint"] == {"sha256": manifest.checkpoint.sha256, "kind": "synthetic", "seed": 0}
    assert receipt["toolchain"] == dict(manifest.toolchain)
    assert receipt["excitations"][0]["excitation"] == "history"
    files = digests(recipe_folder.build)
    for package, mode in zip(receipt["packages"], ("typed", "fp32"), strict=True):
        folder = package["package"]
        assert package["sha256"] == {n: d for n, d in files.items() if n.startswith(f"{folder}/")}
        assert package["mode"] == mode
        assert (package["cases"], package["problems"]) == (["noise"], [])
        assert [g["metric"] for g in package["gates"]] == [gate.split()[1] for gate in FILTER_GATES]
        assert all(g["passed"] and g["controls"] for g in package["gates"])
        (snr,) = package["metrics"]["filtered"]["snr_db"]
        assert snr == package["gates"][0]["value"]
    written = (recipe_folder.build / "receipt-mil.json").read_bytes()
    assert json.loads(written) == receipt


def test_the_same_run_writes_the_same_receipt_and_nothing_of_this_machine(
    recipe_folder: Made, tmp_path: Path, cli: Cli
) -> None:
    validate(cli, recipe_folder)
    elsewhere = replace(
        recipe_folder, build=shutil.copytree(recipe_folder.build, tmp_path / "elsewhere" / "build")
    )
    (elsewhere.build / "receipt-mil.json").unlink()
    validate(cli, elsewhere)
    first, second = ((m.build / "receipt-mil.json").read_bytes() for m in (recipe_folder, elsewhere))
    assert first == second
    assert str(tmp_path).encode() not in first
    canonical = json.dumps(json.loads(first), ensure_ascii=False, sort_keys=True, indent=1)
    assert first == f"{canonical}\n".encode()


def test_a_failing_verdict_is_recorded_as_such(recipe_folder: Made, cli: Cli) -> None:
    edit(Path(recipe_folder.model) / "gates.toml", "min = 100.0", "min = 200.0")
    assert validate(cli, recipe_folder).status == 1
    receipt = json.loads((recipe_folder.build / "receipt-mil.json").read_bytes())
    assert receipt["verdict"] == "fail"
    gates = [g for p in receipt["packages"] for g in p["gates"] if not g["passed"]]
    assert [(g["output"], g["metric"], g["min"]) for g in gates] == [("filtered", "snr_db", 200.0)]


def test_recorded_receipts_make_the_models_page(
    recipe_folder: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.chdir(tmp_path)
    digest = load_manifest(recipe_folder.build).checkpoint.sha256
    assert validate(cli, recipe_folder, "--record").status == 0
    assert (tmp_path / f"receipts/streaming_fir/{digest[:12]}-mil.json").is_file()
    stale = cli("models", "--check")
    assert (stale.status, stale.err) == (
        1,
        "error: MODELS.md does not say what receipts/ says; run coreproof models\n",
    )
    assert not (tmp_path / "MODELS.md").exists()
    assert cli("models").status == 0
    assert cli("models", "--check").status == 0
    page = (tmp_path / "MODELS.md").read_text()
    assert "## streaming_fir\n" in page
    assert "**pass** — synthetic checkpoint `" + digest[:12] in page
    assert "| `streaming_fir_fp16.mlpackage/Data/com.apple.CoreML/weights/weight.bin` |" in page
    assert "| state | `history` | fp16 | [1, 1, 32] |" in page
    assert "| filtered snr_db | 69.17 | ≥ 50 | pass |" in page
    edit(tmp_path / "MODELS.md", "**pass**", "**better than ever**")
    assert cli("models", "--check").status == 1


@pytest.mark.parametrize("content", ["{}", '{"schema": "coreproof.receipt/1"}', "[]", "{"])
def test_a_file_that_is_no_receipt_is_refused(content: str, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "receipts" / "x").mkdir(parents=True)
    (tmp_path / "receipts" / "x" / "a.json").write_text(content)
    ended = cli("models", "--receipts", tmp_path / "receipts", "--page", tmp_path / "MODELS.md")
    assert ended.status == 2
    assert "internal error" not in ended.err
    assert str(tmp_path / "receipts") in ended.err
    assert not (tmp_path / "MODELS.md").exists()
