"""Warm-up requests are replayed before a version answers anyone, and a bad one keeps it from answering."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from mpru_tf.serving.loading import replay
from mpru_tf.serving.servable import Servable
from mpru_tf.serving.status import RequestError
from mpru_tf.warmup import WARMUP_FILE, write_warmup

Publish = Callable[..., Path]
Running = Callable[..., Any]
X = np.array([[1, 2, 3]], np.float32)


def predict_log(signature: str = "", **inputs: Any) -> Any:
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.model_spec.name = "recorded elsewhere"
    log.predict_log.request.model_spec.version.value = 77
    log.predict_log.request.model_spec.signature_name = signature
    for key, value in inputs.items():
        log.predict_log.request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    return log


class Counting(tf.Module):
    """Counts its own steps, so that a test sees what was replayed."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = tf.Variable(0, dtype=tf.int32)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, "x")])
    def step(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"steps": self.steps.assign_add(1) + 0 * tf.reduce_sum(x)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
    def regress(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        steps = tf.cast(self.steps.assign_add(100), tf.float32)
        return {"outputs": tf.fill(tf.shape(inputs), steps)}


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tensorflow.core.protobuf import saved_model_pb2

    path = tmp_path_factory.mktemp("counting") / "1"
    module = Counting()
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.step, "regress": module.regress})
    graph = path / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(graph.read_bytes())
    model.meta_graphs[0].signature_def["regress"].method_name = "tensorflow/serving/regress"
    graph.write_bytes(model.SerializeToString())
    return path


def steps(servable: Servable) -> int:
    """Return how many steps the model had done before this one."""
    return int(servable.model.run("serving_default", {"x": np.zeros(1, np.int32)})["steps"]) - 1


def test_every_kind_of_request_is_replayed(counting: Path, tmp_path: Path) -> None:
    regress = prediction_log_pb2.PredictionLog()
    regress.regress_log.request.model_spec.signature_name = "regress"
    regress.regress_log.request.input.example_list.examples.add()
    several = prediction_log_pb2.PredictionLog()
    task = several.multi_inference_log.request.tasks.add(method_name="tensorflow/serving/regress")
    task.model_spec.signature_name = "regress"
    several.multi_inference_log.request.input.example_list.examples.add()
    nothing = prediction_log_pb2.PredictionLog()
    write_warmup(tmp_path / "warmup", [predict_log(x=np.int32([1])), regress, several, nothing])
    servable = Servable.load("m", 1, counting)
    assert replay(servable, tmp_path / "warmup", iterations=2) == 4
    assert steps(servable) == 2 * (1 + 100 + 100)
    servable.close()


def test_a_refused_record_is_refused_with_its_own_code(counting: Path, tmp_path: Path) -> None:
    classify = prediction_log_pb2.PredictionLog()
    classify.classify_log.request.input.example_list.examples.add()
    session_run = prediction_log_pb2.PredictionLog()
    session_run.session_run_log.SetInParent()
    servable = Servable.load("m", 1, counting)
    for log, words in (
        (predict_log(x=X), "INVALID_ARGUMENT: Expects arg"),
        (predict_log("none", x=X), "FAILED_PRECONDITION: Serving signature key"),
        (classify, "Expected classification signature method_name"),
        (session_run, "UNIMPLEMENTED: Unsupported log_type for warmup"),
    ):
        write_warmup(tmp_path / "warmup", [predict_log(x=np.int32([1])), log])
        with pytest.raises(RequestError, match=words):
            replay(servable, tmp_path / "warmup")
    servable.close()


def test_too_many_records(counting: Path, tmp_path: Path) -> None:
    record = predict_log(x=np.int32([1])).SerializeToString()
    with tf.io.TFRecordWriter(str(tmp_path / "warmup")) as writer:
        for _ in range(1001):
            writer.write(record)
    servable = Servable.load("m", 1, counting)
    with pytest.raises(RequestError, match=r"Number of warmup records exceeds the maximum \(1000\) at "):
        replay(servable, tmp_path / "warmup")
    servable.close()


def test_a_bad_record_keeps_a_version_from_answering(
    publish: Publish, running: Running, saved: Callable[[int], Path], tmp_path: Path
) -> None:
    publish(1)

    def publish_with(version: int, content: Any) -> None:
        staged = tmp_path / "staged"
        shutil.copytree(saved(2), staged)
        write_warmup(staged / WARMUP_FILE, [] if isinstance(content, bytes) else content)
        if isinstance(content, bytes):
            (staged / WARMUP_FILE).write_bytes(content)
        staged.rename(tmp_path / "model" / str(version))

    with running(max_num_load_retries=0) as (server, client):
        for version, content, code, words in (
            (
                2,
                [predict_log(x=X), predict_log(x=X.astype(np.int64))],
                "INVALID_ARGUMENT",
                "Expects arg[0] to be float",
            ),
            (3, b"no records at all", "DATA_LOSS", "verify your warmup data is in TFRecord format"),
        ):
            publish_with(version, content)
            client.wait_for(v1="AVAILABLE", **{f"v{version}": "END"})
            error = server.statuses()[version].error
            assert error.code.name == code
            assert words in error.message
            assert client.predict(client.request(x=X))[0].version.value == 1
        publish_with(4, [predict_log(x=X), predict_log("total", x=np.float32([1]))])
        client.wait_for(v1="END", v4="AVAILABLE")


def test_warm_up_can_be_left_out(publish: Publish, running: Running) -> None:
    write_warmup(publish(1) / WARMUP_FILE, [predict_log(x="wrong")])
    with running(enable_model_warmup=False) as (_, client):
        assert client.predict(client.request(x=X))[0].version.value == 1
