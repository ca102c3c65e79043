"""What does a server cost? Requests per second over gRPC and REST, as a ratio to a bare `session.run`.

    python benchmarks/serving_rate.py [--seconds 4] [--rounds 5] [--server tensorflow_model_server]

Three models: ResNet-50, the quick start's ResNet for 8x8 digits, and one that multiplies four numbers by two; all
untrained, batch 1. Eight threads that call `session.run` in a process of their own, eight gRPC clients and eight REST
clients (threads of two processes, keeping their connections) take turns, so that whatever else the machine does
happens to all of them.

Clients of the same machine take cores away from the server, which the bare Session has for itself. So small gRPC
requests are sent by a client that costs next to nothing (grpcio's costs as much as the server), and each way also tells
the CPU time per request of the process that answers, and its ratio: the rate against a bare Session that could be had
if clients ran elsewhere.
"""

from __future__ import annotations

import argparse
import functools
import http.client
import json
import multiprocessing
import os
import platform
import socket
import statistics
import struct
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import figures
import numpy as np
import numpy.typing as npt
from server_process import ServerProcess, cpu_seconds, serving

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

MODELS = ("ResNet-50", "digits", "trivial")
WAYS = ("session.run", "gRPC", "REST")
CLIENTS, PROCESSES = 8, 2
_PREDICT = "/tensorflow.serving.PredictionService/Predict"

Array = npt.NDArray[Any]
Answer = Callable[[], None]


# ------------------------------------------------------------------------------------------------------------- models
def export(folder: Path, names: list[str]) -> None:
    """Export the models as version 1 of a base path each."""
    import keras
    import tensorflow as tf

    from mpru_tf.resnet import build_resnet, export_version

    keras.utils.set_random_seed(0)
    if "ResNet-50" in names:
        export_version(keras.applications.ResNet50(weights=None), folder / "ResNet-50")
    if "digits" in names:
        export_version(build_resnet(8, (8, 8, 1), 10, scale=1 / 16), folder / "digits")
    if "trivial" in names:

        class Doubles(tf.Module):
            @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, "x")])
            def double(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
                return {"y": x * 2.0}

        module = Doubles()
        tf.saved_model.save(module, str(folder / "trivial" / "1"), signatures={"serving_default": module.double})


def example(name: str) -> Array:
    """One row: pixels as whole numbers, as a camera gives them."""
    shape = {"ResNet-50": (1, 224, 224, 3), "digits": (1, 8, 8, 1), "trivial": (1, 4)}[name]
    return np.random.default_rng(0).integers(0, 17 if name == "digits" else 256, shape).astype(np.float32)


# --------------------------------------------------------------------------------------- processes that count answers
def answer_for(seconds: float, threads: list[Answer]) -> tuple[int, float]:
    """Call each function over and over in a thread of its own; return the number of calls and the time they took."""
    counts = [0] * len(threads)
    failures: list[BaseException] = []
    start = threading.Barrier(len(threads) + 1)
    end = [0.0]

    def keep_calling(index: int, call: Answer) -> None:
        start.wait()
        try:
            while time.monotonic() < end[0]:
                call()
                counts[index] += 1
        except BaseException as error:  # noqa: BLE001, told below
            failures.append(error)

    workers = [threading.Thread(target=keep_calling, args=each) for each in enumerate(threads)]
    for worker in workers:
        worker.start()
    begun = time.monotonic()
    end[0] = begun + seconds
    start.wait()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]
    return sum(counts), time.monotonic() - begun


def work(make: Callable[..., dict[tuple[str, str], list[Answer]]], arguments: tuple[Any, ...], pipe: Any) -> None:
    """Main function of a process: make the callables, then measure what is asked for until told to stop."""
    calls = make(*arguments)
    for threads in calls.values():
        threads[0]()  # warm: executors are built, connections are open
    pipe.send(os.getpid())
    while (task := pipe.recv()) is not None:
        key, seconds = task
        pipe.send(answer_for(seconds, calls[key]))


def session_calls(folder: Path, names: list[str]) -> dict[tuple[str, str], list[Answer]]:
    """`session.run` of each model, in as many threads as there are clients."""
    import tensorflow as tf

    def call_of(name: str) -> Answer:
        with tf.Graph().as_default():
            session = tf.compat.v1.Session()
            meta_graph = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(folder / name / "1"))
        signature = meta_graph.signature_def["serving_default"]
        ((_, feed),), ((_, fetch),) = signature.inputs.items(), signature.outputs.items()
        x = example(name)

        def call() -> None:
            session.run(fetch.name, {feed.name: x})

        return call

    return {(name, "session.run"): [call_of(name)] * CLIENTS for name in names}


class FrugalChannel:
    """Unary gRPC calls over one connection, one at a time, with small requests: a tenth of the CPU time of grpcio.

    Plain HTTP/2 frames with headers that are spelled out, so that nothing has to be remembered. The answer is not
    looked into: that it holds a message, and that the stream ended as it must, is all that is asked.
    """

    LARGEST = 16_000  # bytes of a request: one frame, well within the window that a server grants

    def __init__(self, target: str, path: str) -> None:
        host, _, port = target.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stream = -1
        self._buffer = bytearray()
        headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": target,
            "te": "trailers",
            "content-type": "application/grpc",
        }
        self._headers = b"".join(
            b"\x00" + bytes([len(key)]) + key.encode() + bytes([len(value)]) + value.encode()
            for key, value in headers.items()
        )
        large = struct.pack(">I", 2**30)
        self._socket.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + _frame(_SETTINGS, 0, 0, struct.pack(">H", 4) + large)
            + _frame(_WINDOW_UPDATE, 0, 0, large)
        )

    def call(self, message: bytes) -> None:
        """Send a request and wait for the end of its answer."""
        self._stream += 2
        data = b"\x00" + struct.pack(">I", len(message)) + message
        self._socket.sendall(
            _frame(_HEADERS, _END_HEADERS, self._stream, self._headers) + _frame(_DATA, _END, self._stream, data)
        )
        answered = 0
        while True:
            kind, flags, stream, payload = self._read()
            if kind == _DATA:
                answered += len(payload)
            elif kind == _HEADERS and flags & _END and stream == self._stream:
                assert answered > 5, "the server refused"
                return
            elif kind in (_SETTINGS, _PING) and not flags & _ACK:
                self._socket.sendall(_frame(kind, _ACK, 0, payload if kind == _PING else b""))
            else:
                assert kind not in (_RESET, _GO_AWAY), payload

    def _read(self) -> tuple[int, int, int, bytes]:
        self._fill(9)
        size = int.from_bytes(self._buffer[:3], "big")
        kind, flags, stream = struct.unpack(">BBI", self._buffer[3:9])
        self._fill(9 + size)
        payload = bytes(self._buffer[9 : 9 + size])
        del self._buffer[: 9 + size]
        return kind, flags, stream, payload

    def _fill(self, size: int) -> None:
        while len(self._buffer) < size:
            received = self._socket.recv(65536)
            assert received, "the server closed the connection"
            self._buffer += received


_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GO_AWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END = _ACK = 1
_END_HEADERS = 4


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def client_calls(target: str, rest_port: int, inputs: dict[str, str]) -> dict[tuple[str, str], list[Answer]]:
    """gRPC and REST requests to each model, made once and sent as bytes; every client has a connection of its own."""
    import grpc
    from tensorflow_serving.apis import predict_pb2

    def grpc_call(name: str) -> Answer:
        x = example(name)
        request = predict_pb2.PredictRequest()
        request.model_spec.name = name
        tensor = request.inputs[inputs[name]]
        tensor.dtype = 1  # DT_FLOAT
        for size in x.shape:
            tensor.tensor_shape.dim.add().size = size
        tensor.tensor_content = x.tobytes()
        payload = request.SerializeToString()
        if len(payload) <= FrugalChannel.LARGEST:
            return functools.partial(FrugalChannel(target, _PREDICT).call, payload)
        channel = grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)])
        predict = channel.unary_unary(_PREDICT)

        def call() -> None:
            assert predict(payload, timeout=60)

        return call

    def rest_call(name: str) -> Answer:
        body = json.dumps({"instances": example(name).astype(int).tolist()}, separators=(",", ":"))
        connection = http.client.HTTPConnection("127.0.0.1", rest_port, timeout=60)
        path = f"/v1/models/{name}:predict"

        def call() -> None:
            connection.request("POST", path, body)
            response = connection.getresponse()
            content = response.read()
            assert response.status == 200, content

        return call

    ways = {"gRPC": grpc_call, "REST": rest_call}
    return {
        (name, way): [make(name) for _ in range(CLIENTS // PROCESSES)] for name in inputs for way, make in ways.items()
    }


# --------------------------------------------------------------------------------------------------------- measurement
class Workers:
    """Processes that measure at the same time."""

    def __init__(self, count: int, make: Any, *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            context.Process(target=work, args=(make, arguments, theirs), daemon=True).start()
            theirs.close()  # or the end of a process that failed would not be noticed
            self._pipes.append(ours)
        self.pids = [pipe.recv() for pipe in self._pipes]

    def measure(self, key: tuple[str, str], seconds: float) -> float:
        """Answers per second."""
        for pipe in self._pipes:
            pipe.send((key, seconds))
        return sum(count / taken for count, taken in [pipe.recv() for pipe in self._pipes])

    def stop(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.send(None)


def input_key(folder: Path, name: str) -> str:
    """Name of the one input of a model."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((folder / name / "1" / "saved_model.pb").read_bytes())
    (key,) = saved.meta_graphs[0].signature_def["serving_default"].inputs
    return str(key)


def take_turns(args: argparse.Namespace, server: ServerProcess, session: Workers, clients: Workers) -> dict[str, Any]:
    """All figures: rates and CPU times of every model and way."""
    measured: dict[str, Any] = {name: {way: {"rates": [], "cpu_ms": []} for way in WAYS} for name in args.models}
    for _ in range(args.rounds):
        for name in args.models:
            for way in WAYS:
                workers, pid = (session, session.pids[0]) if way == "session.run" else (clients, server.pid)
                before, begun = cpu_seconds(pid), time.monotonic()
                rate = workers.measure((name, way), args.seconds)
                requests = rate * (time.monotonic() - begun)
                measured[name][way]["rates"].append(rate)
                measured[name][way]["cpu_ms"].append((cpu_seconds(pid) - before) / requests * 1000)
    for ways in measured.values():
        bare = ways["session.run"]
        for figures_of in ways.values():
            pairs = zip(figures_of["rates"], bare["rates"], strict=True)
            figures_of["ratio"] = statistics.median(own / other for own, other in pairs)
            pairs = zip(figures_of["cpu_ms"], bare["cpu_ms"], strict=True)
            figures_of["cpu_ratio"] = statistics.median(other / own for own, other in pairs)
    return measured


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Export, serve, measure."""
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export(folder, args.models)
        configs = "".join(
            f'config {{ name: "{each}" base_path: "{folder / each}" model_platform: "tensorflow" }}\n'
            for each in args.models
        )
        (folder / "models.config").write_text(f"model_config_list {{\n{configs}}}\n")
        inputs = {each: input_key(folder, each) for each in args.models}
        flags = [f"--model_config_file={folder / 'models.config'}"]
        with serving(args.server, folder / "server.log", flags) as server:
            session = Workers(1, session_calls, folder, args.models)
            clients = Workers(PROCESSES, client_calls, server.target, server.rest_port, inputs)
            measured = take_turns(args, server, session, clients)
            session.stop()
            clients.stop()
    return {
        "server": "tensorflow_model_server" if args.server else "mpru-tf serve",
        "tensorflow": tf.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "clients": CLIENTS,
        "client_processes": PROCESSES,
        "seconds": args.seconds,
        "rounds": args.rounds,
        "models": measured,
    }


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{result['server']}, {result['clients']} clients, batch 1, medians of {result['rounds']} turns of "
        f"{result['seconds']:g} s, {result['cores']} cores for all"
    )
    for heading in ("model", "way", "requests/s", "ratio", "CPU ms a request", "ratio by CPU"):
        table.add_column(heading, justify="left" if heading in ("model", "way") else "right")
    for name, ways in result["models"].items():
        for way, own in ways.items():
            table.add_row(
                name if way == WAYS[0] else "",
                way,
                f"{statistics.median(own['rates']):,.1f}",
                f"{own['ratio']:.2f}",
                f"{statistics.median(own['cpu_ms']):.2f}",
                f"{own['cpu_ratio']:.2f}",
            )
    Console().print(table)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--server", help="a tensorflow_model_server to ask instead of `mpru-tf serve`")
    parser.add_argument("--out", type=Path, default=figures.RESULTS / "serving_rate.json")
    args = parser.parse_args()
    result = measure(args)
    show(result)
    figures.save(result, args.out)


if __name__ == "__main__":
    main()
