"""What is in a model: contract, ops by family, dtypes, ranks, weights, states, functions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from coreproof.mil.contract import Feature, read_contract
from coreproof.mil.families import FAMILY_OF
from coreproof.mil.program import Function, Operation
from coreproof.mil.types import DType, TensorType
from coreproof.mil.weights import weights
from coreproof.package.layout import list_files
from coreproof.package.reader import Package, open_package


def inspect(path: Path) -> dict[str, Any]:
    """The facts about the model at ``path`` as JSON values; needs neither torch nor coremltools.

    Raises PackageError for a malformed one.
    """
    package = open_package(path)
    metadata = package.description.metadata
    own = {
        "description": metadata.shortDescription,
        "author": metadata.author,
        "license": metadata.license,
        "version": metadata.versionString,
    }
    return {
        "specification_version": package.specification_version,
        "bytes": sum((path / name).stat().st_size for name in (list_files(path) if path.is_dir() else [""])),
        "functions": {n: _function(package, f) for n, f in sorted(package.program.functions.items())},
        "weights": _weights(package),
        "metadata": {**{k: v for k, v in own.items() if v}, **dict(sorted(metadata.userDefined.items()))},
    }


def _function(package: Package, function: Function) -> dict[str, Any]:
    contract = read_contract(package.description, function.name)
    operations = [o for o in function.block.walk() if o.type != "const"]
    counts = Counter(o.type for o in operations)
    families: dict[str, dict[str, int]] = {}
    for op, count in sorted(counts.items()):
        families.setdefault(FAMILY_OF.get(op, "unknown"), {})[op] = count
    types = [t for o in operations for t in _results(o)]
    return {
        "opset": function.opset,
        "inputs": [_feature(f) for f in contract.inputs],
        "outputs": [_feature(f) for f in contract.outputs],
        "states": [_feature(f) for f in contract.states],
        "op_count": len(operations),
        "ops": dict(sorted(families.items())),
        "dtypes": dict(sorted(Counter(t.dtype.value for t in types).items())),
        "highest_rank": max((len(t.shape) for t in types if t.shape is not None), default=0),
    }


def _results(operation: Operation) -> list[TensorType]:
    return [o.type for o in operation.outputs if isinstance(o.type, TensorType)]


def _feature(feature: Feature) -> dict[str, Any]:
    return {
        "name": feature.name,
        "kind": feature.kind,
        "dtype": feature.dtype,
        "shape": feature.shape_text,
        "optional": feature.optional,
    }


def _weights(package: Package) -> dict[str, Any]:
    listed = []
    totals: dict[DType, list[int]] = {}
    for name, blob in weights(package.program):
        assert isinstance(blob.type, TensorType)
        count = blob.type.size or 0
        nbytes = (count * blob.type.dtype.bits + 7) // 8
        listed.append(
            {
                "name": name,
                "dtype": blob.type.dtype.value,
                "shape": list(blob.type.shape or ()),
                "bytes": nbytes,
            }
        )
        total = totals.setdefault(blob.type.dtype, [0, 0])
        total[0] += 1
        total[1] += nbytes
    by_dtype = {d.value: {"count": c, "bytes": b} for d, (c, b) in sorted(totals.items())}
    return {"by_dtype": by_dtype, "list": listed}
