"""The life of each servable version, from START to END, and who is using it meanwhile.

A version is loaded in a thread of its own while the old one answers. Requests hold what they use: a version that is
being unloaded takes no new requests and is freed when its last one is done.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from mpru_tf.errors import MPRUError
from mpru_tf.serving.servable import Servable
from mpru_tf.serving.status import RequestError, invalid_argument, of_load_failure
from mpru_tf.serving.swap_policy import Action, State, Version, next_action

logger = logging.getLogger(__name__)

#: Seconds that stop() waits, after its grace, for what cannot be interrupted: a load inside TensorFlow. It ends by
#: itself, in a daemon thread; whoever stops a server waits for a signal to be obeyed.
_LOAD_GRACE = 2.0

#: Loads one version: model name, version number, version directory.
Loader = Callable[[str, int, Path], Servable]


@dataclass(frozen=True)
class VersionStatus:
    """What GetModelStatus says about one version.

    Attributes:
        state: where it is in its life.
        error: why it ended, if it did not end well.
    """

    state: State
    error: RequestError | None = None


@dataclass
class _Harness:
    """One managed version. All fields are guarded by the manager's lock, except that ``cancel`` is its own."""

    name: str
    version: int
    path: Path
    is_aspired: bool = True
    state: State = State.START
    servable: Servable | None = None
    in_flight: int = 0
    cancel: threading.Event = field(default_factory=threading.Event)

    def __str__(self) -> str:
        return f"{{name: {self.name} version: {self.version}}}"


class ServableManager:
    """Loads what is aspired, unloads what is not, in the order of the availability-preserving policy.

    Args:
        load: loads one version; whatever it raises ends that version, after the retries.
        max_num_load_retries: further attempts after a failed load, >= 0.
        load_retry_interval_micros: pause before each of them, in microseconds.
        num_load_threads: loads at once; 0 is as many as there are.
    """

    def __init__(
        self,
        load: Loader,
        max_num_load_retries: int = 5,
        load_retry_interval_micros: int = 60_000_000,
        num_load_threads: int = 0,
    ) -> None:
        self._load = load
        self._max_num_load_retries = max_num_load_retries
        self._load_retry_interval = max(load_retry_interval_micros, 0) / 1e6
        # Taken for each attempt, not for the pauses between them: a broken version must not hold up a good one.
        self._turn: AbstractContextManager[Any] = (
            threading.BoundedSemaphore(num_load_threads) if num_load_threads > 0 else nullcontext()
        )
        self._labels: Mapping[str, Mapping[str, int]] = {}  # replaced as a whole, so that reading needs no lock
        self._changed = threading.Condition(threading.Lock())
        self._managed: dict[str, dict[int, _Harness]] = {}
        self._wanted: dict[str, dict[int, Path]] = {}  # aspired versions that could not be taken up yet
        self._statuses: dict[str, dict[int, VersionStatus]] = {}  # of everything ever managed, as in the real server
        self._workers: set[threading.Thread] = set()
        self._stopped = False
        self._give_up = False  # stop(): the grace is over, unload although requests are in flight

    def set_aspired_versions(self, name: str, versions: Mapping[int, Path]) -> None:
        """Say which versions of a model are wanted from now on; an empty mapping means none."""
        with self._changed:
            if not self._stopped:
                self._wanted[name] = dict(versions)
                self._tend(name)

    @contextmanager
    def use(self, name: str, version: int | None = None) -> Iterator[Servable]:
        """Hold an available version while a request uses it; ``None`` is the highest one.

        Raises:
            RequestError: NOT_FOUND, no such version is available.
        """
        with self._changed:
            harness = self._available(name, version)
            harness.in_flight += 1
        try:
            assert harness.servable is not None  # AVAILABLE, and unloading waits for in_flight
            yield harness.servable
        finally:
            with self._changed:
                harness.in_flight -= 1
                if not harness.in_flight and harness.state is State.UNLOADING:
                    self._changed.notify_all()

    def set_labels(self, labels: Mapping[str, Mapping[str, int]]) -> None:
        """Replace the version labels of all models: version number by label, by model name."""
        self._labels = {name: dict(versions) for name, versions in labels.items()}

    def version_of_label(self, name: str, label: str) -> int:
        """Return the version that a label stands for; nothing says that it is still available.

        Raises:
            RequestError: INVALID_ARGUMENT, the model has no such label.
        """
        version = self._labels.get(name, {}).get(label)
        if version is None:
            raise invalid_argument(f"Unrecognized servable version label: {label}")
        return version

    @property
    def is_stopped(self) -> bool:
        """Whether :meth:`stop` has been called."""
        return self._stopped

    def statuses(self, name: str) -> dict[int, VersionStatus]:
        """Return the status of every version ever managed, ascending; empty for an unknown model."""
        with self._changed:
            return dict(sorted(self._statuses.get(name, {}).items()))

    def wait_until_settled(self, name: str, timeout: float | None = None) -> dict[int, VersionStatus]:
        """Wait until some version of the model is AVAILABLE or all have failed, and return the statuses then.

        Returns the statuses as they are when ``timeout`` (seconds) is over or the manager stops.
        """

        def settled() -> bool:
            statuses = self._statuses.get(name, {}).values()
            states = {status.state for status in statuses}
            # Versions that were unloaded in an earlier life of the model have ended without an error.
            has_failed = states == {State.END} and any(status.error is not None for status in statuses)
            return self._stopped or State.AVAILABLE in states or has_failed

        with self._changed:
            self._changed.wait_for(settled, timeout)
        return self.statuses(name)

    def stop(self, grace: float | None = None) -> None:
        """Unload everything; returns when it is done, but does not wait long for a version that is being loaded.

        Args:
            grace: seconds to wait for requests in flight; after that they are cancelled. ``None`` waits for them all.
        """
        with self._changed:
            self._stopped = True
            self._wanted.clear()
            for harnesses in self._managed.values():
                for harness in harnesses.values():
                    self._unaspire(harness)
            for name in self._managed:
                self._tend(name)
        with self._changed:
            if not self._changed.wait_for(lambda: not self._workers, grace):
                self._give_up = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: not self._workers, _LOAD_GRACE)

    def _available(self, name: str, version: int | None) -> _Harness:
        harnesses = self._managed.get(name, {})
        if version is not None:
            harness = harnesses.get(version)
            if harness is None or harness.state is not State.AVAILABLE:
                raise RequestError(
                    grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Specific({name}, {version})"
                )
            return harness
        available = [number for number, harness in harnesses.items() if harness.state is State.AVAILABLE]
        if not available:
            raise RequestError(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Latest({name})")
        return harnesses[max(available)]

    # Everything below is called with the lock held, except the two workers.

    def _tend(self, name: str) -> None:
        harnesses = self._managed.setdefault(name, {})
        for harness in [h for h in harnesses.values() if not h.is_aspired and h.state in (State.START, State.END)]:
            del harnesses[harness.version]
        self._take_up(name, harnesses)
        while action := next_action(Version(h.version, h.state, h.is_aspired) for h in harnesses.values()):
            harness = harnesses[action[1]]
            if action[0] is Action.LOAD:
                self._enter(harness, State.LOADING)
                self._spawn(self._load_worker, harness)
            else:
                self._enter(harness, State.UNLOADING)
                self._spawn(self._unload_worker, harness)

    def _take_up(self, name: str, harnesses: dict[int, _Harness]) -> None:
        wanted = self._wanted.get(name)
        if wanted is None:
            return
        for number, harness in harnesses.items():
            if number in wanted and not harness.is_aspired:
                if harness.state is not State.AVAILABLE:
                    return  # wanted again, but on its way out: its worker tends again when it is gone
                harness.is_aspired = True
                harness.cancel.clear()
        del self._wanted[name]
        for number, harness in harnesses.items():
            if number not in wanted:
                self._unaspire(harness)
        for number, path in wanted.items():
            if number not in harnesses:
                harnesses[number] = _Harness(name, number, path)
                self._enter(harnesses[number], State.START)

    def _unaspire(self, harness: _Harness) -> None:
        harness.is_aspired = False
        harness.cancel.set()

    def _enter(self, harness: _Harness, state: State, error: RequestError | None = None) -> None:
        harness.state = state
        self._statuses.setdefault(harness.name, {})[harness.version] = VersionStatus(state, error)
        self._changed.notify_all()

    def _spawn(self, work: Callable[[_Harness], None], harness: _Harness) -> None:
        def run() -> None:
            try:
                work(harness)
            finally:
                with self._changed:
                    self._workers.discard(threading.current_thread())
                    self._changed.notify_all()

        worker = threading.Thread(target=run, name=f"{harness.name}-{harness.version}", daemon=True)
        self._workers.add(worker)
        worker.start()

    def _load_worker(self, harness: _Harness) -> None:
        servable, error = self._attempt(harness)
        with self._changed:
            harness.servable = servable
            if servable is not None:
                logger.info("Successfully loaded servable version %s", harness)
                self._enter(harness, State.AVAILABLE)
            else:
                logger.error("Servable %s cannot be loaded: %s", harness, error)
                self._enter(harness, State.END, error)
            self._tend(harness.name)

    def _attempt(self, harness: _Harness) -> tuple[Servable | None, RequestError | None]:
        error: RequestError | None = None
        for attempt in range(1 + self._max_num_load_retries):
            if attempt and harness.cancel.wait(self._load_retry_interval):
                break
            logger.info("%s servable version %s", "Retrying load of" if attempt else "Loading", harness)
            try:
                with self._turn:
                    return self._load(harness.name, harness.version, harness.path), None
            except RequestError as failure:  # a warm-up request that was refused: its own code and words
                error = failure
                logger.warning("Servable %s: load failure: %s", harness, error)
            except MPRUError as failure:
                error = of_load_failure(failure)
                logger.warning("Servable %s: load failure: %s", harness, error)
            except Exception as failure:  # whatever is wrong with a version, it must not take its worker down
                error = of_load_failure(failure)
                logger.exception("Servable %s: load failure", harness)
        return None, error

    def _unload_worker(self, harness: _Harness) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not harness.in_flight or self._give_up)
            servable, harness.servable = harness.servable, None
        assert servable is not None  # it was AVAILABLE
        servable.close()
        with self._changed:
            logger.info("Unloaded servable version %s", harness)
            self._enter(harness, State.END)
            self._tend(harness.name)
        if not self._stopped:
            # TensorFlow's Python objects of a graph refer to each other, and keep native memory, which the collector
            # does not see: left to its own rhythm, a server grows with each swap (benchmarks/NOTES.md).
            del servable
            gc.collect()
