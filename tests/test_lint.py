"""Static checks: a planted program each, and beside it one of the same ops that is as it should be."""

from __future__ import annotations

import json
from pathlib import Path

import coremltools as ct
import pytest
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types
from support import Cli, Made

from coreproof.lint import CHECKS, lint
from coreproof.mil.from_text import parse_program
from coreproof.mil.program import Program
from coreproof.package.reader import open_package

HEAD = 'program(1.3)\n[buildInfo = dict<string, string>({{"a", "b"}})]\n'
HALF = "(tensor<fp16, [1, 64]> x)"
TIMES = "(tensor<fp32, [7, 2, 3]> x, tensor<fp32, [4, 3]> w, tensor<fp32, [4, 1]> r, "
CORNERS = "(tensor<fp32, [1, 2, 6, 1]> x)"
RESIZE = (
    "bool b = const()[val = bool({})]; "
    "tensor<fp32, [1, 2, 12, 1]> y = upsample_bilinear(x = x, align_corners = b);"
)
CUMSUM = "int32 a = const()[val = int32(1)]; tensor<{0}, [1, 64]> c = cumsum(x = {1}, axis = a); "

# check: (statements, signature) with the fault, and without it
PLANTED = {
    "identical-operands": (
        ("tensor<fp32, [1, 4]> y = sub(x = x, y = x);",),
        ("tensor<fp32, [1, 4]> y = mul(x = x, y = x);",),
    ),
    "initial-state-shape": (
        ("tensor<fp32, [1, 7, 1]> y = lstm(x = x, initial_h = h);", TIMES + "tensor<fp32, [7, 1]> h)"),
        ("tensor<fp32, [1, 7, 1]> y = lstm(x = x, initial_h = h);", TIMES + "tensor<fp32, [2, 1]> h)"),
    ),
    "aligned-corners-of-one": (
        (RESIZE.format("true"), CORNERS),
        (RESIZE.format("false"), CORNERS),
    ),
    "half-precision-phase": (
        (
            CUMSUM.format("fp16", "x") + "tensor<fp16, [1, 64]> f = floor(x = c); "
            "tensor<fp16, [1, 64]> p = sub(x = c, y = f); tensor<fp16, [1, 64]> y = sin(x = p);",
            HALF,
        ),
        (
            'string k = const()[val = string("fp32")]; string h = const()[val = string("fp16")]; '
            "tensor<fp32, [1, 64]> x32 = cast(x = x, dtype = k); " + CUMSUM.format("fp32", "x32")
            + "tensor<fp16, [1, 64]> p = cast(x = c, dtype = h); tensor<fp16, [1, 64]> y = sin(x = p);",
            HALF,
        ),
    ),
    "shifted-reciprocal": (
        ("tensor<fp32, [1, 4]> y = inverse(x = x);",),
        ("fp32 e = const()[val = fp32(0x0p+0)]; tensor<fp32, [1, 4]> y = inverse(x = x, epsilon = e);",),
    ),
    "random": (
        ("tensor<int32, [2]> s = const()[val = tensor<int32, [2]>([1, 4])]; "
         "tensor<fp32, [1, 4]> y = random_normal(shape = s);",),
        ("tensor<fp32, [1, 4]> y = exp(x = x);",),
    ),
    "scattered-write": (
        ("tensor<fp32, [1, 4]> y = scatter(data = x, indices = i, updates = u);",
         "(tensor<fp32, [1, 4]> x, tensor<int32, [1]> i, tensor<fp32, [1, 4]> u)"),
        ("tensor<fp32, [1, 4]> y = gather(x = x, indices = i);",
         "(tensor<fp32, [1, 4]> x, tensor<int32, [4]> i)"),
    ),
    "unexpected-dimension": (
        ("tensor<int32, [?, 2]> y = non_zero(x = x);",),
        ("tensor<fp32, [?, 4]> y = exp(x = x);", "(tensor<fp32, [?, 4]> x)"),
    ),
}  # fmt: skip
ERRORS = {"identical-operands", "initial-state-shape", "aligned-corners-of-one", "half-precision-phase"}


def test_every_check_has_a_planted_program_and_says_why_it_is_there():
    assert PLANTED.keys() == CHECKS.keys()
    assert {name for name, (level, _) in CHECKS.items() if level == "error"} == ERRORS
    assert all(len((check.__doc__ or "").split()) > 10 for _, check in CHECKS.values())


@pytest.mark.parametrize("check", PLANTED)
def test_a_planted_fault_is_found_and_nothing_in_its_absence(check):
    faulty, sound = PLANTED[check]
    (finding,) = lint(_program(*faulty))
    assert (finding.check, finding.level) == (check, CHECKS[check][0])
    assert (finding.function, finding.op) == ("main", "y")
    assert lint(_program(*sound)) == []


def test_a_fault_in_a_nested_block_is_found(tmp_path):
    @mb.program(
        input_specs=[mb.TensorSpec((1, 4)), mb.TensorSpec((1,), dtype=types.bool)],
        opset_version=ct.target.iOS17,
    )
    def program(x, flag):
        return mb.cond(
            pred=mb.squeeze(x=flag),
            _true_fn=lambda: mb.sub(x=x, y=x, name="inner"),
            _false_fn=lambda: mb.relu(x=x),
        )

    (finding,) = lint(open_package(_saved(program, tmp_path)).program)
    assert (finding.check, finding.op) == ("identical-operands", "inner")


def test_the_command_exits_1_for_an_error_and_0_for_a_warning(tmp_path, cli: Cli):
    @mb.program(input_specs=[mb.TensorSpec((1, 4))], opset_version=ct.target.iOS17)
    def zero(x):
        return mb.sub(x=x, y=x, name="zero")

    @mb.program(input_specs=[mb.TensorSpec((1, 4))], opset_version=ct.target.iOS17)
    def reciprocal(x):
        return mb.inverse(x=x, name="reciprocal")

    bad, odd = _saved(zero, tmp_path / "bad"), _saved(reciprocal, tmp_path / "odd")
    ended = cli("inspect", bad, "--lint")
    assert ended.status == 1
    assert "was it x % 1?" in ended.out
    ended = cli("inspect", bad, "--lint", "--json")
    assert ended.status == 1
    (finding,) = json.loads(ended.out)["findings"]
    assert (finding["level"], finding["op"], finding["type"]) == ("error", "zero", "sub")
    ended = cli("inspect", odd, "--lint", "--json")
    assert ended.status == 0
    (finding,) = json.loads(ended.out)["findings"]
    assert finding["what"] == "computes 1 / (x + 0.0001)"


def test_our_own_packages_are_clean(shared_filter: Made, shared_minilm: Made, cli: Cli):
    for path in (shared_filter.package("fp16"), shared_minilm.package("fp16")):
        ended = cli("inspect", path, "--lint")
        assert (ended.status, ended.out) == (0, f"nothing found: {len(CHECKS)} checks\n")


def _program(statements: str, signature: str = "(tensor<fp32, [1, 4]> x)") -> Program:
    text = f"{HEAD}{{ func main<ios18>{signature} {{ {statements} }} -> (y); }}"
    return parse_program(text.encode())


def _saved(program: object, folder: Path) -> Path:
    model = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS17,
        compute_precision=ct.precision.FLOAT32,
        pass_pipeline=ct.PassPipeline.EMPTY,
        skip_model_load=True,
    )
    model.save(str(folder / "planted.mlpackage"))
    return folder / "planted.mlpackage"
