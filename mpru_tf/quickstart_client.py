"""A plain TensorFlow Serving client, as anybody's: grpcio and tensorflow-serving-api, and nothing of mpru_tf.

It asks the model about the same images over and over until it is terminated, names no version, and writes one line of
JSON per request. The quick start runs it as a program of its own, with this file's path.
"""

from __future__ import annotations

import argparse
import json
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc


def ask(stub: Any, model: str, images: Any) -> dict[str, Any]:
    """Send one Predict request and return what came back: version and scores, or the error."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    tensor = request.inputs["pixels"]
    tensor.dtype = 1  # DT_FLOAT
    for size in images.shape:
        tensor.tensor_shape.dim.add().size = size
    tensor.tensor_content = images.tobytes()
    try:
        response = stub.Predict(request, timeout=10.0)
    except grpc.RpcError as error:
        return {"error": f"{error.code().name}: {error.details()}"}
    (answer,) = response.outputs.values()
    shape = [dimension.size for dimension in answer.tensor_shape.dim]
    flat = answer.float_val or np.frombuffer(answer.tensor_content, np.float32)
    return {
        "version": response.model_spec.version.value,
        "scores": np.asarray(flat, np.float32).reshape(shape).tolist(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True, help="HOST:PORT of the gRPC server")
    parser.add_argument("--model", required=True, help="name of the model")
    parser.add_argument("--images", required=True, help=".npy file, float32 [N, height, width, channels]")
    parser.add_argument("--log", required=True, help="file to write one line of JSON per request to")
    parser.add_argument("--batch", type=int, default=15, help="images per request")
    parser.add_argument("--pause", type=float, default=0.01, help="seconds between requests")
    options = parser.parse_args(arguments)

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    images = np.load(options.images)
    started = time.monotonic()
    with grpc.insecure_channel(options.target) as channel, open(options.log, "w", encoding="utf-8") as log:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        number = first = 0
        while not stop.is_set():
            rows = [(first + step) % len(images) for step in range(options.batch)]
            sent = time.monotonic()
            answer = ask(stub, options.model, images[rows])
            seconds = time.monotonic() - sent
            number += 1
            entry = {"request": number, "sent": sent - started, "seconds": seconds, "rows": rows, **answer}
            log.write(json.dumps(entry) + "\n")
            log.flush()
            first = (first + options.batch) % len(images)
            stop.wait(options.pause)


if __name__ == "__main__":
    main()
