"""The model server: ``mpru-tf serve`` and whoever needs a server inside a program."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from tensorflow_serving.config import model_server_config_pb2

from mpru_tf.errors import ServingError, explain
from mpru_tf.serving.batching import Batcher, BatchingParameters
from mpru_tf.serving.catalogue import Catalogue, ConfigFilePoller
from mpru_tf.serving.config import read_text_proto, single_model
from mpru_tf.serving.grpc_server import DEFAULT_THREADS, GrpcServer, parse_channel_arguments
from mpru_tf.serving.loading import Loading
from mpru_tf.serving.manager import ServableManager, VersionStatus
from mpru_tf.serving.messages import message_type
from mpru_tf.serving.metrics import Metrics
from mpru_tf.serving.options import ServerOptions
from mpru_tf.serving.rest import RestServer
from mpru_tf.serving.status import RequestError

logger = logging.getLogger(__name__)

_STOP_GRACE = 15.0  # seconds that requests in flight have to finish
_MOST_BATCHED_THREADS = 128
_METRICS_PATH = "/monitoring/prometheus/metrics"


class ModelServer:
    """Serves the models in their base paths over gRPC and, if wanted, REST, and follows the base paths.

    As with the real server the ports open once each model has an available version, so that whoever can connect is
    answered.

    Args:
        model_base_path: directory whose numeric children are version directories.
        model_name: what clients call the model.
        port: gRPC port; 0 takes any free one.
        rest_api_port: REST port; 0 is no REST, -1 takes any free one.
        host: address to listen on. Requests are not authenticated: open it to others (``0.0.0.0``) knowingly.
        file_system_poll_wait_seconds: seconds between looks at the base path; 0 looks once.
        **flags: every other flag of :class:`~mpru_tf.serving.options.ServerOptions`, ``model_config_file`` for
            example.

    Attributes:
        port: the bound gRPC port, once started.
        rest_api_port: the bound REST port, once started.
        options: all flags.

    Example:
        >>> with ModelServer("/models/cats", model_name="cats", port=0) as server:      # doctest: +SKIP
        ...     print(server.port)
    """

    def __init__(
        self,
        model_base_path: str | Path = "",
        model_name: str = "default",
        port: int = 8500,
        rest_api_port: int = 0,
        host: str = "127.0.0.1",
        file_system_poll_wait_seconds: float = 1.0,
        **flags: Any,
    ) -> None:
        self.options = options = ServerOptions(
            model_base_path=str(model_base_path) if model_base_path else "",
            model_name=model_name,
            port=port,
            rest_api_port=rest_api_port,
            host=host,
            file_system_poll_wait_seconds=file_system_poll_wait_seconds,
            **flags,
        )
        self.model_name = model_name
        self.host = host
        self.port = port
        self.rest_api_port = rest_api_port
        self._metrics = Metrics()
        self._loading = Loading(
            self._metrics,
            tuple(options.saved_model_tags.split(",")),
            options.session_threads,
            options.enable_model_warmup,
            options.num_request_iterations_for_warmup,
            _session_config(options.tensorflow_session_config_file),
        )
        self._manager = ServableManager(
            self._loading, options.max_num_load_retries, options.load_retry_interval_micros, options.num_load_threads
        )
        self._catalogue = Catalogue(
            self._manager, file_system_poll_wait_seconds, options.allow_version_labels_for_unavailable_models
        )
        self._poller = ConfigFilePoller(
            self._catalogue,
            options.model_config_file,
            options.model_config_file_poll_wait_seconds if options.model_config_file else 0,
        )
        self._grpc: GrpcServer | None = None
        self._rest: RestServer | None = None
        self._started = False
        self._stop_asked = threading.Event()
        self._stopping = threading.Lock()
        self._stopped = threading.Event()

    @property
    def model_names(self) -> tuple[str, ...]:
        """The models that are served now."""
        return self._catalogue.names

    def start(self, timeout: float | None = None) -> ModelServer:
        """Load the models, open the ports and return.

        A base path without versions is waited for: it may be filled later.

        Args:
            timeout: seconds to wait for the first versions at most; ``None`` waits as long as it takes.

        Raises:
            ServingError: a flag or a configuration file is refused, there is no such base path, no version of a model
                can be loaded, a port cannot be bound, ``timeout`` is over, or this server was started before.
        """
        if self._started:
            raise ServingError(explain("This server was started before.", hint="Make a new one."))
        self._started = True
        try:
            self._start(timeout)
        except RequestError as error:
            self.stop(grace=0.0)
            raise ServingError(f"Failed to start server. Error: {error}") from error
        except BaseException:
            self.stop(grace=0.0)
            raise
        return self

    def _start(self, timeout: float | None) -> None:
        options = self.options
        options.check()
        config = self._model_config()
        credentials = _credentials(options.ssl_config_file)
        pages = self._pages()
        channel_arguments = parse_channel_arguments(options.grpc_channel_arguments)
        for port in (self.port, self.rest_api_port):
            if port > 0:
                _require_free(self.host, port)  # before minutes are spent on loading
        if options.enable_batching:
            self._loading.batcher = Batcher(_batching_parameters(options))
            self._loading.per_model_batching = options.enable_per_model_batching_parameters
        names = self._catalogue.replace(config)
        self._catalogue.start()
        self._catalogue.wait_until_available(names, lambda: not self._stop_asked.is_set(), timeout)
        if self._stop_asked.is_set():
            raise RequestError(grpc.StatusCode.CANCELLED, "The server was stopped before it was ready")
        metrics = self._metrics if pages else None
        self._grpc = GrpcServer(
            self._manager,
            self.host,
            self.port,
            socket_path=options.grpc_socket_path,
            credentials=credentials,
            threads=options.grpc_max_threads or self._threads(),
            channel_arguments=channel_arguments,
            reload=self._reload,
            metrics=metrics,
        )
        self.port = self._grpc.port
        logger.info("Running gRPC ModelServer at %s:%d ...", self.host, self.port)
        if options.grpc_socket_path:
            logger.info("Running gRPC ModelServer at UNIX socket %s ...", options.grpc_socket_path)
        if self.rest_api_port:
            self._rest = RestServer(
                self._manager,
                self.host,
                max(self.rest_api_port, 0),
                threads=options.rest_api_num_threads or self._threads(),
                timeout=options.rest_api_timeout_in_ms / 1000,
                pages=pages,
                metrics=metrics,
            )
            self._rest.start()
            self.rest_api_port = self._rest.port
            logger.info("Exporting HTTP/REST API at:%s:%d ...", self.host, self.rest_api_port)
        self._poller.start()

    def stop(self, grace: float = _STOP_GRACE) -> None:
        """Stop gracefully: no new requests, those in flight have ``grace`` seconds to finish, then all is freed."""
        self._stop_asked.set()
        with self._stopping:
            self._poller.stop()
            self._catalogue.stop()
            refused = self._grpc.stop(grace) if self._grpc is not None else None
            if self._rest is not None:
                self._rest.stop(grace)
            if refused is not None:
                refused.wait()
            self._manager.stop(grace)
            if self._loading.batcher is not None:
                self._loading.batcher.stop()
            self._grpc = self._rest = None
            self._stopped.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the server is stopped, at most ``timeout`` seconds; return whether it is."""
        return self._stopped.wait(timeout)

    def statuses(self, name: str | None = None) -> dict[int, VersionStatus]:
        """Return state and error of each version of a model, as GetModelStatus shows them."""
        return self._manager.statuses(self.model_name if name is None else name)

    def __enter__(self) -> ModelServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _threads(self) -> int:
        # A batch is made of requests that wait in their threads: these must be enough to fill one, and the next.
        if self._loading.batcher is None:
            return DEFAULT_THREADS
        return max(DEFAULT_THREADS, min(2 * self._loading.batcher.parameters.batch_size, _MOST_BATCHED_THREADS))

    def _reload(self, config: Any, is_active: Callable[[], bool]) -> None:
        self._catalogue.reload(config, lambda: is_active() and not self._stop_asked.is_set())

    def _model_config(self) -> Any:
        if not self.options.model_config_file:
            return single_model(self.model_name, self.options.model_base_path)
        if self.options.model_base_path:
            logger.warning("--model_base_path and --model_name are ignored: there is a --model_config_file")
        return read_text_proto(self.options.model_config_file, model_server_config_pb2.ModelServerConfig())

    def _pages(self) -> dict[str, Callable[[], str]]:
        if not self.options.monitoring_config_file:
            return {}
        config = read_text_proto(
            self.options.monitoring_config_file, message_type("tensorflow.serving.MonitoringConfig")()
        ).prometheus_config
        if config.enable and not self.rest_api_port:
            logger.warning("Metrics are served on the REST port, and there is none: --rest_api_port is not set")
        return {config.path or _METRICS_PATH: self._metrics.page} if config.enable else {}


def serve(model_base_path: str | Path = "", **options: Any) -> None:
    """Serve until SIGINT or SIGTERM, then stop gracefully. For the main thread of a process.

    Args:
        model_base_path: as for :class:`ModelServer`.
        **options: as for :class:`ModelServer`.

    Raises:
        ServingError: as :meth:`ModelServer.start`.
    """
    server = ModelServer(model_base_path, **options)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        server.start()
        server.wait()
    except KeyboardInterrupt:
        server.stop()
    finally:
        signal.signal(signal.SIGTERM, before)


def _session_config(path: str) -> Any:
    from tensorflow.core.protobuf import config_pb2

    return read_text_proto(path, config_pb2.ConfigProto()) if path else None


def _batching_parameters(options: ServerOptions) -> BatchingParameters:
    message = message_type("tensorflow.serving.BatchingParameters")()
    if options.batching_parameters_file:
        read_text_proto(options.batching_parameters_file, message)
    return BatchingParameters.from_message(message)


def _credentials(ssl_config_file: str) -> grpc.ServerCredentials | None:
    if not ssl_config_file:
        return None
    config = read_text_proto(ssl_config_file, message_type("tensorflow.serving.SSLConfig")())
    missing = [name for name in ("server_key", "server_cert") if not getattr(config, name)]
    if config.client_verify and not config.custom_ca:
        missing.append("custom_ca")
    if missing:
        raise ServingError(
            explain(
                f"The SSLConfig in {ssl_config_file} is not complete.",
                received=f"no {', no '.join(missing)}",
                valid="server_key and server_cert in PEM, and custom_ca where client_verify is true",
            )
        )
    return grpc.ssl_server_credentials(
        [(config.server_key.encode(), config.server_cert.encode())],
        config.custom_ca.encode() or None,
        config.client_verify,
    )


def _require_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServingError(
                explain(
                    "The port cannot be bound.",
                    received=f"{host}:{port}",
                    valid="a free port on an address of this machine; gRPC port 0 takes any free one",
                    hint=str(error),
                )
            ) from error
