"""Gates: the TOML file that says what a package must reach, and the verdict on one number.

::

    schema = "coreproof.gates/1"
    [modes]                       # the numeric mode our runtime judges a variant in
    fp16 = "typed"                # fp32, typed or fp16acc
    [recorded]                    # variants judged by another's gates and mode, whose failing is on
    int8 = "fp16"                 #   record and fails no build
    [[excitation]]                # measured on the reference alone
    name = "attention_mask"
    min = 0.01
    [[gate]]
    stage = "encoder"             # left out: any stage
    variant = "fp32"              # left out: any variant
    output = "embedding"          # with a metric of coreproof.parity.metrics; or instead of both
    metric = "max_abs_error"      #   aggregate = "name", measured by the suite over all cases
    max = 2e-6                    # max or min, inclusive
    control = "layers_swapped"    # name, or names, of the planted defects that this gate catches

The reader fails closed: whatever it does not know, and whatever would judge nothing, is a GateError.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from coreproof.errors import GateError
from coreproof.jsonio import json_number
from coreproof.parity.metrics import METRICS

SCHEMA = "coreproof.gates/1"
MODES = ("fp32", "typed", "fp16acc")

Side = Literal["min", "max"]
Kind = Literal["output", "aggregate", "excitation"]
Key = TypeVar("Key", bound=str)

_TOP_KEYS = {"schema", "modes", "recorded", "excitation", "gate"}
_GATE_KEYS = {"stage", "variant", "output", "metric", "aggregate", "min", "max", "control"}
_EXCITATION_KEYS = {"name", "min"}


@dataclass(frozen=True, slots=True)
class Gate:
    """A bound on one number. ``kind`` is ``output`` (``name`` is the output, ``metric`` set) or
    ``aggregate`` (``name`` is the aggregate, ``metric`` None). ``stage`` and ``variant`` of None
    mean any. ``controls`` name the negative controls that prove the gate bites."""

    kind: Kind
    name: str
    metric: str | None
    side: Side
    bound: float
    stage: str | None = None
    variant: str | None = None
    controls: tuple[str, ...] = ()

    def applies(self, stage: str, variant: str) -> bool:
        return self.stage in (None, stage) and self.variant in (None, variant)


@dataclass(frozen=True, slots=True)
class ExcitationGate:
    """The least value at which the reference excites what the suite tests."""

    name: str
    bound: float


@dataclass(frozen=True, slots=True)
class Gates:
    """A whole gate file. ``modes`` maps variants to numeric modes; variants may be absent. ``recorded`` maps
    variants that are judged for the record to those whose gates and mode judge them."""

    gates: tuple[Gate, ...]
    excitations: tuple[ExcitationGate, ...]
    modes: Mapping[str, str]
    recorded: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one gate said. ``value`` is None when it was never measured, ``bound`` None when a
    measured excitation has no gate; both fail. ``case`` is the one ``value`` comes from, None for
    aggregates and excitations. ``detail`` is a sentence for people, in passing verdicts too."""

    kind: Kind
    name: str
    metric: str | None
    side: Side
    bound: float | None
    value: float | None
    passed: bool
    detail: str
    case: str | None = None
    controls: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """JSON values only; keys as in the gate file where it has them."""
        return {
            self.kind: self.name,
            **({"metric": self.metric} if self.metric else {}),
            self.side: None if self.bound is None else json_number(self.bound),
            "value": None if self.value is None else json_number(self.value),
            "case": self.case,
            "passed": self.passed,
            "detail": self.detail,
            "controls": list(self.controls),
        }


def judge_value(gate: Gate | ExcitationGate, value: float) -> bool:
    """Whether ``value`` is within the gate's inclusive bound. NaN never is. An excitation must also
    be finite; +inf passes another ``min`` (the SNR of a perfect match)."""
    if isinstance(gate, ExcitationGate):
        return math.isfinite(value) and bool(value >= gate.bound)
    return bool(value >= gate.bound) if gate.side == "min" else bool(value <= gate.bound)


def load_gates(
    path: Path | str,
    controls: Collection[str] | None = None,
    *,
    stages: Collection[str] | None = None,
    variants: Collection[str] | None = None,
) -> Gates:
    """Read and check a gate file.

    ``controls``: the names of the suite's negative controls; given, every gate must name at least one
    of them and no other. ``stages``, ``variants``: the model's; given, the file may name no other,
    because a gate on a misspelled stage would judge nothing. Raises GateError for a file that is
    missing, empty, not TOML, of another schema, without gates, or with anything unknown, doubled,
    contradictory or of the wrong type.
    """
    path = Path(path)
    table = _read(path)
    _reject_unknown(table, _TOP_KEYS, str(path))
    if table.get("schema") != SCHEMA:
        raise GateError(f"{path}: schema is {table.get('schema')!r}; this version reads {SCHEMA!r}")
    gates = [_gate(entry, where) for entry, where in _tables(table, "gate", path)]
    if not gates:
        raise GateError(f"{path}: no [[gate]]; add one, because what nothing judges never passes")
    excitations = [_excitation(entry, where) for entry, where in _tables(table, "excitation", path)]
    modes = _modes(table.get("modes", {}), path)
    _reject_doubles(path, "gate", ((g.kind, g.name, g.metric, g.side, g.stage, g.variant) for g in gates))
    _reject_doubles(path, "excitation", ((e.name,) for e in excitations))
    for i, gate in enumerate(gates, start=1):
        _check_controls(gate, controls, f"{path}: gate {i}")
        _check_known("stage", gate.stage, stages, f"{path}: gate {i}")
        _check_known("variant", gate.variant, variants, f"{path}: gate {i}")
    for variant in modes:
        _check_known("variant", variant, variants, f"{path}: modes")
    recorded = _recorded(table.get("recorded", {}), modes, gates, path)
    for variant in recorded:
        _check_known("variant", variant, variants, f"{path}: recorded")
    return Gates(tuple(gates), tuple(excitations), modes, recorded)


def _read(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        reason = f"{error.strerror}; nothing passes without a gate file"
        raise GateError(f"{path}: cannot be read: {reason}") from None
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError are both one
        raise GateError(f"{path}: not a TOML file in UTF-8: {error}") from None
    if not table:
        raise GateError(f"{path}: the gate file is empty; nothing passes without gates")
    return table


def _tables(table: Mapping[str, Any], key: str, path: Path) -> list[tuple[dict[str, Any], str]]:
    """The tables of a list, each with words for where it stands."""
    entries = table.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise GateError(f"{path}: {key} is not a list of tables; write [[{key}]]")
    return [(entry, f"{path}: {key} {i}") for i, entry in enumerate(entries, start=1)]


def _gate(entry: Mapping[str, Any], where: str) -> Gate:
    _reject_unknown(entry, _GATE_KEYS, where)
    side: Side = _only_one(entry, ("min", "max"), where)
    kind: Kind = _only_one(entry, ("output", "aggregate"), where)
    bound = _number(entry, side, where)
    metric = _metric(entry, side, where) if kind == "output" else None
    if kind == "aggregate" and "metric" in entry:
        raise GateError(f"{where}: metric goes with output; an aggregate is a number already")
    return Gate(
        kind=kind,
        name=_text(entry, kind, where),
        metric=metric,
        side=side,
        bound=bound,
        stage=_text(entry, "stage", where) if "stage" in entry else None,
        variant=_text(entry, "variant", where) if "variant" in entry else None,
        controls=_controls(entry.get("control", []), where),
    )


def _metric(entry: Mapping[str, Any], side: str, where: str) -> str:
    name = _text(entry, "metric", where)
    if name not in METRICS:
        raise GateError(f"{where}: unknown metric {name!r}{_suggestion(name, METRICS)}")
    better = METRICS[name].better
    if (side, better) in {("max", "higher"), ("min", "lower")}:
        use = "min" if side == "max" else "max"
        raise GateError(f"{where}: {side} on {name}, where {better} is better, passes the worst; use {use}")
    return name


def _excitation(entry: Mapping[str, Any], where: str) -> ExcitationGate:
    _reject_unknown(entry, _EXCITATION_KEYS, where)
    return ExcitationGate(_text(entry, "name", where), _number(entry, "min", where))


def _modes(modes: object, path: Path) -> Mapping[str, str]:
    if not isinstance(modes, dict):
        raise GateError(f'{path}: modes is not a table; write [modes] and lines such as fp16 = "typed"')
    for variant, mode in modes.items():
        if mode not in MODES:
            hint = _suggestion(mode, MODES)
            raise GateError(f"{path}: variant {variant!r} has the unknown mode {mode!r}{hint}")
    return modes


def _recorded(
    table: object, modes: Mapping[str, str], gates: Sequence[Gate], path: Path
) -> Mapping[str, str]:
    if not isinstance(table, dict):
        raise GateError(f'{path}: recorded is not a table; write [recorded] and lines such as int8 = "fp16"')
    for variant, judge in table.items():
        if not isinstance(judge, str) or judge not in modes:
            known = ", ".join(sorted(modes)) or "none"
            raise GateError(
                f"{path}: recorded variant {variant!r} is judged as {judge!r}; name one of modes: {known}"
            )
        if variant in modes or any(gate.variant == variant for gate in gates):
            raise GateError(f"{path}: variant {variant!r} is recorded and has a mode or a gate of its own")
    return table


def _controls(value: object, where: str) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise GateError(f"{where}: control is {value!r}; give the name of a control, or a list of names")
    return tuple(names)


def _check_controls(gate: Gate, known: Collection[str] | None, where: str) -> None:
    if known is not None and not gate.controls:
        names = ", ".join(sorted(known)) or "none, add one"
        raise GateError(f"{where}: no control; name one that this gate catches; the suite has: {names}")
    for name in gate.controls:
        _check_known("control", name, known, where)


def _check_known(what: str, name: str | None, known: Collection[str] | None, where: str) -> None:
    if name is not None and known is not None and name not in known:
        raise GateError(f"{where}: unknown {what} {name!r}{_suggestion(name, known)}")


def _only_one(entry: Mapping[str, Any], keys: tuple[Key, Key], where: str) -> Key:
    present = [key for key in keys if key in entry]
    if len(present) != 1:
        found = "has both" if present else "has neither"
        raise GateError(f"{where}: {found} {keys[0]} and {keys[1]}; give exactly one")
    return present[0]


def _text(entry: Mapping[str, Any], key: str, where: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise GateError(f"{where}: {key} is {value!r}; give a name in quotes")
    return value


def _number(entry: Mapping[str, Any], key: str, where: str) -> float:
    value = entry.get(key)
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer beyond float64
        pass
    raise GateError(f"{where}: {key} is {value!r}; give a finite number")


def _reject_unknown(entry: Mapping[str, Any], known: Collection[str], where: str) -> None:
    for key in entry:
        if key not in known:
            raise GateError(f"{where}: unknown key {key!r}{_suggestion(key, known)}")


def _reject_doubles(path: Path, what: str, keys: Iterable[tuple[str | None, ...]]) -> None:
    for key, count in Counter(keys).items():
        if count > 1:
            names = " ".join(part for part in key if part)
            raise GateError(f"{path}: {what} {names!r} is written {count} times; keep one")


def _suggestion(name: object, known: Collection[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(sorted(known)) or 'none'}"
