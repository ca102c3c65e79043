"""TensorProto codec; the oracle is TensorFlow's own C++ Tensor::FromProto, through tf.io.parse_tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from tensorflow.core.framework import tensor_pb2, types_pb2

from mpru_tf.serving.tensors import decode, dtype_name, encode

DTYPES = [
    tf.float16,
    tf.bfloat16,
    tf.float32,
    tf.float64,
    tf.int8,
    tf.int16,
    tf.int32,
    tf.int64,
    tf.uint8,
    tf.uint16,
    tf.uint32,
    tf.uint64,
    tf.bool,
    tf.complex64,
    tf.complex128,
    tf.string,
]
LISTS = {
    tf.float32: ("float_val", [1.5, float("nan"), -0.0]),
    tf.float64: ("double_val", [1e300, 2.0, float("inf")]),
    tf.int8: ("int_val", [-128, 127, 300]),
    tf.int16: ("int_val", [-32768, 5, 70000]),
    tf.int32: ("int_val", [-(2**31), 2**31 - 1, 0]),
    tf.uint8: ("int_val", [255, 256, -1]),
    tf.uint16: ("int_val", [65535, 65536, 1]),
    tf.int64: ("int64_val", [-(2**63), 2**63 - 1, 0]),
    tf.uint32: ("uint32_val", [2**32 - 1, 0, 1]),
    tf.uint64: ("uint64_val", [2**64 - 1, 0, 1]),
    tf.bool: ("bool_val", [True, False, True]),
    tf.float16: ("half_val", [0x3C00, 0x7E00, 0x8000]),
    tf.bfloat16: ("half_val", [0x3F80, 0x7FC0, 0x8000]),
    tf.complex64: ("scomplex_val", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
    tf.complex128: ("dcomplex_val", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
    tf.string: ("string_val", [b"a", b"", b"\xff\x00"]),
}


def proto_of(dtype: Any, shape: tuple[int, ...], **fields: Any) -> Any:
    proto = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum, **fields)
    proto.tensor_shape.SetInParent()
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


def by_tensorflow(proto: Any, dtype: Any) -> np.ndarray | None:
    try:
        return tf.io.parse_tensor(proto.SerializeToString(), dtype).numpy()
    except tf.errors.InvalidArgumentError:
        return None


def assert_same(ours: np.ndarray | None, theirs: np.ndarray | bytes | None) -> None:
    assert (ours is None) == (theirs is None)
    if ours is not None and theirs is not None:
        theirs = np.asarray(theirs, object if isinstance(theirs, bytes) else None)
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert ours.tolist() == theirs.tolist() if ours.dtype == object else ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (2,), (3,), (5,), (2, 3), (0,), (2, 0, 3)], ids=str)
@pytest.mark.parametrize("given_values", [0, 1, 3])
def test_typed_lists_are_read_as_tensorflow_reads_them(dtype: Any, shape: tuple[int, ...], given_values: int) -> None:
    name, values = LISTS[dtype]
    per_value = len(values) // 3
    proto = proto_of(dtype, shape, **{name: values[: given_values * per_value]})
    assert_same(decode(proto), by_tensorflow(proto, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_content_is_read_as_tensorflow_reads_it(dtype: Any) -> None:
    if dtype == tf.string:  # nobody writes strings so any more, but TensorFlow still reads them: lengths, then bytes
        proto = proto_of(dtype, (1, 3), tensor_content=b"\x01\x00\xac\x02" + b"x" + b"\x80" * 300)
    else:
        tensor = tf.cast(np.arange(6).reshape(2, 3), dtype)
        proto = tensor_pb2.TensorProto.FromString(tf.io.serialize_tensor(tensor).numpy())
    assert proto.tensor_content
    assert_same(decode(proto), by_tensorflow(proto, dtype))
    assert decode(proto) is not None
    proto.tensor_content += b"\0"
    assert decode(proto) is None
    assert by_tensorflow(proto, dtype) is None


def test_content_is_not_copied() -> None:
    proto = tf.make_tensor_proto(np.arange(1000, dtype=np.float32))
    array = decode(proto)
    assert array is not None
    assert not array.flags.owndata


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (4,), (2, 2), (1, 4, 1)], ids=str)
def test_what_is_written_is_read_back(dtype: Any, shape: tuple[int, ...]) -> None:
    size = int(np.prod(shape))
    if dtype == tf.string:
        array = np.empty(size, object)
        array[:] = [b"a", b"", b"\xff", b"long" * 99][:size]
        array = array.reshape(shape)
    else:
        array = tf.cast(np.array([0, 1, 2, 100])[:size].reshape(shape), dtype).numpy()
    proto = tensor_pb2.TensorProto()
    encode(np.asarray(array), proto)
    assert not proto.tensor_content
    assert_same(decode(proto), np.asarray(array))
    assert_same(np.asarray(tf.make_ndarray(proto)), np.asarray(array))
    if size:
        assert len(getattr(proto, LISTS[dtype][0])) == size * (2 if dtype.is_complex else 1)


@given(st.lists(st.floats(width=32), min_size=1, max_size=300))
def test_floats_survive_to_the_bit(values: list[float]) -> None:
    array = np.array(values, np.float32)
    proto = tensor_pb2.TensorProto()
    encode(array, proto)
    assert np.array(proto.float_val, np.float32).tobytes() == array.tobytes()
    assert_same(decode(proto), array)


def test_arrays_that_are_not_contiguous() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T
    proto = tensor_pb2.TensorProto()
    encode(array, proto)
    assert_same(decode(proto), np.ascontiguousarray(array))


@pytest.mark.parametrize(
    "proto",
    [
        tensor_pb2.TensorProto(),
        tensor_pb2.TensorProto(dtype=types_pb2.DT_RESOURCE),
        proto_of(tf.float32, (-1,), float_val=[1.0]),
        proto_of(tf.float32, (2**40,), float_val=[1.0]),
        proto_of(tf.float32, (2**62, 2**62), float_val=[1.0]),
        proto_of(tf.string, (2**40,), string_val=[b"a"]),
        proto_of(tf.string, (2,), tensor_content=b"\xff\xff\xff\xff\xff\xff"),
        proto_of(tf.string, (2,), tensor_content=b"\x01\x05a"),
    ],
    ids=["no dtype", "no values", "negative", "huge", "overflow", "huge string", "bad length", "short strings"],
)
def test_malformed(proto: Any) -> None:
    assert decode(proto) is None


def test_unknown_rank_is_malformed() -> None:
    proto = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, float_val=[1.0])
    proto.tensor_shape.unknown_rank = True
    assert decode(proto) is None


def test_names_as_in_cpp() -> None:
    assert [dtype_name(dtype) for dtype in (tf.float32, types_pb2.DT_DOUBLE, np.dtype(np.int64))] == [
        "float",
        "double",
        "int64",
    ]
