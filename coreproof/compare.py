"""Judge one package, whoever made it, against reference tensors in an ``.npz``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from coreproof.arrays import read_npz
from coreproof.backends import Target, create
from coreproof.convert.convert import Report
from coreproof.errors import InputError
from coreproof.mil.contract import Contract, Feature, default_function, read_contract
from coreproof.package.reader import open_package
from coreproof.parity.comparison import Judgement, compare_case, judge
from coreproof.parity.gates import load_gates
from coreproof.parity.suite import Arrays, Case, Outcome
from coreproof.validate import run_case


def compare(
    package: Path, reference: Path, gates: Path, mode: str, backend: str, report: Report
) -> Judgement:
    """Run ``package`` on the reference's inputs and judge its outputs.

    The ``.npz`` holds ``input/NAME`` and ``expected/NAME`` arrays: of the contract's shapes for one
    case, or all with one more leading axis for several. An optional number ``sample_rate`` in Hz
    makes the audio metrics apply. The gate file needs only ``[[gate]]`` tables without stage and
    variant.

    Raises InputError when the arrays do not fit the contract, GateError for a bad gate file.
    """
    rules = load_gates(gates, stages=(), variants=())
    opened = open_package(package)
    contract = read_contract(opened.description, default_function(opened.description))
    runner = create(backend)
    runner.load(Target(package, mode))
    outputs = {f.name: (_fixed_shape(f), f.dtype or "float32") for f in contract.outputs}
    cases = split_cases(read_npz(reference), contract, package.stem)
    comparisons = []
    for index, case in enumerate(cases):
        report(package.name, index, len(cases))
        comparisons.append(compare_case(Outcome(case, run_case(runner, case)), outputs))
    return judge(comparisons, {}, rules, package.stem, mode)


def split_cases(arrays: Arrays, contract: Contract, stage: str) -> Sequence[Case]:
    """The cases that ``arrays`` hold. Raises InputError when inputs are missing or counts differ."""
    inputs = {k.removeprefix("input/"): v for k, v in arrays.items() if k.startswith("input/")}
    expected = {k.removeprefix("expected/"): v for k, v in arrays.items() if k.startswith("expected/")}
    missing = [f.name for f in contract.inputs if f.name not in inputs]
    if missing or not expected:
        wanted = ", ".join(f"input/{f.name}" for f in contract.inputs)
        raise InputError(
            f"the reference needs {wanted} and at least one expected/NAME; it has {', '.join(arrays) or 'nothing'}"
        )
    rate = _sample_rate(arrays.get("sample_rate"))
    first = contract.inputs[0]
    several = inputs[first.name].ndim == len(first.shape) + 1
    if not several:
        return [Case("case", stage, [inputs], expected, rate)]
    counts = {name: len(array) for name, array in {**inputs, **expected}.items() if array.ndim}
    if len(set(counts.values())) != 1 or len(counts) != len(inputs) + len(expected):
        raise InputError(f"the reference's arrays hold different numbers of cases: {counts}")
    number = counts[first.name]
    return [Case(f"case {i}", stage, [_at(inputs, i)], _at(expected, i), rate) for i in range(number)]


def _sample_rate(number: np.ndarray | None) -> int | None:
    if number is None:
        return None
    if number.shape != () or number.dtype.kind not in "iuf" or not 0 < number < 1e9 or number % 1:
        raise InputError(f"sample_rate is {number}; give one whole number of Hz")
    return int(number)


def _at(arrays: dict[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
    return {name: array[index] for name, array in arrays.items()}


def _fixed_shape(feature: Feature) -> tuple[int, ...] | None:
    return None if feature.choices or feature.ranges or not feature.shape else feature.shape
