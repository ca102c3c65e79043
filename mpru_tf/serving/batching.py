"""Batching: requests of one signature that are waiting at the same time are answered in one step of the session.

As with the real server a batch is closed when it is full, or when its first request has waited long enough and a
thread is free; allowed sizes are reached by repeating a row; a queue that is full refuses.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mpru_tf.errors import ServingError, explain
from mpru_tf.saved_model.session import LoadedModel, Step

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class BatchingParameters:
    """The message of this name, with the real server's defaults.

    Attributes:
        max_batch_size: rows of a request, and of a batch, at most.
        batch_timeout_micros: how long a request waits for company.
        max_enqueued_batches: batches that wait in one queue.
        num_batch_threads: batches that are computed at once.
        allowed_batch_sizes: ascending; the last one is ``max_execution_batch_size``. Empty: every size is.
        pad_variable_length_inputs: join inputs whose other dimensions differ, filled up with their first value.
        enable_large_batch_splitting: answer a request in several batches if it is too large for one.
        max_execution_batch_size: rows of a batch, where this differs from those of a request.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int = 0

    @classmethod
    def from_message(cls, message: Any) -> BatchingParameters:
        """Read and check the message.

        Raises:
            ServingError: sizes that contradict each other, or are not positive.
        """
        given: dict[str, Any] = {
            name: getattr(message, name).value
            for name in (
                "max_batch_size",
                "batch_timeout_micros",
                "max_enqueued_batches",
                "num_batch_threads",
                "enable_large_batch_splitting",
                "max_execution_batch_size",
            )
            if message.HasField(name)
        }
        parameters = cls(
            **given,
            allowed_batch_sizes=tuple(message.allowed_batch_sizes),
            pad_variable_length_inputs=message.pad_variable_length_inputs,
        )
        for name in ("max_batch_size", "max_enqueued_batches", "num_batch_threads"):
            if getattr(parameters, name) < 1:
                raise ServingError(explain(f"{name} must be positive.", received=getattr(parameters, name)))
        if parameters.batch_size > parameters.max_batch_size:
            raise ServingError(
                explain(
                    "max_execution_batch_size is larger than max_batch_size.",
                    received=parameters.batch_size,
                    valid=f"at most {parameters.max_batch_size}",
                )
            )
        sizes = parameters.allowed_batch_sizes
        if any(size >= following for size, following in pairwise(sizes)):
            raise ServingError(
                explain("allowed_batch_sizes entries must be monotonically increasing.", received=list(sizes))
            )
        if sizes and (sizes[-1] != parameters.batch_size or sizes[0] < 1):
            raise ServingError(
                f"Last entry in allowed_batch_sizes must match max_batch_size; last entry was {sizes[-1]}; "
                f"expected {parameters.batch_size}"
            )
        return parameters

    @property
    def batch_size(self) -> int:
        """Rows of one batch at most."""
        if self.enable_large_batch_splitting and self.max_execution_batch_size > 0:
            return self.max_execution_batch_size
        return self.max_batch_size

    def padded(self, size: int) -> int:
        """Return the smallest allowed size that holds so many rows; no rows stay none, there is nothing to repeat."""
        return next((allowed for allowed in self.allowed_batch_sizes if allowed >= size), size) if size else 0


class _Task:
    __slots__ = ("done", "error", "feeds", "outputs", "size")

    def __init__(self, feeds: Sequence[Array], size: int) -> None:
        self.feeds = feeds
        self.size = size
        self.outputs: list[Array] = []
        self.error: BaseException | None = None
        self.done = threading.Event()


@dataclass
class _Batch:
    born: float
    tasks: list[_Task] = field(default_factory=list)
    size: int = 0


class _Queue:
    """What waits for one step with inputs of one shape."""

    def __init__(self, step: Step, parameters: BatchingParameters) -> None:
        self.step = step
        self.parameters = parameters
        self.batches: deque[_Batch] = deque()

    def left(self, batch: _Batch, now: float) -> float:
        """How long a batch still waits for company, in seconds."""
        return batch.born + self.parameters.batch_timeout_micros / 1e6 - now

    def compute(self, tasks: Sequence[_Task]) -> None:
        """Answer these together."""
        size = sum(task.size for task in tasks)
        padding = self.parameters.padded(size) - size
        if len(tasks) == 1 and not padding:
            outputs = self.step(*tasks[0].feeds)
        else:
            inputs = zip(*(task.feeds for task in tasks), strict=True)
            outputs = self.step(
                *(_joined(arrays, padding, self.parameters.pad_variable_length_inputs) for arrays in inputs)
            )
        for output in outputs:
            if output.ndim == 0:
                raise tf.errors.FailedPreconditionError(None, None, "Batched output tensor has 0 dimensions")
            if output.shape[0] != size + padding:
                raise tf.errors.FailedPreconditionError(
                    None,
                    None,
                    "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the "
                    "input tensors",
                )
        start = 0
        for task in tasks:
            task.outputs = [output[start : start + task.size] for output in outputs]
            start += task.size


class Batcher:
    """The threads that answer batches, shared by all models of a server.

    Args:
        parameters: number of threads; sizes and times of models that have none of their own.
    """

    def __init__(self, parameters: BatchingParameters) -> None:
        self.parameters = parameters
        self._queues: OrderedDict[Any, _Queue] = OrderedDict()  # those in which something waits, the next one first
        self._changed = threading.Condition()
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._work, name=f"batch-{i}", daemon=True)
            for i in range(parameters.num_batch_threads)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads, after what is waiting."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def run(
        self, key: Any, step: Step, feeds: Sequence[Array], parameters: BatchingParameters | None = None
    ) -> list[Array]:
        """Answer one request, together with others of the same key.

        Args:
            key: requests of different keys are never joined.
            step: computes a batch.
            feeds: its inputs, all with the same number of rows.
            parameters: sizes and times of this model; None for those of the batcher.

        Returns:
            Its own rows of each output.

        Raises:
            tf.errors.InvalidArgumentError: inputs without rows or with different numbers of them, or too many.
            tf.errors.UnavailableError: the queue is full.
            tf.errors.FailedPreconditionError: an output has not one row per row of the inputs.
            tf.errors.OpError: what the graph itself objects to.
        """
        size = _rows(feeds)
        parameters = parameters or self.parameters
        most = parameters.batch_size
        if size > parameters.max_batch_size:
            raise tf.errors.InvalidArgumentError(
                None, None, f"Task size {size} is larger than maximum input batch size {parameters.max_batch_size}"
            )
        if size <= most:
            tasks = [_Task(feeds, size)]
        else:
            starts = range(0, size, most)
            tasks = [_Task([feed[i : i + most] for feed in feeds], min(most, size - i)) for i in starts]
        pads = parameters.pad_variable_length_inputs
        shapes = tuple((feed.dtype.kind, feed.ndim if pads else feed.shape[1:]) for feed in feeds)
        self._enqueue((key, shapes), step, tasks, parameters)
        for task in tasks:
            task.done.wait()
        for task in tasks:
            if task.error is not None:
                raise task.error
        if len(tasks) == 1:
            return tasks[0].outputs
        return [np.concatenate(parts) for parts in zip(*(task.outputs for task in tasks), strict=True)]

    def _enqueue(self, key: Any, step: Step, tasks: Sequence[_Task], parameters: BatchingParameters) -> None:
        most = parameters.batch_size
        with self._changed:
            queue = self._queues.get(key)
            waiting = len(queue.batches) if queue is not None else 0
            room = most - queue.batches[-1].size if queue is not None else 0
            needed = sum(task.size > room for task in tasks[:1]) + len(tasks) - 1
            if waiting + needed > parameters.max_enqueued_batches or self._stopped:
                raise tf.errors.UnavailableError(
                    None, None, "The batch scheduling queue to which this task was submitted is full"
                )
            if queue is None:
                queue = self._queues[key] = _Queue(step, parameters)
            for task in tasks:
                if not queue.batches or queue.batches[-1].size + task.size > most:
                    queue.batches.append(_Batch(time.monotonic()))
                queue.batches[-1].tasks.append(task)
                queue.batches[-1].size += task.size
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                while (ready := self._take()) is None:
                    if self._stopped and not self._queues:
                        return
                    self._changed.wait(self._pause())
                if self._queues:
                    self._changed.notify()  # there may be work for another thread
            self._answer(*ready)

    def _take(self) -> tuple[_Queue, _Batch] | None:
        now = time.monotonic()
        for key, queue in self._queues.items():
            batch = queue.batches[0]
            is_closed = len(queue.batches) > 1 or batch.size >= queue.parameters.batch_size or self._stopped
            if is_closed or queue.left(batch, now) <= 0:
                queue.batches.popleft()
                if queue.batches:
                    self._queues.move_to_end(key)  # the others have their turn first
                else:
                    del self._queues[key]
                return queue, batch
        return None

    def _pause(self) -> float | None:
        now = time.monotonic()
        return min((max(queue.left(queue.batches[0], now), 0.0) for queue in self._queues.values()), default=None)

    def _answer(self, queue: _Queue, batch: _Batch) -> None:
        tasks = batch.tasks
        try:
            queue.compute(tasks)
        except Exception as error:  # noqa: BLE001, whoever waits for an answer gets it
            if len(tasks) > 1 and isinstance(error, tf.errors.OpError):
                # One request may have spoilt it for all. The real server refuses them all; here each is tried alone.
                for task in tasks:
                    self._answer_alone(queue, task)
            else:
                for task in tasks:
                    task.error = error
        finally:
            for task in tasks:
                task.done.set()

    def _answer_alone(self, queue: _Queue, task: _Task) -> None:
        try:
            queue.compute([task])
        except Exception as error:  # noqa: BLE001, as above
            task.error = error


class BatchedModel:
    """A loaded model whose steps go through a batcher; otherwise it is that model.

    Args:
        model: the loaded SavedModel.
        batcher: joins its requests.
        parameters: sizes and times of its own, if it has any.
    """

    def __init__(self, model: LoadedModel, batcher: Batcher, parameters: BatchingParameters | None = None) -> None:
        self._model = model
        self._batcher = batcher
        self._parameters = parameters
        self._steps: dict[tuple[str, tuple[str, ...]], Step] = {}

    def step(self, signature_name: str, outputs: tuple[str, ...]) -> Step:
        """Return what :meth:`LoadedModel.step` returns, batched."""
        key = (signature_name, outputs)
        step = self._steps.get(key)
        if step is None:
            step = self._steps.setdefault(key, self._batched(key, self._model.step(signature_name, outputs)))
        return step

    def _batched(self, key: tuple[str, tuple[str, ...]], step: Step) -> Step:
        def run(*feeds: Array) -> list[Array]:
            return self._batcher.run((id(self), key), step, feeds, self._parameters)

        return run

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _rows(feeds: Sequence[Array]) -> int:
    if not feeds:
        raise _invalid("Batching session Run() must have at least one input tensor")
    if any(feed.ndim == 0 for feed in feeds):
        raise _invalid("Batching session Run() input tensors must have at least one dimension")
    sizes = {feed.shape[0] for feed in feeds}
    if len(sizes) > 1:
        raise _invalid("Batching session Run() input tensors must have equal 0th-dimension size")
    return int(sizes.pop())


def _joined(arrays: Sequence[Array], padding: int, pads: bool) -> Array:
    if pads:
        widest = [max(sizes) for sizes in zip(*(array.shape for array in arrays), strict=True)]
        arrays = [_widened(array, widest) for array in arrays]
    rows = list(arrays)
    if padding:
        last = next(array for array in reversed(rows) if len(array))
        rows.append(np.repeat(last[:1], padding, axis=0))
    return np.concatenate(rows)


def _widened(array: Array, widest: Sequence[int]) -> Array:
    missing = [(0, 0), *((0, wide - have) for wide, have in zip(widest[1:], array.shape[1:], strict=True))]
    if not any(after for _, after in missing):
        return array
    if not array.size:
        raise _invalid("Got empty tensor in batch of non-empty tensors.")
    return np.pad(array, missing, constant_values=array.flat[0])


def _invalid(message: str) -> tf.errors.InvalidArgumentError:
    return tf.errors.InvalidArgumentError(None, None, message)
