"""What a client sees of a server: the same tests for `mpru-tf serve` and for a real `tensorflow_model_server`."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    regression_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

import mpru_tf

MODEL = "small"
ROWS = [[1.0, 2.0, 3.0], [0.5, 0.0, -1.0]]
Code = grpc.StatusCode
Start = Callable[..., Any]


def flags_of(base: Path) -> list[str]:
    return [f"--model_name={MODEL}", f"--model_base_path={base}"]


def answer_of(scale: float) -> np.ndarray[Any, Any]:
    """What the classifier answers."""
    logits = np.sum(ROWS, axis=1)[:, None] * scale * np.arange(4)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def refused(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as refusal:
        call()
    return refusal.value.code(), refusal.value.details()


@contextmanager
def asking(program: Any) -> Iterator[list[tuple[int, Any]]]:
    """Ask in two threads all the while; no request may fail."""
    seen: list[tuple[int, Any]] = []
    failures: list[BaseException] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                seen.append(program.client.predict(ROWS))
            except grpc.RpcError as error:
                failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures


# ---------------------------------------------------------------------------------------------------------- one version
def test_predict_status_metadata_and_rest(start: Start, base: Path) -> None:
    program = start(*flags_of(base))
    version, scores = program.client.predict(ROWS)
    assert version == 1
    assert scores == pytest.approx(answer_of(0.3), abs=1e-6)
    assert program.client.states() == {1: "AVAILABLE"}
    assert program.client.names() == ("x", "probabilities")
    status, answer = program.rest(f"{MODEL}:predict", {"instances": ROWS})
    assert (status, answer) == (200, {"predictions": [pytest.approx(row, abs=1e-6) for row in scores]})
    assert program.rest(f"{MODEL}/versions/1:predict", {"inputs": ROWS})[1]["outputs"] == answer["predictions"]
    status, answer = program.rest(MODEL)
    assert (status, answer["model_version_status"][0]["state"]) == (200, "AVAILABLE")
    status, answer = program.rest(f"{MODEL}/metadata")
    assert (status, answer["model_spec"]["version"]) == (200, "1")


def test_status_codes_of_errors(start: Start, base: Path) -> None:
    program = start(*flags_of(base))
    client = program.client
    assert refused(lambda: client.predict(ROWS, version=9))[0] is Code.NOT_FOUND
    assert refused(lambda: client.predict(ROWS, label="none"))[0] is Code.INVALID_ARGUMENT

    def ask(**changes: Any) -> tuple[grpc.StatusCode, str]:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = changes.get("name", MODEL)
        request.model_spec.signature_name = changes.get("signature", "")
        request.inputs[changes.get("key", "x")].CopyFrom(tf.make_tensor_proto(changes.get("x", np.float32(ROWS))))
        request.output_filter.extend(changes.get("outputs", []))
        return refused(lambda: client.predictions.Predict(request, timeout=30))

    assert ask(name="nobody")[0] is Code.NOT_FOUND
    assert ask(signature="none")[0] is Code.FAILED_PRECONDITION
    assert ask(key="y")[0] is Code.INVALID_ARGUMENT
    assert ask(x=np.float64(ROWS))[0] is Code.INVALID_ARGUMENT
    assert ask(x=np.zeros((2, 5), np.float32))[0] is Code.INVALID_ARGUMENT
    assert ask(outputs=["none"])[0] is Code.INVALID_ARGUMENT
    assert refused(lambda: client.predictions.Predict(predict_pb2.PredictRequest(), timeout=30))[0] is (
        Code.INVALID_ARGUMENT
    )
    for path, body, status in (
        ("nobody:predict", {"instances": ROWS}, 404),
        (f"{MODEL}/versions/9:predict", {"instances": ROWS}, 404),
        (f"{MODEL}:predict", {"instances": []}, 400),
        (f"{MODEL}:predict", {"nothing": 1}, 400),
        ("nobody", None, 404),
    ):
        answered, answer = program.rest(path, body)
        assert (path, answered) == (path, status)
        assert answer["error"]


def save_heads(path: Path) -> None:
    """A TensorFlow 1 model that reads x from Examples, with a signature of each method."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        examples = v1.placeholder(tf.string, [None], "examples")
        x = tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([], tf.float32)})["x"]
        labels = tf.tile(tf.constant([["cat", "dog"]]), [tf.size(examples), 1])
        info = v1.saved_model.utils.build_tensor_info

        def signature(method: str, **outputs: tf.Tensor) -> Any:
            return v1.saved_model.signature_def_utils.build_signature_def(
                {"inputs": info(examples)},
                {key: info(tensor) for key, tensor in outputs.items()},
                f"tensorflow/serving/{method}",
            )

        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            {
                "serving_default": signature("classify", classes=labels, scores=tf.stack([x, 1 - x], axis=1)),
                "double": signature("regress", outputs=x * 2),
            },
        )
        builder.save()


def test_classify_regress_and_multi_inference(start: Start, tmp_path: Path) -> None:
    save_heads(tmp_path / "heads" / "1")
    client = start(*flags_of(tmp_path / "heads")).client
    example = tf.train.Example()
    example.features.feature["x"].float_list.value.append(0.25)

    request = classification_pb2.ClassificationRequest()
    request.model_spec.name = MODEL
    request.input.example_list.examples.append(example)
    classified = client.predictions.Classify(request, timeout=30).result
    assert [(each.label, each.score) for each in classified.classifications[0].classes] == [
        ("cat", 0.25),
        ("dog", 0.75),
    ]

    request = regression_pb2.RegressionRequest()
    request.model_spec.name, request.model_spec.signature_name = MODEL, "double"
    request.input.example_list.examples.append(example)
    regressed = client.predictions.Regress(request, timeout=30).result
    assert [each.value for each in regressed.regressions] == [0.5]

    request = inference_pb2.MultiInferenceRequest()
    request.input.example_list.examples.append(example)
    for name, method in (("serving_default", "classify"), ("double", "regress")):
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name, task.model_spec.signature_name = MODEL, name
    both = client.predictions.MultiInference(request, timeout=30).results
    assert (both[0].classification_result, both[1].regression_result) == (classified, regressed)


# --------------------------------------------------------------------------------------------------------------- swaps
def test_a_forgotten_class_goes_and_comes_back_only_with_its_version(start: Start, base: Path) -> None:
    """Hot swap under load; then the newest version is deleted, and the old one answers again, as in the real server."""
    program = start(*flags_of(base))
    with asking(program) as seen:
        mpru_tf.forget(base, ["owl"])
        program.wait_for(v2="AVAILABLE", v1="END")
        shutil.move(base / "2", base.parent / "away")
        program.wait_for(v1="AVAILABLE", v2="END")
    assert {version for version, _ in seen} == {1, 2}
    for version, scores in seen:
        assert version == 1 or [row[2] for row in scores] == [0, 0]
        assert version == 2 or scores == pytest.approx(answer_of(0.3), abs=1e-6)


def test_a_corrupt_version_leaves_the_old_one(start: Start, base: Path) -> None:
    program = start(*flags_of(base))
    with asking(program) as seen:
        (base / "staged").mkdir()
        (base / "staged" / "saved_model.pb").write_bytes(b"\x08\x01\x12\xff\xff")
        (base / "staged").rename(base / "2")
        program.wait_for(v1="AVAILABLE", v2="END")
        assert mpru_tf.forget(base / "1", [0]).version == 3  # the way out, with the corrupt version still there
        program.wait_for(v3="AVAILABLE", v1="END")
    assert {version for version, _ in seen} <= {1, 3}


@pytest.mark.parametrize("is_good", [True, False], ids=["good", "bad"])
def test_warm_up_before_anyone_is_answered(start: Start, base: Path, is_good: bool) -> None:
    program = start(*flags_of(base))
    result = mpru_tf.forget(base, [0], into=base.parent / "next", warmup="auto")
    records = result.path / "assets.extra" / "tf_serving_warmup_requests"
    assert records.is_file()
    if not is_good:
        log = prediction_log_pb2.PredictionLog()
        log.predict_log.request.model_spec.name = MODEL
        log.predict_log.request.inputs["nothing"].CopyFrom(tf.make_tensor_proto([1.0]))
        records.unlink()
        with tf.io.TFRecordWriter(str(records)) as writer:
            writer.write(log.SerializeToString())
    result.path.rename(base / "2")
    program.wait_for(v2="AVAILABLE" if is_good else "END", v1="END" if is_good else "AVAILABLE")
    assert program.client.predict(ROWS)[0] == (2 if is_good else 1)


# ----------------------------------------------------------------------------------------------- labels, configuration
def reload(program: Any, config: Any) -> int:
    """Send a configuration; the error code of the answer."""
    request = model_management_pb2.ReloadConfigRequest(config=config)
    stub = model_service_pb2_grpc.ModelServiceStub(program.client.channel)
    return int(stub.HandleReloadConfigRequest(request, timeout=60).status.error_code)


def test_labels_and_reload(start: Start, base: Path, config: Path) -> None:
    program = start(f"--model_config_file={config}", "--allow_version_labels_for_unavailable_models")
    ask = program.client.predict
    assert ask(ROWS, label="stable")[0] == 1
    mpru_tf.forget(base, [1])
    program.wait_for(v1="AVAILABLE", v2="AVAILABLE")
    assert (ask(ROWS)[0], ask(ROWS, version=1)[0], ask(ROWS, label="stable")[0]) == (2, 1, 1)

    wanted = text_format.Parse(config.read_text(), model_server_config_pb2.ModelServerConfig())
    (entry,) = wanted.model_config_list.config
    entry.version_labels["stable"] = 2
    assert reload(program, wanted) == 0
    assert ask(ROWS, label="stable")[0] == 2
    assert program.rest(f"{MODEL}/labels/stable:predict", {"instances": ROWS})[0] == 200

    second = wanted.model_config_list.config.add()
    second.CopyFrom(entry)
    second.name = "second"
    assert reload(program, wanted) == 0
    assert program.rest("second:predict", {"instances": ROWS})[0] == 200
    del wanted.model_config_list.config[1]
    assert reload(program, wanted) == 0
    assert program.rest("second:predict", {"instances": ROWS})[0] == 404
    assert ask(ROWS)[0] == 2
