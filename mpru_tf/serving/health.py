"""The standard gRPC health service, grpc.health.v1: what orchestrators and load balancers ask.

Its calls have threads of their own: a probe is answered although every other thread computes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from mpru_tf.serving.messages import message_type

_SERVICE = "grpc.health.v1.Health"
_SERVING, _NOT_SERVING, _SERVICE_UNKNOWN = 1, 2, 3
_MOST_WATCHERS = 16  # each holds a thread
_LOOK = 1.0  # seconds between looks at whether a watcher is still there


class Health:
    """Answers Check and Watch for the server as a whole (the empty name) and for each of its services.

    Args:
        services: full names of the gRPC services.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._known = {"", *services}
        self._changed = threading.Condition()
        self._is_serving = True
        self._watchers = 0
        self._response = message_type("grpc.health.v1.HealthCheckResponse")

    def stop(self) -> None:
        """Say NOT_SERVING from now on, and end all watching."""
        with self._changed:
            self._is_serving = False
            self._changed.notify_all()

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return what a gRPC server registers."""
        request = message_type("grpc.health.v1.HealthCheckRequest").FromString
        response = self._response.SerializeToString

        def check(request: Any, context: grpc.ServicerContext) -> Any:
            return self._check(request, context)

        def watch(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            return self._watch(request, context)

        _in_threads_of_their_own(check, 2)
        _in_threads_of_their_own(watch, _MOST_WATCHERS)
        return grpc.method_handlers_generic_handler(
            _SERVICE,
            {
                "Check": grpc.unary_unary_rpc_method_handler(check, request, response),
                "Watch": grpc.unary_stream_rpc_method_handler(watch, request, response),
            },
        )

    def _status(self, service: str) -> int:
        if service not in self._known:
            return _SERVICE_UNKNOWN
        return _SERVING if self._is_serving else _NOT_SERVING

    def _check(self, request: Any, context: grpc.ServicerContext) -> Any:
        status = self._status(request.service)
        if status == _SERVICE_UNKNOWN:
            context.abort(grpc.StatusCode.NOT_FOUND, "service name unknown")
        return self._response(status=status)

    def _watch(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        with self._changed:
            if self._watchers >= _MOST_WATCHERS - 1:  # one thread stays free to say so
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many watchers")
            self._watchers += 1
        try:
            yield self._response(status=self._status(request.service))
            with self._changed:
                while self._is_serving and context.is_active():
                    self._changed.wait(_LOOK)
            if context.is_active():
                if request.service in self._known:
                    yield self._response(status=_NOT_SERVING)
                context.abort(grpc.StatusCode.UNAVAILABLE, "The server is stopping")
        finally:
            with self._changed:
                self._watchers -= 1


def _in_threads_of_their_own(behaviour: Callable[..., Any], count: int) -> None:
    # grpcio runs a behaviour with this attribute in that pool (since 1.24, for its own health package).
    behaviour.experimental_thread_pool = ThreadPoolExecutor(count, "health")  # type: ignore[attr-defined]
