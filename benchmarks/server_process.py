"""A model server in a process of its own, for benchmarks: `mpru-tf serve`, or a `tensorflow_model_server`.

Both take the same flags. What a process has used, time and memory, is read from /proc (Linux; NaN elsewhere).
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

_PATIENCE = 120.0  # seconds within which a server has loaded its models


@dataclass(frozen=True)
class ServerProcess:
    """A server that answers.

    Attributes:
        pid: its process.
        target: HOST:PORT of gRPC.
        rest_port: port of REST.
    """

    pid: int
    target: str
    rest_port: int

    def cpu_seconds(self) -> float:
        """What it has computed since it was started, in seconds of one core."""
        return cpu_seconds(self.pid)

    def memory_mib(self, field: str = "VmRSS") -> float:
        """Resident memory now, or at most (``VmHWM``), in MiB."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith(f"{field}:"):
                    return int(line.split()[1]) / 1024
        return math.nan


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its threads."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return math.nan


@contextlib.contextmanager
def serving(binary: str | None, log: Path, flags: Sequence[str]) -> Iterator[ServerProcess]:
    """Start a server on free ports, wait until it answers, and stop it in the end.

    Args:
        binary: a ``tensorflow_model_server``; ``None`` is ``mpru-tf serve``.
        log: file for what it writes.
        flags: all but the ports.
    """
    grpc_port, rest_port = _free_ports(2)
    command = [binary] if binary else [sys.executable, "-m", "mpru_tf.cli", "serve"]
    command += [f"--port={grpc_port}", f"--rest_api_port={rest_port}", *flags]
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        target = f"127.0.0.1:{grpc_port}"
        _wait_until_open(target, process, log)
        yield ServerProcess(process.pid, target, rest_port)
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _wait_until_open(target: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Both servers open their ports once every model has a version that answers."""
    deadline = time.monotonic() + _PATIENCE
    with grpc.insecure_channel(target) as channel:
        ready = grpc.channel_ready_future(channel)
        while True:
            try:
                return ready.result(timeout=0.5)
            except grpc.FutureTimeoutError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"The server did not start:\n{log.read_text(errors='replace')}") from None
