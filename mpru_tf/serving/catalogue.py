"""The list of models that are served, and how it is replaced while requests are answered."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import grpc
from tensorflow_serving.config import model_server_config_pb2

from mpru_tf.errors import ServingError
from mpru_tf.serving.config import ServedModel, read_text_proto, served_models
from mpru_tf.serving.manager import ServableManager
from mpru_tf.serving.repeating import Repeating
from mpru_tf.serving.source import FileSystemSource, Watched
from mpru_tf.serving.status import RequestError, invalid_argument
from mpru_tf.serving.swap_policy import State

logger = logging.getLogger(__name__)

_LOOK = 0.2  # seconds between looks at whether whoever waits is still there


class Catalogue:
    """Holds the list of models; tells the source what to poll and the manager which labels there are.

    A list that is refused changes nothing. One that is accepted replaces the old one as a whole: models that it does
    not name are unloaded, models that stay are not touched, and labels are exactly those that it names.

    Args:
        manager: loads and unloads.
        poll_wait_seconds: between looks at the base paths, as :class:`~mpru_tf.serving.source.FileSystemSource` has it.
        labels_for_unavailable: a label that is not in use yet may be given to a version that is not available.
    """

    def __init__(
        self, manager: ServableManager, poll_wait_seconds: float = 1.0, labels_for_unavailable: bool = False
    ) -> None:
        self._manager = manager
        self._source = FileSystemSource(manager.set_aspired_versions, poll_wait_seconds)
        self._labels_for_unavailable = labels_for_unavailable
        self._models: dict[str, ServedModel] = {}
        self._replacing = threading.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """The models of the list, in its order."""
        return tuple(self._models)

    def start(self) -> None:
        """Begin to follow the base paths."""
        self._source.start()

    def stop(self) -> None:
        """Stop following them."""
        self._source.stop()

    def replace(self, config: Any) -> list[str]:
        """Replace the list by that of a ``ModelServerConfig``; return the names that are new in it.

        A configuration that says nothing changes nothing.

        Raises:
            RequestError: INVALID_ARGUMENT the list is malformed or names a base path that is not there;
                FAILED_PRECONDITION a label is given to a version that is not available.
        """
        with self._replacing:
            if config.WhichOneof("config") is None:
                logger.info("Taking no action for empty config.")
                return []
            models = served_models(config)
            for model in models.values():
                if not model.base_path.is_dir():
                    raise invalid_argument(
                        f"Could not find base path {model.base_path} for servable {model.name}: no such directory"
                    )
            labels = self._labels(models)
            new = [name for name in models if name not in self._models]
            if models.keys() != self._models.keys():
                logger.info("Serving models: %s", ", ".join(models) or "none")
            self._models = models
            self._manager.set_labels(labels)
            self._source.watch({name: Watched(model.base_path, model.policy) for name, model in models.items()})
            return new

    def reload(self, config: Any, is_wanted: Callable[[], bool] = lambda: True) -> None:
        """Answer HandleReloadConfigRequest: replace the list, and wait until what is new in it is available.

        Args:
            config: a ``ModelServerConfig``.
            is_wanted: says whether anyone still waits for the answer.

        Raises:
            RequestError: as :meth:`replace`; INVALID_ARGUMENT also for what is not a list of models. UNKNOWN: a model
                that is new did not become available; the list is replaced nevertheless.
        """
        if config.WhichOneof("config") != "model_config_list":
            raise invalid_argument(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                "Only ModelConfigList is currently supported"
            )
        self.wait_until_available(self.replace(config), is_wanted)

    def wait_until_available(
        self, names: Iterable[str], is_wanted: Callable[[], bool] = lambda: True, timeout: float | None = None
    ) -> None:
        """Wait until each of these models has an available version.

        Args:
            names: of models in the list.
            is_wanted: is asked now and then; waiting ends when it says no.
            timeout: seconds, for all of them together; ``None`` waits without end, as a version may still be put
                into an empty base path.

        Raises:
            RequestError: UNKNOWN, some failed to load, with their reasons; DEADLINE_EXCEEDED, ``timeout`` is over;
                CANCELLED, nobody waits any more, or the server stops.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        unavailable: dict[tuple[str, int], str] = {}
        for name in names:
            while True:
                left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
                statuses = self._manager.wait_until_settled(name, _LOOK if left is None else min(left, _LOOK))
                states = {status.state for status in statuses.values()}
                if State.AVAILABLE in states:
                    break
                errors = {version: status.error for version, status in statuses.items() if status.error is not None}
                if errors and states == {State.END}:
                    for version, error in errors.items():
                        unavailable[name, version] = f"{{{{name: {name} version: {version}}} due to error: {error}}}"
                    break
                if self._manager.is_stopped or not is_wanted():
                    raise RequestError(grpc.StatusCode.CANCELLED, f"No longer waiting for model {name}")
                if left == 0.0:
                    raise RequestError(
                        grpc.StatusCode.DEADLINE_EXCEEDED, f"Model {name} did not become available in time"
                    )
        if unavailable:
            raise RequestError(
                grpc.StatusCode.UNKNOWN,
                f"{len(unavailable)} model(s) did not become available: {{{', '.join(unavailable.values())}}}",
            )

    def _labels(self, models: Mapping[str, ServedModel]) -> dict[str, dict[str, int]]:
        for model in models.values():
            statuses = self._manager.statuses(model.name) if model.labels else {}
            for label, version in model.labels.items():
                status = statuses.get(version)
                if status is not None and status.state is State.AVAILABLE:
                    continue
                if self._labels_for_unavailable and self._labelled(model.name, label) in (None, version):
                    continue
                raise RequestError(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"Request to assign label to version {version} of model {model.name}, "
                    "which is not currently available for inference",
                )
        return {model.name: dict(model.labels) for model in models.values() if model.labels}

    def _labelled(self, name: str, label: str) -> int | None:
        try:
            return self._manager.version_of_label(name, label)
        except RequestError:
            return None


class ConfigFilePoller(Repeating):
    """Reads a configuration file again and again, and replaces the list by what it says.

    A file that cannot be read, or is refused, changes nothing and is complained about once.

    Args:
        catalogue: whose list is replaced.
        path: a ``ModelServerConfig`` as text.
        wait_seconds: pause between reads; 0 or less reads it never again.
    """

    def __init__(self, catalogue: Catalogue, path: str, wait_seconds: float) -> None:
        super().__init__(self._read, wait_seconds, "config-file-poller")
        self._catalogue = catalogue
        self._path = path
        self._complaint = ""

    def _read(self) -> None:
        try:
            # Also when the file is the same: a label that was refused is given once its version is available.
            self._catalogue.replace(read_text_proto(self._path, model_server_config_pb2.ModelServerConfig()))
            self._complaint = ""
        except (ServingError, RequestError) as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                logger.error("%s is not taken over: %s", self._path, error)
