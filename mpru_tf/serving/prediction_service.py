"""PredictionService over gRPC: Predict, Classify, Regress, MultiInference and GetModelMetadata."""

from __future__ import annotations

from typing import Any

import grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    inference_pb2,
    model_pb2,
    predict_pb2,
    regression_pb2,
)

from mpru_tf.serving.inference import Array, Classes, classify, infer, regress
from mpru_tf.serving.manager import ServableManager
from mpru_tf.serving.model_spec import requested_version
from mpru_tf.serving.predict import predict
from mpru_tf.serving.servable import DEFAULT_SIGNATURE, Servable
from mpru_tf.serving.status import RequestError, invalid_argument
from mpru_tf.serving.tensors import decode, encode

_SIGNATURE_DEF = "signature_def"


def answer_predict(manager: ServableManager, request: Any) -> Any:
    """Answer a ``PredictRequest`` with a ``PredictResponse``, or raise :class:`RequestError`."""
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    if request.predict_streamed_options.request_state:
        # A part of a split request: answered on its own, it would look like the answer to the whole.
        raise RequestError(grpc.StatusCode.UNIMPLEMENTED, "PredictStreamed is not supported.")
    spec = request.model_spec
    with manager.use(*requested_version(manager, spec)) as servable:
        outputs = predict(servable, spec.signature_name, request.inputs, decode, request.output_filter)
        response = predict_pb2.PredictResponse()
        _tell(response.model_spec, servable, spec)
    for key, array in outputs.items():
        encode(array, response.outputs[key])
    return response


def answer_classify(manager: ServableManager, request: Any) -> Any:
    """Answer a ``ClassificationRequest`` with a ``ClassificationResponse``, or raise :class:`RequestError`."""
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    spec = request.model_spec
    response = classification_pb2.ClassificationResponse()
    with manager.use(*requested_version(manager, spec)) as servable:
        classes = classify(servable, spec.signature_name, request.input)
        _tell(response.model_spec, servable, spec)
    _write_classes(classes, response.result)
    return response


def answer_regress(manager: ServableManager, request: Any) -> Any:
    """Answer a ``RegressionRequest`` with a ``RegressionResponse``, or raise :class:`RequestError`."""
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    spec = request.model_spec
    response = regression_pb2.RegressionResponse()
    with manager.use(*requested_version(manager, spec)) as servable:
        values = regress(servable, spec.signature_name, request.input)
        _tell(response.model_spec, servable, spec)
    _write_regressions(values, response.result)
    return response


def answer_multi_inference(manager: ServableManager, request: Any) -> Any:
    """Answer a ``MultiInferenceRequest`` with a ``MultiInferenceResponse``, or raise :class:`RequestError`."""
    spec = request.tasks[0].model_spec if request.tasks else model_pb2.ModelSpec()
    response = inference_pb2.MultiInferenceResponse()
    with manager.use(*requested_version(manager, spec)) as servable:
        answers = infer(servable, request.tasks, request.input)
        for task in request.tasks:
            _tell(response.results.add().model_spec, servable, task.model_spec)
    for result, answer in zip(response.results, answers, strict=True):
        if isinstance(answer, Classes):
            _write_classes(answer, result.classification_result)
        else:
            _write_regressions(answer, result.regression_result)
    return response


def answer_get_model_metadata(manager: ServableManager, request: Any) -> Any:
    """Answer a ``GetModelMetadataRequest`` with its response, or raise :class:`RequestError`."""
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    if not request.metadata_field:
        raise invalid_argument("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != _SIGNATURE_DEF:
            raise invalid_argument(f"Metadata field {field} is not supported")
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    with manager.use(*requested_version(manager, request.model_spec)) as servable:
        response.model_spec.name = servable.name
        response.model_spec.version.value = servable.version
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for key, definition in servable.model.signatures.items():
            signatures.signature_def[key].CopyFrom(definition)
    response.metadata[_SIGNATURE_DEF].Pack(signatures)
    return response


def _tell(answered: Any, servable: Servable, asked: Any) -> None:
    """Fill the ``ModelSpec`` of a response: which version and which signature answered."""
    answered.name = servable.name
    answered.version.value = servable.version
    answered.signature_name = asked.signature_name or DEFAULT_SIGNATURE


def _write_classes(classes: Classes, result: Any) -> None:
    """Fill a ``ClassificationResult``. A label that is not UTF-8 cannot be sent; its broken bytes become U+FFFD."""
    if classes.labels is None:
        assert classes.scores is not None
        for scores in classes.scores.tolist():
            add = result.classifications.add().classes.add
            for score in scores:
                add(score=score)
        return
    texts = [[label.decode("utf-8", "replace") for label in row] for row in classes.labels.tolist()]
    for i, labels in enumerate(texts):
        add = result.classifications.add().classes.add
        if classes.scores is None:
            for label in labels:
                add(label=label)
        else:
            for label, score in zip(labels, classes.scores[i].tolist(), strict=True):
                add(label=label, score=score)


def _write_regressions(values: Array, result: Any) -> None:
    """Fill a ``RegressionResult``."""
    for value in values.tolist():
        result.regressions.add(value=value)
