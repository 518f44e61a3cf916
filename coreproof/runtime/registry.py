"""Where an op's implementation is declared, and how the engine finds it.

An op is a plain function over torch tensors whose parameters carry MIL's own names and defaults:

    @op("softmax")
    def softmax(x: Tensor, axis: int = -1) -> Tensor: ...

Annotations are the schema. ``Tensor`` parameters receive tensors; ``Tensors`` a list of them;
``int``, ``float``, ``bool``, ``str``, ``Ints``, ``Floats``, ``Bools`` and ``Strs`` receive Python values, converted
when the package is opened where the argument is constant. Two keyword-only parameters are filled
by the engine, never by the program: ``num`` (how products and sums accumulate, see
:mod:`coreproof.runtime.numerics`) and ``out`` (the declared types of the outputs).

Floating point tensors are held as float32 whatever their MIL type; the engine rounds an op's
result to its declared type as the numeric mode says. Ops therefore never cast or round.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from coreproof.errors import UnsupportedOpError
from coreproof.mil.families import FAMILIES, FAMILY_OF
from coreproof.runtime.left_out import OPS

OPSETS = ("ios15", "ios16", "ios17", "ios18", "ios26")
SPECIALIZATIONS = {
    "CoreML5": "ios15",
    "CoreML6": "ios16",
    "CoreML7": "ios17",
    "CoreML8": "ios18",
    "CoreML9": "ios26",
}

Ints = tuple[int, ...]
Floats = tuple[float, ...]
Bools = tuple[bool, ...]
Strs = tuple[str, ...]

REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True, slots=True)
class Param:
    """``kind``: tensor, tensors, int, float, bool, str, ints, floats, bools or strs."""

    name: str
    kind: str
    default: Any


@dataclass(frozen=True, slots=True)
class OpDef:
    """``moves``: the op only moves or selects elements, so its result is already representable in
    its type. ``pure``: the same inputs give the same result, so it may be folded at load."""

    name: str
    since: str
    fn: Callable[..., Any]
    params: Mapping[str, Param]
    moves: bool
    pure: bool
    wants: frozenset[str]


# Families whose module has another name.
_MODULES = {"compression": "constexpr", "constexpr_ops": "constexpr", "quantization_ops": "quantization"}
_REGISTRY: dict[str, dict[str, OpDef]] = {}
_KINDS = {
    "Tensor": "tensor", "Tensor | None": "tensor", "Tensors": "tensors",
    "int": "int", "float": "float", "bool": "bool", "str": "str",
    "Ints": "ints", "Floats": "floats", "Bools": "bools", "Strs": "strs",
    "int | None": "int", "float | None": "float", "bool | None": "bool", "str | None": "str",
    "Ints | None": "ints", "Floats | None": "floats", "Bools | None": "bools", "Strs | None": "strs",
}  # fmt: skip


def op(
    name: str, *, since: str = "ios15", moves: bool = False, pure: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as MIL op ``name`` from opset ``since`` on."""

    def register(fn: Callable[..., Any]) -> Callable[..., Any]:
        add(name, fn, _params(fn), since=since, moves=moves, pure=pure)
        return fn

    return register


def add(
    name: str,
    fn: Callable[..., Any],
    params: tuple[Param, ...],
    *,
    since: str = "ios15",
    moves: bool = False,
    pure: bool = True,
) -> None:
    """Register ``fn`` with an explicit schema, for torch functions that take no annotations."""
    versions = _REGISTRY.setdefault(name, {})
    if since in versions:
        raise ValueError(f"op {name!r} is registered twice for {since}")
    own = tuple(p for p in params if p.kind != "engine")
    wants = frozenset(p.name for p in params if p.kind == "engine")
    versions[since] = OpDef(name, since, fn, {p.name: p for p in own}, moves, pure, wants)


def _params(fn: Callable[..., Any]) -> tuple[Param, ...]:
    params = []
    for parameter in inspect.signature(fn).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            params.append(Param(parameter.name, "engine", REQUIRED))
        else:
            params.append(Param(parameter.name, _KINDS[parameter.annotation], parameter.default))
    return tuple(params)


def lookup(name: str, opset: str) -> OpDef:
    """The implementation of ``name`` that ``opset`` selects: the newest one not newer than it.

    Raises UnsupportedOpError, naming what exists or why it is left out.
    """
    if name in FAMILY_OF:
        import_module(module_of(FAMILY_OF[name]))
    versions = _REGISTRY.get(name)
    if versions is None:
        reason = f"is not run: {OPS[name]}" if name in OPS else "is not implemented"
        raise UnsupportedOpError(f"op {name!r} ({opset}) {reason}")
    known = [v for v in OPSETS[: OPSETS.index(opset) + 1] if v in versions]
    if not known:
        raise UnsupportedOpError(f"op {name!r} exists from {min(versions)} on; the program asks for {opset}")
    return versions[known[-1]]


def registry() -> Mapping[str, Mapping[str, OpDef]]:
    """Every implementation by op name and opset."""
    for family in FAMILIES:
        import_module(module_of(family))
    return _REGISTRY


def module_of(family: str) -> str:
    """The module that registers the ops of ``family`` when it is imported: a program needs few of them."""
    return f"coreproof.runtime.ops.{_MODULES.get(family, family)}"
