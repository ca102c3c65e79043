"""A server as its public gRPC interface shows it: states, labels, a new configuration, answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import grpc

from mpru_tf.errors import ServingError, explain
from mpru_tf.operations.wire import message_type

if TYPE_CHECKING:
    import numpy.typing as npt

AVAILABLE, END = "AVAILABLE", "END"
USUAL_LABELS = ("stable", "canary")

_STATES = {0: "UNKNOWN", 10: "START", 20: "LOADING", 30: AVAILABLE, 40: "UNLOADING", 50: END}
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}
_NOT_THERE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)

Progress = Callable[[str], None]
"""Told what is going on, one phrase at a time."""


def silent(phrase: str) -> None:
    """The progress of whoever wants none."""


@dataclass(frozen=True)
class VersionState:
    """What a server says about one version.

    Attributes:
        version: its number.
        state: 'START', 'LOADING', 'AVAILABLE', 'UNLOADING', 'END' or 'UNKNOWN'.
        error_code: name of the status code with which it ended, None if nothing went wrong.
        error: the server's words, likewise.
    """

    version: int
    state: str
    error_code: str | None = None
    error: str | None = None

    def __str__(self) -> str:
        return f"version {self.version} {self.state}" + (
            f" ({self.error_code}: {self.error})" if self.error_code else ""
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {"version": self.version, "state": self.state, "error_code": self.error_code, "error": self.error}


@dataclass(frozen=True)
class Sighting:
    """One look at a model.

    Attributes:
        versions: its versions, ascending; None if the server could not be asked.
        reason: why not, or why there are none; '' otherwise.
    """

    versions: tuple[VersionState, ...] | None
    reason: str = ""

    def __str__(self) -> str:
        return ", ".join(map(str, self.versions or ())) or self.reason


@dataclass(frozen=True)
class Answer:
    """The answer to one request.

    Attributes:
        version: the version that answered.
        outputs: by key.
        seconds: from the request to the answer.
    """

    version: int
    outputs: Mapping[str, npt.NDArray[Any]]
    seconds: float


class Server:
    """One model of a server.

    Args:
        target: HOST:PORT of its gRPC port, or ``unix:PATH``.
        model: the model's name.
        ca: PEM file with the certificates to trust, for a server that speaks TLS; None for one that does not.
        timeout: seconds that one call may take.

    Raises:
        ServingError: ``target`` is no gRPC address. That nothing listens there is told by the calls.
    """

    def __init__(self, target: str, model: str, ca: str | None = None, timeout: float = 30.0) -> None:
        if "://" in target or ":" not in target:
            raise ServingError(
                explain("This is no gRPC address.", received=target, valid="HOST:PORT, such as localhost:8500")
            )
        self.target = target
        self.model = model
        self._timeout = timeout
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            # By default, a server that was not there yet is tried again after up to two minutes.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
        ]
        if ca is None:
            self._channel = grpc.insecure_channel(target, options)
        else:
            with open(ca, "rb") as file:
                self._channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(file.read()), options)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    # ------------------------------------------------------------------------------------------------------- states
    def look(self, timeout: float | None = None) -> Sighting:
        """Look at the model's versions; a server that is not there, or has none, is no error.

        Raises:
            ServingError: the server refuses to tell.
        """
        try:
            return Sighting(self._states(timeout))
        except grpc.RpcError as error:
            if error.code() in _NOT_THERE:
                return Sighting(None, f"{self.target} cannot be reached ({_said(error)})")
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return Sighting((), f"the server has no version of {self.model}")
            raise self._refused("does not tell its versions", error) from error

    def versions(self) -> tuple[VersionState, ...]:
        """The versions that the server knows, ascending; none of a model that it does not know.

        Raises:
            ServingError: the server cannot be asked.
        """
        seen = self.look()
        if seen.versions is None:
            raise ServingError(
                explain(
                    "The server cannot be asked.",
                    received=seen.reason,
                    valid="the gRPC address of a running model server",
                )
            )
        return seen.versions

    def available(self) -> tuple[int, ...]:
        """The versions that can be asked, ascending.

        Raises:
            ServingError: the server cannot be asked.
        """
        return tuple(state.version for state in self.versions() if state.state == AVAILABLE)

    def _states(self, timeout: float | None) -> tuple[VersionState, ...]:
        request = message_type("GetModelStatusRequest")()
        request.model_spec.name = self.model
        response = self._call("ModelService/GetModelStatus", request, "GetModelStatusResponse", timeout)
        return tuple(
            VersionState(
                version=entry.version,
                state=_STATES.get(entry.state, "UNKNOWN"),
                error_code=_CODES.get(entry.status.error_code, "UNKNOWN") if entry.status.error_code else None,
                error=entry.status.error_message if entry.status.error_code else None,
            )
            for entry in sorted(response.model_version_status, key=lambda entry: int(entry.version))
        )

    # ------------------------------------------------------------------------------------------------------- labels
    def version_of_label(self, label: str) -> int | None:
        """The version that answers requests for a label, or None if none does.

        There is no call that lists labels, and GetModelStatus does not look at them: GetModelMetadata does.

        Raises:
            ServingError: the server cannot be asked.
        """
        request = message_type("GetModelMetadataRequest")(metadata_field=["signature_def"])
        request.model_spec.name, request.model_spec.version_label = self.model, label
        try:
            response = self._call("PredictionService/GetModelMetadata", request, "GetModelMetadataResponse")
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND):
                return None  # no such label, or it stands for a version that is not loaded
            raise self._refused(f"does not tell what the label {label!r} stands for", error) from error
        return int(response.model_spec.version.value)

    def reload(self, config: Any, timeout: float = 300.0) -> None:
        """Replace the server's whole configuration by a ``ModelServerConfig``.

        Raises:
            ServingError: it is refused, or the server cannot be asked.
        """
        request = message_type("ReloadConfigRequest")(config=config.SerializeToString())
        try:
            response = self._call("ModelService/HandleReloadConfigRequest", request, "ReloadConfigResponse", timeout)
        except grpc.RpcError as error:
            raise self._refused("refuses the configuration", error) from error
        if response.status.error_code:
            code = _CODES.get(response.status.error_code, "UNKNOWN")
            raise self._refusal("refuses the configuration", f"{code}: {response.status.error_message}")

    # ------------------------------------------------------------------------------------------------------ answers
    def predict(
        self,
        signature: str,
        inputs: Mapping[str, npt.NDArray[Any]],
        *,
        version: int | None = None,
        label: str | None = None,
    ) -> Answer:
        """Ask a version, or the one that a label stands for, or the newest. Imports TensorFlow for its tensors.

        Raises:
            ServingError: there is no answer.
        """
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = self.model, signature
        if version is not None:
            request.model_spec.version.value = version
        elif label is not None:
            request.model_spec.version_label = label
        for key, values in inputs.items():
            request.inputs[key].CopyFrom(tf.make_tensor_proto(values))
        started = time.perf_counter()
        try:
            response = self._invoke("PredictionService/Predict", request, predict_pb2.PredictResponse.FromString)
        except grpc.RpcError as error:
            whom = (
                f"version {version}" if version is not None else f"label {label!r}" if label else "the newest version"
            )
            raise self._refused(f"does not answer a request to {whom}", error) from error
        seconds = time.perf_counter() - started
        outputs = {key: tf.make_ndarray(tensor) for key, tensor in response.outputs.items()}
        return Answer(response.model_spec.version.value, outputs, seconds)

    # -------------------------------------------------------------------------------------------------------- calls
    def _call(self, method: str, request: Any, response: str, timeout: float | None = None) -> Any:
        return self._invoke(method, request, message_type(response).FromString, timeout)

    def _invoke(
        self, method: str, request: Any, deserializer: Callable[[bytes], Any], timeout: float | None = None
    ) -> Any:
        call = self._channel.unary_unary(
            f"/tensorflow.serving.{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=deserializer,
        )
        return call(request, timeout=timeout or self._timeout)

    def _refused(self, what: str, error: grpc.RpcError) -> ServingError:
        return self._refusal(what, _said(error))

    def _refusal(self, what: str, said: str) -> ServingError:
        return ServingError(explain(f"The server at {self.target} {what}.", received=said))


def _said(error: grpc.RpcError) -> str:
    return f"{error.code().name}: {error.details()}"
