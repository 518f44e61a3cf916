"""What a model's suite (``validation/<model>.py``) hands to the harness, as data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from coreproof.convert.checkpoint import Checkpoint
from coreproof.convert.recipe import Stage

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Reference:
    """What the official implementation computed on one checkpoint.

    ``arrays``: every tensor the suite needs, inputs included. ``provenance``: package names with
    versions, config, seed and dtype of the computation; JSON values only.
    """

    arrays: Arrays
    provenance: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Case:
    """Inputs for one stage and the tensors expected back.

    ``steps`` holds one mapping of inputs a prediction; all steps share one state. With one step
    ``expected`` has the outputs' own shapes, with several a leading axis of ``compared``.
    ``sample_rate`` in Hz makes the audio metrics apply. ``carry(inputs, outputs)`` gives what a
    prediction hands to the next one, added to the next step's own inputs. The outputs of the first
    ``warmup`` steps are not compared. ``function`` is the one to run of a multifunction package, None its
    default. ``parts`` says for an output of which only a part is expected, such as the real frames of a
    padded axis, which part that is, as an index.
    """

    id: str
    stage: str
    steps: Sequence[Arrays]
    expected: Arrays
    sample_rate: int | None = None
    carry: Callable[[Arrays, Arrays], Arrays] | None = None
    warmup: int = 0
    function: str | None = None
    parts: Mapping[str, tuple[slice, ...]] = field(default_factory=dict)

    @property
    def compared(self) -> int:
        """How many steps are compared."""
        return len(self.steps) - self.warmup


@dataclass(frozen=True, slots=True)
class Outcome:
    """One case as run: ``actual`` in the layout of ``case.expected``."""

    case: Case
    actual: Arrays


@dataclass(frozen=True, slots=True)
class Heard:
    """A case as it sounds, for the report's players and spectrograms. ``actual`` and ``expected``: floating
    (samples, channels) at ``sample_rate`` Hz, full scale being 1. ``name`` says what is heard."""

    name: str
    actual: np.ndarray
    expected: np.ndarray
    sample_rate: int


@dataclass(frozen=True, slots=True)
class Control:
    """A planted defect that the gates named in ``gates`` must catch.

    Exactly one of ``package`` (edits an exported package folder in place) and ``stage`` (returns a
    defective Stage, which is exported) is given.
    """

    name: str
    what: str
    package: Callable[[Path], None] | None = None
    stage: Callable[[Stage, Checkpoint], Stage] | None = None


def _no_aggregates(_: Sequence[Outcome]) -> Mapping[str, float]:
    return {}


@dataclass(frozen=True, slots=True)
class Suite:
    """``cases`` turns a reference into cases. ``excitations`` measures on the reference alone that
    what is tested matters (name -> value, gated by ``[[excitation]]``). ``aggregates`` measures
    over all outcomes of one package (name -> value, gated by ``aggregate = "name"``). ``heard`` makes
    sound of an outcome where an output is not sound already, empty when it cannot; without it every
    floating output of a case with a ``sample_rate`` is heard. ``optional``: stages that not every
    checkpoint has; gates may name them where there are no cases for them, but a package of them
    without cases fails as any other does."""

    model: str
    cases: Callable[[Arrays], Iterable[Case]]
    excitations: Callable[[Arrays], Mapping[str, float]]
    aggregates: Callable[[Sequence[Outcome]], Mapping[str, float]] = _no_aggregates
    controls: tuple[Control, ...] = ()
    heard: Callable[[Outcome], Sequence[Heard]] | None = None
    optional: frozenset[str] = frozenset()
