"""Batching: what is joined, split, padded and refused; on its own and in a server."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format

from mpru_tf.errors import ServingError
from mpru_tf.serving.batching import Batcher, BatchingParameters
from mpru_tf.serving.messages import message_type
from mpru_tf.serving.server import ModelServer

Code = grpc.StatusCode


def parameters(text: str) -> BatchingParameters:
    message = message_type("tensorflow.serving.BatchingParameters")()
    return BatchingParameters.from_message(text_format.Parse(text, message))


class Step:
    """Doubles its input, remembers what it was given, and waits at a gate if there is one."""

    def __init__(self, gate: threading.Event | None = None) -> None:
        self.seen: list[list[Any]] = []
        self.gate = gate

    def __call__(self, *feeds: Any) -> list[Any]:
        self.seen.append([np.array(feed) for feed in feeds])
        if self.gate is not None:
            assert self.gate.wait(30)
        return [2 * feeds[0], feeds[-1]]


@pytest.fixture
def batcher() -> Iterator[Callable[[str], Batcher]]:
    made: list[Batcher] = []

    def make(text: str) -> Batcher:
        made.append(Batcher(parameters(text)))
        return made[-1]

    yield make
    for batcher in made:
        batcher.stop()


def together(batcher: Batcher, step: Step, requests: Sequence[Any], key: str = "k") -> list[Any]:
    """Send requests one after the other, each before the first is answered; return outputs or errors."""
    with ThreadPoolExecutor(len(requests)) as pool:
        answers = []
        for request in requests:
            answers.append(pool.submit(batcher.run, key, step, [np.asarray(request, np.float64)]))
            time.sleep(0.02)
        return [answer.exception() or answer.result()[0].tolist() for answer in answers]


LONG = "batch_timeout_micros { value: 300000 } num_batch_threads { value: 1 }"


def test_requests_are_joined_and_split_again(batcher: Callable[[str], Batcher]) -> None:
    step = Step()
    answers = together(batcher(f"max_batch_size {{ value: 8 }} {LONG}"), step, [[1], [2, 3], [], [4]])
    assert answers == [[2], [4, 6], [], [8]]
    assert [feed.tolist() for [feed] in step.seen] == [[1, 2, 3, 4]]


def test_a_full_batch_does_not_wait(batcher: Callable[[str], Batcher]) -> None:
    step = Step()
    full = batcher(
        "max_batch_size { value: 2 } batch_timeout_micros { value: 60000000 } num_batch_threads { value: 1 }"
    )
    start = time.monotonic()
    assert together(full, step, [[1], [2], [3, 4]]) == [[2], [4], [6, 8]]
    assert time.monotonic() - start < 30
    assert [len(feed) for [feed] in step.seen] == [2, 2]


def test_no_timeout_means_no_waiting(batcher: Callable[[str], Batcher]) -> None:
    step = Step()
    assert together(batcher("num_batch_threads { value: 1 }"), step, [[1], [2]]) == [[2], [4]]
    assert len(step.seen) == 2


def test_allowed_sizes_are_reached_with_the_last_requests_first_row(batcher: Callable[[str], Batcher]) -> None:
    step = Step()
    allowed = batcher(f"max_batch_size {{ value: 8 }} allowed_batch_sizes: [4, 8] {LONG}")
    assert together(allowed, step, [[1], [2, 3]]) == [[2], [4, 6]]
    assert together(allowed, step, [list(range(5))]) == [[0, 2, 4, 6, 8]]
    assert together(allowed, step, [[]]) == [[]]
    assert [feed.tolist() for [feed] in step.seen] == [[1, 2, 3, 2], [0, 1, 2, 3, 4, 0, 0, 0], []]


def test_other_shapes_dtypes_and_keys_are_not_joined(batcher: Callable[[str], Batcher]) -> None:
    step = Step()
    several = batcher(f"max_batch_size {{ value: 8 }} {LONG}")
    with ThreadPoolExecutor(4) as pool:
        answers = [
            pool.submit(several.run, key, step, [array])
            for key, array in (
                ("a", np.ones((1, 2))),
                ("a", np.ones((1, 3))),
                ("b", np.ones((1, 2))),
                ("a", np.full((2, 2), 5.0)),
            )
        ]
        assert [answer.result()[0].shape for answer in answers] == [(1, 2), (1, 3), (1, 2), (2, 2)]
    assert sorted(feed.shape for [feed] in step.seen) == [(1, 2), (1, 3), (3, 2)]


def test_variable_lengths_are_filled_up(batcher: Callable[[str], Batcher]) -> None:
    step = Step()
    pads = batcher(f"max_batch_size {{ value: 8 }} pad_variable_length_inputs: true {LONG}")
    assert together(pads, step, [[[7]], [[1, 2, 3]]]) == [[[14, 14, 14]], [[2, 4, 6]]]
    assert [feed.tolist() for [feed] in step.seen] == [[[7, 7, 7], [1, 2, 3]]]


def test_what_is_refused(batcher: Callable[[str], Batcher]) -> None:
    small = batcher("max_batch_size { value: 2 } num_batch_threads { value: 1 }")
    one = np.ones(1)
    for feeds, words in (
        ([np.ones(3)], "Task size 3 is larger than maximum input batch size 2"),
        ([np.ones(())], "input tensors must have at least one dimension"),
        ([one, np.ones(2)], "input tensors must have equal 0th-dimension size"),
        ([], "must have at least one input tensor"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=words):
            small.run("k", Step(), feeds)
    with pytest.raises(tf.errors.FailedPreconditionError, match="has 0 dimensions"):
        small.run("k", lambda x: [np.sum(x)], [one])
    with pytest.raises(tf.errors.FailedPreconditionError, match="0th dimension does not equal the sum"):
        small.run("k", lambda x: [np.ones(7)], [one])


def test_a_full_queue_refuses(batcher: Callable[[str], Batcher]) -> None:
    gate = threading.Event()
    step = Step(gate)
    full = batcher(
        "max_batch_size { value: 2 } max_enqueued_batches { value: 2 } num_batch_threads { value: 1 } "
        "batch_timeout_micros { value: 0 }"
    )
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(full.run, "k", step, [np.ones(2)])
        while not step.seen:
            time.sleep(0.01)
        waiting = [pool.submit(full.run, "k", step, [np.ones(2)]) for _ in range(2)]
        time.sleep(0.1)
        with pytest.raises(tf.errors.UnavailableError, match="queue to which this task was submitted is full"):
            full.run("k", step, [np.ones(1)])
        other = pool.submit(full.run, "other", step, [np.ones(1)])  # another queue has room
        gate.set()
        for answer in (first, *waiting, other):
            assert answer.result(30)[0].max() == 2
    assert full.run("k", step, [np.ones(1)])[0].tolist() == [2]


def test_large_requests_can_be_split(batcher: Callable[[str], Batcher]) -> None:
    step = Step()
    splits = batcher(
        "max_batch_size { value: 7 } enable_large_batch_splitting { value: true } "
        "max_execution_batch_size { value: 3 } allowed_batch_sizes: [2, 3] num_batch_threads { value: 2 }"
    )
    assert together(splits, step, [list(range(7))]) == [[0, 2, 4, 6, 8, 10, 12]]
    assert sorted(len(feed) for [feed] in step.seen) == [2, 3, 3]
    with pytest.raises(tf.errors.InvalidArgumentError, match="Task size 8 is larger"):
        splits.run("k", step, [np.ones(8)])


def test_one_bad_request_does_not_spoil_the_others(batcher: Callable[[str], Batcher]) -> None:
    def step(x: Any) -> list[Any]:
        if (x < 0).any():
            raise tf.errors.InvalidArgumentError(None, None, "negative")
        return [x]

    good, bad, fine = together(batcher(f"max_batch_size {{ value: 8 }} {LONG}"), step, [[1], [-1], [3]])
    assert (good, fine) == ([1], [3])
    assert isinstance(bad, tf.errors.InvalidArgumentError)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_batch_size { value: 0 }", "max_batch_size must be positive"),
        ("num_batch_threads { value: -1 }", "num_batch_threads must be positive"),
        ("max_batch_size { value: 4 } allowed_batch_sizes: [2, 8]", "last entry was 8; expected 4"),
        ("max_batch_size { value: 4 } allowed_batch_sizes: [3, 2, 4]", "monotonically increasing"),
        (
            "max_batch_size { value: 4 } enable_large_batch_splitting { value: true } "
            "max_execution_batch_size { value: 5 }",
            "larger than max_batch_size",
        ),
    ],
)
def test_parameters_that_are_refused(text: str, words: str) -> None:
    with pytest.raises(ServingError, match=words):
        parameters(text)


# --------------------------------------------------------------------------------------------------------- in a server
Publish = Callable[..., Path]
Running = Callable[..., Any]


@pytest.fixture
def batching_file(tmp_path: Path) -> str:
    file = tmp_path / "batching.config"
    file.write_text(
        "max_batch_size { value: 8 } batch_timeout_micros { value: 5000 } num_batch_threads { value: 2 } "
        "max_enqueued_batches { value: 100 } allowed_batch_sizes: 4 allowed_batch_sizes: 8"
    )
    return str(file)


def test_a_server_that_batches_answers_as_one_that_does_not(
    publish: Publish, running: Running, batching_file: str
) -> None:
    publish(1)
    with running(enable_batching=True, batching_parameters_file=batching_file, rest_api_port=-1) as (server, client):

        def ask(i: int) -> bool:
            x = np.full([i % 4, 3], i, np.float32)
            outputs = client.predict(client.request(x=x))[1]
            return bool((outputs["y"] == x).all() and outputs["version"].shape == (i % 4,))

        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(ask, range(200)))
        texts = client.predict(client.request("shout", text=[b"a", b"\xff", b"ccc"]))[1]
        assert texts["loud"].tolist() == [b"A", b"\xff", b"CCC"]
        body = json.dumps({"instances": [[1, 2, 3]]}).encode()
        url = f"http://127.0.0.1:{server.rest_api_port}/v1/models/scaler:predict"
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=10) as got:
            assert json.load(got) == {"predictions": [{"version": 1, "y": [1.0, 2.0, 3.0]}]}

        assert client.refusal(client.request(x=np.zeros([9, 3], np.float32))) == (
            Code.INVALID_ARGUMENT,
            "Task size 9 is larger than maximum input batch size 8",
        )
        assert client.refusal(client.request("total", x=np.float32([1, 2]))) == (
            Code.FAILED_PRECONDITION,
            "Batched output tensor has 0 dimensions",
        )
        # A swap under load: no batch mixes two versions.
        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(client.predict, client.request(x=np.ones([1, 3], np.float32))) for _ in range(100)]
            publish(2)
            client.wait_for(v2="AVAILABLE", v1="END")
            for answer in answers:
                spec, outputs = answer.result(30)
                assert {spec.version.value} == set(outputs["version"].tolist()) == set(outputs["y"].ravel().tolist())


def test_parameters_of_a_model_of_its_own(publish: Publish, running: Running, batching_file: str) -> None:
    own = publish(1)
    (own / "batching_params.pbtxt").write_text("max_batch_size { value: 5 } allowed_batch_sizes: 5")
    files = {"batching_parameters_file": batching_file, "enable_per_model_batching_parameters": True}
    with running(enable_batching=True, **files) as (_, client):
        assert client.predict(client.request(x=np.ones([3, 3], np.float32)))[1]["y"].shape == (3, 3)
        assert client.refusal(client.request(x=np.zeros([6, 3], np.float32))) == (
            Code.INVALID_ARGUMENT,
            "Task size 6 is larger than maximum input batch size 5",
        )
        publish(2)  # without such a file: not batched at all
        client.wait_for(v2="AVAILABLE", v1="END")
        assert client.predict(client.request(x=np.ones([9, 3], np.float32)))[1]["y"].shape == (9, 3)


def test_bad_parameters_of_a_model_end_its_version(publish: Publish, running: Running) -> None:
    publish(1)
    with running(enable_batching=True, enable_per_model_batching_parameters=True) as (_, client):
        staged = publish(2, "staged-2")
        (staged / "batching_params.pbtxt").write_text("max_batch_size { value: 0 }")
        staged.rename(staged.with_name("2"))
        client.wait_for(v2="END", v1="AVAILABLE")


def test_parameters_without_batching_are_refused(publish: Publish, tmp_path: Path, batching_file: str) -> None:
    publish(1)
    with pytest.raises(ServingError, match="without --enable_batching"):
        ModelServer(tmp_path / "model", port=0, batching_parameters_file=batching_file).start()
    with pytest.raises(ServingError, match="without --enable_batching"):
        ModelServer(tmp_path / "model", port=0, enable_per_model_batching_parameters=True).start()
    Path(batching_file).write_text("max_batch_size: 8")
    with pytest.raises(ServingError, match="Invalid protobuf file"):
        ModelServer(tmp_path / "model", port=0, enable_batching=True, batching_parameters_file=batching_file).start()
