"""What lies between START and AVAILABLE: the SavedModel is loaded, then its warm-up requests are replayed."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import grpc

from mpru_tf.errors import CorruptModelError
from mpru_tf.saved_model.session import LoadedModel
from mpru_tf.serving.batching import BatchedModel, Batcher, BatchingParameters
from mpru_tf.serving.config import read_text_proto
from mpru_tf.serving.manager import ServableManager
from mpru_tf.serving.messages import message_type
from mpru_tf.serving.metrics import Metrics
from mpru_tf.serving.prediction_service import (
    answer_classify,
    answer_multi_inference,
    answer_predict,
    answer_regress,
)
from mpru_tf.serving.servable import Servable
from mpru_tf.serving.status import RequestError, invalid_argument
from mpru_tf.warmup import MOST_RECORDS, WARMUP_FILE, read_warmup

logger = logging.getLogger(__name__)

BATCHING_PARAMETERS = "batching_params.pbtxt"

#: What answers each kind of log.
_ANSWERS = {
    "predict_log": answer_predict,
    "classify_log": answer_classify,
    "regress_log": answer_regress,
    "multi_inference_log": answer_multi_inference,
}


class Loading:
    """Loads versions as the options say; the manager calls it.

    Args:
        metrics: where attempts and times are counted.
        tags: of the MetaGraph to load.
        threads: intra-op and inter-op threads of the session; 0 leaves a number to TensorFlow.
        warm_up: whether warm-up requests are replayed.
        iterations: how often each of them is.
        config: a ``ConfigProto`` with further settings of the sessions.

    Attributes:
        batcher: joins the requests of what is loaded, warm-up included; ``None`` leaves each by itself.
        per_model_batching: only those of versions with a file of batching parameters, as that says.
    """

    def __init__(
        self,
        metrics: Metrics,
        tags: tuple[str, ...] = ("serve",),
        threads: tuple[int, int] = (0, 0),
        warm_up: bool = True,
        iterations: int = 1,
        config: Any = None,
    ) -> None:
        self._metrics = metrics
        self._tags = tags
        self._threads = threads
        self._warm_up = warm_up
        self._iterations = max(iterations, 1)
        self._config = config
        self.batcher: Batcher | None = None
        self.per_model_batching = False

    def __call__(self, name: str, version: int, version_dir: Path) -> Servable:
        """Load a version and make it ready.

        Raises:
            MPRUError: it cannot be loaded, or one of its warm-up requests is refused.
        """
        start = time.perf_counter()
        try:
            servable = Servable.load(name, version, version_dir, self._threads, self._tags, self._config)
        except BaseException:
            self._metrics.load_attempt(version_dir, "fail")
            raise
        self._metrics.load_attempt(version_dir, "success")
        self._metrics.load_latency(version_dir, time.perf_counter() - start)
        try:
            if self.batcher is not None:
                servable.model = self._batched(servable.model, version_dir, self.batcher)
            if self._warm_up:
                self._replay(servable, version_dir)
        except BaseException:
            servable.close()
            raise
        return servable

    def _batched(self, model: LoadedModel, version_dir: Path, batcher: Batcher) -> LoadedModel:
        parameters = None
        if self.per_model_batching:
            path = version_dir / BATCHING_PARAMETERS
            if not path.is_file():
                return model
            message = read_text_proto(path, message_type("tensorflow.serving.BatchingParameters")())
            parameters = BatchingParameters.from_message(message)
        return cast(LoadedModel, BatchedModel(model, batcher, parameters))

    def _replay(self, servable: Servable, version_dir: Path) -> None:
        path = version_dir / WARMUP_FILE
        if not path.is_file():
            return
        start = time.perf_counter()
        status = "OK"
        try:
            count = replay(servable, path, self._iterations)
        except RequestError as error:
            status = str(error)
            raise
        finally:
            self._metrics.warmup_latency(version_dir, status, time.perf_counter() - start)
        logger.info("Replayed %d warm-up requests for %s version %d", count, servable.name, servable.version)


def replay(servable: Servable, path: Path, iterations: int = 1) -> int:
    """Let a servable answer each request of a warm-up file; return how many there are.

    The requests' own model name and version do not matter: they were recorded somewhere else.

    Raises:
        RequestError: the first refusal, with its own code; INVALID_ARGUMENT, a malformed or too long file;
            UNIMPLEMENTED, a SessionRunLog; DATA_LOSS, no TFRecord file.
    """
    alone = cast(ServableManager, Alone(servable))
    count = 0
    try:
        for log in read_warmup(path):
            for _ in range(iterations):
                answer_record(alone, servable, log)
            count += 1
            if count > MOST_RECORDS:
                raise invalid_argument(f"Number of warmup records exceeds the maximum ({MOST_RECORDS}) at {path}")
    except CorruptModelError as error:
        is_record = type(error.__cause__).__name__ == "DecodeError"
        code = grpc.StatusCode.INVALID_ARGUMENT if is_record else grpc.StatusCode.DATA_LOSS
        raise RequestError(code, str(error)) from error
    return count


def answer_record(alone: ServableManager, servable: Servable, log: Any) -> None:
    """Put one ``PredictionLog`` to a servable that nobody else has yet; its model and version are overwritten.

    Raises:
        RequestError: UNIMPLEMENTED for a kind of log that the real server refuses, or as the request is refused.
    """
    kind = log.WhichOneof("log_type")
    if kind == "session_run_log":
        raise RequestError(grpc.StatusCode.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind}")
    if kind not in _ANSWERS:  # the real server passes over these, too
        return
    request = getattr(log, kind).request
    specs = [task.model_spec for task in request.tasks] if kind == "multi_inference_log" else [request.model_spec]
    for spec in specs:
        spec.ClearField("version_choice")
        spec.name = servable.name
    _ANSWERS[kind](alone, request)


class Alone:
    """Hands out one servable as a manager does, before any manager has it."""

    def __init__(self, servable: Servable) -> None:
        self._servable = servable

    @contextmanager
    def use(self, name: str, version: int | None = None) -> Iterator[Servable]:
        yield self._servable
