"""TensorProto to NumPy and back, exactly as TensorFlow's C++ reads and writes it, with as few copies as can be.

Reading: ``tensor_content`` is taken without copying. Typed lists may be shorter than the shape says (the last value
is repeated; no value at all means zeros) or longer (the rest is ignored). ``tf.make_ndarray`` is stricter and slower.

Writing: the typed ``*_val`` lists, one value per element, as the real server answers by default. Clients that read
``float_val`` directly depend on it; ``tf.make_ndarray`` accepts both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

from mpru_tf.saved_model.packed_strings import unpack

Array = npt.NDArray[Any]

#: A tensor larger than this cannot be meant: no message that carries its values could be sent. Without the limit a
#: few bytes (a shape and one value to repeat) would fill the memory.
_LARGEST_TENSOR = 2**31 - 1  # bytes

_HALF_TYPES = (tf.float16, tf.bfloat16)

#: The list that holds the values of each dtype, and the NumPy dtype of the list's own elements.
_LISTS: dict[Any, tuple[str, Any]] = {
    tf.float32: ("float_val", np.float32),
    tf.float64: ("double_val", np.float64),
    tf.int8: ("int_val", np.int32),
    tf.int16: ("int_val", np.int32),
    tf.int32: ("int_val", np.int32),
    tf.uint8: ("int_val", np.int32),
    tf.uint16: ("int_val", np.int32),
    tf.float16: ("half_val", np.int32),
    tf.bfloat16: ("half_val", np.int32),
    tf.int64: ("int64_val", np.int64),
    tf.uint32: ("uint32_val", np.uint32),
    tf.uint64: ("uint64_val", np.uint64),
    tf.bool: ("bool_val", np.bool_),
    tf.complex64: ("scomplex_val", np.float32),
    tf.complex128: ("dcomplex_val", np.float64),
}


_CPP_NAMES = {"float32": "float", "float64": "double", "float16": "half"}


def dtype_name(dtype: Any) -> str:
    """Return what TensorFlow's C++ calls a dtype (enum or NumPy dtype): error messages are in its words."""
    name: str = tf.as_dtype(dtype).name
    return _CPP_NAMES.get(name, name)


def decode(proto: Any) -> Array | None:
    """Return the array a TensorProto stands for, or ``None`` if it is malformed.

    Strings become ``object`` arrays of ``bytes``. The array may be read-only.
    """
    shape = _shape(proto.tensor_shape)
    if shape is None:
        return None
    if proto.dtype == types_pb2.DT_STRING:
        return _decode_strings(proto, shape)
    reader = _READERS.get(proto.dtype)
    if reader is None:
        return _decode_exotic(proto)
    return reader(proto, shape)


def encode(array: Array, proto: Any) -> None:
    """Fill an empty TensorProto with an array.

    Raises:
        TypeError: NumPy dtypes that TensorFlow has no name for.
    """
    writer = _WRITERS.get(array.dtype)
    if writer is not None:
        writer(array, proto)
    elif array.dtype.kind in "OSU":
        proto.dtype = types_pb2.DT_STRING
        _write_shape(array, proto)
        proto.string_val.extend(map(tf.compat.as_bytes, array.ravel().tolist()))
    else:
        proto.CopyFrom(tf.make_tensor_proto(array))


def _shape(proto: Any) -> tuple[int, ...] | None:
    shape = tuple(dim.size for dim in proto.dim)
    return None if proto.unknown_rank or (shape and min(shape) < 0) else shape


def _reader(dtype: Any) -> Callable[[Any, tuple[int, ...]], Array | None]:
    name, element = _LISTS[dtype]
    numpy_dtype = np.dtype(dtype.as_numpy_dtype)
    per_value = 2 if numpy_dtype.kind == "c" else 1  # real and imaginary part are two elements

    def read(proto: Any, shape: tuple[int, ...]) -> Array | None:
        size = math.prod(shape)
        if size * numpy_dtype.itemsize > _LARGEST_TENSOR:
            return None
        content = proto.tensor_content
        if content and size:
            if len(content) != size * numpy_dtype.itemsize:
                return None
            return np.frombuffer(content, numpy_dtype).reshape(shape)
        listed = getattr(proto, name)
        count = min(len(listed) // per_value, size)
        if not count:
            return np.zeros(shape, numpy_dtype)
        elements = np.fromiter(listed, element, count * per_value)
        if per_value == 2:
            values: Array = elements.view(numpy_dtype)
        elif dtype in _HALF_TYPES:
            values = elements.astype(np.uint16).view(numpy_dtype)
        else:
            values = elements.astype(numpy_dtype, copy=False)  # int_val wraps around in narrower types, as a C++ cast
        if count < size:
            values = np.concatenate([values, np.full(size - count, values[-1], numpy_dtype)])
        return values.reshape(shape)

    return read


_READERS = {dtype.as_datatype_enum: _reader(dtype) for dtype in _LISTS}


def _decode_strings(proto: Any, shape: tuple[int, ...]) -> Array | None:
    size = math.prod(shape)
    if size * 16 > _LARGEST_TENSOR:  # an empty string takes TensorFlow some 16 bytes
        return None
    if proto.tensor_content and size:
        strings = unpack(proto.tensor_content, size)
        if strings is None:
            return None
    else:
        strings = list(proto.string_val[:size])
        strings += [strings[-1] if strings else b""] * (size - len(strings))
    array = np.empty(size, object)
    array[:] = strings
    return array.reshape(shape)


def _decode_exotic(proto: Any) -> Array | None:
    """Quantised, 4-bit and 8-bit float types: rare enough for TensorFlow's own, slower way."""
    try:
        array: Array = tf.make_ndarray(proto)
    except (KeyError, TypeError, ValueError):  # KeyError: dtypes that NumPy has no name for, such as resources
        return None
    return array


def _write_shape(array: Array, proto: Any) -> None:
    add = proto.tensor_shape.dim.add
    for size in array.shape:
        add(size=size)


def _writer(dtype: Any) -> Callable[[Array, Any], None]:
    name, element = _LISTS[dtype]
    enum = dtype.as_datatype_enum
    field = tensor_pb2.TensorProto.DESCRIPTOR.fields_by_name[name]
    packs = element in (np.float32, np.float64, np.bool_)  # on the wire these are the very bytes of the array

    def write(array: Array, proto: Any) -> None:
        proto.dtype = enum
        _write_shape(array, proto)
        if not array.size:
            return
        if packs:
            payload = np.ascontiguousarray(array).tobytes()
            proto.MergeFromString(_varint(field.number << 3 | 2) + _varint(len(payload)) + payload)
        elif dtype in _HALF_TYPES:
            getattr(proto, name).extend(np.ascontiguousarray(array).view(np.uint16).ravel().tolist())
        else:
            getattr(proto, name).extend(array.ravel().tolist())

    return write


_WRITERS = {np.dtype(dtype.as_numpy_dtype): _writer(dtype) for dtype in _LISTS}


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
