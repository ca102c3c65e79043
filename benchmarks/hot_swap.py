"""Do clients notice when a class is forgotten behind their backs? N clients ask while a server swaps K times.

    python benchmarks/hot_swap.py [--requests 100000] [--clients 8] [--swaps 20] [--server tensorflow_model_server]

A small ResNet of the quick start's size, untrained, with one class more than there are swaps, is served by a process of
its own. Each swap is a real `mpru_tf.forget`, load check included, of one class more. Clients are processes of their
own as well, with plain gRPC and no retries; they name no version.

Every answer is kept and held against what the version that it names says to this input, computed afterwards in a
Session. `mixed` counts answers that are not wholly that version's; `backwards` those of an older version than the same
client had seen before. `during` is from the start of an export until the server has let go of the old version.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import figures
import numpy as np
import numpy.typing as npt
from server_process import ServerProcess, serving

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

MODEL, ROWS = "digits", 3
INPUTS = 50  # different requests; each client sends them in turn
TOLERANCE = 1e-5  # two versions differ by more than twice that in every row, or measure() gives up
PERIODS = ("before", "during", "between", "after")
_PATIENCE = 120.0


# --------------------------------------------------------------------------------------------------------- the clients
def client_process(target: str, clients: int, quota: int, done: Any, stop: Any, inputs: Path, out: Path) -> None:
    """Run some clients in threads until each has sent its share and may stop, then write what they saw to ``out``."""
    import grpc
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    batches = np.load(inputs)
    requests = []
    for batch in batches:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = MODEL
        tensor = request.inputs["pixels"]
        tensor.dtype = 1  # DT_FLOAT
        for size in batch.shape:
            tensor.tensor_shape.dim.add().size = size
        tensor.tensor_content = batch.tobytes()
        requests.append(request)
    seen: list[dict[str, list[Any]]] = [
        {key: [] for key in ("sent", "seconds", "input", "version", "scores")} for _ in range(clients)
    ]
    refusals: Counter[str] = Counter()

    def ask(log: dict[str, list[Any]], first: int) -> None:
        number = 0
        with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            while number < quota or not stop.is_set():
                chosen = (first + number) % len(requests)
                sent = time.monotonic()
                try:
                    response = stub.Predict(requests[chosen], timeout=60)
                    (answer,) = response.outputs.values()
                    scores = np.frombuffer(answer.tensor_content, np.float32)
                    scores = scores if scores.size else np.fromiter(answer.float_val, np.float32)
                    version = response.model_spec.version.value
                except grpc.RpcError as error:
                    refusals[f"{error.code().name}: {error.details()}"] += 1
                    version, scores = 0, np.zeros(0, np.float32)
                log["sent"].append(sent)
                log["seconds"].append(time.monotonic() - sent)
                log["input"].append(chosen)
                log["version"].append(version)
                log["scores"].append(scores)
                number += 1
                if number % 50 == 0:
                    with done.get_lock():
                        done.value += 50

    threads = [threading.Thread(target=ask, args=(log, i * 7)) for i, log in enumerate(seen)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    width = max(len(scores) for log in seen for scores in log["scores"])
    np.savez(
        out,
        client=np.concatenate([np.full(len(log["sent"]), i) for i, log in enumerate(seen)]),
        scores=np.stack(
            [scores if len(scores) == width else np.full(width, np.nan) for log in seen for scores in log["scores"]]
        ),
        refusals=np.asarray([f"{count} x {reason}" for reason, count in refusals.items()], str),
        **{
            key: np.concatenate([np.asarray(log[key]) for log in seen])
            for key in ("sent", "seconds", "input", "version")
        },
    )


# ----------------------------------------------------------------------------------------------------------- the swaps
@dataclass(frozen=True)
class Swap:
    """One swap: when it began, when a new version answered and when the old one was gone; export's own time."""

    begun: float
    available: float
    over: float
    seconds_export: float
    server_mib: float


def swap(base: Path, forgotten: int, ask_states: Callable[[], dict[int, str]], server: ServerProcess) -> Swap:
    """Forget one class more and wait until the server has let go of the version before."""
    import mpru_tf

    begun = time.monotonic()
    result = mpru_tf.forget(base, [forgotten])
    published = time.monotonic()
    available = 0.0
    while True:
        states = ask_states()
        now = time.monotonic()
        if states.get(result.version) == "AVAILABLE":
            available = available or now
            if states.get(result.version - 1, "END") == "END":
                return Swap(begun, available, now, published - begun, server.memory_mib())
        if now > published + _PATIENCE:
            raise SystemExit(f"Version {result.version} did not take over: {states}")
        time.sleep(0.02)


def swaps_of(base: Path, args: argparse.Namespace, server: ServerProcess, done: Any) -> list[Swap]:
    """Swap whenever the clients are through with another share of all requests; the first and last are quiet."""
    import grpc
    from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

    with grpc.insecure_channel(server.target) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        names = get_model_status_pb2.ModelVersionStatus.State

        def states() -> dict[int, str]:
            request = get_model_status_pb2.GetModelStatusRequest()
            request.model_spec.name = MODEL
            answer = stub.GetModelStatus(request, timeout=30)
            return {status.version: names.Name(status.state) for status in answer.model_version_status}

        share = args.requests / (args.swaps + 1)
        made: list[Swap] = []
        quiet_until = 0.0  # requests: every period shall have some
        for number in range(args.swaps + 1):
            while done.value < max(share * (number + 1), quiet_until):
                time.sleep(0.02)
            if number < args.swaps:
                made.append(swap(base, number, states, server))
                quiet_until = done.value + share / 3
        return made


# ------------------------------------------------------------------------------------------------------ what came back
def judge(
    seen: dict[str, npt.NDArray[Any]], swaps: list[Swap], expected: dict[int, npt.NDArray[np.float32]]
) -> dict[str, Any]:
    """Count failures, mixed answers and steps backwards, and take the latencies of each period apart."""
    failed = seen["version"] == 0
    mixed = np.zeros(len(failed), bool)
    for version in np.unique(seen["version"][~failed]):
        of_version = seen["version"] == version
        if version not in expected:  # nobody published it
            mixed |= of_version
            continue
        difference = np.abs(seen["scores"][of_version] - expected[int(version)][seen["input"][of_version]])
        mixed[of_version] = ~(difference.max(axis=1) <= TOLERANCE)
    backwards = 0
    for client in np.unique(seen["client"]):
        versions = seen["version"][(seen["client"] == client) & ~failed]
        backwards += int((np.diff(versions) < 0).sum())
    during = np.zeros(len(failed), bool)
    for each in swaps:
        during |= (seen["sent"] <= each.over) & (seen["sent"] + seen["seconds"] >= each.begun)
    before = ~during & (seen["sent"] < swaps[0].begun)
    after = ~during & (seen["sent"] > swaps[-1].over)
    masks = dict(zip(PERIODS, (before, during, ~(before | during | after), after), strict=True))
    return {
        "requests": len(failed),
        "failed": int(failed.sum()),
        "mixed": int(mixed.sum()),
        "backwards": backwards,
        "versions_seen": len(np.unique(seen["version"][~failed])),
        "refusals": [str(reason) for reason in seen["refusals"]],
        "periods": {
            name: {
                "requests": int(mask.sum()),
                **{
                    f"p{percent}_ms": float(np.percentile(seen["seconds"][mask], percent) * 1000)
                    for percent in (50, 99, 100)
                    if mask.any()
                },
            }
            for name, mask in masks.items()
        },
    }


def expected_answers(base: Path, inputs: npt.NDArray[np.float32]) -> dict[int, npt.NDArray[np.float32]]:
    """What each version in the base path says to each request, [requests, rows * classes]."""
    from mpru_tf.saved_model.session import LoadedModel

    answers = {}
    for path in sorted(base.iterdir()):
        if path.name.isdigit():
            with LoadedModel(path) as model:
                rows = model.run("serving_default", {"pixels": inputs.reshape(-1, *inputs.shape[2:])})
                (scores,) = rows.values()
                answers[int(path.name)] = scores.reshape(len(inputs), -1)
    return answers


def closest_rows(expected: dict[int, npt.NDArray[np.float32]]) -> float:
    """How far the answers of two versions to the same row are apart at least."""
    rows = np.stack([each.reshape(INPUTS * ROWS, -1) for each in expected.values()])
    apart = [np.abs(rows[i] - rows[:i]).max(axis=2).min() for i in range(1, len(rows))]
    return float(min(apart))


def export(base: Path, classes: int) -> None:
    """Export an untrained network of the quick start's size as version 1."""
    import keras

    from mpru_tf.resnet import build_resnet, export_version

    keras.utils.set_random_seed(0)
    export_version(build_resnet(8, (8, 8, 1), classes, scale=1 / 16), base)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Serve, ask, swap, and judge."""
    import tensorflow as tf

    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = folder / MODEL
        export(base, args.swaps + 1)
        inputs = np.random.default_rng(0).uniform(0, 16, [INPUTS, ROWS, 8, 8, 1]).astype(np.float32)
        np.save(folder / "inputs.npy", inputs)
        flags = [f"--model_name={MODEL}", f"--model_base_path={base}", "--file_system_poll_wait_seconds=1"]
        with serving(args.server, folder / "server.log", flags) as server:
            done, stop = context.Value("q", 0), context.Event()
            each, more = divmod(args.clients, args.processes)
            counts = [each + (i < more) for i in range(args.processes)]
            quota = -(-args.requests // args.clients)
            files = [folder / f"seen-{i}.npz" for i in range(args.processes)]
            clients = [
                context.Process(
                    target=client_process,
                    args=(server.target, count, quota, done, stop, folder / "inputs.npy", file),
                )
                for count, file in zip(counts, files, strict=True)
            ]
            rss_before = server.memory_mib()
            started = time.monotonic()
            for client in clients:
                client.start()
            try:
                swaps = swaps_of(base, args, server, done)
            finally:
                stop.set()
                for client in clients:
                    client.join()
            seconds = time.monotonic() - started
            memory = {
                "before_mib": rss_before,
                "after_mib": server.memory_mib(),
                "peak_mib": server.memory_mib("VmHWM"),
                "after_each_swap_mib": [each.server_mib for each in swaps],
            }
        loaded = [np.load(file) for file in files]
        seen = {key: np.concatenate([each[key] for each in loaded]) for key in loaded[0].files if key != "client"}
        seen["client"] = np.concatenate([each["client"] + 1000 * i for i, each in enumerate(loaded)])
        expected = expected_answers(base, inputs)
        closest = closest_rows(expected)
        if closest <= 2 * TOLERANCE:
            raise SystemExit(f"The versions answer too much alike to be told apart: {closest}")
        judged = judge(seen, swaps, expected)
    return {
        "server": "tensorflow_model_server" if args.server else "mpru-tf serve",
        "tensorflow": tf.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "clients": args.clients,
        "client_processes": args.processes,
        "swaps": args.swaps,
        "seconds": seconds,
        **judged,
        "median_seconds_export": float(np.median([each.seconds_export for each in swaps])),
        "median_seconds_until_available": float(np.median([each.available - each.begun for each in swaps])),
        "memory": memory,
    }


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result['server']}: {result['clients']} clients, {result['swaps']} swaps")
    for heading in ("period", "requests", "p50 ms", "p99 ms", "slowest ms"):
        table.add_column(heading, justify="left" if heading == "period" else "right")
    for name, period in result["periods"].items():
        figures_of = (period.get(f"p{percent}_ms") for percent in (50, 99, 100))
        table.add_row(name, f"{period['requests']:,}", *("" if each is None else f"{each:.1f}" for each in figures_of))
    console = Console()
    console.print(table)
    memory = result["memory"]
    console.print(
        f"{result['requests']:,} requests in {result['seconds']:.0f} s: {result['failed']} failed, {result['mixed']} "
        f"mixed, {result['backwards']} went backwards; {result['versions_seen']} versions answered. Server memory: "
        f"{memory['before_mib']:.0f} MiB before, {memory['after_mib']:.0f} after, {memory['peak_mib']:.0f} at most."
    )
    for refusal in result["refusals"]:
        console.print(f"failed: {refusal}", style="red", markup=False)


def main() -> None:
    """Command line; ends with status 1 if a request failed or an answer was mixed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000, help="of all clients together, at least")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--processes", type=int, default=2, help="that the clients are threads of")
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--server", help="a tensorflow_model_server to ask instead of `mpru-tf serve`")
    parser.add_argument("--out", type=Path, default=figures.RESULTS / "hot_swap.json")
    args = parser.parse_args()
    result = measure(args)
    show(result)
    figures.save(result, args.out)
    raise SystemExit(bool(result["failed"] or result["mixed"] or result["backwards"]))


if __name__ == "__main__":
    main()
