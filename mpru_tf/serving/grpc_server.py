"""The gRPC server: which methods there are, and how a refusal becomes a status."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, predict_pb2

from mpru_tf.errors import ServingError, explain
from mpru_tf.serving.manager import ServableManager
from mpru_tf.serving.model_service import answer_get_model_status
from mpru_tf.serving.prediction_service import answer_get_model_metadata, answer_predict
from mpru_tf.serving.status import RequestError

Answer = Callable[[ServableManager, Any], Any]

#: Every method that is answered: how, and the types of its request and response.
_METHODS: dict[str, dict[str, tuple[Answer, Any, Any]]] = {
    "tensorflow.serving.PredictionService": {
        "Predict": (answer_predict, predict_pb2.PredictRequest, predict_pb2.PredictResponse),
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

_LARGEST_MESSAGE = 2**31 - 1  # bytes, as the real server

#: A request waits in its thread while the C++ session computes without the GIL. Four per core keep the session busy
#: while others are being decoded and encoded; more only queue up inside it.
DEFAULT_THREADS = max(8, 4 * (os.cpu_count() or 1))


def start_grpc_server(
    manager: ServableManager, host: str, port: int, threads: int = DEFAULT_THREADS
) -> tuple[grpc.Server, int]:
    """Start answering, and return the server with the port it is bound to.

    Args:
        manager: where the servables are.
        host: address to listen on.
        port: 0 takes any free port.
        threads: requests that are worked on at once; more wait.

    Raises:
        ServingError: the port is taken, or the host is not an address of this machine.
    """
    server = grpc.server(
        ThreadPoolExecutor(threads, thread_name_prefix="grpc"),
        options=[
            ("grpc.max_receive_message_length", _LARGEST_MESSAGE),
            ("grpc.max_send_message_length", _LARGEST_MESSAGE),
            # Otherwise a second server on the same port starts without complaint and takes half of the requests.
            ("grpc.so_reuseport", 0),
        ],
    )
    for service, methods in _METHODS.items():
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                _handler(manager, answer),
                request_deserializer=request_type.FromString,
                response_serializer=response_type.SerializeToString,
            )
            for name, (answer, request_type, response_type) in methods.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    server.add_generic_rpc_handlers((_NotServed(),))
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = server.add_insecure_port(address)
    except RuntimeError as error:
        raise ServingError(
            explain(
                "The gRPC port cannot be bound.",
                received=address,
                valid="a free port on an address of this machine; port 0 takes any free one",
                hint=str(error),
            )
        ) from error
    server.start()
    return server, bound


def _handler(manager: ServableManager, answer: Answer) -> Callable[[Any, grpc.ServicerContext], Any]:
    def handle(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return answer(manager, request)
        except RequestError as error:
            context.abort(error.code, error.grpc_details)

    return handle


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
