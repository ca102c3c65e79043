"""Packed strings, as TensorFlow itself packs them."""

from __future__ import annotations

import pytest
import tensorflow as tf
from tensorflow.core.framework.tensor_pb2 import TensorProto

from mpru_tf.saved_model.packed_strings import unpack


@pytest.mark.parametrize("strings", [[], [b""], [b"a", b"", b"bc"], [b"x" * 300, b"\x00\xff"], [b"y" * 70_000]])
def test_what_tensorflow_packs_is_unpacked(strings: list[bytes]) -> None:
    # Constant folding writes string tensors in this form; a Python-built TensorProto does not.
    packed = b"".join(_varint(len(string)) for string in strings) + b"".join(strings)
    proto = TensorProto(dtype=tf.string.as_datatype_enum, tensor_content=packed)
    proto.tensor_shape.dim.add(size=len(strings))
    assert unpack(packed, len(strings)) == strings
    definition = tf.compat.v1.GraphDef()
    node = definition.node.add(name="strings", op="Const")
    node.attr["dtype"].type = proto.dtype
    node.attr["value"].tensor.CopyFrom(proto)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.graph_util.import_graph_def(definition, name="")
        assert list(session.run("strings:0")) == strings


@pytest.mark.parametrize(
    ("content", "count"),
    [(b"", 1), (b"\x01", 1), (b"\x01ab", 1), (b"\x80", 1), (b"\xff" * 20, 1), (b"\x00", 2), (b"\x01a", 2**40)],
)
def test_what_is_not_whole_is_nothing(content: bytes, count: int) -> None:
    assert unpack(content, count) is None


def _varint(number: int) -> bytes:
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])
