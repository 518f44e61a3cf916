"""coremltools 9.0 without reading weights that nobody asked about, and without work that nobody sees.

Every function of coremltools that is replaced is replaced here, inside :func:`lean` and for the thread
that entered it. Weights keep their true values in every pass. A pass that computes with one computes with
the checkpoint's numbers, as it would without this module; what changes is when they are read, how
much of them at a time, and where results are kept:

- large constants are compared, searched for numbers beyond float16 and cast a piece at a time, and those
  that begin alike are found without a copy of each;
- what is cast lies in a file, and what the program is to store is held until the package is written;
- the program is validated when it is whole instead of after each of about a hundred passes, and never
  formatted for debug messages that are off;
- what follows from there being no compressed constants is not computed anew by every pass.
"""

from __future__ import annotations

import gc
import hashlib
import inspect
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from coreproof.convert.held import HeldWeights
from coreproof.convert.large import Array, Halves, extremes, is_large, pieces
from coreproof.convert.quiet import coremltools
from coreproof.errors import ConversionError

HALF_MAX = 65504.0  # the greatest float16
_ENDLESS = 1e38  # from here on coremltools takes a number for infinity, which float16 has
_UNDERFLOW_LIMIT = 400  # elements; in larger arrays coremltools lets small numbers become zero

_one_at_a_time = threading.RLock()


class Conversion:
    """What the replaced functions keep while one model is converted."""

    def __init__(self, folder: Path) -> None:
        self.halves = Halves(folder)
        self.weights = HeldWeights(self.halves)
        self.in_pipeline = False
        self.has_compressed = False
        self._extremes: dict[int, tuple[Array, tuple[float, float]]] = {}

    def extremes(self, array: Array) -> tuple[float, float]:
        """As :func:`coreproof.convert.large.extremes`, read once an array. The array is kept, so that its
        address stays its own."""
        found = self._extremes.get(array.ctypes.data)
        if found is None or found[0].shape != array.shape or found[0].dtype != array.dtype:
            found = self._extremes[array.ctypes.data] = array, extremes(array)
        return found[1]


Make = Callable[[Any, Conversion], Any]


@dataclass(frozen=True, slots=True)
class _Patch:
    """``place``: module and qualified name of what is replaced. ``read``: what was read to know that it
    may be, by default the same; ``sha256``: the beginning of the digest of its source."""

    place: str
    sha256: str
    make: Make
    read: str = ""


@contextmanager
def lean(folder: Path) -> Iterator[Conversion]:
    """Inside the block this thread's coremltools works as the head of this module says. Rounded weights
    are kept in ``folder``.

    Conversions take turns. Afterwards, whatever happened, coremltools is as before. Raises
    ConversionError when a function is not the one that coremltools 9.0 has.
    """
    coremltools()
    with _one_at_a_time, ExitStack() as stack:
        stack.enter_context(_uncollected())
        _forget_names()
        conversion = Conversion(folder)
        stack.callback(conversion.halves.close)
        owner = threading.get_ident()
        for patch in _PATCHES:
            stack.callback(_apply(patch, conversion, owner))
        yield conversion


def _forget_names() -> None:
    """Names count from zero. coremltools forgets them when a conversion ends well, so one that failed, or a
    program that was built by hand, would show in the next package's bytes."""
    from coremltools.converters.mil.converter import _reset_conversion_state

    _reset_conversion_state()


@contextmanager
def _uncollected() -> Iterator[None]:
    """No looking for unreachable cycles: a program is hundreds of thousands of objects that stay, looked
    through again and again while it grows. ``ct.convert`` collects once by itself."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _apply(patch: _Patch, conversion: Conversion, owner: int) -> Callable[[], None]:
    """Put one replacement in its place; what takes it away again."""
    _check(patch)
    target, name = _find(patch.place)
    kept = inspect.getattr_static(target, name)
    original = kept.__func__ if isinstance(kept, (classmethod, staticmethod)) else kept
    made = patch.make(original, conversion)
    if inspect.isfunction(original):
        made = _for_thread(original, made, owner)
        if not inspect.isfunction(kept):
            made = type(kept)(made)
    setattr(target, name, made)
    return lambda: setattr(target, name, kept)


def _for_thread(original: Callable[..., Any], made: Callable[..., Any], owner: int) -> Callable[..., Any]:
    @wraps(original)
    def either(*args: Any, **kwargs: Any) -> Any:
        return (made if threading.get_ident() == owner else original)(*args, **kwargs)

    return either


def _check(patch: _Patch) -> None:
    target, name = _find(patch.read or patch.place)
    try:
        source = inspect.getsource(inspect.getattr_static(target, name))
    except (OSError, TypeError) as error:
        raise ConversionError(f"coremltools' {patch.place} cannot be read: {error}") from None
    found = hashlib.sha256(source.encode()).hexdigest()
    if not found.startswith(patch.sha256):
        raise ConversionError(
            f"coremltools' {patch.read or patch.place} is not as in coremltools 9.0 (sha256 {found[:16]}, "
            f"expected {patch.sha256}); install coremltools==9.0 as published"
        )


def _find(place: str) -> tuple[Any, str]:
    """The object that holds what ``module:qualified.name`` names, and the last of the names."""
    module, _, qualified = place.partition(":")
    *owners, name = qualified.split(".")
    try:
        target = import_module(f"coremltools.converters.mil.{module}")
        for owner in owners:
            target = getattr(target, owner)
        inspect.getattr_static(target, name)
    except (ImportError, AttributeError) as error:
        raise ConversionError(
            f"coremltools has no {place} ({error}); install coremltools==9.0 as published"
        ) from None
    return target, name


# Large constants


def _torch(original: Any, conversion: Conversion) -> Any:
    """torch, but finding a tensor equal to itself takes no second look at it."""

    class Torch:
        def __getattr__(self, name: str) -> Any:
            return getattr(original, name)

        def equal(self, one: Any, other: Any) -> bool:
            places = {(t.data_ptr(), t.dtype, t.shape, t.stride()) for t in (one, other)}
            if len(places) == 1 and one.dtype is original.float32:
                array = one.detach().numpy()
                if is_large(array):
                    return not np.isnan(conversion.extremes(array)[0])
            return bool(original.equal(one, other))

    return Torch()


def _fp16_overflow(original: Any, conversion: Conversion) -> Any:
    def fp16_overflow(op: Any) -> bool:
        small = {}
        for name, given in op.inputs.items():
            several = given if isinstance(given, (list, tuple)) else [given]
            small[name] = [v for v in several if not _is_large_constant(v)]
            if any(_overflows(v.op.val.val, conversion) for v in several if _is_large_constant(v)):
                return True
        return bool(original(SimpleNamespace(inputs=small)))

    return fp16_overflow


def _is_large_constant(var: Any) -> bool:
    is_constant = var.op is not None and var.op.op_type == "const"
    return is_constant and var.is_tensor_or_scalar_of(dtype="fp32") and is_large(var.op.val.val)


def _overflows(array: Array, conversion: Conversion) -> bool:
    least, greatest = conversion.extremes(array)
    if least >= -HALF_MAX and greatest <= HALF_MAX:
        return False
    sizes = (np.abs(piece) for piece in pieces(array))
    return any(((size > HALF_MAX) & (size < _ENDLESS)).any() for size in sizes)


def _check_underflow_to_zero(original: Any, conversion: Conversion) -> Any:
    def check_underflow_to_zero(self: Any, new_var: Any, var: Any) -> None:
        if not (isinstance(var.val, np.ndarray) and var.val.size >= _UNDERFLOW_LIMIT):
            original(self, new_var, var)

    return check_underflow_to_zero


def _get_cast_value(original: Any, conversion: Conversion) -> Any:
    def get_cast_value(cls: Any, input_var: Any, dtype_val: str) -> Any:
        value = input_var.val
        if dtype_val == "fp16" and is_large(value) and value.dtype == np.float32:
            return conversion.halves.rounded(value)
        return original(cls, input_var, dtype_val)

    return get_cast_value


def _find_constants(original: Any, conversion: Conversion) -> Any:
    """Constants with those that repeat them. What tells most of them apart is how they begin in C order; the
    original makes a copy of a transposed constant, out of order and whole, to see that."""
    owner, _ = _find(_FIND_CONSTANTS)
    # As the module of the original has it; coremltools is imported late.
    list_var = original.__globals__["ListVar"]

    def find_constants(blocks: Any) -> dict[Any, list[Any]]:
        found: dict[Any, list[Any]] = {}
        alike: dict[tuple[Any, ...], list[Any]] = {}
        for op in (op for block in blocks for op in block.operations if op.op_type == "const"):
            var = op.outputs[0]
            if isinstance(var, list_var) or not owner.should_be_deduplicated(var.val):
                continue
            head = np.ascontiguousarray(var.val.flat[: owner.LENGTH_OF_HASHKEY]).tobytes()
            key = (getattr(op, "weight_key", ...), var.dtype, var.shape, head)
            others = alike.setdefault(key, [])
            atol = owner.DTYPE2ATOL.get(var.dtype, 1e-12)
            same = (o for o in others if np.allclose(var.val, o.val, rtol=0.0, atol=atol))
            if (first := next(same, None)) is not None:
                found[first].append(var)
                continue
            others.append(var)
            found[var] = []
        return found

    return find_constants


def _type_value_inference(original: Any, conversion: Conversion) -> Any:
    """Inferring a constant anew ends in comparing its value with itself, and the outcome is not used."""

    def type_value_inference(self: Any, overwrite_output: bool = False) -> None:
        if not (overwrite_output and self.op_type == "const" and self._output_vars):
            original(self, overwrite_output)
            return
        (output,), kind = self._output_vars, self.type_inference()
        (output._sym_val,) = self._auto_val((kind,))
        output._sym_type = kind
        output._set_nonreplaceable_vars_upstream()

    return type_value_inference


def _get_offset_by_writing_data(original: Any, conversion: Conversion) -> Any:
    def get_offset_by_writing_data(output_var: Any, blob_writer: object) -> int:
        return conversion.weights.add(output_var.val)

    return get_offset_by_writing_data


# What nobody sees


def _apply_pipeline(original: Any, conversion: Conversion) -> Any:
    def apply_pipeline(prog: Any, pass_pipeline: Any) -> None:
        conversion.in_pipeline = True
        try:
            original(prog, pass_pipeline)
        finally:
            conversion.in_pipeline = False

    return apply_pipeline


def _validate(original: Any, conversion: Conversion) -> Any:
    """The exporter validates the program once more, after the last pass."""

    def validate(self: Any, check_essential_scope: bool = False) -> None:
        if not conversion.in_pipeline:
            original(self, check_essential_scope)

    return validate


def _as_text(original: Any, conversion: Conversion) -> Any:
    logger = logging.getLogger("coremltools")

    def as_text(self: Any, *options: Any, **more: Any) -> str:
        if conversion.in_pipeline and not logger.isEnabledFor(logging.DEBUG):
            return ""
        return str(original(self, *options, **more))

    return as_text


def _add_op(original: Any, conversion: Conversion) -> Any:
    def add_op(cls: Any, op_cls: Any, **kwargs: Any) -> Any:
        if op_cls.__name__.startswith("constexpr_"):
            conversion.has_compressed = True
        return original(cls, op_cls, **kwargs)

    return add_op


def _propagate_nonreplaceable_vars(original: Any, conversion: Conversion) -> Any:
    """Each variable's set of compressed constants above it: all empty while there are none."""

    def propagate_nonreplaceable_vars(self: Any) -> None:
        if conversion.has_compressed:
            original(self)

    return propagate_nonreplaceable_vars


def _get_type_info(original: Any, conversion: Conversion) -> Any:
    """A class's description, made once. Its readers look at the name."""
    known: dict[type, Any] = {}

    def get_type_info(t: Any) -> Any:
        if not isinstance(t, type):
            return original(t)
        if t not in known:
            known[t] = original(t)
        return known[t]

    return get_type_info


_FP16 = "mil.passes.defs.quantization:FP16ComputePrecision"
_LOWER_GRAPH = "frontend.torch.torchscript_utils:_jit_pass_lower_graph"
_FIND_CONSTANTS = "mil.passes.defs.cleanup.const_deduplication:const_deduplication.find_constants"
_PATCHES = (
    _Patch("frontend.torch.torchscript_utils:torch", "fc1354dccdeb792d", _torch, read=_LOWER_GRAPH),
    _Patch(f"{_FP16}.fp16_overflow", "16442a50be56e0f9", _fp16_overflow),
    _Patch(f"{_FP16}._check_underflow_to_zero", "ca65abdf8aafa58d", _check_underflow_to_zero),
    _Patch("mil.ops.defs.iOS15.elementwise_unary:cast.get_cast_value", "349994c9a45ae8e0", _get_cast_value),
    _Patch(_FIND_CONSTANTS, "103228f30c480990", _find_constants),
    _Patch("mil.operation:Operation.type_value_inference", "14f8fdda0e010451", _type_value_inference),
    _Patch("backend.mil.helper:_get_offset_by_writing_data", "5759e5ade997accd", _get_offset_by_writing_data),
    _Patch(
        "mil.passes.pass_pipeline:PassPipelineManager.apply_pipeline", "7bae57bb03db4bf4", _apply_pipeline
    ),
    _Patch("mil.program:Program.validate", "6272d10e561b2990", _validate),
    _Patch("mil.program:Program.__str__", "293ac64d10966d2f", _as_text),
    _Patch("mil.block:Function.__str__", "3cf0185c55c8868c", _as_text),
    _Patch("mil.block:Block.__str__", "b32493cb1d51c978", _as_text),
    _Patch("mil.builder:Builder._add_op", "9515645a6acce24d", _add_op),
    _Patch(
        "mil.block:Block._propagate_nonreplaceable_vars", "cb2a2fc0f0365468", _propagate_nonreplaceable_vars
    ),
    _Patch("mil.types.type_mapping:get_type_info", "4bc82ca9b3da6f01", _get_type_info),
)
