"""Tiny real models, and servers on loopback, for the tests of the model server."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from mpru_tf.serving.server import ModelServer


class Scaler(tf.Module):
    """Multiplies by its version, says which version it is, and has a signature for each thing a test asks about."""

    def __init__(self, version: int) -> None:
        super().__init__()
        self.factor = tf.Variable(float(version))
        self.number = tf.Variable(version, dtype=tf.int64)

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, "x")])
    def scale(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x * self.factor, "version": tf.fill(tf.shape(x)[:1], self.number)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "a"), tf.TensorSpec([None], tf.int32, "b")])
    def two(self, a: tf.Tensor, b: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"total": a + tf.cast(b, tf.float32)}

    @tf.function(input_signature=[tf.TensorSpec(None, tf.string, "text")])
    def shout(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"loud": tf.strings.upper(text), "raw_bytes": tf.identity(text)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def total(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"sum": tf.reduce_sum(x)}

    @tf.function(input_signature=[tf.TensorSpec([], tf.int32, "steps")])
    def slow(self, steps: tf.Tensor) -> dict[str, tf.Tensor]:
        done = tf.while_loop(lambda i: i < steps, lambda i: (i + 1,), (tf.constant(0),))[0]
        return {"steps": tf.identity(done)}

    def save(self, path: Path) -> None:
        signatures = {
            "serving_default": self.scale,
            "two": self.two,
            "shout": self.shout,
            "total": self.total,
            "slow": self.slow,
        }
        tf.saved_model.save(self, str(path), signatures=signatures)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Return a function from version number to a saved model that is made once."""
    made: dict[int, Path] = {}

    def get(version: int) -> Path:
        if version not in made:
            made[version] = tmp_path_factory.mktemp("saved") / str(version)
            Scaler(version).save(made[version])
        return made[version]

    return get


@pytest.fixture
def publish(saved: Callable[[int], Path], tmp_path: Path) -> Callable[..., Path]:
    """Return a function that puts a version into the base path ``tmp_path / "model"`` by one rename."""
    base = tmp_path / "model"
    base.mkdir()

    def put(version: int, name: str | None = None) -> Path:
        staged = tmp_path / f"staged-{version}"
        shutil.copytree(saved(version), staged)
        return staged.rename(base / (name or str(version)))

    return put


class Client:
    """What a user writes: grpcio and tensorflow-serving-api, nothing of ours."""

    def __init__(self, server: ModelServer) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.insecure_channel(f"127.0.0.1:{server.port}", options)
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(self.channel)
        self.name = server.model_name

    def request(self, signature: str = "", version: int | None = None, **inputs: Any) -> Any:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = self.name
        request.model_spec.signature_name = signature
        if version is not None:
            request.model_spec.version.value = version
        for key, value in inputs.items():
            request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
        return request

    def predict(self, request: Any) -> tuple[Any, dict[str, np.ndarray]]:
        response = self.prediction.Predict(request, timeout=30)
        return response.model_spec, {key: tf.make_ndarray(proto) for key, proto in response.outputs.items()}

    def refusal(self, request: Any, method: str = "Predict") -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as refused:
            getattr(self.prediction, method)(request, timeout=30)
        return refused.value.code(), refused.value.details()

    def states(self) -> dict[int, str]:
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = self.name
        response = self.models.GetModelStatus(request, timeout=30)
        names = get_model_status_pb2.ModelVersionStatus.State
        return {status.version: names.Name(status.state) for status in response.model_version_status}

    def wait_for(self, **states: str) -> dict[int, str]:
        """Wait until the versions (``v2="AVAILABLE"``) have these states; fail after 30 seconds."""
        wanted = {int(version.lstrip("v")): state for version, state in states.items()}
        deadline = time.monotonic() + 30
        while True:
            seen = self.states()
            if wanted.items() <= seen.items():
                return seen
            assert time.monotonic() < deadline, f"wanted {wanted}, still {seen}"
            time.sleep(0.02)


@pytest.fixture
def running(tmp_path: Path) -> Callable[..., Any]:
    """Return a context manager that serves ``tmp_path / "model"`` on free ports, polls fast and yields a Client."""

    @contextmanager
    def run(**options: Any) -> Iterator[tuple[ModelServer, Client]]:
        settings: dict[str, Any] = {
            "model_name": "scaler",
            "port": 0,
            "file_system_poll_wait_seconds": 0.05,
            "load_retry_interval_micros": 100_000,
            "max_num_load_retries": 1,
        }
        base: dict[str, Any] = {} if "model_config_file" in options else {"model_base_path": tmp_path / "model"}
        with ModelServer(**base, **(settings | options)) as server:
            client = Client(server)
            try:
                yield server, client
            finally:
                client.channel.close()

    return run
