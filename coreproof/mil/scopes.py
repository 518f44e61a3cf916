"""What names stand for inside a function: a block sees its own and those around it."""

from __future__ import annotations

from collections.abc import Iterable

from coreproof.errors import PackageError
from coreproof.mil.program import Block, Function, Value


def require_unique_names(function: Function) -> None:
    """Raise PackageError when ``function`` gives one name to two values of which the second is made
    where the first is seen, so that a reference could mean either."""
    _Names(function.name).add_block(function.block, (i.name for i in function.inputs))


def constants(block: Block) -> dict[str, Value]:
    """The values of the block's own ``const`` operations, by the name of what they make."""
    return {
        o.outputs[0].name: o.attributes["val"]
        for o in block.operations
        if o.type == "const" and o.outputs and "val" in o.attributes
    }


class _Names:
    def __init__(self, function: str) -> None:
        self._function = function
        self._seen: set[str] = set()

    def add_block(self, block: Block, given: Iterable[str] = ()) -> None:
        """Go through a block, whose names are gone again afterwards."""
        made: list[str] = []
        self._add((*given, *(i.name for i in block.inputs)), made)
        for operation in block.operations:
            for inner in operation.blocks:
                self.add_block(inner)
            self._add((o.name for o in operation.outputs), made)
        self._seen.difference_update(made)

    def _add(self, names: Iterable[str], made: list[str]) -> None:
        for name in names:
            if name in self._seen:
                raise PackageError(f"function {self._function!r}: two values are called {name!r}")
            self._seen.add(name)
            made.append(name)
