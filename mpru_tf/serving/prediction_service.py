"""PredictionService over gRPC: Predict and GetModelMetadata."""

from __future__ import annotations

from typing import Any

from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2

from mpru_tf.serving.manager import ServableManager
from mpru_tf.serving.model_spec import requested_version
from mpru_tf.serving.predict import predict
from mpru_tf.serving.servable import DEFAULT_SIGNATURE
from mpru_tf.serving.status import invalid_argument
from mpru_tf.serving.tensors import decode, encode

_SIGNATURE_DEF = "signature_def"


def answer_predict(manager: ServableManager, request: Any) -> Any:
    """Answer a ``PredictRequest`` with a ``PredictResponse``, or raise :class:`RequestError`."""
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    spec = request.model_spec
    name, version = requested_version(spec)
    with manager.use(name, version) as servable:
        outputs = predict(servable, spec.signature_name, request.inputs, decode, request.output_filter)
        response = predict_pb2.PredictResponse()
        response.model_spec.name = name
        response.model_spec.version.value = servable.version
        response.model_spec.signature_name = spec.signature_name or DEFAULT_SIGNATURE
    for key, array in outputs.items():
        encode(array, response.outputs[key])
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
    name, version = requested_version(request.model_spec)
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    with manager.use(name, version) as servable:
        response.model_spec.name = servable.name
        response.model_spec.version.value = servable.version
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for key, definition in servable.model.signatures.items():
            signatures.signature_def[key].CopyFrom(definition)
    response.metadata[_SIGNATURE_DEF].Pack(signatures)
    return response
