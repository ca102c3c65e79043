"""JSON to tensors and back, in the forms of TensorFlow Serving's REST API.

Requests: row format (``instances``, one value or one object of named values per example) or columnar format
(``inputs``, one value or one object of named tensors). Binary strings are ``{"b64": "..."}``. ``NaN``, ``Infinity``
and ``-Infinity`` are numbers, both ways. Responses: ``predictions`` for rows, ``outputs`` for columns; names are left
out when there is only one tensor; strings are written as base64 when their output key ends in ``_bytes``.

Beyond the real server: half, bfloat16 and uint16 tensors are numbers too.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import re
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import orjson
import tensorflow as tf

from mpru_tf.serving.status import RequestError, invalid_argument
from mpru_tf.serving.tensors import dtype_name

Array = npt.NDArray[Any]

_BYTES_SUFFIX = "_bytes"
_HIGHEST_RANK = 254  # of a TensorFlow tensor
_SHOWN = 1000  # characters of a JSON value that an error message repeats


class Format(Enum):
    """How a request gives its tensors, and so how its response does."""

    ROW = "instances"
    COLUMNAR = "inputs"


def parse_request(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a request's body.

    Bytes that are not UTF-8 survive inside strings, as surrogate escapes.

    Raises:
        RequestError: INVALID_ARGUMENT, it is not a JSON object, or ``signature_name`` is not a string.
    """
    if not body:
        raise invalid_argument("JSON Parse error: The document is empty")
    try:
        document = _parse(body.removeprefix(b"\xef\xbb\xbf"))
    except json.JSONDecodeError as error:
        problem = _RAPIDJSON_WORDS.get(error.msg, error.msg + ".")
        raise invalid_argument(f"JSON Parse error: {problem} at offset: {error.pos}") from error
    except ValueError as error:  # Python gives up on integers of thousands of digits
        raise invalid_argument("JSON Parse error: Number too big to be stored in double.") from error
    except RecursionError as error:
        raise invalid_argument("JSON Parse error: The document is nested too deeply.") from error
    if not isinstance(document, dict):
        raise invalid_argument(f"JSON Value: {show(document)} Is not object")
    if not isinstance(document.get("signature_name", ""), str):
        raise invalid_argument(
            f"JSON Value: {show(document)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return document


def _parse(body: bytes) -> Any:
    # A quarter of the time of Python's own parser, but strict: what it refuses is left to the other one, which knows
    # NaN, infinities and bytes that are not UTF-8, and says what is wrong where.
    with contextlib.suppress(orjson.JSONDecodeError):
        return orjson.loads(body)
    text = body.decode("utf-8", "surrogateescape")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if not _INF.match(text, error.pos):
            raise
        return json.loads(_INF_OR_STRING.sub(lambda found: _INF_NAMES.get(found[0], found[0]), text))


def read_tensors(
    document: Mapping[str, Any], dtypes: Mapping[str, int], body: bytes
) -> tuple[dict[str, Array], Format]:
    """Return the input tensors of a predict request, and the format they came in.

    Args:
        document: what :func:`parse_request` returned.
        dtypes: dtype enum by input key of the signature, at least one.
        body: the request's body, only to see whether a boolean can be in it.

    Raises:
        RequestError: INVALID_ARGUMENT, in the real server's words.
    """
    rows, columns = Format.ROW.value in document, Format.COLUMNAR.value in document
    if rows and columns:
        raise invalid_argument(
            f"JSON Value: {show(document)} Not formatted correctly expecting only one of 'inputs' or 'instances' "
            "keys to exist "
        )
    # NumPy takes a list of numbers that hides a boolean for numbers; the real server refuses it.
    dense = _Dense(can_shortcut=b"true" not in body and b"false" not in body)
    if rows:
        return _read_rows(document, dtypes, dense), Format.ROW
    if columns:
        return _read_columns(document[Format.COLUMNAR.value], dtypes, dense), Format.COLUMNAR
    raise invalid_argument("Missing 'inputs' or 'instances' key")


def write_tensors(outputs: Mapping[str, Array], form: Format) -> bytes:
    """Return the body of a predict response.

    Raises:
        RequestError: INVALID_ARGUMENT, outputs that the row format cannot carry (no batch dimension, or different
            ones), or a dtype that JSON has no form for.
    """
    if not outputs:
        raise invalid_argument("Cannot convert empty tensor map to JSON")
    texts = {key: element_texts(key, array) for key, array in outputs.items()}
    text = _rows(outputs, texts) if form is Format.ROW else _columns(outputs, texts)
    return text.encode("utf-8", "surrogateescape")


# ----------------------------------------------------------------------------------------------------------- reading

#: The real server's JSON library also reads the short form of infinity.
_INF = re.compile(r"-?Inf\b")
_INF_OR_STRING = re.compile(r'"(?:[^"\\]|\\.)*"|-?\bInf\b')
_INF_NAMES = {"Inf": "Infinity", "-Inf": "-Infinity"}

#: Python's words for what is wrong with a document, and those of the real server's JSON library.
_RAPIDJSON_WORDS = {
    "Expecting value": "Invalid value.",
    "Extra data": "The document root must not be followed by other values.",
    "Expecting property name enclosed in double quotes": "Missing a name for object member.",
    "Expecting ':' delimiter": "Missing a colon after a name of object member.",
    "Expecting ',' delimiter": "Missing a comma or } after an object member.",
    "Unterminated string starting at": "Missing a closing quotation mark in string.",
}


def _read_rows(document: Mapping[str, Any], dtypes: Mapping[str, int], dense: _Dense) -> dict[str, Array]:
    instances = document[Format.ROW.value]
    if not isinstance(instances, list):
        raise invalid_argument(f"JSON Value: {show(document)} Excepting 'instances' to be an list/array")
    if not instances:
        raise invalid_argument(f"JSON Value: {show(document)} No values in 'instances' array")
    if not isinstance(instances[0], dict) and len(dtypes) > 1:
        raise invalid_argument(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"
        )
    if _is_object(instances[0]):
        return _read_objects(instances, dtypes, dense)
    name, dtype = next(iter(dtypes.items()))
    whole = dense.shortcut(instances, dtype)
    if whole is not None:
        return {name: whole}
    rows: list[Array] = []
    for i, instance in enumerate(instances):
        if _is_object(instance):
            raise invalid_argument(f"Expecting value/list but got object at item {i} of input list")
        try:
            rows.append(_alike(dense.read(instance, dtype), rows))
        except RequestError as error:
            raise invalid_argument(f"Failed to process element: {i} of 'instances' list. Error: {error}") from error
    return {name: np.stack(rows)}


def _read_objects(instances: list[Any], dtypes: Mapping[str, int], dense: _Dense) -> dict[str, Array]:
    rows: dict[str, list[Array]] = {name: [] for name in dtypes}
    for i, instance in enumerate(instances):
        if not _is_object(instance):
            raise invalid_argument(f"Expecting object but got list at item {i} of input list")
        for name, value in instance.items():
            try:
                if name not in dtypes:
                    raise invalid_argument(f"JSON object: does not have named input: {name}")
                rows[name].append(_alike(dense.read(value, dtypes[name]), rows[name]))
            except RequestError as error:
                raise invalid_argument(
                    f"Failed to process element: {i} key: {name} of 'instances' list. Error: {error}"
                ) from error
        if instance.keys() != dtypes.keys():
            raise invalid_argument(
                f"Failed to process element: {i} of 'instances' list. JSON object: {show(instance)} "
                f"keys must be equal to: {','.join(sorted(dtypes))}"
            )
    return {name: np.stack(arrays) for name, arrays in rows.items()}


def _alike(row: Array, rows: list[Array]) -> Array:
    if rows and row.size != rows[0].size:
        raise invalid_argument(f"Expecting tensor size: {rows[0].size} but got: {row.size}")
    if rows and row.shape != rows[0].shape:
        raise invalid_argument(f"Expecting shape {_shape(rows[0])} but got: {_shape(row)}")
    return row


def _shape(array: Array) -> str:
    return "[" + ",".join(map(str, array.shape)) + "]"


def _read_columns(inputs: Any, dtypes: Mapping[str, int], dense: _Dense) -> dict[str, Array]:
    if not _is_object(inputs):
        if len(dtypes) > 1:
            raise invalid_argument(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map"
            )
        name, dtype = next(iter(dtypes.items()))
        return {name: dense.read(inputs, dtype)}
    for name in dtypes:
        if name not in inputs:
            raise invalid_argument(f"Missing named input: {name} in 'inputs' object.")
    return {name: dense.read(inputs[name], dtype) for name, dtype in dtypes.items()}


def is_base64(value: Any) -> bool:
    """Whether a JSON value is ``{"b64": "..."}``."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not is_base64(value)


class _Dense:
    """Reads one nested list (or one value) as one tensor."""

    def __init__(self, can_shortcut: bool) -> None:
        self._can_shortcut = can_shortcut

    def read(self, value: Any, dtype: int) -> Array:
        array = self.shortcut(value, dtype)
        return _read_slowly(value, dtype) if array is None else array

    def shortcut(self, value: Any, dtype: int) -> Array | None:
        """Let NumPy read it, if that is certain to be the same as :func:`_read_slowly`; otherwise ``None``."""
        kind = _KINDS.get(dtype)
        if kind is None or kind.exact is None or not self._can_shortcut:
            return None
        try:
            array = np.array(value)
        except ValueError:  # ragged: the slow way knows where
            return None
        if array.dtype.kind not in kind.numpy_kinds:
            return None
        low, high = kind.exact
        if array.size and not ((array >= low) & (array <= high)).all():  # NaN and infinities go the slow way
            return None
        return array.astype(kind.numpy_dtype)


def _read_slowly(value: Any, dtype: int) -> Array:
    """Read value by value, and say what is wrong where."""
    kind = _KINDS.get(dtype)
    shape: list[int] = []
    first = value
    while isinstance(first, list):
        shape.append(len(first))
        if not first:
            break
        first = first[0]
    if len(shape) > _HIGHEST_RANK:
        raise invalid_argument(f"Encountered list at unexpected level: {_HIGHEST_RANK} expected < {_HIGHEST_RANK}")
    flat: list[Any] = []

    def walk(item: Any, level: int) -> None:
        if not isinstance(item, list):
            if level != len(shape):
                raise invalid_argument(
                    f"JSON Value: {show(item)} found at incorrect level: {level + 1} in the JSON DOM. "
                    f"Expected at level: {len(shape)}"
                )
            if kind is None:
                raise RequestError(
                    grpc.StatusCode.UNIMPLEMENTED,
                    f"Conversion of JSON Value: {show(item)} to type: {dtype_name(dtype)}",
                )
            flat.append(kind.convert(item, dtype))
            return
        if level >= len(shape):
            raise invalid_argument(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
        if len(item) != shape[level]:
            raise invalid_argument(
                f"Encountered list at unexpected size: {len(item)} at level: {level} expected size: {shape[level]}"
            )
        for element in item:
            walk(element, level + 1)

    walk(value, 0)
    array = np.empty(len(flat), object)
    array[:] = flat
    numpy_dtype = tf.as_dtype(dtype).as_numpy_dtype if kind is None else kind.numpy_dtype
    return array.astype(kind.wide if kind is not None and kind.wide else numpy_dtype).astype(numpy_dtype).reshape(shape)


def _type_error(value: Any, dtype: int) -> RequestError:
    return invalid_argument(
        f"JSON Value: {show(value)} Type: {type_name(value)} is not of expected type: {dtype_name(dtype)}"
    )


def type_name(value: Any) -> str:
    """Return what the real server calls the type of a JSON value."""
    if value is None:
        return "Null"
    if isinstance(value, bool):
        return str(value)
    names: dict[type, str] = {dict: "Object", list: "Array", str: "String"}
    return names.get(type(value), "Number")


def show(value: Any) -> str:
    """Return a JSON value as error messages repeat it, cut when it is long."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "..."
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _float(largest: float, digits: int, name: str) -> Callable[[Any, int], float]:
    def convert(value: Any, dtype: int) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _type_error(value, dtype)
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            value = _as_double(value)
        if isinstance(value, int):
            fits = abs(value) <= 2**digits - 1
        else:
            fits = not np.isfinite(value) or abs(value) <= largest
        if not fits:
            raise invalid_argument(f"Cannot convert JSON value: {show(value)} to {name} without loss of precision.")
        return float(value)

    return convert


def _as_double(value: int) -> float:
    """An integer beyond 64 bits is a decimal number to the real server's JSON library."""
    try:
        return float(value)
    except OverflowError as error:
        raise invalid_argument("JSON Parse error: Number too big to be stored in double.") from error


def _integer(low: int, high: int) -> Callable[[Any, int], int]:
    def convert(value: Any, dtype: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _type_error(value, dtype)
        return value

    return convert


def _boolean(value: Any, dtype: int) -> bool:
    if not isinstance(value, bool):
        raise _type_error(value, dtype)
    return value


def string_value(value: Any, dtype: int = tf.string.as_datatype_enum) -> bytes:
    """Return the bytes of a JSON string or of a base64 object."""
    if isinstance(value, str):
        try:
            return value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise invalid_argument("JSON Parse error: The surrogate pair in string is invalid.") from error
    if not isinstance(value, dict):
        raise _type_error(value, dtype)
    if not is_base64(value):
        raise invalid_argument(f"JSON Value: {show(value)} not formatted correctly for base64 data")
    text = "".join(value["b64"].split()).rstrip("=.")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid_argument("Unable to base64 decode") from error


class _Kind:
    """How JSON values become elements of one dtype.

    Attributes:
        numpy_dtype: of the tensor.
        convert: one JSON value, checked.
        exact: the range within which NumPy's own conversion of a list is the same; ``None``: never.
        numpy_kinds: what NumPy may have taken the list for.
        wide: dtype to go through first, where narrowing wraps around.
    """

    def __init__(
        self,
        dtype: Any,
        convert: Callable[[Any, int], Any],
        exact: tuple[float, float] | None = None,
        numpy_kinds: str = "",
        wide: Any = None,
    ) -> None:
        self.numpy_dtype = np.dtype(dtype.as_numpy_dtype)
        self.convert = convert
        self.exact = exact
        self.numpy_kinds = numpy_kinds
        self.wide = wide


def _floats(dtype: Any, largest: float, digits: int, name: str) -> _Kind:
    bound = float(2**digits - 1)
    return _Kind(dtype, _float(largest, digits, name), (-bound, bound), "iuf", np.float64)


def _integers(dtype: Any, low: int, high: int) -> _Kind:
    return _Kind(dtype, _integer(low, high), (low, high), "iu", np.uint64 if high >= 2**63 else np.int64)


def read_float32(value: int | float) -> float:
    """Return a JSON number as a float feature has it.

    Raises:
        RequestError: INVALID_ARGUMENT, it is too large.
    """
    return float(_KINDS[tf.float32.as_datatype_enum].convert(value, tf.float32.as_datatype_enum))


_INT32 = (-(2**31), 2**31 - 1)  # narrower types are read as int32 and wrap around, as in the real server

_KINDS: dict[int, _Kind] = {
    dtype.as_datatype_enum: kind
    for dtype, kind in (
        (tf.float32, _floats(tf.float32, float(np.finfo(np.float32).max), 24, "float")),
        (tf.float64, _floats(tf.float64, float(np.finfo(np.float64).max), 53, "double")),
        (tf.float16, _floats(tf.float16, float(np.finfo(np.float16).max), 11, "half")),
        (tf.bfloat16, _floats(tf.bfloat16, float(tf.bfloat16.max), 8, "bfloat16")),
        (tf.int8, _integers(tf.int8, *_INT32)),
        (tf.int16, _integers(tf.int16, *_INT32)),
        (tf.int32, _integers(tf.int32, *_INT32)),
        (tf.uint8, _integers(tf.uint8, *_INT32)),
        (tf.uint16, _integers(tf.uint16, *_INT32)),
        (tf.int64, _integers(tf.int64, -(2**63), 2**63 - 1)),
        (tf.uint32, _integers(tf.uint32, 0, 2**32 - 1)),
        (tf.uint64, _integers(tf.uint64, 0, 2**64 - 1)),
        (tf.bool, _Kind(tf.bool, _boolean)),
        (tf.string, _Kind(tf.string, string_value)),
    )
}


# ----------------------------------------------------------------------------------------------------------- writing


def _rows(outputs: Mapping[str, Array], texts: Mapping[str, list[str]]) -> str:
    batch = -1
    for key, array in outputs.items():
        if not array.ndim:
            raise invalid_argument(f"Tensor name: {key} has no shape information ")
        if batch not in (-1, len(array)):
            raise invalid_argument(f"Tensor name: {key} has inconsistent batch size: {len(array)} expecting: {batch}")
        batch = len(array)
    columns = [_nested(texts[key], array.shape, 1) for key, array in outputs.items()]
    if len(columns) == 1:
        body = ", ".join(columns[0])
    else:
        names = [json.dumps(key, ensure_ascii=False) for key in outputs]
        body = ", ".join(
            "{" + ", ".join(f"{name}: {text}" for name, text in zip(names, row, strict=True)) + "}"
            for row in zip(*columns, strict=True)
        )
    return '{\n    "predictions": [' + body + "\n    ]\n}"


def _columns(outputs: Mapping[str, Array], texts: Mapping[str, list[str]]) -> str:
    tensors = {key: _nested(texts[key], array.shape, 0)[0] for key, array in outputs.items()}
    if len(tensors) == 1:
        body = next(iter(tensors.values()))
    else:
        lines = (f"        {json.dumps(key, ensure_ascii=False)}: {text}" for key, text in tensors.items())
        body = "{\n" + ",\n".join(lines) + "\n    }"
    return '{\n    "outputs": ' + body + "\n}"


def _nested(texts: list[str], shape: tuple[int, ...], depth: int) -> list[str]:
    """Bracket the elements of a tensor, innermost dimension first, until ``depth`` outer dimensions are left flat."""
    for axis in range(len(shape) - 1, depth - 1, -1):
        size = shape[axis]
        count = int(np.prod(shape[:axis], dtype=np.int64))
        texts = ["[" + ", ".join(texts[i * size : (i + 1) * size]) + "]" for i in range(count)]
    return texts


def element_texts(key: str, array: Array) -> list[str]:
    """Return the JSON text of each element; strings as base64 if ``key`` says so.

    Raises:
        RequestError: INVALID_ARGUMENT, JSON has no form for this dtype.
    """
    kind = array.dtype.kind
    if kind == "O":
        write = _base64_text if key.endswith(_BYTES_SUFFIX) else _string_text
        return [write(value) for value in array.ravel().tolist()]
    if kind == "b":
        return ["true" if value else "false" for value in array.ravel().tolist()]
    if kind in "iu":
        return [str(value) for value in array.ravel().tolist()]
    if array.dtype == np.float64:
        return _decimals(array, np.float64, ".17g")
    if kind == "f" or array.dtype == tf.bfloat16.as_numpy_dtype:
        return _decimals(array.astype(np.float32), np.float32, ".9g")
    raise invalid_argument(f"Failed to write JSON value for tensor type: {dtype_name(array.dtype)}")


def _base64_text(value: bytes) -> str:
    return '{"b64": "' + base64.b64encode(value).decode("ascii") + '"}'


def _string_text(value: bytes) -> str:
    return json.dumps(value.decode("utf-8", "surrogateescape"), ensure_ascii=False)


def _decimals(array: Array, dtype: Any, full: str) -> list[str]:
    """Return decimals as the real server writes them: six digits if those read back the same, else all digits."""
    values = array.ravel()
    if not values.size:
        return []
    numbers = values.tolist()
    texts = [f"{number:.6g}" for number in numbers]
    with np.errstate(over="ignore"):
        same = np.array(list(map(float, texts))).astype(dtype) == values
    for i in np.flatnonzero(~same).tolist():
        texts[i] = f"{numbers[i]:{full}}"
    return [_as_decimal(text) for text in texts]


_NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def _as_decimal(text: str) -> str:
    """A whole number gets a ``.0``: readers take it for a decimal then, like its neighbours."""
    return text if "." in text or "e" in text else _NOT_FINITE.get(text) or text + ".0"
