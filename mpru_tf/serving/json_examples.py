"""JSON of the REST API's ``:classify`` and ``:regress``: examples in, results out.

Requests: ``{"signature_name": ..., "context": {...}, "examples": [{...}, ...]}``. Each example, and the context that
they share, is one object of features by name; a feature is one value or a list of values of one kind:

=====================================  ===================
JSON                                   ``tf.train.Feature``
=====================================  ===================
number with a point or an exponent     ``float_list``
number without, ``true``, ``false``    ``int64_list``
string, ``{"b64": "..."}``             ``bytes_list``
=====================================  ===================

Responses: ``{"results": [[["label", score], ...], ...]}`` and ``{"results": [value, ...]}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorflow_serving.apis import input_pb2

from mpru_tf.serving.inference import Array, Classes
from mpru_tf.serving.json_tensors import element_texts, is_base64, read_float32, show, string_value, type_name
from mpru_tf.serving.status import RequestError, invalid_argument

_KIND_NAMES = {"bytes_list": "bytes", "float_list": "float", "int64_list": "int64"}


def read_examples(document: Mapping[str, Any]) -> Any:
    """Return the ``Input`` message that a classify or regress request stands for.

    Args:
        document: what :func:`~mpru_tf.serving.json_tensors.parse_request` returned.

    Raises:
        RequestError: INVALID_ARGUMENT, in the real server's words.
    """
    request_input = input_pb2.Input()
    listed: Any = request_input.example_list
    if "context" in document:
        listed = request_input.example_list_with_context
        listed.context.SetInParent()
        _fill(listed.context, document["context"])
    if "examples" not in document:
        raise _malformed(document, "When method is classify, key 'examples' is expected and was not found")
    examples = document["examples"]
    if not isinstance(examples, list):
        raise _malformed(document, "Expecting 'examples' value to be an list/array")
    if not examples:
        raise _malformed(document, "'examples' value is an empty array")
    for example in examples:
        _fill(listed.examples.add(), example)
    return request_input


def write_classes(classes: Classes) -> bytes:
    """Return the body of a classify response: label and score of each class, ``""`` and ``0.0`` for what is missing."""
    shape = next(array.shape for array in (classes.labels, classes.scores) if array is not None)
    count = int(np.prod(shape))
    labels = ['""'] * count if classes.labels is None else element_texts("", classes.labels)
    scores = ["0.0"] * count if classes.scores is None else element_texts("", classes.scores)
    pairs = [f"[{label}, {score}]" for label, score in zip(labels, scores, strict=True)]
    width = shape[1]
    rows = ("[" + ", ".join(pairs[i * width : (i + 1) * width]) + "]" for i in range(shape[0]))
    return _results(", ".join(rows) + "\n    ")


def write_regressions(values: Array) -> bytes:
    """Return the body of a regress response."""
    return _results(", ".join(element_texts("", values)))


def _results(body: str) -> bytes:
    return ('{\n    "results": [' + body + "]\n}").encode("utf-8", "surrogateescape")


def _fill(example: Any, features: Any) -> None:
    if not isinstance(features, dict):
        raise invalid_argument(f"Example must be JSON object but got JSON {type_name(features)}")
    for name, content in features.items():
        try:
            feature = example.features.feature[name]
        except UnicodeEncodeError as error:  # a protobuf string must be UTF-8
            raise invalid_argument(f"Feature: {name} has a name that is not UTF-8.") from error
        for value in content if isinstance(content, list) else [content]:
            kind, element = _element(name, value)
            found = feature.WhichOneof("kind")
            if found not in (None, kind):
                raise invalid_argument(
                    f"Unexpected element type in feature: {name} expecting type: {_KIND_NAMES[found]}"
                )
            getattr(feature, kind).value.append(element)


def _element(name: str, value: Any) -> tuple[str, Any]:
    """Return the kind of feature that a JSON value makes, and its element."""
    if isinstance(value, str) or is_base64(value):
        return "bytes_list", string_value(value)
    if isinstance(value, int) and -(2**63) <= value < 2**63:  # booleans too
        return "int64_list", int(value)
    if isinstance(value, int) and 2**63 <= value < 2**64:
        raise invalid_argument(f"Feature: {name} has uint64 element. Only int64 is supported.")
    if isinstance(value, int | float):
        return "float_list", read_float32(value)
    raise invalid_argument(f"Feature: {name} has element with unexpected JSON type: {type_name(value)}")


def _malformed(document: Mapping[str, Any], problem: str) -> RequestError:
    return invalid_argument(f"JSON Value: {show(document)} {problem}")
