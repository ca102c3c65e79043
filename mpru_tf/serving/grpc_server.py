"""The gRPC server: which methods there are, and how a refusal becomes a status."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)

from mpru_tf.errors import ServingError, explain
from mpru_tf.serving.health import Health
from mpru_tf.serving.manager import ServableManager
from mpru_tf.serving.metrics import Metrics
from mpru_tf.serving.model_service import Reload, answer_get_model_status, answer_reload_config
from mpru_tf.serving.prediction_service import (
    answer_classify,
    answer_get_model_metadata,
    answer_multi_inference,
    answer_predict,
    answer_regress,
)
from mpru_tf.serving.status import RequestError

Answer = Callable[[ServableManager, Any], Any]

#: Every method that is answered: how, and the types of its request and response.
_METHODS: dict[str, dict[str, tuple[Answer, Any, Any]]] = {
    "tensorflow.serving.PredictionService": {
        "Predict": (answer_predict, predict_pb2.PredictRequest, predict_pb2.PredictResponse),
        "Classify": (
            answer_classify,
            classification_pb2.ClassificationRequest,
            classification_pb2.ClassificationResponse,
        ),
        "Regress": (answer_regress, regression_pb2.RegressionRequest, regression_pb2.RegressionResponse),
        "MultiInference": (
            answer_multi_inference,
            inference_pb2.MultiInferenceRequest,
            inference_pb2.MultiInferenceResponse,
        ),
        "GetModelMetadata": (
            answer_get_model_metadata,
            get_model_metadata_pb2.GetModelMetadataRequest,
            get_model_metadata_pb2.GetModelMetadataResponse,
        ),
    },
    "tensorflow.serving.ModelService": {
        "GetModelStatus": (
            answer_get_model_status,
            get_model_status_pb2.GetModelStatusRequest,
            get_model_status_pb2.GetModelStatusResponse,
        ),
    },
}

#: What the real server counts and times.
_COUNTED = ("Predict", "Classify", "Regress", "MultiInference")

_LARGEST_MESSAGE = 2**31 - 1  # bytes, as the real server

_CHANNEL_ARGUMENTS: dict[str, int | str] = {
    "grpc.max_receive_message_length": _LARGEST_MESSAGE,
    "grpc.max_send_message_length": _LARGEST_MESSAGE,
    # Otherwise a second server on the same port starts without complaint and takes half of the requests.
    "grpc.so_reuseport": 0,
}

#: A request waits in its thread while the C++ session computes without the GIL. Four per core keep the session busy
#: while others are being decoded and encoded; more only queue up inside it.
DEFAULT_THREADS = max(8, 4 * (os.cpu_count() or 1))


class GrpcServer:
    """Answers PredictionService, ModelService and the health service.

    Args:
        manager: where the servables are.
        host: address to listen on.
        port: 0 takes any free port.
        socket_path: a UNIX socket to listen on as well; empty is none.
        credentials: TLS; ``None`` is plain text.
        threads: requests that are worked on at once; more wait. 0 is by the number of CPUs.
        channel_arguments: further options of the gRPC server.
        reload: replaces the list of models; ``None`` leaves HandleReloadConfigRequest unanswered.
        metrics: where requests are counted, if they are.

    Attributes:
        port: the bound port.

    Raises:
        ServingError: the port is taken, the host is not an address of this machine, or the socket cannot be made.
    """

    def __init__(
        self,
        manager: ServableManager,
        host: str,
        port: int,
        *,
        socket_path: str = "",
        credentials: grpc.ServerCredentials | None = None,
        threads: int = 0,
        channel_arguments: Sequence[tuple[str, int | str]] = (),
        reload: Reload | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._health = Health(_METHODS)
        self._server = grpc.server(
            ThreadPoolExecutor(threads or DEFAULT_THREADS, thread_name_prefix="grpc"),
            options=list({**_CHANNEL_ARGUMENTS, **dict(channel_arguments)}.items()),
        )
        for service, methods in _METHODS.items():
            handlers = {
                name: grpc.unary_unary_rpc_method_handler(
                    _handler(manager, answer, metrics if name in _COUNTED else None, name),
                    request_deserializer=request_type.FromString,
                    response_serializer=response_type.SerializeToString,
                )
                for name, (answer, request_type, response_type) in methods.items()
            }
            if reload is not None and service == "tensorflow.serving.ModelService":
                handlers["HandleReloadConfigRequest"] = _reload_handler(reload)
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        self._server.add_generic_rpc_handlers((self._health.handlers(), _NotServed()))
        self.port = self._bind(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", credentials)
        if socket_path:
            self._bind(f"unix:{socket_path}", credentials)
        self._server.start()

    def stop(self, grace: float) -> threading.Event:
        """Take no new requests; return an event that is set when those in flight are done, or ``grace`` is over."""
        self._health.stop()
        finished: threading.Event = self._server.stop(grace)
        return finished

    def _bind(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        try:
            if credentials is None:
                return int(self._server.add_insecure_port(address))
            return int(self._server.add_secure_port(address, credentials))
        except RuntimeError as error:
            raise ServingError(
                explain(
                    "The gRPC port cannot be bound.",
                    received=address,
                    valid="a free port on an address of this machine; port 0 takes any free one",
                    hint=str(error),
                )
            ) from error


def parse_channel_arguments(text: str) -> list[tuple[str, int | str]]:
    """Return the options of ``--grpc_channel_arguments``: ``KEY=VALUE``, comma separated, integers as such.

    Raises:
        ServingError: an entry has no key or no value.
    """
    arguments: list[tuple[str, int | str]] = []
    for entry in filter(None, text.split(",")):
        key, _, value = entry.partition("=")
        if not key or not value:
            raise ServingError(
                explain(
                    "This is no gRPC channel argument.",
                    received=repr(entry),
                    valid="KEY=VALUE, for example grpc.max_connection_age_ms=2000",
                )
            )
        is_number = value.lstrip("+-").isascii() and value.lstrip("+-").isdigit()
        arguments.append((key, int(value) if is_number else value))
    return arguments


def _handler(
    manager: ServableManager, answer: Answer, metrics: Metrics | None, name: str
) -> Callable[[Any, grpc.ServicerContext], Any]:
    def handle(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return answer(manager, request)
        except RequestError as error:
            context.abort(error.code, error.grpc_details)

    def count(request: Any, context: grpc.ServicerContext) -> Any:
        assert metrics is not None
        start = time.perf_counter()
        status = "UNKNOWN"
        try:
            response = answer(manager, request)
            status = "OK"
            return response
        except RequestError as error:
            status = error.code.name
            context.abort(error.code, error.grpc_details)
        finally:
            metrics.request(_model_name(request), name, "GRPC", status, time.perf_counter() - start)

    return handle if metrics is None else count


def _model_name(request: Any) -> str:
    if isinstance(request, inference_pb2.MultiInferenceRequest):
        return request.tasks[0].model_spec.name if request.tasks else ""
    return str(request.model_spec.name)


def _reload_handler(reload: Reload) -> grpc.RpcMethodHandler:
    def handle(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return answer_reload_config(reload, request, context.is_active)
        except RequestError as error:
            context.abort(error.code, error.grpc_details)

    return grpc.unary_unary_rpc_method_handler(
        handle,
        request_deserializer=model_management_pb2.ReloadConfigRequest.FromString,
        response_serializer=model_management_pb2.ReloadConfigResponse.SerializeToString,
    )


class _NotServed(grpc.GenericRpcHandler):
    """Says of every other method of the two services that it is not answered here, and what is."""

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler | None:
        service, _, method = handler_call_details.method.lstrip("/").partition("/")
        if service not in _METHODS:
            return None
        served = ", ".join(sorted(name for methods in _METHODS.values() for name in methods))
        line = f"{service}/{method} is not implemented by this server. It answers {served}."

        def refuse(request: bytes, context: grpc.ServicerContext) -> None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, line)

        return grpc.unary_unary_rpc_method_handler(refuse)
