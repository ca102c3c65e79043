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
from mpru_tf.saved_model.shapes import Shape, _broadcast, _merge, from_proto, static_shape

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


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (lambda x: x @ W, (None, 4)),
        (
            lambda x: tf.matmul(x, tf.transpose(tf.constant(W)), transpose_b=True),
            (None, None),
        ),  # Transpose is not followed
        (lambda x: tf.matmul(x, W.T, transpose_b=True), (None, 4)),
        (lambda x: tf.nn.bias_add(x @ W, W[0]), (None, 4)),
        (lambda x: x @ W + W[0], (None, 4)),
        (lambda x: 2.0 * (x @ W), (None, 4)),
        (lambda x: (x @ W) / tf.reduce_sum(x, -1, keepdims=True), (None, 4)),
        (lambda x: tf.nn.softmax(tf.nn.relu(x @ W)), (None, 4)),
        (lambda x: tf.cast(x @ W, tf.float64), (None, 4)),
        (lambda x: tf.nn.conv2d(x[:, None, None, :], CHANNELS, 1, "SAME"), (None, None, None, None)),
        (lambda x: tf.concat([x, x], -1), (None, None)),
        (lambda x: tf.constant([[1.0, 2.0]]), (1, 2)),
        (lambda x: x, (None, 10)),
        (lambda x: tf.reduce_sum(x), None),
    ],
)
def test_inference_without_notes(f: Callable[[tf.Tensor], tf.Tensor], expected: Shape | None) -> None:
    read = without_notes(traced(lambda x: {"y": f(x)}))
    assert static_shape(read, at("y")) == expected


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x @ W,
        lambda x: tf.reshape(x @ W, [-1, 2]),
        lambda x: tf.reduce_mean(tf.nn.conv2d(x[:, None, None, :], CHANNELS, 1, "SAME"), [1, 2]),
        lambda x: tf.nn.softmax(tf.squeeze((x @ W)[:, None, :], 1)),
        lambda x: tf.concat([x @ W, x], -1),
    ],
)
def test_notes_and_inference_agree_with_tensorflow(f: Callable[[tf.Tensor], tf.Tensor]) -> None:
    with tf.Graph().as_default():
        truth = tuple(f(tf.compat.v1.placeholder(tf.float32, [None, 10])).shape.as_list())
    read = traced(lambda x: {"y": f(x)})
    assert static_shape(read, at("y")) == truth
    inferred = static_shape(without_notes(read), at("y"))
    if inferred is not None:  # may know less, never something else
        assert len(inferred) == len(truth)
        assert all(length in (None, known) for length, known in zip(inferred, truth, strict=True))


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
