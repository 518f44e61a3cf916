"""A Stage's module as a traced graph, without running the model where that can be done.

A trace records which ops were called, so it can be taken on tensors that have shapes and no data
(torch's ``meta`` device), and the weights be put in afterwards. What the module computes while it is traced
costs nothing then. A module that asks for data, that asks where its tensors are, or that makes tensors of
its own on the CPU, is traced with its weights instead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.recipe import Stage
from coreproof.errors import ConversionError, CoreproofError

_META = torch.device("meta")
# What tells a tensor without data from one on the CPU.
_TELLTALES = {Tensor.type, *(getattr(Tensor, name).__get__ for name in ("device", "is_cpu", "is_meta"))}


class _NeedsData(Exception):
    """The graph of a module depends on more than shapes."""


def trace(stage: Stage, checkpoint: Checkpoint) -> Any:
    """``stage``'s module as a ``torch.jit`` module with the checkpoint's weights.

    Raises ConversionError when it cannot be traced, and what the module's own code raises on purpose.
    """
    # fp16 inputs are traced in fp32: coremltools' own precision pass decides what becomes fp16.
    dtypes = {"fp16": torch.float32, "fp32": torch.float32, "int32": torch.int32}
    examples = tuple(torch.ones(i.shape, dtype=dtypes[i.dtype]) for i in stage.trace_inputs or stage.inputs)
    states = {s.name for s in stage.states}
    try:
        with torch.no_grad():
            try:
                return _without_data(stage.module(checkpoint).eval(), examples, states)
            except CoreproofError:
                raise
            except Exception:  # a module is anyone's code, and any of it may need data
                module = stage.module(checkpoint).eval()
                return torch.jit.trace(module, examples, check_trace=False)
    except CoreproofError:
        raise
    except Exception as error:
        raise ConversionError(
            f"stage {stage.name!r}: its module could not be traced: {type(error).__name__}: {error}"
        ) from error


def _without_data(module: nn.Module, examples: tuple[Tensor, ...], states: set[str]) -> Any:
    """The trace of ``module`` on tensors without data. Raises whatever such a module may raise."""
    owned = [
        (place, name, value)
        for place, part in module.named_modules()
        for name, value in (*part._parameters.items(), *part._buffers.items())
        if value is not None
    ]
    bare = {id(value): _bare(value) for _, _, value in owned}
    for place, name, value in owned:
        setattr(module.get_submodule(place), name, bare[id(value)])
    versions = [bare[id(value)]._version for _, _, value in owned]
    inputs = tuple(e.to(_META) for e in examples)
    with _without_compiler():
        with _Wary():
            module(*inputs)
        with _recorded_convolutions():
            traced = torch.jit.trace(module, inputs, check_trace=False)
    for (place, name, value), version in zip(owned, versions, strict=True):
        full = f"{place}.{name}" if place else name
        if bare[id(value)]._version != version and full not in states:
            raise _NeedsData(f"{full} is written to")
        setattr(traced.get_submodule(place), name, value)
    graph = traced.inlined_graph
    for node in graph.findAllNodes("prim::Constant", recurse=True):
        if node.hasAttribute("value") and node.kindOf("value") == "t" and node.t("value").is_meta:
            raise _NeedsData("a constant tensor was computed")
    return traced


def _bare(value: Tensor) -> Tensor:
    shape = value.detach().to(_META)
    return nn.Parameter(shape, value.requires_grad) if isinstance(value, nn.Parameter) else shape


class _Wary(TorchFunctionMode):
    """Refuses to tell which device a tensor is on: a module that asks may do another thing there."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function in _TELLTALES:
            raise _NeedsData("it asks for a tensor's device")
        return function(*args, **(kwargs or {}))


# benchmark, deterministic, enabled and allow_tf32 of cuDNN, as a trace has them
_CUDNN = (False, False, True, True)


def _convolve(self: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """In place of the ``_conv_forward`` of torch's convolutions."""
    axes = len(self.kernel_size)
    if isinstance(self.padding, str) or self.padding_mode != "zeros" or input.dim() != axes + 2:
        raise _NeedsData("a convolution without a batch, or that pads by a rule, is several ops")
    how = (self.stride, self.padding, self.dilation, False, (0,) * axes, self.groups)
    return torch._convolution(input, weight, bias, *how, *_CUDNN)


_CALL = compile("torch._convolution(*arguments)", "<trace>", "eval")


def _convolve_transposed_by(*given: Any, **named: Any) -> Tensor:
    """In place of the transposed convolutions of ``torch.nn.functional``. The innermost function is then the
    module's own, so the call is made where its names hold."""
    arguments = (*_transposed(*given, **named), *_CUDNN)
    made: Tensor = eval(_CALL, {"arguments": arguments, "torch": torch}, sys._getframe(1).f_locals)
    return made


def _transposed(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> tuple[Any, ...]:
    axes = weight.dim() - 2
    if input.dim() != axes + 2:
        raise _NeedsData("a transposed convolution without a batch is several ops")

    def each(numbers: Any) -> tuple[int, ...]:
        sizes = (numbers,) * axes if isinstance(numbers, int) else tuple(numbers)
        if not all(type(size) is int for size in sizes):
            raise _NeedsData("a transposed convolution to a given size is several ops")
        return sizes

    return (
        input,
        weight,
        bias,
        each(stride),
        each(padding),
        each(dilation),
        True,
        each(output_padding),
        groups,
    )


_CONVOLUTIONS: list[tuple[Any, str, Any]] = [
    *((kind, "_conv_forward", _convolve) for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)),
    *((nn.functional, f"conv_transpose{axes}d", _convolve_transposed_by) for axes in (1, 2, 3)),
]


@contextmanager
def _recorded_convolutions() -> Iterator[None]:
    """Convolutions call what a trace has of them, ``aten::_convolution``. With data torch gets there by itself;
    without, it takes another way, of which a trace sees nothing. A trace names values as the innermost
    function does, so the arguments are called what torch calls them."""
    kept = [(kind, name, getattr(kind, name)) for kind, name, _ in _CONVOLUTIONS]
    for kind, name, recorded in _CONVOLUTIONS:
        setattr(kind, name, recorded)
    try:
        yield
    finally:
        for kind, name, function in kept:
            setattr(kind, name, function)


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Before torch infers a shape in Python it tells its compiler to look away, and imports the compiler
    for it, which takes a second and 60 MB. Inside the block, something that looks away takes its place."""
    if "torch._dynamo" in sys.modules:
        yield
        return
    told: list[Any] = []

    def disable(function: Any, recursive: bool = True, wrapping: bool = True) -> Any:
        told.append(function)
        return function

    stand_in = ModuleType("torch._dynamo")
    stand_in.disable = disable  # type: ignore[attr-defined]
    sys.modules["torch._dynamo"] = vars(torch)["_dynamo"] = stand_in
    try:
        yield
    finally:
        del sys.modules["torch._dynamo"], vars(torch)["_dynamo"]
        for function in told:
            vars(function).pop("__dynamo_disable", None)
