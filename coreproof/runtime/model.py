"""Open a Core ML package and run it, on any machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from coreproof.errors import (
    CoreproofError,
    ExecutionError,
    InputError,
    PackageError,
    UnsupportedOpError,
    UsageError,
)
from coreproof.mil.contract import Contract, Feature, default_function, read_contract
from coreproof.mil.types import TensorType
from coreproof.package.reader import Package, open_package
from coreproof.runtime.codegen import OP_FAILURES, Compiled, compile_function
from coreproof.runtime.emission import Hook
from coreproof.runtime.features import INPUT_KINDS, OUTPUT_KINDS, argument, default, given, required, returned
from coreproof.runtime.state import State


def load(
    path: str | Path,
    mode: str = "typed",
    function_name: str | None = None,
    device: str = "cpu",
    compile: bool = False,
) -> Model:
    """Open the ``.mlpackage`` at ``path`` (or a compiled ``.mlmodelc``, or a bare ``.mlmodel``) for prediction.

    ``mode``: ``typed`` (every fp16-typed result rounded once, products accumulate in fp32),
    ``fp32`` (the graph's mathematics) or ``fp16acc`` (running sums rounded to fp16 too).
    ``function_name``: which function of a multifunction package. Weights are mapped, and read by
    the first prediction. ``compile``: let ``torch.compile`` translate the program at the first
    prediction, which takes seconds to minutes and pays for graphs of many tiny ops; in mode ``fp32``
    only, because it drops the roundings of the others.

    Raises PackageError for a malformed package, UnsupportedOpError for an op or mode that the
    runtime does not have, UsageError for a device torch cannot use.
    """
    try:
        place = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch raises either, by device
        raise UsageError(f"device {device!r} is not to be had here: {error}") from None
    return Model(open_package(Path(path)), mode, function_name, place, compile=compile)


class Model:
    """A compiled function of a package. ``contract`` holds its features."""

    def __init__(
        self,
        package: Package,
        mode: str = "typed",
        function_name: str | None = None,
        device: torch.device | None = None,
        hook: Hook | None = None,
        compile: bool = False,
    ) -> None:
        if compile and mode != "fp32":
            raise UnsupportedOpError(
                f"torch.compile drops the roundings of mode {mode!r}; it is for mode 'fp32' only"
            )
        self.path = package.path
        self.mode = mode
        self.device = device or torch.device("cpu")
        self.function_name = function_name or default_function(package.description)
        function = package.program.functions.get(self.function_name)
        if function is None:
            raise PackageError(
                f"{self.path}: no function {self.function_name!r}; it has {', '.join(package.program.functions)}"
            )
        package.check()
        self.contract: Contract = read_contract(package.description, self.function_name)
        weights = package.weights
        self._compiled = compile_function(function, weights.array, mode, hook, weights.release)
        self._call = _translated(self._compiled.run) if compile else self._compiled.run
        self._check_features()
        self._ready = False

    def _check_features(self) -> None:
        inputs, states = ({f.name for f in fs} for fs in (self.contract.inputs, self.contract.states))
        unfed = [
            i.name
            for i in self._compiled.inputs
            if i.name not in (inputs if isinstance(i.type, TensorType) else states)
        ]
        unmade = [f.name for f in self.contract.outputs if f.name not in self._compiled.outputs]
        if unfed or unmade:
            raise PackageError(
                f"{self.path}: the description and function {self.function_name!r} disagree on "
                f"{', '.join(unfed + unmade)}"
            )
        for features, kinds in ((self.contract.inputs, INPUT_KINDS), (self.contract.outputs, OUTPUT_KINDS)):
            for feature in features:
                if feature.kind not in kinds:
                    raise UnsupportedOpError(
                        f"{self.path}: feature {feature.name!r} of kind {feature.kind} is not supported"
                    )

    def make_state(self) -> State:
        """Fresh state buffers, all zero, for one stream of predictions."""
        return State(self.contract.states, self.device)

    def predict(self, inputs: Mapping[str, Any], state: State | None = None) -> dict[str, Any]:
        """Run once. ``inputs``: an array per input feature, of the declared shape and dtype; an
        optional one with a default may be left out.

        Returns per output feature an array in the declared dtype, or for a classifier its label (str
        or int) and the probabilities by label (dict). Images are arrays, see
        :class:`~coreproof.mil.contract.Feature`. Raises InputError naming the input that does not
        fit, ExecutionError naming the op that failed.
        """
        self._check_names(inputs)
        if self.contract.states and state is None:
            raise InputError(f"{self.path.name} is stateful: pass state=model.make_state()")
        features = {f.name: f for f in self.contract.inputs}
        arguments = [
            self._argument(features[i.name], inputs, i.type)
            if isinstance(i.type, TensorType)
            else state.slot(i.name)  # type: ignore[union-attr]
            for i in self._compiled.inputs
        ]
        results = dict(zip(self._compiled.outputs, self._run(arguments), strict=True))
        return {f.name: returned(f, results[f.name]) for f in self.contract.outputs}

    def _check_names(self, inputs: Mapping[str, Any]) -> None:
        features = {f.name: f for f in self.contract.inputs}
        missing = [f.name for f in self.contract.inputs if required(f) and f.name not in inputs]
        extra = [n for n in inputs if n not in features]
        if missing or extra:
            wrong = f"missing input {missing[0]!r}" if missing else f"unknown input {extra[0]!r}"
            contract = ", ".join(f"{f.name}: {f.dtype} {f.shape_text}" for f in features.values())
            raise InputError(f"{wrong}; {self.path.name} takes {contract}")

    def _argument(self, feature: Feature, inputs: Mapping[str, Any], kind: TensorType) -> torch.Tensor:
        array = given(feature, inputs[feature.name]) if feature.name in inputs else default(feature)
        # A program may keep its input in a state, where the caller's later writes must not reach it.
        array = array.copy() if self.contract.states else array
        try:
            return argument(feature, array, kind).to(self.device)
        except OP_FAILURES as error:
            raise ExecutionError(
                f"input {feature.name!r} of shape {list(array.shape)} is no {kind}, which the program takes: {error}"
            ) from error

    def _run(self, arguments: list[Any]) -> tuple[Any, ...]:
        with torch.inference_mode():
            if not self._ready:
                self._compiled.read_weights(self._place)
                self._ready = True
            try:
                return self._call(*arguments)
            except (CoreproofError, *OP_FAILURES) as error:
                raise _located(error, self._compiled) from error

    def _place(self, value: Any) -> Any:
        return value.to(self.device) if isinstance(value, torch.Tensor) else value


def _translated(run: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """``run`` by ``torch.compile``. The result raises UsageError where that has no C++ compiler."""
    from torch._inductor.exc import InvalidCxxCompiler

    compiled = torch.compile(run, dynamic=False)

    def call(*arguments: Any) -> tuple[Any, ...]:
        try:
            return compiled(*arguments)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            if not isinstance(error.inner_exception, InvalidCxxCompiler):
                raise
            raise UsageError(
                "torch.compile needs a C++ compiler: install one (Debian: g++) or load without compile=True"
            ) from error

    return call


def _located(error: Exception, compiled: Compiled) -> Exception:
    """``error`` with the op that raised it, found by its line in the generated code."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code is compiled.run.__code__:
            operation = compiled.lines.get(trace.tb_lineno)
            if operation is not None:
                types = ", ".join(f"{o.name}: {o.type}" for o in operation.outputs)
                return ExecutionError(
                    f"op {operation.type!r} (name {operation.name!r}, to give {types}) failed: {error}"
                )
        trace = trace.tb_next
    return error
