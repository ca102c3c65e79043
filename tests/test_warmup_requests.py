"""Warm-up records: made from arrays, cut to batch sizes, kept true to what a version has dropped."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef
from tensorflow_serving.apis import prediction_log_pb2

from mpru_tf import warmup_requests
from mpru_tf.errors import DataError
from mpru_tf.warmup_requests import at_most, in_batches, in_turn, kept, of_sizes, record, served


def signature(method: str = "predict", rows: int | None = None, key: str = "x", dtype: Any = tf.float32) -> Any:
    definition = SignatureDef(method_name=f"tensorflow/serving/{method}" if method else "")
    definition.inputs[key].dtype = dtype.as_datatype_enum
    shape = [rows] if dtype == tf.string else [rows, 2]
    definition.inputs[key].tensor_shape.CopyFrom(tf.TensorShape(shape).as_proto())
    return definition


def rows_of(log: Any) -> list[list[float]]:
    (tensor,) = log.predict_log.request.inputs.values()
    return tf.make_ndarray(tensor).tolist()


X = np.arange(10, dtype=np.float32).reshape(5, 2)


def test_clients_of_the_default_signature_come_first() -> None:
    given = {"b": signature(), "serving_default": signature(), "a": signature(), "init": signature("")}
    assert list(served(given)) == ["serving_default", "a", "b"]


@pytest.mark.parametrize("method", ["classify", "regress"])
def test_examples_are_asked_for_as_the_signature_means_it(method: str) -> None:
    example = tf.train.Example()
    example.features.feature["f"].float_list.value.append(2.0)
    inputs = {"inputs": np.array([example.SerializeToString()] * 2, np.object_)}
    log = record("c", signature(method, key="inputs", dtype=tf.string), inputs)
    assert log.WhichOneof("log_type") == f"{method}_log"
    request = getattr(log, f"{method}_log").request
    assert list(request.input.example_list.examples) == [example, example]
    assert request.model_spec.signature_name == "c"
    text = {"inputs": np.array([b"\xff\xff no example"], np.object_)}
    log = record("c", signature(method, key="inputs", dtype=tf.string), text)
    assert tf.make_ndarray(log.predict_log.request.inputs["inputs"]).tolist() == text["inputs"].tolist()


def test_every_size_comes_once_and_then_as_long_as_there_are_examples() -> None:
    logs = list(in_batches("s", signature(), {"x": X}, [1, 2, 8, 2]))
    rows = X.tolist()
    assert [rows_of(log) for log in logs] == [
        [rows[0]],
        [rows[0], rows[1]],
        [*rows, *rows[:3]],  # too few, so some come again
        [rows[1]],
        [rows[2], rows[3]],
        [rows[2]],
        [rows[3]],
        [rows[4]],
    ]


def test_a_fixed_batch_is_the_only_size() -> None:
    logs = list(in_batches("s", signature(rows=2), {"x": X}, [1, 8]))
    assert [len(rows_of(log)) for log in logs] == [2, 2]


def test_inputs_without_a_batch_are_left_alone() -> None:
    definition = signature()
    definition.inputs["k"].dtype = tf.int32.as_datatype_enum
    first = next(in_batches("s", definition, {"x": X, "k": np.array(3, np.int32)}, [2]))
    assert tf.make_ndarray(first.predict_log.request.inputs["k"]) == 3
    assert len(list(in_batches("s", definition, {"k": np.array(3, np.int32)}, [2, 3]))) == 1


def test_a_request_that_could_not_be_sent_is_refused() -> None:
    with pytest.raises(DataError, match="at most 134217728 examples"):
        next(in_batches("s", signature(), {"x": X}, [1 << 28]))


def test_a_warm_up_file_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    log = record("s", signature(), {"x": X})
    assert len(at_most(itertools.repeat(log), 1)) == 1000
    with pytest.raises(DataError, match="at most 1000"):
        at_most([], 1001)
    monkeypatch.setattr(warmup_requests, "_MOST_BYTES", 10 * len(log.SerializeToString()))
    assert len(at_most(itertools.repeat(log), 1)) == 10
    assert len(at_most(itertools.repeat(log), 12)) == 12
    assert list(in_turn([1, 2, 3], [4])) == [1, 4, 2, 3]


def test_answers_and_dropped_outputs_are_left_out() -> None:
    log = record("", signature(), {"x": X})
    log.predict_log.response.outputs["p"].dtype = 1
    log.predict_log.request.output_filter.extend(["p", "h"])
    left = kept(log, {"serving_default:h", "other:p"})
    assert list(left.predict_log.request.output_filter) == ["p"]
    assert not left.predict_log.HasField("response")
    assert log.predict_log.HasField("response")
    assert kept(log, {"serving_default:h", "serving_default:p"}) is None
    assert kept(left, ()) == left
    everything = record("s", signature(), {"x": X})
    assert kept(everything, {"s:h"}) == everything
    classify = prediction_log_pb2.PredictionLog()
    classify.classify_log.response.result.classifications.add()
    assert not kept(classify, ()).classify_log.HasField("response")
    nothing = prediction_log_pb2.PredictionLog()
    assert kept(nothing, ()) == nothing


def test_recorded_requests_are_brought_to_sizes_that_none_of_them_has() -> None:
    text = signature("classify", key="inputs", dtype=tf.string)
    example = tf.train.Example().SerializeToString()
    logs = {
        1: record("unknown", signature(), {"x": X}),
        2: record("s", signature(), {"x": X[:2]}),
        3: record("s", signature(), {"x": X[:1]}),
        4: record("c", text, {"inputs": np.array([example] * 3, np.object_)}),
        5: record("fixed", signature(rows=2), {"x": X[:2]}),
        6: prediction_log_pb2.PredictionLog(),
    }
    known = {"s": signature(), "c": text, "fixed": signature(rows=2)}
    made = list(of_sizes(logs, known, (1, 3)))
    assert [number for number, _ in made] == [4, 2]
    assert len(made[0][1].classify_log.request.input.example_list.examples) == 1
    assert rows_of(made[1][1]) == [X[0].tolist(), X[1].tolist(), X[0].tolist()]
    assert len(rows_of(logs[2])) == 2
