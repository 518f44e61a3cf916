"""Several graphs in one package: a multifunction model, made of converted programs without converting again.

coremltools does this with saved packages (``coremltools.utils.save_multifunction``), which it reads back,
deduplicates and serialises anew. Here the functions are put side by side as they were converted, under the
weights of one conversion, and what is equal is stored once when the package is written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from coreproof.convert.recipe import Stage
from coreproof.errors import ConversionError

_FIRST_TARGET = 18  # of iOS: specification version 9 is the first with functions
_SPECIFICATION = 9


def check_functions(stage: Stage) -> None:
    """Raises ConversionError when ``stage`` asks for functions that no package can have."""
    if not stage.functions:
        return
    where = f"stage {stage.name!r}"
    twice = [name for name, count in Counter(f.name for f in stage.functions).items() if count > 1]
    wrong = [f.name for f in stage.functions if not f.name.isidentifier()]
    if twice or wrong:
        raise ConversionError(
            f"{where}: functions {', '.join(twice + wrong)}; names must differ and be identifiers"
        )
    first = stage.functions[0]
    if (first.inputs, first.outputs) != (stage.inputs, stage.outputs):
        raise ConversionError(
            f"{where}: inputs and outputs must be those of {first.name!r}, its first function"
        )
    if stage.states:
        raise ConversionError(f"{where}: functions with states are not supported")
    version = stage.target.removeprefix("iOS")
    if version.isdigit() and int(version) < _FIRST_TARGET:
        raise ConversionError(
            f"{where}: functions need target iOS{_FIRST_TARGET} or later, not {stage.target}"
        )


def together(specs: Sequence[Any], names: Sequence[str]) -> Any:
    """One ``Model`` message with the ``main`` of each of ``specs`` as the function of that name.

    The specs' weights must lie in one place. The first function is the default. What else a program or a
    description says is taken from the first.
    """
    merged = type(specs[0])()
    merged.CopyFrom(specs[0])
    merged.specificationVersion = max(_SPECIFICATION, *(s.specificationVersion for s in specs))
    merged.mlProgram.functions.clear()
    for field in ("input", "output", "state"):
        merged.description.ClearField(field)
    for spec, name in zip(specs, names, strict=True):
        merged.mlProgram.functions[name].CopyFrom(spec.mlProgram.functions["main"])
        described = merged.description.functions.add()
        described.name = name
        described.input.extend(spec.description.input)
        described.output.extend(spec.description.output)
    merged.description.defaultFunctionName = names[0]
    return merged
