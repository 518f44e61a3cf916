"""The messages of ``Model.proto``, ``FeatureTypes.proto`` and ``MIL.proto`` (coremltools 9.0), as far as
opening an ML program reads them.

A field is ``number name kind``, with ``repeated`` or ``map`` (by string) before the kind where it is one
and the oneof it is a member of in parentheses. Enums are int32. Where ``Model`` says ``Unread``, a model
of that type is recognized and no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coreproof.package.wire import SCALARS, Field, Message

_MESSAGES = """
Unread

Model: 1 specificationVersion int32, 2 description ModelDescription, 502 mlProgram Program (Type),
    200 pipelineClassifier Unread (Type), 201 pipelineRegressor Unread (Type), 202 pipeline Unread (Type),
    300 glmRegressor Unread (Type), 301 supportVectorRegressor Unread (Type),
    302 treeEnsembleRegressor Unread (Type), 303 neuralNetworkRegressor Unread (Type),
    304 bayesianProbitRegressor Unread (Type), 400 glmClassifier Unread (Type),
    401 supportVectorClassifier Unread (Type), 402 treeEnsembleClassifier Unread (Type),
    403 neuralNetworkClassifier Unread (Type), 404 kNearestNeighborsClassifier Unread (Type),
    500 neuralNetwork Unread (Type), 501 itemSimilarityRecommender Unread (Type),
    555 customModel Unread (Type), 556 linkedModel Unread (Type),
    560 classConfidenceThresholding Unread (Type), 600 oneHotEncoder Unread (Type), 601 imputer Unread (Type),
    602 featureVectorizer Unread (Type), 603 dictVectorizer Unread (Type), 604 scaler Unread (Type),
    606 categoricalMapping Unread (Type), 607 normalizer Unread (Type),
    609 arrayFeatureExtractor Unread (Type), 610 nonMaximumSuppression Unread (Type),
    900 identity Unread (Type), 2000 textClassifier Unread (Type), 2001 wordTagger Unread (Type),
    2002 visionFeaturePrint Unread (Type), 2003 soundAnalysisPreprocessing Unread (Type),
    2004 gazetteer Unread (Type), 2005 wordEmbedding Unread (Type), 2006 audioFeaturePrint Unread (Type),
    3000 serializedModel Unread (Type)
ModelDescription: 1 input repeated FeatureDescription, 10 output repeated FeatureDescription,
    13 state repeated FeatureDescription, 20 functions repeated FunctionDescription,
    21 defaultFunctionName string, 11 predictedFeatureName string, 12 predictedProbabilitiesName string,
    100 metadata Metadata
FunctionDescription: 1 name string, 2 input repeated FeatureDescription, 3 output repeated FeatureDescription,
    6 state repeated FeatureDescription, 4 predictedFeatureName string, 5 predictedProbabilitiesName string
FeatureDescription: 1 name string, 2 shortDescription string, 3 type FeatureType
Metadata: 1 shortDescription string, 2 versionString string, 3 author string, 4 license string,
    100 userDefined map string

FeatureType: 1 int64Type Unread (Type), 2 doubleType Unread (Type), 3 stringType Unread (Type),
    4 imageType ImageFeatureType (Type), 5 multiArrayType ArrayFeatureType (Type),
    6 dictionaryType Unread (Type), 7 sequenceType Unread (Type), 8 stateType StateFeatureType (Type),
    1000 isOptional bool
StateFeatureType: 1 arrayType ArrayFeatureType (Type)
ArrayFeatureType: 1 shape repeated int64, 2 dataType int32,
    21 enumeratedShapes EnumeratedShapes (ShapeFlexibility), 31 shapeRange ShapeRange (ShapeFlexibility),
    41 intDefaultValue int32 (defaultOptionalValue), 51 floatDefaultValue float (defaultOptionalValue),
    61 doubleDefaultValue double (defaultOptionalValue)
EnumeratedShapes: 1 shapes repeated Shape
Shape: 1 shape repeated int64
ShapeRange: 1 sizeRanges repeated SizeRange
SizeRange: 1 lowerBound uint64, 2 upperBound int64
ImageFeatureType: 1 width int64, 2 height int64, 3 colorSpace int32,
    21 enumeratedSizes EnumeratedImageSizes (SizeFlexibility), 31 imageSizeRange ImageSizeRange (SizeFlexibility)
EnumeratedImageSizes: 1 sizes repeated ImageSize
ImageSize: 1 width uint64, 2 height uint64
ImageSizeRange: 1 widthRange SizeRange, 2 heightRange SizeRange

Program: 1 version int64, 2 functions map Function, 4 attributes map Value
Function: 1 inputs repeated NamedValueType, 2 opset string, 3 block_specializations map Block,
    4 attributes map Value
Block: 1 inputs repeated NamedValueType, 2 outputs repeated string, 3 operations repeated Operation
Operation: 1 type string, 2 inputs map Argument, 3 outputs repeated NamedValueType, 4 blocks repeated Block,
    5 attributes map Value
Argument: 1 arguments repeated Binding
Binding: 1 name string (binding), 2 value Value (binding)
NamedValueType: 1 name string, 2 type ValueType
ValueType: 1 tensorType TensorType (type), 2 listType ListType (type), 3 tupleType TupleType (type),
    4 dictionaryType DictionaryType (type), 5 stateType StateType (type)
TensorType: 1 dataType int32, 2 rank int64, 3 dimensions repeated Dimension
ListType: 1 type ValueType, 2 length Dimension
TupleType: 1 types repeated ValueType
DictionaryType: 1 keyType ValueType, 2 valueType ValueType
StateType: 1 wrappedType ValueType
Dimension: 1 constant ConstantDimension (dimension), 2 unknown UnknownDimension (dimension)
ConstantDimension: 1 size uint64
UnknownDimension: 1 variadic bool
Value: 2 type ValueType, 3 immediateValue ImmediateValue (value), 5 blobFileValue BlobFileValue (value)
ImmediateValue: 1 tensor TensorValue (value), 2 tuple TupleValue (value), 3 list ListValue (value),
    4 dictionary DictionaryValue (value)
BlobFileValue: 1 fileName string, 2 offset uint64
TensorValue: 1 floats RepeatedFloats (value), 2 ints RepeatedInts (value), 3 bools RepeatedBools (value),
    4 strings RepeatedStrings (value), 5 longInts RepeatedLongInts (value), 6 doubles RepeatedDoubles (value),
    7 bytes RepeatedBytes (value)
RepeatedFloats: 1 values repeated float
RepeatedDoubles: 1 values repeated double
RepeatedInts: 1 values repeated int32
RepeatedLongInts: 1 values repeated int64
RepeatedBools: 1 values repeated bool
RepeatedStrings: 1 values repeated string
RepeatedBytes: 1 values bytes
TupleValue: 1 values repeated Value
ListValue: 1 values repeated Value
DictionaryValue: 1 values repeated KeyValuePair
KeyValuePair: 1 key Value, 2 value Value
"""
RULES: Mapping[str, Any] = {"repeated": (), "map": {}}  # and what is not there
_DEFAULTS: dict[str, Any] = {"string": "", "bytes": b"", "bool": False, "float": 0.0, "double": 0.0}


def _messages() -> dict[str, type[Message]]:
    """A class for each message of the table, by its name."""
    declared: dict[str, list[list[str]]] = {}
    for line in _MESSAGES.replace(",\n   ", ",").splitlines():
        name, _, fields = line.partition(": ")
        if name:
            declared[name] = [text.split() for text in fields.split(", ") if text]
    classes = {name: type(name, (Message,), {}) for name in declared}
    defaults = _DEFAULTS | {name: made() for name, made in classes.items()}
    for name, given in declared.items():
        _declare(classes[name], given, classes, defaults)
    return classes


def _declare(
    message: type[Message],
    given: list[list[str]],
    classes: Mapping[str, type[Message]],
    defaults: Mapping[str, Any],
) -> None:
    groups: dict[str, tuple[str, ...]] = {}
    for _, name, *rest in given:
        if rest[-1].startswith("("):
            groups[rest[-1][1:-1]] = (*groups.get(rest[-1][1:-1], ()), name)
    tagged, packed = {}, {}
    for number, name, *rest in given:
        rule = rest.pop(0) if rest[0] in RULES else ""
        others = tuple(other for other in groups.get(rest[-1][1:-1], ()) if other != name)
        field = Field(name, classes.get(rest[0], rest[0]), rule, others)
        tagged[int(number) << 3 | field.wire] = field
        if rule and field.kind in SCALARS:
            packed[int(number)] = field
        setattr(message, name, RULES[rule] if rule else defaults.get(rest[0], 0))
    message.fields, message.packed, message.groups = tagged, packed, groups


MESSAGES = _messages()
MESSAGES["ValueType"].shared = True
MODEL = MESSAGES["Model"]
MODEL_TYPES = {tag >> 3: f.name for tag, f in MODEL.fields.items() if f.others}
