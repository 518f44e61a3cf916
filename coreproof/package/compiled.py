"""The folder that a compiled model is (``.mlmodelc``), as Apple's compiler writes it for an ML program.

``model.mil`` is the program as MIL text, ``weights/`` holds the weight files as a package does, and
``coremldata.bin`` says what the features are. Apple documents none of it; this is what the output of
coremlc 3500 to 3600 shows, little-endian:

    coremldata.bin = u32 model type (its field number in ``Model.proto``: 502 for an ML program),
                     24 bytes, u64 length and text of the target, u64 specification version,
                     24 bytes, u64 length and bytes of the ``ModelDescription`` message, trailer

The message is that of the model that was compiled, so nothing about the features is lost. Where
``coremldata.bin`` is missing, ``metadata.json`` is read, which Xcode shows to people and Core ML does
without. It does not say what fills an optional input that is not given, and this reader takes only
arrays and states from it.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from coreproof.errors import PackageError
from coreproof.files import read_bytes
from coreproof.jsonio import read_json
from coreproof.package.layout import safe_join
from coreproof.package.proto import new_model, parse
from coreproof.package.schema import MODEL_TYPES

COMPILED = ".mlmodelc"
MIL_TEXT = "model.mil"
DESCRIPTION = "coremldata.bin"
METADATA = "metadata.json"

_MAX_BYTES = 64 << 20
_HEAD = struct.Struct("<I24xQ")
_TAIL = struct.Struct("<Q24xQ")
_DTYPES = {"Float16": 65552, "Float32": 65568, "Double": 65600, "Int32": 131104, "Int8": 131080}


def read_description(folder: Path) -> Any:
    """A ``Model`` message with the description and specification version of the compiled model
    ``folder``, and without its program.

    Raises PackageError when the folder is no compiled ML program, or one whose features are not
    written as this module says.
    """
    if (folder / DESCRIPTION).exists():
        return _from_coremldata(safe_join(folder, DESCRIPTION))
    if not (folder / MIL_TEXT).exists():
        raise PackageError(
            f"{folder}: not a compiled ML program, it has no {MIL_TEXT}; open the .mlpackage it was made from"
        )
    if (folder / METADATA).exists():
        return _from_metadata(safe_join(folder, METADATA))
    raise PackageError(
        f"{folder}: neither {DESCRIPTION} nor {METADATA} is there to say what its features are"
    )


def require_program(path: Path, kind: str | None) -> None:
    """Raise PackageError unless ``kind``, a field of ``Model``, is that of an ML program."""
    if kind != "mlProgram":
        what = f"a {kind} model" if kind else "a file without a model"
        raise PackageError(f"{path}: {what}, not an ML program")


def _from_coremldata(path: Path) -> Any:
    data = read_bytes(path, _MAX_BYTES)
    model = new_model()
    try:
        number, target = _HEAD.unpack_from(data)
        if number in MODEL_TYPES:
            require_program(path, MODEL_TYPES[number])
        tail = data[_HEAD.size + target :]
        model.specificationVersion, length = _TAIL.unpack_from(tail)
        message = tail[_TAIL.size :][:length]
        if number not in MODEL_TYPES or len(message) != length:
            raise ValueError
        parse(model.description, message)
    except (struct.error, ValueError):
        raise PackageError(
            f"{path}: not laid out as known compilers write it, or truncated ({len(data)} bytes); "
            f"move it away to have {METADATA} read instead"
        ) from None
    return model


def _from_metadata(path: Path) -> Any:
    content = read_json(path, _MAX_BYTES)
    try:
        (entry,) = content
        require_program(path, entry["modelType"]["name"].removeprefix("MLModelType_"))
        model = new_model()
        model.specificationVersion = int(entry["specificationVersion"])
        described = model.description
        own = (("shortDescription", "shortDescription"), ("author", "author"), ("license", "license"))
        for key, field in (*own, ("version", "versionString")):
            setattr(described.metadata, field, entry.get(key, ""))
        described.metadata.userDefined.update(entry.get("userDefinedMetadata", {}))
        if "functions" not in entry:
            _features(entry, described)
        for function in entry.get("functions", ()):
            _features(function, described.functions.add(name=function["name"]))
        described.defaultFunctionName = entry.get("defaultFunctionName", "")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise PackageError(f"{path}: does not describe a compiled model as expected: {error!r}") from None
    return model


def _features(schemas: dict[str, Any], described: Any) -> None:
    for key, features in (("inputSchema", described.input), ("outputSchema", described.output)):
        for schema in schemas[key]:
            _feature(schema, features.add(), "multiArrayType")
    for schema in schemas.get("stateSchema", ()):
        _feature(schema, described.state.add(), "stateType")


def _feature(schema: dict[str, Any], feature: Any, kind: str) -> None:
    """Set the ``FeatureDescription`` message ``feature`` to what ``schema`` says."""
    feature.name = schema["name"]
    if schema["type"] not in ("MultiArray", "State") or schema["dataType"] not in _DTYPES:
        raise ValueError(f"{DESCRIPTION} is needed for a {schema.get('formattedType')} ({feature.name!r})")
    feature.type.isOptional = schema.get("isOptional") == "1"
    array = feature.type.multiArrayType if kind == "multiArrayType" else feature.type.stateType.arrayType
    array.dataType = _DTYPES[schema["dataType"]]
    array.shape.extend(json.loads(schema["shape"]))
    for shape in json.loads(schema.get("enumeratedShapes", "[]")):
        array.enumeratedShapes.shapes.add().shape.extend(shape)
    for low, high in json.loads(schema.get("shapeRange", "[]")):
        array.shapeRange.sizeRanges.add(lowerBound=low, upperBound=high)
