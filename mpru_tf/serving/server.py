"""The model server: ``mpru-tf serve`` and whoever needs a server inside a program."""

from __future__ import annotations

import signal
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from mpru_tf.errors import ServingError, explain
from mpru_tf.serving.grpc_server import start_grpc_server
from mpru_tf.serving.manager import ServableManager, VersionStatus
from mpru_tf.serving.rest import RestServer
from mpru_tf.serving.servable import Servable
from mpru_tf.serving.source import FileSystemSource, latest
from mpru_tf.serving.swap_policy import State

_STOP_GRACE = 15.0  # seconds that requests in flight have to finish


class ModelServer:
    """Serves the newest version in a base path over gRPC and, if wanted, REST, and follows the base path.

    As with the real server the ports open once a version is available, so that whoever can connect is answered.

    Args:
        model_base_path: directory whose numeric children are version directories.
        model_name: what clients call the model.
        port: gRPC port; 0 takes any free one.
        rest_api_port: REST port; 0 is no REST, -1 takes any free one.
        host: address to listen on. Requests are not authenticated: open it to others (``0.0.0.0``) knowingly.
        file_system_poll_wait_seconds: seconds between looks at the base path; 0 looks once.
        max_num_load_retries: further attempts after a load failed.
        load_retry_interval_micros: microseconds before each of them. The real server waits a minute by default; here
            the files are local, and a broken version should be reported soon.
        tensorflow_session_parallelism: threads of the session's intra-op and inter-op pools; 0 is up to TensorFlow.

    Attributes:
        port: the bound gRPC port, once started.
        rest_api_port: the bound REST port, once started.

    Example:
        >>> with ModelServer("/models/cats", model_name="cats", port=0) as server:      # doctest: +SKIP
        ...     print(server.port)
    """

    def __init__(
        self,
        model_base_path: str | Path,
        model_name: str = "default",
        port: int = 8500,
        rest_api_port: int = 0,
        host: str = "127.0.0.1",
        file_system_poll_wait_seconds: float = 1.0,
        *,
        max_num_load_retries: int = 5,
        load_retry_interval_micros: int = 1_000_000,
        tensorflow_session_parallelism: int = 0,
    ) -> None:
        self.model_base_path = Path(model_base_path)
        self.model_name = model_name
        self.host = host
        self.port = port
        self.rest_api_port = rest_api_port
        threads = tensorflow_session_parallelism or None

        def load(name: str, version: int, version_dir: Path) -> Servable:
            return Servable.load(name, version, version_dir, threads=threads)

        self._manager = ServableManager(load, max_num_load_retries, load_retry_interval_micros)
        self._source = FileSystemSource(
            self.model_base_path,
            lambda versions: self._manager.set_aspired_versions(model_name, versions),
            latest(),
            file_system_poll_wait_seconds,
        )
        self._grpc: grpc.Server | None = None
        self._rest: RestServer | None = None
        self._started = False
        self._stopping = threading.Lock()
        self._stopped = threading.Event()

    def start(self, timeout: float | None = None) -> ModelServer:
        """Load the newest version, open the ports and return.

        A base path without versions is waited for: it may be filled later.

        Args:
            timeout: seconds to wait for the first version at most; ``None`` waits as long as it takes.

        Raises:
            ServingError: no such base path, the first version cannot be loaded, a port cannot be bound, ``timeout`` is
                over, or this server was started before.
        """
        if self._started:
            raise ServingError(explain("This server was started before.", hint="Make a new one."))
        self._started = True
        try:
            self._check_before_loading()
            self._source.start()
            self._require_available(self._manager.wait_until_settled(self.model_name, timeout), timeout)
            self._grpc, self.port = start_grpc_server(self._manager, self.host, self.port)
            if self.rest_api_port:
                self._rest = RestServer(self._manager, self.host, max(self.rest_api_port, 0))
                self._rest.start()
                self.rest_api_port = self._rest.port
        except BaseException:
            self.stop(grace=0.0)
            raise
        return self

    def stop(self, grace: float = _STOP_GRACE) -> None:
        """Stop gracefully: no new requests, those in flight have ``grace`` seconds to finish, then all is freed."""
        with self._stopping:
            self._source.stop()
            refused = self._grpc.stop(grace) if self._grpc is not None else None
            if self._rest is not None:
                self._rest.stop(grace)
            if refused is not None:
                refused.wait()
            self._manager.stop(grace)
            self._grpc = self._rest = None
            self._stopped.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the server is stopped, at most ``timeout`` seconds; return whether it is."""
        return self._stopped.wait(timeout)

    def statuses(self) -> dict[int, VersionStatus]:
        """Return state and error of each version, as GetModelStatus shows them."""
        return self._manager.statuses(self.model_name)

    def __enter__(self) -> ModelServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _check_before_loading(self) -> None:
        if not self.model_base_path.is_dir():
            raise ServingError(
                explain(
                    "There is no such base path.",
                    received=self.model_base_path,
                    valid="an existing directory whose numeric children are version directories",
                )
            )
        if self.rest_api_port > 0 and self.rest_api_port == self.port:
            raise ServingError(
                explain("gRPC and REST cannot share a port.", received=self.port, valid="two different ports")
            )
        for port in (self.port, self.rest_api_port):
            if port > 0:
                _require_free(self.host, port)  # before minutes are spent on loading

    def _require_available(self, statuses: dict[int, VersionStatus], timeout: float | None) -> None:
        if any(status.state is State.AVAILABLE for status in statuses.values()):
            return
        failed = {version: status for version, status in statuses.items() if status.error is not None}
        if failed:
            raise ServingError(
                explain(
                    f"Model {self.model_name!r} did not become available.",
                    received="; ".join(f"version {version}: {status.error}" for version, status in failed.items()),
                    valid=f"a version in {self.model_base_path} that TensorFlow can load",
                )
            )
        raise ServingError(
            explain(
                f"Model {self.model_name!r} did not become available in time.",
                received=f"no version in {self.model_base_path} that is ready "
                + ("before the server was stopped" if timeout is None else f"after {timeout} s"),
                valid="a version directory whose name is a number",
            )
        )


def serve(model_base_path: str | Path, **options: Any) -> None:
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
