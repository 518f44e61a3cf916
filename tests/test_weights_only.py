"""Stored weights against the checkpoint, by numpy: what passes, what is caught, and what it needs."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import Cli, Made, flip_bit, sign

from coreproof import catalog
from coreproof.convert.checkpoint import Checkpoint, FileDigest, Origin
from coreproof.convert.retrace import _blocks
from coreproof.package.manifest import PackageRecord, WeightRecord, load_manifest
from coreproof.weights_only import WeightsOnly, _Package, verify_weights

PACKAGE = "streaming_fir_fp16.mlpackage"


def check(made: Made) -> WeightsOnly:
    return verify_weights(made.build, catalog.find(made.model), made.checkpoint, lambda *_: None)


def reasons(made: Made) -> list[str]:
    found = check(made)
    assert not found.passed
    return [f"{f.level} {f.where}: {f.what}" for f in found.findings]


def edit_record(build: Path, **changes: Any) -> None:
    """Change what the manifest says of the fp16 package's one weight."""
    record, *others = load_manifest(build).packages
    sign(build, packages=(replace(record, weights=(replace(record.weights[0], **changes),)), *others))


@pytest.mark.parametrize("name", ["shared_filter", "shared_minilm"])
def test_a_fresh_builds_weights_are_the_checkpoints(name: str, request: pytest.FixtureRequest) -> None:
    made = request.getfixturevalue(name)
    found = check(made)
    assert found.passed
    assert [p.weights for p in found.packages] == [len(r.weights) for r in load_manifest(made.build).packages]
    assert all(p.weights > 0 and p.bytes > 0 and not p.constants for p in found.packages)


def test_the_command(streaming_fir: Made, cli: Cli) -> None:
    command = ("verify", "--weights-only", streaming_fir.build, "--model", streaming_fir.model)
    ended = cli(*command, "-c", streaming_fir.checkpoint)
    assert ended.status == 0
    assert (
        f"same: 2 weights of {streaming_fir.build} are the checkpoint's, every byte accounted for\n"
        in ended.out
    )
    assert "not looked at: the graph and what constants it holds" in ended.out
    flip_bit(streaming_fir.weights("fp16"))
    sign(streaming_fir.build)
    ended = cli(*command, "-c", streaming_fir.checkpoint, "--json")
    found = json.loads(ended.out)
    assert (ended.status, found["verdict"]) == (1, "fail")
    (finding,) = found["findings"]
    assert finding["max_abs"] == 0.03125


def test_neither_torch_nor_coremltools_is_imported(shared_filter: Made, shared_minilm: Made) -> None:
    """In a process in which importing either fails."""
    program = """
        import importlib.util, sys

        class Blocked:
            def find_spec(self, name, path=None, target=None):
                if name == "torch":
                    raise ImportError(f"{name} is blocked")
                if name != "coremltools":
                    return None
                sys.meta_path.remove(self)
                found = importlib.util.find_spec(name)
                sys.meta_path.insert(0, self)
                found.loader = self
                return found
            def create_module(self, spec):
                return None
            def exec_module(self, module):
                raise ImportError("coremltools is blocked")

        sys.meta_path.insert(0, Blocked())
        for name in ("torch", "coremltools"):
            try:
                __import__(name)
            except ImportError as error:
                assert "blocked" in str(error), error
            else:
                raise AssertionError(name)
            sys.modules.pop(name, None)
        from coreproof.cli import main
        sys.argv = ["coreproof", *sys.argv[1:]]
        try:
            main()
        finally:
            assert not {"torch", "coremltools"} & set(sys.modules)
    """
    for made in (shared_filter, shared_minilm):
        ended = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), "verify", "--weights-only", str(made.build),
             "-c", str(made.checkpoint), "--model", made.model],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (ended.returncode, ended.stderr) == (0, "")
        assert "same: " in ended.stdout


def _another_element(made: Made) -> None:
    flip_bit(made.weights("fp16"))
    sign(made.build)


def _gap(made: Made) -> None:
    """A byte of the header that means nothing."""
    flip_bit(made.weights("fp16"), 20)
    sign(made.build)


def _tail(made: Made) -> None:
    with made.weights("fp16").open("ab") as stream:
        stream.write(b"hidden" * 20)
    sign(made.build)


def _more_entries(made: Made) -> None:
    """A second entry, well-formed, that no op uses."""
    path = made.weights("fp16")
    data = bytearray(path.read_bytes())
    data += bytes(-len(data) % 64)
    entry = struct.pack("<IIQQQ32x", 0xDEADBEEF, 1, 2, len(data) + 64, 0) + b"\x00\x3c"
    data[:4] = (2).to_bytes(4, "little")
    path.write_bytes(bytes(data) + entry)
    sign(made.build)


def _more_files(made: Made) -> None:
    (made.package("fp16") / "Data/com.apple.CoreML/weights/more.bin").write_bytes(b"more")
    sign(made.build)


SAID = "'streaming_fir_fp16"
FORGERIES: dict[str, tuple[Callable[[Made], object], str]] = {
    "a weight": (
        _another_element,
        f"weight {PACKAGE}: taps_to_fp16: 1 of 33 elements are not 'reversed, as (1, 1, taps); rounded to "
        "float16' of taps; max abs 0.03125",
    ),
    "no re-signing": (lambda m: flip_bit(m.weights("fp16")), "files "),
    "the header": (_gap, f"file {PACKAGE}: "),
    "the end": (_tail, "bytes behind the 1 entries that its header counts"),
    "an entry": (
        _more_entries,
        "weights/weight.bin offset 256: the program and coreproof.json have no weight there",
    ),
    "a file": (_more_files, "weights/more.bin: is neither the program nor its weights"),
    "another key": (
        lambda m: edit_record(m.build, keys=("gain",)),
        "taps_to_fp16: no tensor of the checkpoint is gain with",
    ),
    "one key more": (
        lambda m: edit_record(m.build, keys=("taps", "gain")),
        "taps_to_fp16: comes from taps, and not from gain",
    ),
    "no rounding": (
        lambda m: edit_record(m.build, transform="reversed, as (1, 1, taps)"),
        "33 of 33 elements are not 'reversed, as (1, 1, taps)' of taps",
    ),
    "another transform": (
        lambda m: edit_record(m.build, transform="identity"),
        "no tensor of the checkpoint is taps with 'identity'",
    ),
    "an unknown step": (
        lambda m: edit_record(m.build, transform="reversed, as (1, 1, taps); doubled"),
        "no tensor of the checkpoint is taps with 'reversed, as (1, 1, taps); doubled'",
    ),
    "another order of axes": (
        lambda m: edit_record(m.build, transform="reversed, as (1, 1, taps); transposed [0, 3]; rounded to float16"),
        "33 of 33 elements are not",
    ),
    "a constant": (
        lambda m: edit_record(m.build, keys=(), transform="constant of the stage"),
        "is called a constant of the stage, which declares none such",
    ),
    "another name": (
        lambda m: edit_record(m.build, name="other"),
        "in the manifest (name, dtype, shape, bytes), ('taps_to_fp16', 'fp16', (1, 1, 33), 66) in the package",
    ),
    "another hash": (
        lambda m: edit_record(m.build, sha256="0" * 64),
        "taps_to_fp16: has sha256 b28209",
    ),
    "another place": (
        lambda m: edit_record(m.build, offset=128),
        "weights/weight.bin offset 64: coreproof.json has no weight there",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_is_caught(name: str, streaming_fir: Made) -> None:
    forge, reason = FORGERIES[name]
    forge(streaming_fir)
    found = reasons(streaming_fir)
    assert any(reason in one for one in found), found


def test_another_checkpoint_is_refused(streaming_fir: Made, tmp_path: Path, cli: Cli) -> None:
    cli("synth", streaming_fir.model, "--seed", 1, "-o", tmp_path / "other")
    (reason,) = reasons(replace(streaming_fir, checkpoint=tmp_path / "other"))
    assert reason.startswith("checkpoint filter.safetensors: sha256 ")


def test_a_checkpoint_that_changed_under_the_same_manifest(streaming_fir: Made, tmp_path: Path) -> None:
    """Whoever signs a build as another checkpoint's is told apart by the weights."""
    other = tmp_path / "other"
    other.mkdir()
    taps = load_file(streaming_fir.checkpoint / "filter.safetensors")["taps"]
    taps[3] += 0.25
    save_file({"taps": taps}, other / "filter.safetensors")
    files = catalog.find(streaming_fir.model).recipe().load(other).files
    from coreproof.package.manifest import checkpoint_digest

    record = replace(
        load_manifest(streaming_fir.build).checkpoint,
        files=files, sha256=checkpoint_digest(files), kind="other", seed=None,
    )  # fmt: skip
    sign(streaming_fir.build, checkpoint=record)
    found = reasons(replace(streaming_fir, checkpoint=other))
    assert [
        f"{p.name}" in f for p, f in zip(sorted(streaming_fir.build.glob("*.mlpackage")), found, strict=True)
    ]
    assert all("1 of 33 elements are not" in f for f in found)
    assert "max abs 0.25" in found[1]


def test_pieces_of_any_strides_come_in_c_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coreproof.convert.retrace._PIECE", 6)
    array = np.arange(120).reshape(4, 5, 6)
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)):
        turned = array.transpose(order)
        parts = list(_blocks(turned))
        np.testing.assert_array_equal(np.concatenate(parts), turned.reshape(-1))
        assert turned.flags.c_contiguous or max(p.size for p in parts) <= 6


def test_tensors_that_are_equal_share_a_weight(streaming_fir: Made) -> None:
    """Of two keys that hold the same numbers both are named, and both are held to them."""
    manifest = load_manifest(streaming_fir.build)
    record = manifest.packages[1]
    taps = np.array(load_file(streaming_fir.checkpoint / "filter.safetensors")["taps"][::-1]).reshape(
        1, 1, -1
    )
    (weight,) = record.weights
    shared = replace(weight, keys=("one", "two"), transform="identity")

    def judge(second: np.ndarray) -> tuple[str, ...]:
        checkpoint = Checkpoint(
            files=(FileDigest("f", 1, "0" * 64),),
            config={},
            tensors={"a": taps, "b": second},
            origins={"a": Origin(("one",)), "b": Origin(("two",))},
        )
        changed: PackageRecord = replace(record, weights=(shared,))
        package = _Package(streaming_fir.build, manifest, changed, checkpoint, ())
        return tuple(f.what for f in package.explain(lambda *_: None).findings)

    assert isinstance(weight, WeightRecord)
    assert judge(taps.copy()) == ()
    assert judge(taps + 1) == (f"{weight.name}: comes from one, and not from two",)
