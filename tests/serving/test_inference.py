"""Classify, Regress and MultiInference: over gRPC and REST, on models of ours and on other people's."""

from __future__ import annotations

import base64
import gc
import json
import urllib.error
import urllib.request
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import saved_models
import tensorflow as tf
from forests import random_forest, tricky_rows
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

import mpru_tf
from mpru_tf.serving.inference import infer
from mpru_tf.serving.servable import Servable
from mpru_tf.serving.server import ModelServer
from mpru_tf.trees.export import write_saved_model
from mpru_tf.trees.lowering import OpsBackend

Code = grpc.StatusCode
CLASSIFY, REGRESS, PREDICT = (f"tensorflow/serving/{method}" for method in ("classify", "regress", "predict"))
LABELS = [b"cat", b"dog", b"owl"]


def example(**features: Any) -> tf.train.Example:
    """An Example; floats, ints and bytes become features of their kind."""
    made = tf.train.Example()
    for name, values in features.items():
        listed = values if isinstance(values, list) else [values]
        kind = {float: "float_list", int: "int64_list", bytes: "bytes_list"}[type(listed[0])]
        getattr(made.features.feature[name], kind).value.extend(listed)
    return made


def save_heads(path: Path) -> None:
    """A TensorFlow 1 model of x, y (floats) and name: well-formed signatures of both methods, and malformed ones."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        examples = v1.placeholder(tf.string, [None], "examples")
        others = v1.placeholder(tf.string, [None], "others")
        numbers = v1.placeholder(tf.float32, [None, 3], "numbers")
        wanted = {
            "x": tf.io.FixedLenFeature([], tf.float32),
            "y": tf.io.FixedLenFeature([], tf.float32, 0.0),
            "name": tf.io.FixedLenFeature([], tf.string, "nobody"),
            "n": tf.io.FixedLenFeature([], tf.int64, 0),
        }
        found = tf.io.parse_example(examples, wanted)
        scores = tf.stack([found["x"], found["y"], found["x"] + found["y"]], axis=1)
        labels = tf.tile(tf.constant([LABELS]), [tf.size(examples), 1])
        names = tf.stack([found["name"], tf.strings.upper(found["name"])], axis=1)
        total = found["x"] + found["y"] + tf.cast(found["n"], tf.float32)
        runs = v1.get_variable("runs", initializer=0.0)
        run = v1.assign_add(runs, 1.0)
        session.run(v1.global_variables_initializer())
        heads: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
            "serving_default": (CLASSIFY, {"inputs": examples}, {"classes": labels, "scores": scores}),
            "labels": (CLASSIFY, {"inputs": examples}, {"classes": names}),
            "scores": (CLASSIFY, {"inputs": examples}, {"scores": scores}),
            "sum": (REGRESS, {"inputs": examples}, {"outputs": total}),
            "column": (REGRESS, {"inputs": examples}, {"outputs": total[:, tf.newaxis]}),
            "runs": (REGRESS, {"inputs": examples}, {"outputs": tf.fill([tf.size(examples)], run)}),
            "runs_too": (REGRESS, {"inputs": examples}, {"outputs": tf.fill([tf.size(examples), 1], run)}),
            "tensors": (PREDICT, {"examples": examples}, {"sum": total, "labels": labels}),
            "other_input": (CLASSIFY, {"inputs": others}, {"classes": tf.stack([others, others], 1)}),
            "floats_in": (CLASSIFY, {"inputs": numbers}, {"scores": numbers * 2}),
            "two_inputs": (CLASSIFY, {"inputs": examples, "more": others}, {"scores": scores}),
            "wrong_input": (CLASSIFY, {"examples": examples}, {"scores": scores}),
            "three_outputs": (CLASSIFY, {"inputs": examples}, {"classes": labels, "scores": scores, "x": total}),
            "wrong_output": (CLASSIFY, {"inputs": examples}, {"probabilities": scores}),
            "flat": (CLASSIFY, {"inputs": examples}, {"scores": total}),
            "double": (CLASSIFY, {"inputs": examples}, {"scores": tf.cast(scores, tf.float64)}),
            "ids": (CLASSIFY, {"inputs": examples}, {"classes": tf.argsort(scores)}),
            "one_row": (CLASSIFY, {"inputs": examples}, {"scores": scores[:1]}),
            "one_label": (CLASSIFY, {"inputs": examples}, {"classes": labels[:, :1], "scores": scores}),
            "regress_wrong_input": (REGRESS, {"examples": examples}, {"outputs": total}),
            "regress_two_outputs": (REGRESS, {"inputs": examples}, {"outputs": total, "more": total}),
            "regress_wrong_output": (REGRESS, {"inputs": examples}, {"output": total}),
            "regress_wide": (REGRESS, {"inputs": examples}, {"outputs": scores}),
            "regress_scalar": (REGRESS, {"inputs": examples}, {"outputs": tf.reduce_sum(total)}),
            "regress_one_row": (REGRESS, {"inputs": examples}, {"outputs": total[:1]}),
            "regress_ids": (REGRESS, {"inputs": examples}, {"outputs": tf.cast(total, tf.int32)}),
        }
        build, info = v1.saved_model.signature_def_utils, v1.saved_model.utils.build_tensor_info
        signatures = {
            key: build.build_signature_def(
                {name: info(tensor) for name, tensor in inputs.items()},
                {name: info(tensor) for name, tensor in outputs.items()},
                method,
            )
            for key, (method, inputs, outputs) in heads.items()
        }
        builder = v1.saved_model.builder.SavedModelBuilder(str(path))
        builder.add_meta_graph_and_variables(session, ["serve"], signature_def_map=signatures)
        builder.save()


class Client:
    """Both protocols of one server."""

    def __init__(self, base: Path, server: ModelServer, channel: grpc.Channel) -> None:
        self.name = server.model_name
        self.base = base
        self.models = model_service_pb2_grpc.ModelServiceStub(channel)
        self.stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        self.url = f"http://127.0.0.1:{server.rest_api_port}/v1/models/{self.name}"

    def request(self, kind: Any, examples: list[tf.train.Example], signature: str = "", context: Any = None) -> Any:
        request = kind()
        request.model_spec.name = self.name
        request.model_spec.signature_name = signature
        return self.fill(request, examples, context)

    def fill(self, request: Any, examples: list[tf.train.Example], context: Any = None) -> Any:
        if context is None:
            request.input.example_list.examples.extend(examples)
        else:
            request.input.example_list_with_context.context.CopyFrom(context)
            request.input.example_list_with_context.examples.extend(examples)
        return request

    def classify(self, examples: list[tf.train.Example], signature: str = "", context: Any = None) -> Any:
        request = self.request(classification_pb2.ClassificationRequest, examples, signature, context)
        return self.stub.Classify(request, timeout=30)

    def regress(self, examples: list[tf.train.Example], signature: str = "", context: Any = None) -> Any:
        request = self.request(regression_pb2.RegressionRequest, examples, signature, context)
        return self.stub.Regress(request, timeout=30)

    def infer(self, *tasks: tuple[str, str], examples: list[tf.train.Example]) -> Any:
        return self.stub.MultiInference(self.fill(self.tasks(*tasks), examples), timeout=30)

    def tasks(self, *tasks: tuple[str, str]) -> Any:
        request = inference_pb2.MultiInferenceRequest()
        for method, signature in tasks:
            task = request.tasks.add(method_name=method)
            task.model_spec.name = self.name
            task.model_spec.signature_name = signature
        return request

    def rest(self, verb: str, body: Any, which: str = "") -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{which}:{verb}", data)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)["error"]


@contextmanager
def serving(base: Path) -> Iterator[Client]:
    server = ModelServer(base, model_name="m", port=0, rest_api_port=-1)
    with server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield Client(base, server, channel)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a server of :func:`save_heads`, version 7."""
    base = tmp_path_factory.mktemp("heads")
    save_heads(base / "7")
    with serving(base) as client:
        yield client


def refusal(call: Callable[[], Any]) -> tuple[Code, str]:
    with pytest.raises(grpc.RpcError) as refused:
        call()
    return refused.value.code(), refused.value.details()


def classes(result: Any) -> list[list[tuple[str, float]]]:
    return [[(c.label, c.score) for c in row.classes] for row in result.classifications]


def scores(rows: Any) -> np.ndarray[Any, Any]:
    """Only the scores of rows of (label, score), as the model had them."""
    return np.array([[score for _, score in row] for row in rows], np.float32)


def values(result: Any) -> list[float]:
    return [regression.value for regression in result.regressions]


TWO = [example(x=0.5, y=0.25), example(x=2.0, name=b"owl")]


def test_classify(client: Client) -> None:
    response = client.classify(TWO)
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("m", 7, "serving_default")
    want = [[("cat", 0.5), ("dog", 0.25), ("owl", 0.75)], [("cat", 2), ("dog", 0), ("owl", 2)]]
    assert classes(response.result) == want
    body = {"examples": [{"x": 0.5, "y": 0.25}, {"x": [2.0], "name": "owl"}]}
    as_json = [[list(pair) for pair in row] for row in want]
    assert client.rest("classify", body) == (200, {"results": as_json})
    assert client.rest("classify", body, "/versions/7") == (200, {"results": as_json})


def test_classify_with_labels_or_scores_alone(client: Client) -> None:
    response = client.classify(TWO, "labels")
    assert response.model_spec.signature_name == "labels"
    assert classes(response.result) == [[("nobody", 0), ("NOBODY", 0)], [("owl", 0), ("OWL", 0)]]
    assert classes(client.classify(TWO, "scores").result)[0] == [("", 0.5), ("", 0.25), ("", 0.75)]
    body = {"signature_name": "labels", "examples": [{"x": 1.0, "name": {"b64": "b3ds"}}]}
    assert client.rest("classify", body) == (200, {"results": [[["owl", 0.0], ["OWL", 0.0]]]})
    body = {"signature_name": "scores", "examples": [{"x": 1.5}]}
    assert client.rest("classify", body) == (200, {"results": [[["", 1.5], ["", 0.0], ["", 1.5]]]})


@pytest.mark.parametrize("signature", ["sum", "column"])
def test_regress(client: Client, signature: str) -> None:
    response = client.regress([*TWO, example(x=1.0, n=-3)], signature)
    assert (response.model_spec.version.value, response.model_spec.signature_name) == (7, signature)
    assert values(response.result) == [0.75, 2, -2]
    body = {"signature_name": signature, "examples": [{"x": 0.5, "y": 0.25}, {"x": 2.0}, {"x": 1.0, "n": -3}]}
    assert client.rest("regress", body) == (200, {"results": [0.75, 2.0, -2.0]})


def test_a_context_is_shared_and_overruled(client: Client) -> None:
    shared = example(y=10.0, n=1)
    assert values(client.regress([example(x=1.0), example(x=1.0, n=5)], "sum", shared).result) == [12, 16]
    assert classes(client.classify([example(x=1.0)], context=shared).result)[0][1] == ("dog", 10)
    body = {"signature_name": "sum", "context": {"y": 10.0, "n": True}, "examples": [{"x": 1.0}, {"x": 1.0, "n": 5}]}
    assert client.rest("regress", body) == (200, {"results": [12.0, 16.0]})


def test_multi_inference_answers_each_task_from_one_run(client: Client) -> None:
    tasks = (CLASSIFY, ""), (REGRESS, "sum"), (REGRESS, "runs"), (CLASSIFY, "labels"), (REGRESS, "runs_too")
    response = client.infer(*tasks, examples=TWO)
    specs = [(r.model_spec.name, r.model_spec.version.value, r.model_spec.signature_name) for r in response.results]
    assert specs == [("m", 7, signature or "serving_default") for _, signature in tasks]
    kinds = [result.WhichOneof("result") for result in response.results]
    assert kinds == [f"{'classification' if method == CLASSIFY else 'regression'}_result" for method, _ in tasks]
    first, second, runs, fourth, runs_too = response.results
    assert first.classification_result == client.classify(TWO).result
    assert second.regression_result == client.regress(TWO, "sum").result
    assert fourth.classification_result == client.classify(TWO, "labels").result
    (count,) = {*values(runs.regression_result), *values(runs_too.regression_result)}
    again = client.infer((REGRESS, "runs"), examples=TWO[:1])
    assert values(again.results[0].regression_result) == [count + 1]


def test_multi_inference_keeps_no_model_alive(client: Client) -> None:
    servable = Servable.load("m", 7, client.base / "7")
    request = client.fill(client.tasks((CLASSIFY, ""), (REGRESS, "sum")), TWO)
    assert len(infer(servable, request.tasks, request.input)) == 2
    model = weakref.ref(servable.model)
    servable.close()
    del servable
    gc.collect()
    assert model() is None


def test_predict_answers_the_other_signatures_too(client: Client) -> None:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    serialized = [made.SerializeToString() for made in TWO]
    request.inputs["inputs"].CopyFrom(tf.make_tensor_proto(serialized))
    outputs = client.stub.Predict(request, timeout=30).outputs
    assert tf.make_ndarray(outputs["scores"]).tolist() == [[0.5, 0.25, 0.75], [2, 0, 2]]
    assert tf.make_ndarray(outputs["classes"]).tolist() == [LABELS] * 2
    request.model_spec.signature_name = "column"
    assert tf.make_ndarray(client.stub.Predict(request, timeout=30).outputs["outputs"]).tolist() == [[0.75], [2]]

    request.predict_streamed_options.request_state = predict_pb2.PredictStreamedOptions.SPLIT
    assert refusal(lambda: client.stub.Predict(request, timeout=30))[0] is Code.UNIMPLEMENTED
    request.predict_streamed_options.request_state = predict_pb2.PredictStreamedOptions.NONE
    client.stub.Predict(request, timeout=30)


@pytest.mark.parametrize(
    ("signature", "words"),
    [
        ("nope", "No signature was found with the name: nope"),
        ("sum", f"Expected classification signature method_name to be {CLASSIFY}. Was: {REGRESS}"),
        ("tensors", f"Expected classification signature method_name to be {CLASSIFY}. Was: {PREDICT}"),
        ("floats_in", "Expects arg[0] to be float but string is provided"),
        ("two_inputs", "Expected one input Tensor."),
        ("three_outputs", "Expected one or two output Tensors, found 3"),
        ("flat", "Expected Tensor shape: [batch_size num_classes] but got [2]"),
        ("double", "Expected scores Tensor of DT_FLOAT. Got: DT_DOUBLE"),
        ("ids", "Expected classes Tensor of DT_STRING. Got: DT_INT32"),
        ("one_row", "Expected scores output batch size of 2. Got: 1"),
        ("one_label", "Tensors class and score should match in dim_size(1). Got 1 vs. 3"),
    ],
)
def test_signatures_that_cannot_classify(client: Client, signature: str, words: str) -> None:
    assert refusal(lambda: client.classify(TWO, signature)) == (Code.INVALID_ARGUMENT, words)
    body = {"signature_name": signature, "examples": [{"x": 1.0}, {"x": 2.0}]}
    assert client.rest("classify", body) == (400, words)


@pytest.mark.parametrize(
    ("signature", "words"),
    [
        ("nope", "No signature was found with the name: nope"),
        ("", f"Expected regression signature method_name to be {REGRESS}. Was: {CLASSIFY}"),
        ("regress_two_outputs", "Expected one output Tensor."),
        (
            "regress_wide",
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [2,3]",
        ),
        ("regress_scalar", "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got []"),
        ("regress_one_row", "Input batch size did not match output batch size: 2 vs. 1"),
        ("regress_ids", "Expected output Tensor of DT_FLOAT.  Got: DT_INT32"),
    ],
)
def test_signatures_that_cannot_regress(client: Client, signature: str, words: str) -> None:
    assert refusal(lambda: client.regress(TWO, signature)) == (Code.INVALID_ARGUMENT, words)
    body = {"signature_name": signature, "examples": [{"x": 1.0}, {"x": 2.0}]}
    assert client.rest("regress", body) == (400, words)


def test_signatures_with_other_keys_are_shown(client: Client) -> None:
    for call, signature, words in (
        (client.classify, "wrong_input", "No classification inputs found in SignatureDef: "),
        (client.classify, "wrong_output", "Expected classification signature outputs to contain at least one of "),
        (client.regress, "regress_wrong_input", "No regression inputs found in SignatureDef: "),
        (client.regress, "regress_wrong_output", "No regression outputs found in SignatureDef: "),
    ):
        code, details = refusal(lambda call=call, signature=signature: call(TWO, signature))  # type: ignore[misc]
        assert code is Code.FAILED_PRECONDITION
        assert details.startswith(words)
        assert "method_name" in details


def test_requests_that_cannot_be_answered(client: Client) -> None:
    for kind, call in (
        (classification_pb2.ClassificationRequest, client.stub.Classify),
        (regression_pb2.RegressionRequest, client.stub.Regress),
    ):

        def ask(request: Any, call: Any = call) -> tuple[Code, str]:
            return refusal(lambda: call(request, timeout=30))

        signature = "sum" if call is client.stub.Regress else ""
        assert ask(kind()) == (Code.INVALID_ARGUMENT, "Missing ModelSpec")
        request = client.request(kind, TWO, signature)
        request.model_spec.name = ""
        assert ask(request) == (Code.INVALID_ARGUMENT, "ModelSpec has no name specified.")
        request.model_spec.name = "nope"
        assert ask(request) == (Code.NOT_FOUND, "Servable not found for request: Latest(nope)")
        request = client.request(kind, TWO, signature)
        request.model_spec.version.value = 6
        assert ask(request) == (Code.NOT_FOUND, "Servable not found for request: Specific(m, 6)")
        request.model_spec.version_label = "canary"
        assert ask(request)[0] is Code.INVALID_ARGUMENT
        for empty in (kind(), client.fill(kind(), [], example(x=1.0))):
            empty.model_spec.name = "m"
            empty.model_spec.signature_name = signature
            assert ask(empty) == (Code.INVALID_ARGUMENT, "Input is empty.")
        code, details = ask(client.request(kind, [example(y=1.0)], signature))  # the graph's own words
        assert code is Code.INVALID_ARGUMENT
        assert "Feature: x (data type: float) is required but could not be found." in details


@pytest.mark.parametrize(
    ("tasks", "code", "words"),
    [
        ([], Code.INVALID_ARGUMENT, "ModelSpec has no name specified."),
        ([(CLASSIFY, ""), (CLASSIFY, "serving_default")], Code.INVALID_ARGUMENT, "Duplicate evaluation of signature: "),
        ([(CLASSIFY, "nope")], Code.INVALID_ARGUMENT, "Requested signature not found in model graph: nope"),
        ([(PREDICT, "tensors")], Code.UNIMPLEMENTED, f"Unsupported signature method_name: {PREDICT}"),
        ([(REGRESS, "")], Code.INVALID_ARGUMENT, "Expected regression signature method_name to be "),
        ([(CLASSIFY, ""), (REGRESS, "regress_two_outputs")], Code.INVALID_ARGUMENT, "Expected one output Tensor."),
        (
            [(CLASSIFY, ""), (CLASSIFY, "other_input")],
            Code.INVALID_ARGUMENT,
            "Input tensor must be the same for all Signatures.",
        ),
        ([(CLASSIFY, "floats_in")], Code.INVALID_ARGUMENT, "Expects arg[0] to be float but string is provided"),
        ([(CLASSIFY, ""), (REGRESS, "regress_wide")], Code.INVALID_ARGUMENT, "Expected output Tensor shape to be "),
    ],
)
def test_tasks_that_cannot_be_answered(client: Client, tasks: Any, code: Code, words: str) -> None:
    got, details = refusal(lambda: client.infer(*tasks, examples=TWO))
    assert got is code
    assert details.startswith(words)


def test_tasks_are_about_one_model_and_one_input(client: Client) -> None:
    def ask(request: Any) -> tuple[Code, str]:
        return refusal(lambda: client.stub.MultiInference(request, timeout=30))

    request = client.fill(client.tasks((CLASSIFY, ""), (REGRESS, "sum")), TWO)
    request.tasks[1].model_spec.name = "other"
    assert ask(request) == (
        Code.INVALID_ARGUMENT,
        "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
    )
    request.tasks[1].model_spec.name = ""
    assert ask(request) == (Code.INVALID_ARGUMENT, "Found ModelSpec with an empty model name.")
    request.tasks[0].model_spec.name = "other"
    assert ask(request)[0] is Code.NOT_FOUND
    assert ask(client.tasks((CLASSIFY, ""))) == (Code.INVALID_ARGUMENT, "Input is empty.")


@pytest.mark.parametrize(
    ("verb", "body", "status", "words"),
    [
        ("classify", b"", 400, "JSON Parse error: The document is empty"),
        ("classify", [], 400, "JSON Value: [] Is not object"),
        ("classify", {"signature_name": 1, "examples": []}, 400, "'signature_name' key must be a string value."),
        ("regress", {}, 400, "When method is classify, key 'examples' is expected and was not found"),
        ("classify", {"examples": {}}, 400, "Expecting 'examples' value to be an list/array"),
        ("classify", {"examples": []}, 400, "'examples' value is an empty array"),
        ("classify", {"examples": [1]}, 400, "Example must be JSON object but got JSON Number"),
        ("classify", {"context": True, "examples": []}, 400, "Example must be JSON object but got JSON True"),
        ("classify", {"examples": [{"x": None}]}, 400, "Feature: x has element with unexpected JSON type: Null"),
        ("classify", {"examples": [{"x": [[1.0]]}]}, 400, "Feature: x has element with unexpected JSON type: Array"),
        ("classify", {"examples": [{"x": {"y": 1}}]}, 400, "Feature: x has element with unexpected JSON type: Object"),
        ("classify", {"examples": [{"x": ["a", 1]}]}, 400, "Unexpected element type in feature: x expecting type: byt"),
        ("classify", {"examples": [{"x": [1, 1.5]}]}, 400, "Unexpected element type in feature: x expecting type: int"),
        ("classify", {"examples": [{"x": [1.5, 1]}]}, 400, "Unexpected element type in feature: x expecting type: flo"),
        ("classify", {"examples": [{"x": 2**63}]}, 400, "Feature: x has uint64 element. Only int64 is supported."),
        (
            "classify",
            {"examples": [{"x": 1e39}]},
            400,
            "Cannot convert JSON value: 1e+39 to float",
        ),
        ("classify", {"examples": [{"x": {"b64": "%"}}]}, 400, "Unable to base64 decode"),
        ("classify", b'{"examples": [{"\xff": 1.0}]}', 400, "has a name that is not UTF-8"),
        ("classify", b'{"examples": [{"x": ' + b"9" * 5000 + b"}]}", 400, "Number too big to be stored in double."),
        ("regress", {"examples": [{"x": 1.0}]}, 400, "Expected regression signature method_name to be"),
        ("Classify", {"examples": [{"x": 1.0}]}, 400, "Malformed request: POST /v1/models/m:Classify"),
    ],
)
def test_json_that_cannot_be_answered(client: Client, verb: str, body: Any, status: int, words: str) -> None:
    got, error = client.rest(verb, body)
    assert got == status
    assert words in error
    assert client.rest("classify", {"examples": [{"x": 1.0}]})[0] == 200


def test_other_numbers_in_json(client: Client) -> None:
    def total(features: bytes) -> Any:
        return client.rest("regress", b'{"signature_name": "sum", "examples": [{' + features + b"}]}")[1]["results"][0]

    assert total(b'"x": 1E2') == 100
    assert total(b'"x": 1.0, "n": false') == 1
    assert total(b'"x": 1.0, "n": []') == 1
    assert np.float32(total(b'"x": 36893488147419103232')) == 2.0**65  # beyond 64 bits it is a decimal
    assert np.isnan(total(b'"x": NaN'))
    assert total(b'"x": [Inf], "y": 3.0') == np.inf
    assert total(b'"x": -Inf, "name": "Inf\\" -Inf"') == -np.inf
    assert total(b'"x": -Infinity') == -np.inf


def test_labels_that_are_not_utf8(client: Client) -> None:
    asked = [example(x=1.0, name=b"\xff\xc3\xbc")]
    assert classes(client.classify(asked, "labels").result)[0][0] == ("\ufffdü", 0)
    body = b'{"signature_name": "labels", "examples": [{"x": 1.0, "name": {"b64": "/8O8"}}]}'
    request = urllib.request.Request(f"{client.url}:classify", body)
    with urllib.request.urlopen(request, timeout=30) as response:
        assert b'[["\xff\xc3\xbc", 0.0]' in response.read()


def test_a_label_names_the_version(client: Client) -> None:
    request = model_management_pb2.ReloadConfigRequest()
    config = request.config.model_config_list.config.add(
        name="m", base_path=str(client.base), model_platform="tensorflow"
    )
    config.version_labels["stable"] = 7
    assert client.models.HandleReloadConfigRequest(request, timeout=30).status.error_code == 0

    asked = client.request(classification_pb2.ClassificationRequest, TWO)
    asked.model_spec.version_label = "stable"
    response = client.stub.Classify(asked, timeout=30)
    assert response.model_spec.version.value == 7  # the number, as the real server
    tasks = client.fill(client.tasks((REGRESS, "sum")), TWO)
    tasks.tasks[0].model_spec.version_label = "stable"
    (result,) = client.stub.MultiInference(tasks, timeout=30).results
    assert result.model_spec.version.value == 7
    metadata = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    metadata.model_spec.name, metadata.model_spec.version_label = "m", "stable"
    assert client.stub.GetModelMetadata(metadata, timeout=30).model_spec.version.value == 7

    body = {"signature_name": "sum", "examples": [{"x": 1.0}]}
    assert client.rest("regress", body, "/labels/stable") == (200, {"results": [1.0]})
    inputs = {"signature_name": "tensors", "inputs": {"b64": base64.b64encode(b"").decode()}}
    assert client.rest("predict", inputs, "/labels/stable")[0] == 400  # the signature wants a vector
    for path, key in (("/labels/stable/metadata", "model_spec"), ("/labels/stable", "model_version_status")):
        with urllib.request.urlopen(f"{client.url}{path}", timeout=30) as got:
            found = json.load(got)[key]
            assert (found if key == "model_spec" else found[0])["version"] == "7"
    assert client.rest("regress", body, "/labels/canary") == (400, "Unrecognized servable version label: canary")
    asked.model_spec.version_label = "canary"
    assert refusal(lambda: client.stub.Classify(asked, timeout=30)) == (
        Code.INVALID_ARGUMENT,
        "Unrecognized servable version label: canary",
    )


def test_metadata_tells_the_methods(client: Client) -> None:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "m"
    signatures = get_model_metadata_pb2.SignatureDefMap()
    client.infer((CLASSIFY, ""), (REGRESS, "sum"), examples=TWO)  # leaves nothing behind
    assert client.stub.GetModelMetadata(request, timeout=30).metadata["signature_def"].Unpack(signatures)
    methods = {key: signature.method_name for key, signature in signatures.signature_def.items()}
    assert (methods["serving_default"], methods["sum"], methods["tensors"]) == (CLASSIFY, REGRESS, PREDICT)
    assert len(methods) == 26


# ----------------------------------------------------------------------------------------------------- other models


def test_a_classify_signature_that_takes_numbers_answers_predict_alone(tmp_path: Path) -> None:
    saved_models.tf1_classify(tmp_path / "1")
    with serving(tmp_path) as client:
        assert refusal(lambda: client.classify(TWO)) == (
            Code.INVALID_ARGUMENT,
            "Expects arg[0] to be float but string is provided",
        )
        rows = saved_models.inputs(2)
        status, answer = client.rest("predict", {"instances": rows.tolist()})
        assert status == 200
        assert [len(row["scores"]) for row in answer["predictions"]] == [5, 5]


def test_a_converted_forest_classifies_and_forgets(tmp_path: Path) -> None:
    forest = replace(random_forest(30, trees=4, depth=4, n_features=3), feature_names=("a", "b", "c"))
    (tmp_path / "1").mkdir()
    write_saved_model(forest, tmp_path / "1", OpsBackend(forest), classify=True, labels=["cat", "dog", "owl"])
    rows = tricky_rows(forest, 40)
    rows = rows[np.isfinite(rows).all(axis=1)][:8]
    assert len(rows) == 8
    asked = [example(a=float(a), b=float(b), c=float(c)) for a, b, c in rows]
    body = {
        "signature_name": "classify",
        "examples": [{"a": float(a), "b": float(b), "c": float(c)} for a, b, c in rows],
    }
    with serving(tmp_path) as client:
        before = classes(client.classify(asked, "classify").result)
        assert [[label for label, _ in row] for row in before] == [["cat", "dog", "owl"]] * 8
        np.testing.assert_allclose(scores(before), forest.probabilities(rows), rtol=0, atol=3e-7)
        answer = client.rest("classify", body)[1]["results"]
        np.testing.assert_array_equal(scores(answer), scores(before))
    mpru_tf.forget(tmp_path, classes=[1])
    with serving(tmp_path) as client:
        after = client.classify(asked, "classify")
        assert after.model_spec.version.value == 2
        filtered = scores(classes(after.result))
        assert (filtered[:, 1] == 0).all()
        np.testing.assert_allclose(filtered.sum(axis=1), 1, atol=1e-6)


def test_an_estimator_of_tfx(shared: Path) -> None:
    body = {
        "context": {"company": "Flash Cab", "payment_type": "Cash"},
        "examples": [
            {"trip_miles": 1.5, "fare": [7.25], "trip_start_hour": 13, "trip_seconds": 300},
            {"trip_miles": 12.0, "trip_start_hour": 2},
        ],
    }
    asked = [
        example(trip_miles=1.5, fare=7.25, trip_start_hour=13, trip_seconds=300),
        example(trip_miles=12.0, trip_start_hour=2),
    ]
    context = example(company=b"Flash Cab", payment_type=b"Cash")
    with serving(shared / "zoo" / "tfx_taxi_estimator") as client:
        result = client.classify(asked, context=context).result
        rows = classes(result)
        assert [[label for label, _ in row] for row in rows] == [["0", "1"]] * 2
        assert [sum(score for _, score in row) for row in rows] == pytest.approx([1, 1])
        assert rows[0] != rows[1]
        (_, first), (_, second) = rows[0][1], rows[1][1]
        assert values(client.regress(asked, "regression", context).result) == pytest.approx([first, second])
        request = client.fill(client.tasks((REGRESS, "regression"), (CLASSIFY, "classification")), asked, context)
        regression, classification = client.stub.MultiInference(request, timeout=30).results
        assert classification.classification_result == result
        assert values(regression.regression_result) == pytest.approx([first, second])
        status, answer = client.rest("classify", body)
        assert status == 200
        np.testing.assert_array_equal(scores(answer["results"]), scores(rows))
        code, details = refusal(lambda: client.infer((CLASSIFY, ""), (CLASSIFY, "predict"), examples=asked))
        assert (code, details.partition(" to be")[0]) == (
            Code.INVALID_ARGUMENT,
            "Expected classification signature method_name",
        )


def test_an_estimator_that_reads_plain_strings(shared: Path) -> None:
    asked = [example(x=1.0), example(name=b"import os")]
    with serving(shared / "zoo" / "guesslang_estimator") as client:
        rows = classes(client.classify(asked).result)
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "m"
        request.model_spec.signature_name = "predict"
        request.inputs["content"].CopyFrom(tf.make_tensor_proto([made.SerializeToString() for made in asked]))
        outputs = client.stub.Predict(request, timeout=30).outputs
        np.testing.assert_array_equal(scores(rows), tf.make_ndarray(outputs["probabilities"]))
        assert len({label for label, _ in rows[0]}) == 30
