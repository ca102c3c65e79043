"""Servers as programs, for the same tests: `mpru-tf serve`, and a `tensorflow_model_server` where there is one."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import client_as_users_write_it
import pytest
import tensorflow as tf

PATIENCE = 60.0
MODEL = "small"
LABELS = ("cat", "dog", "owl", "fox")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`pytest -m servers` is these tests alone."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.servers)


class Program:
    """A running server: its addresses, and a user's client of its model."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, rest_port: int, log: Path) -> None:
        self.process = process
        self.target = f"127.0.0.1:{port}"
        self.rest_port = rest_port
        self.log = log
        self.client = client_as_users_write_it.Client(self.target, MODEL)

    def wait_for(self, **states: str) -> dict[int, str]:
        """Wait until versions (``v2="AVAILABLE"``) have these states."""
        wanted = {int(version.lstrip("v")): state for version, state in states.items()}
        seen: dict[int, str] = {}

        def there() -> bool:
            nonlocal seen
            seen = self.client.states()
            return wanted.items() <= seen.items()

        wait(there, lambda: f"wanted {wanted}, still {seen}")
        return seen

    def rest(self, path: str, body: Any = None) -> tuple[int, Any]:
        """GET, or POST where there is a body: HTTP status and JSON."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.rest_port}/v1/models/{path}", data)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)


def wait(there: Callable[[], bool], complaint: Callable[[], str]) -> None:
    """Wait until something is there."""
    deadline = time.monotonic() + PATIENCE
    while not there():
        assert time.monotonic() < deadline, complaint()
        time.sleep(0.05)


@pytest.fixture(scope="session", params=["mpru-tf serve", "tensorflow_model_server"])
def command(request: pytest.FixtureRequest) -> list[str]:
    """How to start a server of this kind; skips where there is none."""
    if request.param == "mpru-tf serve":
        return [sys.executable, "-m", "mpru_tf.cli", "serve"]
    found = os.environ.get("TENSORFLOW_MODEL_SERVER") or shutil.which(request.param)
    if found is None:
        pytest.skip(f"needs {request.param} on PATH, or named by the environment variable TENSORFLOW_MODEL_SERVER")
    return [found]


@pytest.fixture
def start(command: list[str], tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Return a function that starts a server with these flags and waits until it answers."""
    with ExitStack() as stack:

        def run(*flags: str) -> Program:
            with socket.socket() as one, socket.socket() as other:
                for probe in (one, other):
                    probe.bind(("127.0.0.1", 0))
                port, rest_port = one.getsockname()[1], other.getsockname()[1]
            log = tmp_path / f"server-{port}.log"
            own = [f"--port={port}", f"--rest_api_port={rest_port}", "--file_system_poll_wait_seconds=1"]
            own += ["--load_retry_interval_micros=100000", "--max_num_load_retries=1"]
            with log.open("wb") as file:
                process = subprocess.Popen([*command, *own, *flags], stdout=file, stderr=file)
            stack.callback(process.wait, PATIENCE)
            stack.callback(process.terminate)
            program = Program(process, port, rest_port, log)
            stack.callback(program.client.close)

            def is_up() -> bool:
                assert process.poll() is None, log.read_text(errors="replace")
                # Not by grpc.channel_ready_future: its thread goes on asking the channel for a while, and fails in
                # public if that was closed meanwhile.
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                except OSError:
                    return False
                return True

            wait(is_up, lambda: log.read_text(errors="replace"))
            return program

        yield run


class Classifier(tf.Module):
    """Softmax regression whose weights are its classes' numbers, so that every version's answer is known."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.w = tf.Variable([[scale * i for i in range(len(LABELS))]] * 3, dtype=tf.float32)

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, "x")])
    def answer(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probabilities": tf.nn.softmax(x @ self.w)}


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1; nobody may write to it."""
    path = tmp_path_factory.mktemp("pristine") / "1"
    module = Classifier(0.3)
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.answer})
    (path / "assets.extra").mkdir()
    (path / "assets.extra" / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    return path


@pytest.fixture
def base(pristine: Path, tmp_path: Path) -> Path:
    """A base path with version 1."""
    shutil.copytree(pristine, tmp_path / MODEL / "1")
    return tmp_path / MODEL


@pytest.fixture
def config(base: Path, tmp_path: Path) -> Path:
    """A configuration file for it: every version is loaded, and `stable` stands for the first."""
    path = tmp_path / "models.config"
    path.write_text(
        f'model_config_list {{ config {{ name: "{MODEL}" base_path: "{base}" model_platform: "tensorflow"\n'
        'model_version_policy { all {} } version_labels { key: "stable" value: 1 } } }\n'
    )
    return path
