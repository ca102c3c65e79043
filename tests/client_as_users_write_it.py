"""A client as anybody writes one, with grpcio and tensorflow-serving-api and nothing of ours.

    python client_as_users_write_it.py HOST:PORT MODEL '[[1, 2, 3]]' [--label stable | --version 1]

The tests import it and run it, unchanged, from a model's first version to its last.
"""

import argparse
import json

import grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)


class Client:
    """One model of one server."""

    def __init__(self, target, model):
        self.channel = grpc.insecure_channel(target)
        self.predictions = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(self.channel)
        self.model = model

    def close(self):
        self.channel.close()

    def predict(self, rows, version=None, label=None):
        """Return the version that answered and its scores, a list per row."""
        key, output = self.names(version, label)
        request = predict_pb2.PredictRequest()
        self.address(request.model_spec, version, label)
        tensor = request.inputs[key]
        tensor.dtype = 1  # DT_FLOAT
        tensor.tensor_shape.dim.add().size = len(rows)
        tensor.tensor_shape.dim.add().size = len(rows[0])
        for row in rows:
            tensor.float_val.extend(row)
        response = self.predictions.Predict(request, timeout=30)
        answer = response.outputs[output]
        width = answer.tensor_shape.dim[1].size
        scores = [list(answer.float_val[i : i + width]) for i in range(0, len(answer.float_val), width)]
        return response.model_spec.version.value, scores

    def names(self, version=None, label=None):
        """Return the names of the input and of the output called probabilities, from the metadata."""
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        self.address(request.model_spec, version, label)
        response = self.predictions.GetModelMetadata(request, timeout=30)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        signature = signatures.signature_def["serving_default"]
        (key,) = signature.inputs
        return key, "probabilities" if "probabilities" in signature.outputs else next(iter(signature.outputs))

    def states(self):
        """Return the state of each version that the server tells of."""
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = self.model
        response = self.models.GetModelStatus(request, timeout=30)
        name = get_model_status_pb2.ModelVersionStatus.State.Name
        return {status.version: name(status.state) for status in response.model_version_status}

    def address(self, spec, version, label):
        spec.name = self.model
        if version is not None:
            spec.version.value = version
        elif label is not None:
            spec.version_label = label


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("model")
    parser.add_argument("rows", type=json.loads)
    parser.add_argument("--version", type=int)
    parser.add_argument("--label")
    args = parser.parse_args()
    client = Client(args.target, args.model)
    version, scores = client.predict(args.rows, args.version, args.label)
    print(json.dumps({"version": version, "scores": scores, "states": client.states()}))  # noqa: T201
    client.close()


if __name__ == "__main__":
    main()
