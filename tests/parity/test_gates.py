"""The gate file: what is read, and everything that must be refused."""

import json
import math
from pathlib import Path

import pytest

from coreproof.errors import GateError
from coreproof.parity.gates import ExcitationGate, Gate, Gates, Verdict, judge_value, load_gates

HEAD = 'schema = "coreproof.gates/1"\n'
GATE = '[[gate]]\noutput = "embedding"\nmetric = "cosine"\nmin = 0.99\n'
FULL = """
schema = "coreproof.gates/1"
[modes]
fp16 = "typed"
fp32 = "fp32"
[[excitation]]
name = "attention_mask"
min = 0.01
[[gate]]
stage = "encoder"
variant = "fp32"
output = "embedding"
metric = "max_abs_error"
max = 2e-6
control = "layers_swapped"
[[gate]]
aggregate = "nearest_neighbour_agreement"
min = 1
control = ["layers_swapped", "mask_ignored"]
"""
CONTROLS = ("layers_swapped", "mask_ignored")


def write(folder: Path, text: str) -> Path:
    path = folder / "model.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    gates = load_gates(write(tmp_path, FULL), CONTROLS, stages=["encoder"], variants=["fp16", "fp32"])
    assert gates == Gates(
        gates=(
            Gate("output", "embedding", "max_abs_error", "max", 2e-6, "encoder", "fp32", ("layers_swapped",)),
            Gate("aggregate", "nearest_neighbour_agreement", None, "min", 1.0, None, None, CONTROLS),
        ),
        excitations=(ExcitationGate("attention_mask", 0.01),),
        modes={"fp16": "typed", "fp32": "fp32"},
    )


def test_a_file_for_compare_needs_only_a_gate(tmp_path: Path) -> None:
    gates = load_gates(write(tmp_path, HEAD + GATE))
    assert gates == Gates((Gate("output", "embedding", "cosine", "min", 0.99),), (), {})


@pytest.mark.parametrize("side", ["min", "max"])
def test_a_ratio_is_bounded_on_either_side(tmp_path: Path, side: str) -> None:
    text = f'{HEAD}[[gate]]\noutput = "y"\nmetric = "rms_ratio"\n{side} = 1.1\n'
    assert load_gates(write(tmp_path, text)).gates[0].side == side


def gate(**keys: str) -> str:
    """A file with one gate, some of whose lines are replaced, added or (with "") left out."""
    lines = {"output": '"embedding"', "metric": '"cosine"', "min": "0.99"} | keys
    return HEAD + "[[gate]]\n" + "".join(f"{key} = {value}\n" for key, value in lines.items() if value)


REFUSED = {
    "empty file": ("", "the gate file is empty"),
    "only a comment": ("# nothing\n", "the gate file is empty"),
    "not toml": ("[[gate]\n", "not a TOML file"),
    "no gates": (HEAD, r"no \[\[gate\]\]; add one"),
    "gates emptied": (HEAD + "gate = []\n", r"no \[\[gate\]\]; add one"),
    "only excitations": (HEAD + '[[excitation]]\nname = "x"\nmin = 1\n', r"no \[\[gate\]\]; add one"),
    "no schema": (GATE, "schema is None; this version reads 'coreproof.gates/1'"),
    "other schema": ('schema = "coreproof.gates/2"\n' + GATE, "schema is 'coreproof.gates/2'"),
    "gate is one table": (HEAD + GATE.replace("[[gate]]", "[gate]"), r"not a list of tables; write \[\[gate"),
    "gate is a number": (HEAD + "gate = [1]\n", r"not a list of tables; write \[\[gate"),
    "unknown top key": (HEAD + "excitations = []\n" + GATE, "unknown key 'excitations'; .* 'excitation'?"),
    "unknown gate key": (gate(mininum="1"), r"gate 1: unknown key 'mininum'; did you mean 'min'\?"),
    "unknown metric": (gate(metric='"max_abs_err"'), r"metric 'max_abs_err'; did you mean 'max_abs_error'\?"),
    "unheard-of metric": (gate(metric='"xyz"'), r"unknown metric 'xyz'; known: cosine, .*token_mismatches"),
    "no metric": (gate(metric=""), "gate 1: metric is None; give a name"),
    "no bound": (gate(min=""), "gate 1: has neither min and max; give exactly one"),
    "two bounds": (gate(max="1.0"), "gate 1: has both min and max; give exactly one"),
    "nan bound": (gate(min="nan"), "gate 1: min is nan; give a finite number"),
    "infinite bound": (gate(min="-inf"), "gate 1: min is -inf; give a finite number"),
    "bound beyond float64": (gate(min="1" + "0" * 400), "give a finite number"),
    "bound is a string": (gate(min='"0.99"'), "gate 1: min is '0.99'; give a finite number"),
    "bound is a bool": (gate(min="true"), "gate 1: min is True; give a finite number"),
    "max on a cosine": (gate(min="", max="0.9"), "max on cosine, where higher is better, .*; use min"),
    "min on an error": (gate(metric='"mean_abs_error"'), "min on mean_abs_error, where lower .*; use max"),
    "nothing judged": (gate(output="", metric=""), "gate 1: has neither output and aggregate"),
    "two things judged": (gate(aggregate='"x"'), "gate 1: has both output and aggregate"),
    "metric of aggregate": (gate(output="", aggregate='"x"'), "metric goes with output"),
    "output is a number": (gate(output="1"), "gate 1: output is 1; give a name"),
    "stage is empty": (gate(stage='""'), "gate 1: stage is ''; give a name"),
    "control is a number": (gate(control="1"), "gate 1: control is 1; give the name of a control"),
    "control list of numbers": (gate(control="[1]"), r"gate 1: control is \[1\]; give the name"),
    "the same gate twice": (HEAD + GATE + GATE, "gate 'output embedding cosine min' is written 2 times"),
    "unknown mode": (HEAD + '[modes]\nfp16 = "type"\n' + GATE, "'fp16' has the .* 'type'; .*'typed'?"),
    "mode is a list": (HEAD + "[modes]\nfp16 = []\n" + GATE, r"'fp16' has the unknown mode \[\]"),
    "modes is a string": (HEAD + 'modes = "fp32"\n' + GATE, "modes is not a table"),
    "excitation without min": (HEAD + GATE + '[[excitation]]\nname = "x"\n', "excitation 1: min is None"),
    "excitation without name": (HEAD + GATE + "[[excitation]]\nmin = 1\n", "excitation 1: name is None"),
    "excitation with max": (HEAD + GATE + '[[excitation]]\nname = "x"\nmax = 1\n', "unknown key 'max'"),
    "excitation twice": (HEAD + GATE + 2 * '[[excitation]]\nname = "x"\nmin = 1\n', "excitation 'x' is writ"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_a_bad_file_is_refused_by_name_and_place(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(GateError, match=message) as caught:
        load_gates(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 1


def test_a_file_that_is_missing_a_folder_or_binary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"none\.toml: cannot be read: No such file"):
        load_gates(tmp_path / "none.toml")
    with pytest.raises(GateError, match="cannot be read: Is a directory"):
        load_gates(tmp_path)
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(GateError, match="not a TOML file in UTF-8"):
        load_gates(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('control = "layers_swapped"\n', "", "gate 1: no control; .* has: layers_swapped, mask_ignored"),
        ('["layers_swapped", "mask_ignored"]', "[]", "gate 2: no control; name one"),
        ('"mask_ignored"]', '"mask_ignord"]', "gate 2: unknown control 'mask_ignord'; .*'mask_ignored'?"),
        ('stage = "encoder"', 'stage = "encodr"', "gate 1: unknown stage 'encodr'; .*'encoder'?"),
        ('variant = "fp32"', 'variant = "fp8"', "gate 1: unknown variant 'fp8'; .*"),
        ('fp16 = "typed"', 'int8 = "typed"', "modes: unknown variant 'int8'; .*"),
    ],
)
def test_names_are_those_of_the_suite_and_the_model(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in FULL
    path = write(tmp_path, FULL.replace(old, new))
    with pytest.raises(GateError, match=message):
        load_gates(path, CONTROLS, stages=["encoder"], variants=["fp16", "fp32"])
    load_gates(path)


def test_a_suite_without_controls_satisfies_no_gate(tmp_path: Path) -> None:
    with pytest.raises(GateError, match="gate 1: unknown control 'layers_swapped'; known: none"):
        load_gates(write(tmp_path, FULL), [])


MIN = Gate("output", "y", "snr_db", "min", 40.0)
MAX = Gate("output", "y", "max_abs_error", "max", 0.5)


@pytest.mark.parametrize(
    ("judged", "value", "passed"),
    [
        (MIN, 40.0, True),
        (MIN, math.nextafter(40.0, 0), False),
        (MIN, math.inf, True),
        (MIN, -math.inf, False),
        (MIN, math.nan, False),
        (MAX, 0.5, True),
        (MAX, math.nextafter(0.5, 1), False),
        (MAX, math.inf, False),
        (MAX, math.nan, False),
        (ExcitationGate("x", 0.1), 0.1, True),
        (ExcitationGate("x", 0.1), 0.09, False),
        (ExcitationGate("x", 0.1), math.nan, False),
        (ExcitationGate("x", 0.1), math.inf, False),
    ],
)
def test_bounds_are_inclusive_and_nan_never_passes(
    judged: Gate | ExcitationGate, value: float, passed: bool
) -> None:
    assert judge_value(judged, value) is passed


@pytest.mark.parametrize(
    ("stage", "variant", "applies"),
    [("encoder", "fp32", True), ("decoder", "fp32", False), ("encoder", "fp16", False)],
)
def test_a_gate_applies_to_its_stage_and_variant(stage: str, variant: str, applies: bool) -> None:
    assert Gate("output", "y", "cosine", "min", 0.9, "encoder", "fp32").applies(stage, variant) is applies
    assert Gate("output", "y", "cosine", "min", 0.9).applies(stage, variant)


def test_a_verdict_is_strict_json() -> None:
    verdict = Verdict("output", "y", "snr_db", "min", 40.0, math.inf, True, "inf", "c1", ("swap",))
    assert json.loads(json.dumps(verdict.to_json(), allow_nan=False)) == {
        "output": "y", "metric": "snr_db", "min": 40.0, "value": "inf", "case": "c1",
        "passed": True, "detail": "inf", "controls": ["swap"],
    }  # fmt: skip
    unmeasured = Verdict("excitation", "x", None, "min", None, None, False, "no").to_json()
    assert unmeasured["excitation"] == "x"
    assert unmeasured["value"] is None
    assert unmeasured["min"] is None


def test_variants_on_record_name_whose_gates_judge_them(tmp_path: Path) -> None:
    text = FULL.replace("[modes]", '[recorded]\nint8 = "fp16"\n[modes]', 1)
    known = ["fp16", "fp32", "int8"]
    gates = load_gates(write(tmp_path, text), CONTROLS, stages=["encoder"], variants=known)
    assert gates.recorded == {"int8": "fp16"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('int8 = "bf16"', "recorded variant 'int8' is judged as 'bf16'; name one of modes: fp16, fp32"),
        ("int8 = 1", "recorded variant 'int8' is judged as 1; name one of modes"),
        ('fp32 = "fp16"', "variant 'fp32' is recorded and has a mode or a gate of its own"),
        ('int9 = "fp16"', "recorded: unknown variant 'int9'; did you mean 'int8'"),
    ],
)
def test_a_record_that_would_judge_nothing_is_refused(line: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, FULL.replace("[modes]", f"[recorded]\n{line}\n[modes]", 1))
    with pytest.raises(GateError, match=message):
        load_gates(path, CONTROLS, stages=["encoder"], variants=["fp16", "fp32", "int8"])
