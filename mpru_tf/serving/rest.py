"""The REST side: URLs of TensorFlow Serving's API, status and metadata as JSON, and a small HTTP/1.1 server.

=========================================  =========================================================================
``POST /v1/models/NAME[WHICH]:predict``    Predict, see :mod:`mpru_tf.serving.json_tensors`
``POST /v1/models/NAME[WHICH]:classify``   Classify, see :mod:`mpru_tf.serving.json_examples`
``POST /v1/models/NAME[WHICH]:regress``    Regress, likewise
``GET /v1/models/NAME[WHICH]``             GetModelStatus
``GET /v1/models/NAME[WHICH]/metadata``    GetModelMetadata, the ``signature_def`` field
=========================================  =========================================================================

``WHICH`` is ``/versions/N`` or ``/labels/LABEL``; without it, the latest version answers.
Every error is ``{"error": "..."}`` with the HTTP status of its code.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
import socket
import socketserver
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

from mpru_tf.errors import ServingError, explain
from mpru_tf.serving.inference import classify, regress
from mpru_tf.serving.json_examples import read_examples, write_classes, write_regressions
from mpru_tf.serving.json_tensors import parse_request, read_tensors, write_tensors
from mpru_tf.serving.manager import ServableManager
from mpru_tf.serving.metrics import Metrics
from mpru_tf.serving.model_service import answer_get_model_status
from mpru_tf.serving.model_spec import requested_version
from mpru_tf.serving.predict import predict
from mpru_tf.serving.prediction_service import answer_get_model_metadata
from mpru_tf.serving.servable import DEFAULT_SIGNATURE
from mpru_tf.serving.status import RequestError, invalid_argument

logger = logging.getLogger(__name__)

_API = re.compile(r"/v1/.*", re.IGNORECASE)
_WHICH = r"(?:(?:/versions/([0-9]+))|(?:/labels/([^/:]+)))?"
_POST = re.compile(r"/v1/models/([^/:]+)" + _WHICH + r":(classify|regress|predict)", re.IGNORECASE)
_GET = re.compile(r"/v1/models(?:/([^/:]+))?" + _WHICH + r"(?:/(metadata))?", re.IGNORECASE)

_LARGEST_BODY = 2**31 - 1  # bytes, as over gRPC
_IDLE_SECONDS = 300  # a connection without a request is closed then


def answer(manager: ServableManager, method: str, path: str, body: bytes) -> tuple[int, bytes]:
    """Answer one REST call.

    Args:
        manager: where the servables are.
        method: ``GET`` or ``POST``; every other one is malformed.
        path: of the URL, without query, not yet unquoted.
        body: of the request.

    Returns:
        HTTP status and JSON body.
    """
    return _answer(manager, method, path, body)[1:]


def _answer(manager: ServableManager, method: str, path: str, body: bytes) -> tuple[str, int, bytes]:
    try:
        return "OK", 200, _route(manager, method, path, body)
    except RequestError as error:
        return error.code.name, error.http_status, _error(error.message)


def _route(manager: ServableManager, method: str, path: str, body: bytes) -> bytes:
    pattern = {"POST": _POST, "GET": _GET}.get(method)
    match = pattern.fullmatch(path) if pattern else None
    if match is None or (method == "POST" and match[4] not in _POSTED):  # the verb alone is case-sensitive
        raise invalid_argument(f"Malformed request: {method} {path}")
    name, number, label, verb = match.groups()
    request = get_model_status_pb2.GetModelStatusRequest()
    spec = request.model_spec
    spec.SetInParent()
    spec.name = unquote(name or "")
    if number is not None:
        if len(number.lstrip("0")) > 19 or int(number) >= 2**63:  # int() gives up on thousands of digits
            raise invalid_argument(f"Failed to convert version: {number} to numeric.")
        spec.version.value = int(number)
    if label is not None:
        spec.version_label = unquote(label)
    if method == "POST":
        return _POSTED[verb](manager, spec, body)
    if not name:
        raise invalid_argument("Missing model name in request.")
    return _metadata(manager, spec) if verb else _status(manager, request)


def _predict(manager: ServableManager, spec: Any, body: bytes) -> bytes:
    document = parse_request(body)
    signature_name = document.get("signature_name", "")
    with manager.use(*requested_version(manager, spec)) as servable:
        signature = servable.signatures.get(signature_name or DEFAULT_SIGNATURE)
        if signature is None:
            raise invalid_argument(
                f'Serving signature name: "{signature_name or DEFAULT_SIGNATURE}" not found in signature def'
            )
        if not signature.inputs:
            raise invalid_argument(f"Failed to get input map for signature: {signature_name or 'DEFAULT'}")
        inputs, form = read_tensors(document, signature.inputs, body)
        outputs = predict(servable, signature_name, inputs, lambda array: array)
    return write_tensors(outputs, form)


def _classify(manager: ServableManager, spec: Any, body: bytes) -> bytes:
    document = parse_request(body)
    request_input = read_examples(document)
    with manager.use(*requested_version(manager, spec)) as servable:
        classes = classify(servable, document.get("signature_name", ""), request_input)
    return write_classes(classes)


def _regress(manager: ServableManager, spec: Any, body: bytes) -> bytes:
    document = parse_request(body)
    request_input = read_examples(document)
    with manager.use(*requested_version(manager, spec)) as servable:
        values = regress(servable, document.get("signature_name", ""), request_input)
    return write_regressions(values)


_POSTED = {"predict": _predict, "classify": _classify, "regress": _regress}


def _status(manager: ServableManager, request: Any) -> bytes:
    return _to_json(answer_get_model_status(manager, request), preserving_proto_field_name=False).encode()


def _metadata(manager: ServableManager, spec: Any) -> bytes:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.CopyFrom(spec)
    response = answer_get_model_metadata(manager, request)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    # The real server joins these two by hand as well: the Any of the proto would show its type URL.
    spec_json = _to_json(response.model_spec, preserving_proto_field_name=True)
    signatures_json = _to_json(signatures, preserving_proto_field_name=True)
    return f'{{\n"model_spec":{spec_json}\n,\n"metadata": {{"signature_def": {signatures_json}\n}}\n}}\n'.encode()


# Protobuf 26 renamed this option of MessageToJson; TensorFlow 2.19 still runs with protobuf 4 (numbered 25 upstream).
_PRINT_ALL = (
    "always_print_fields_with_no_presence"
    if "always_print_fields_with_no_presence" in inspect.signature(json_format.MessageToJson).parameters
    else "including_default_value_fields"
)


def _to_json(message: Any, preserving_proto_field_name: bool) -> str:
    options: dict[str, Any] = {_PRINT_ALL: True}
    text: str = json_format.MessageToJson(
        message, preserving_proto_field_name=preserving_proto_field_name, indent=1, **options
    )
    return text


def _error(message: str) -> bytes:
    text = json.dumps({"error": message}, ensure_ascii=False, indent=4)
    return text.encode("utf-8", "backslashreplace")


class RestServer:
    """Serves :func:`answer` over HTTP/1.1, one thread per connection.

    Args:
        manager: where the servables are.
        host: address to listen on.
        port: 0 takes any free port.
        threads: requests that are worked on at once; more wait. 0 is by the number of CPUs.
        timeout: seconds that a request waits for its turn at most; 0 is without end.
        pages: further pages of plain text, by path.
        metrics: where requests are counted, if they are.

    Raises:
        ServingError: the port is taken, or the host is not an address of this machine.
    """

    def __init__(
        self,
        manager: ServableManager,
        host: str,
        port: int,
        *,
        threads: int = 0,
        timeout: float = 0.0,
        pages: Mapping[str, Callable[[], str]] | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        try:
            self._server = _HttpServer(manager, host, port)
        except OSError as error:
            raise ServingError(
                explain(
                    "The REST port cannot be bound.",
                    received=f"{host}:{port}",
                    valid="a free port on an address of this machine",
                    hint=str(error),
                )
            ) from error
        self._server.turns = threading.BoundedSemaphore(threads or 4 * (os.cpu_count() or 1))
        self._server.turn_timeout = timeout or None
        self._server.pages = pages or {}
        self._server.metrics = metrics
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="rest", daemon=True
        )

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self, grace: float = 0.0) -> None:
        """Take no new requests, let those in work finish for up to ``grace`` seconds, then close all connections."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
        self._server.close_connections(grace)


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # close_connections() does it, and does not wait for idle ones
    request_queue_size = 128
    allow_reuse_address = True
    turns: threading.BoundedSemaphore
    turn_timeout: float | None
    pages: Mapping[str, Callable[[], str]]
    metrics: Metrics | None

    def __init__(self, manager: ServableManager, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.manager = manager
        self.is_stopping = False
        self.connections: dict[_Handler, bool] = {}  # and whether a request is being worked on
        self.changed = threading.Condition()
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own asks the resolver for this host's full name, which can take seconds and serves nothing here.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def close_connections(self, grace: float) -> None:
        deadline = time.monotonic() + grace
        with self.changed:
            self.is_stopping = True
            self._shut(lambda busy: not busy)
            while any(self.connections.values()) and (left := deadline - time.monotonic()) > 0:
                self.changed.wait(left)
            self._shut(lambda busy: True)

    def _shut(self, which: Callable[[bool], bool]) -> None:
        for handler, busy in self.connections.items():
            if which(busy):
                handler.shut()

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("REST connection from %s ended", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _HttpServer
    protocol_version = "HTTP/1.1"
    server_version = "mpru-tf"
    sys_version = ""
    timeout = _IDLE_SECONDS
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body leave in one piece

    def setup(self) -> None:
        super().setup()
        with self.server.changed:
            self.server.connections[self] = False
            if self.server.is_stopping:  # accepted at the last moment
                self.shut()

    def finish(self) -> None:
        with self.server.changed:
            self.server.connections.pop(self, None)
            self.server.changed.notify_all()
        super().finish()

    def shut(self) -> None:
        """Make the handler's thread see the end of its connection."""
        try:
            self.connection.shutdown(socket.SHUT_RD)
        except OSError:
            logger.debug("REST connection was closed already")

    def parse_request(self) -> bool:
        with self.server.changed:  # the request line is here: from now on, stopping waits for the answer
            self.server.connections[self] = True
        return super().parse_request()

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        finally:
            with self.server.changed:
                self.server.connections[self] = False
                self.server.changed.notify_all()
                if self.server.is_stopping:
                    self.close_connection = True

    def _serve(self) -> None:
        path = self.path.partition("?")[0].partition("#")[0]
        if path in self.server.pages and self.command == "GET":
            self._reply(200, self.server.pages[path]().encode(), "text/plain")
            return
        if not _API.fullmatch(path):
            self._reply(404, b"<html><head><title>404 Not Found</title></head></html>", "text/html")
            return
        try:
            body = self._body()
        except RequestError as error:
            self.close_connection = True  # what is left of the body cannot be told from a next request
            self._reply(error.http_status, _error(error.message))
            return
        try:
            status, content = self._answer_in_turn(path, body)
        except Exception:
            logger.exception("REST request %s %s failed", self.command, path)
            status, content = 500, _error("Internal error, see the server's log.")
        self._reply(status, content)

    def _answer_in_turn(self, path: str, body: bytes) -> tuple[int, bytes]:
        server = self.server
        start = time.perf_counter()
        if server.turns.acquire(timeout=server.turn_timeout):
            try:
                code, status, content = _answer(server.manager, self.command, path, body)
            finally:
                server.turns.release()
        else:
            late = RequestError(grpc.StatusCode.DEADLINE_EXCEEDED, "Timed out while waiting for a free thread")
            code, status, content = late.code.name, late.http_status, _error(late.message)
        if server.metrics is not None and self.command == "POST" and (match := _POST.fullmatch(path)):
            verb = match[4].capitalize()
            server.metrics.request(unquote(match[1]), verb, "REST", code, time.perf_counter() - start)
        return status, content

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_HEAD = _serve

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b"".join(self._chunks())
        else:
            length = self.headers.get("Content-Length", "0").strip()
            if not length.isascii() or not length.isdigit() or int(length) > _LARGEST_BODY:
                raise invalid_argument(f"Bad Content-Length: {length}")
            body = self._read(int(length))
        if "gzip" in self.headers.get("Content-Encoding", "").lower():
            body = _gunzip(body)
        return body

    def _chunks(self) -> list[bytes]:
        chunks: list[bytes] = []
        total = 0
        while True:
            size = self.rfile.readline(100).partition(b";")[0].strip()
            if not re.fullmatch(rb"[0-9a-fA-F]{1,8}", size):
                raise invalid_argument("Bad chunked request body")
            length = int(size, 16)
            total += length
            if total > _LARGEST_BODY:
                raise invalid_argument("Request body is too large")
            if not length:
                while self.rfile.readline(1000).strip():  # trailers
                    pass
                return chunks
            chunks.append(self._read(length))
            self.rfile.readline(3)

    def _read(self, length: int) -> bytes:
        body = self.rfile.read(length)
        if len(body) < length:
            raise invalid_argument("Request body is shorter than announced")
        return body

    def _reply(self, status: int, content: bytes, content_type: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection or self.server.is_stopping:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug("REST %s " + format, self.client_address[0], *args)


def _gunzip(body: bytes) -> bytes:
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        unpacked = unpacker.decompress(body, _LARGEST_BODY)
    except zlib.error as error:
        raise invalid_argument("Request body is not gzip") from error
    if not unpacker.eof:
        raise invalid_argument("Request body is cut short, or too large")
    return unpacked
