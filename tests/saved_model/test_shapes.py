"""Static shapes: what the graph notes down, what follows from weights, and never a length that is not so."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
from conftest import ModelStore
from graph_protos import at, traced
from tensorflow.core.framework.tensor_shape_pb2 import TensorShapeProto

from mpru_tf.saved_model import bundle as bundles
from mpru_tf.saved_model.graph import MAIN, Graph, Place, Tensor
from mpru_tf.saved_model.shapes import _broadcast, _merge, from_proto, integers, static_shape

W = np.ones([10, 4], np.float32)
CHANNELS = np.ones([1, 1, 10, 6], np.float32)


def without_notes(read: Graph) -> Graph:
    """The same graph as exporters write it that note no shapes down."""
    library = read.meta_graph.graph_def.library.function
    for nodes in (read.meta_graph.graph_def.node, *(body.node_def for body in library)):
        for node in nodes:
            node.attr.pop("_output_shapes", None)
    return Graph(read.meta_graph)


def test_from_proto() -> None:
    assert from_proto(tf.TensorShape([None, 3]).as_proto()) == (None, 3)
    assert from_proto(tf.TensorShape([]).as_proto()) == ()
    assert from_proto(TensorShapeProto(unknown_rank=True)) is None


def matrix(x: tf.Tensor) -> tf.Tensor:
    return tf.reshape(x, [-1, 5, 2])


def image(x: tf.Tensor) -> tf.Tensor:
    return x[:, None, None, :]


@tf.function
def looped(x: tf.Tensor) -> tf.Tensor:
    for _ in tf.range(3):
        x = tf.tanh(x)
    return x


SAME_AS_TENSORFLOW: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "request": lambda x: x,
    "constant": lambda x: tf.constant([[1.0, 2.0]]),
    "matmul": lambda x: x @ W,
    "matmul_transposed": lambda x: tf.matmul(x, W.T, transpose_b=True),
    "matmul_of_transpose": lambda x: tf.matmul(x, tf.transpose(tf.constant(W)), transpose_b=True),
    "bias_add": lambda x: tf.nn.bias_add(x @ W, W[0]),
    "bias": lambda x: x @ W + W[0],
    "scale": lambda x: 2.0 * (x @ W),
    "softmax": lambda x: tf.nn.softmax(tf.nn.relu(x @ W)),
    "cast": lambda x: tf.cast(x @ W, tf.float64),
    "conv2d": lambda x: tf.nn.conv2d(image(x), CHANNELS, 1, "VALID"),
    "depthwise": lambda x: tf.nn.depthwise_conv2d(image(x), CHANNELS, [1] * 4, "VALID"),
    "pooled": lambda x: tf.reduce_mean(tf.nn.conv2d(image(x), CHANNELS, 1, "SAME"), [1, 2]),
    "strided_convolution": lambda x: tf.nn.conv2d(tf.ones([2, 9, 8, 10]) * x[0, 0], CHANNELS, 2, "SAME"),
    "valid_convolution": lambda x: tf.nn.conv2d(
        tf.ones([2, 9, 8, 10]) * x[0, 0], tf.ones([3, 2, 10, 4]), [2, 3], "VALID"
    ),
    "dilated_convolution": lambda x: tf.nn.conv2d(
        tf.ones([2, 9, 8, 10]) * x[0, 0], tf.ones([3, 2, 10, 4]), 1, "VALID", dilations=[2, 3]
    ),
    "padded_convolution": lambda x: tf.nn.conv2d(
        tf.ones([2, 9, 8, 10]) * x[0, 0], CHANNELS, 1, [[0, 0], [1, 1], [2, 2], [0, 0]]
    ),
    "pooled_to_one": lambda x: tf.nn.avg_pool2d(tf.ones([2, 7, 7, 10]) * x[0, 0], 7, 1, "VALID"),
    "max_pool": lambda x: tf.squeeze(tf.nn.max_pool2d(image(x), 1, 1, "VALID"), [1, 2]),
    "batch_norm": lambda x: tf.compat.v1.nn.fused_batch_norm(
        image(x), *[tf.ones([10])] * 2, *[tf.ones([10])] * 2, is_training=False
    )[0][:, 0, 0],
    "einsum": lambda x: tf.einsum("bi,io->bo", x, W),
    "einsum_dots": lambda x: tf.einsum("...i,io->...o", matrix(x), W[:2]),
    "batch_matmul": lambda x: tf.matmul(matrix(x), tf.ones([2, 7])),
    "reshape": lambda x: tf.reshape(x @ W, [-1, 2]),
    "reshape_to_own_rows": lambda x: tf.reshape(x @ W, [tf.shape(x)[0], 2, 2]),
    "reshape_all_known": lambda x: tf.reshape(tf.constant(W), [-1, 8]),
    "reshape_of_parts": lambda x: tf.reshape(x, tf.concat([tf.shape(x)[:1], [2, 5]], 0)),
    "expand": lambda x: tf.expand_dims(x, -1),
    "expand_in_front": lambda x: x[None],
    "squeeze": lambda x: tf.squeeze((x @ W)[:, None, :], 1),
    "squeeze_all": lambda x: tf.squeeze(tf.constant(W[None])),
    "transpose": lambda x: tf.transpose(matrix(x), [0, 2, 1]),
    "sum": lambda x: tf.reduce_sum(x, -1, keepdims=True),
    "sum_all": lambda x: tf.reduce_sum(x, [0, 1]),
    "mean": lambda x: tf.reduce_mean(matrix(x), 1),
    "concat": lambda x: tf.concat([x @ W, x], -1),
    "concat_rows": lambda x: tf.concat([x, x], 0),
    "stack": lambda x: tf.stack([x, x, x], 1),
    "stack_last": lambda x: tf.stack([x[:, 0], x[:, 1]], -1),
    "unstack": lambda x: tf.unstack(matrix(x), axis=1)[3],
    "split": lambda x: tf.split(x, 5, axis=-1)[1],
    "split_unevenly": lambda x: tf.split(x, [3, 7], axis=-1)[1],
    "gather": lambda x: tf.gather(tf.constant(W), tf.argmax(x, -1)),
    "gather_columns": lambda x: tf.gather(x, [1, 2, 5], axis=-1),
    "slice": lambda x: tf.slice(x, [0, 2], [-1, 4]),
    "strided": lambda x: x[:, 2:8:2],
    "strided_from_the_end": lambda x: x[:, -3:],
    "strided_dots": lambda x: matrix(x)[..., 0],
    "strided_one": lambda x: matrix(x)[:, 1, :],
    "strided_new_axis": lambda x: x[:, None, 3:],
    "reversed": lambda x: x[:, ::-1],
    "tile": lambda x: tf.tile(x, [1, 3]),
    "select": lambda x: tf.where(x > 0, x, 0.0),
    "top_k": lambda x: tf.math.top_k(x, 3).values,
    "one_hot": lambda x: tf.one_hot(tf.argmax(x, -1), 6),
    "broadcast": lambda x: tf.broadcast_to(W[:1], [tf.shape(x)[0], 4]),
    "condition": lambda x: tf.cond(tf.size(x) > 3, lambda: x @ W, lambda: -(x @ W)),
    "loop": lambda x: looped(x @ W),
    "map_fn": lambda x: tf.map_fn(lambda row: tf.nn.softmax(row), x @ W),
}


@pytest.mark.parametrize("case", SAME_AS_TENSORFLOW)
def test_inference_without_notes_agrees_with_tensorflow(case: str) -> None:
    f = SAME_AS_TENSORFLOW[case]
    with tf.Graph().as_default():
        truth = tuple(f(tf.compat.v1.placeholder(tf.float32, [None, 10])).shape.as_list())
    read = traced(lambda x: {"y": f(x)})
    assert static_shape(read, at("y")) == truth
    inferred = static_shape(without_notes(read), at("y"))
    assert inferred is not None
    assert (len(inferred), inferred[-1:]) == (len(truth), truth[-1:])  # the last axis is the one that counts classes
    assert all(length in (None, known) for length, known in zip(inferred, truth, strict=True))


@pytest.mark.parametrize(
    "f",
    [
        lambda x: (x @ W) / tf.reduce_sum(x, -1, keepdims=True),
        lambda x: tf.reshape(x, tf.cast(x[0, :2], tf.int32)),
        lambda x: tf.reduce_sum(x, tf.cast(x[0, :1], tf.int32)),
        lambda x: tf.squeeze(x),
        lambda x: tf.transpose(matrix(x), tf.cast(x[0, :3], tf.int32)),
        lambda x: x[:, : tf.cast(x[0, 0], tf.int32)],
        lambda x: tf.concat([x, x], tf.cast(x[0, 0], tf.int32)),
        lambda x: tf.boolean_mask(x, x[:, 0] > 0),
        lambda x: tf.nn.conv2d(image(x), tf.reshape(x, [1, 1, 10, -1]), 1, "SAME"),
        lambda x: tf.reshape(x, [2, -1, 5])[-1:, :, ::-2],
    ],
)
def test_inference_may_know_less_than_tensorflow_but_never_something_else(f: Callable[[tf.Tensor], tf.Tensor]) -> None:
    with tf.Graph().as_default():
        truth = f(tf.compat.v1.placeholder(tf.float32, [None, 10])).shape
    inferred = static_shape(without_notes(traced(lambda x: {"y": f(x)})), at("y"))
    if inferred is not None and truth.rank is not None:
        assert len(inferred) == truth.rank
        assert all(a is None or b is None or a == b for a, b in zip(inferred, truth.as_list(), strict=True))


def test_an_argument_without_a_caller_has_the_shape_that_its_function_notes(models: ModelStore) -> None:
    (read,) = bundles.read(models.pristine("keras3")).graphs()
    noted = [
        (name, arg)
        for name, body in read.functions.items()
        for arg, position in read.scope(name).args.items()
        if body.arg_attr[position].attr["_output_shapes"].list.shape[:1]
        and from_proto(body.arg_attr[position].attr["_output_shapes"].list.shape[0])
    ]
    assert noted
    for name, arg in noted:
        assert static_shape(read, Place(Tensor(name, arg, "", 0))) is not None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([1, 2, 3], (1, 2, 3)),
        ([7, 7, 7, 7], (7, 7, 7, 7)),  # stored once
        (5, (5,)),
        (np.zeros(0, np.int64), ()),
        (np.int64(2**40), (2**40,)),
        ([1.5], None),
        (np.arange(1000), None),
    ],
)
def test_integers(value: object, expected: tuple[int, ...] | None) -> None:
    assert integers(tf.make_tensor_proto(value)) == expected
    content = tf.make_tensor_proto(np.asarray(value, np.float32 if expected is None else np.int64))
    content.tensor_content = np.asarray(tf.make_ndarray(content)).tobytes()
    assert integers(content) == expected
    if expected:
        content.tensor_content = content.tensor_content[:-1]
        assert integers(content) is None  # damaged


def test_inference_is_never_wrong_in_real_models(models: ModelStore) -> None:
    """Every shape that is inferred for a main-graph tensor of a TF1 model fits the one that TensorFlow noted down."""
    (read,) = bundles.read(models.pristine("tf1_classify")).graphs()
    noted = {
        name: from_proto(node.attr["_output_shapes"].list.shape[0])
        for name, node in read.scope(MAIN).nodes.items()
        if "_output_shapes" in node.attr and node.attr["_output_shapes"].list.shape
    }
    assert noted
    bare = without_notes(read)
    known = 0
    for name, truth in noted.items():
        inferred = static_shape(bare, Place(Tensor(MAIN, name, "", 0)))
        if inferred is None or truth is None:
            continue
        assert len(inferred) == len(truth), name
        assert all(a in (None, b) for a, b in zip(inferred, truth, strict=True)), name
        known += 1
    assert known >= 5


def test_shapes_follow_weights_through_calls(models: ModelStore) -> None:
    (read,) = bundles.read(models.pristine("keras3")).graphs()
    output = read.meta_graph.signature_def["serving_default"].outputs["output_0"]
    softmax = read.source(Place(read.signature_tensor(output.name)))
    assert static_shape(without_notes(read), softmax) == (None, 10)


def test_merge_keeps_whatever_either_knows() -> None:
    assert _merge((None, 3), (2, None)) == (2, 3)
    assert _merge(None, (1,)) == (1,)
    assert _merge((1,), None) == (1,)
    assert _merge((None, 3), (3,)) == (None, 3)


def test_broadcast() -> None:
    assert _broadcast([(None, 4), (4,)]) == (None, 4)
    assert _broadcast([(None, 1), (4,)]) == (None, 4)
    assert _broadcast([(None, 4), None]) == (None, 4)
    assert _broadcast([None, (4,)]) is None  # of what rank the other is nobody knows
    assert _broadcast([None, None]) is None
    assert _broadcast([(None, 1), None]) == (None, None)


def test_a_long_chain_ends() -> None:
    def f(x: tf.Tensor) -> dict[str, tf.Tensor]:
        y = x @ W
        for _ in range(100):
            y = y + 1.0
        return {"y": y}

    assert static_shape(without_notes(traced(f)), at("y")) in (None, (None, 4))
