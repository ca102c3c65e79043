"""Counters and histograms under the names of the real server, and the page that Prometheus reads."""

from __future__ import annotations

import threading
from bisect import bisect_left
from pathlib import Path

#: The real server's buckets of every latency, in microseconds: 33 limits from 10, each 1.8 times the last.
_LIMITS = tuple(10 * 1.8**i for i in range(33))

#: Model names come from clients: who asks for made-up ones must not fill the memory.
_MOST_CELLS = 10_000


class _Counter:
    def __init__(self, name: str, *labels: str) -> None:
        self.name = name
        self._labels = labels
        self._cells: dict[tuple[str, ...], int] = {}
        self._lock = threading.Lock()

    def add(self, amount: int, *values: str) -> None:
        with self._lock:
            if values in self._cells or len(self._cells) < _MOST_CELLS:
                self._cells[values] = self._cells.get(values, 0) + amount

    def lines(self) -> list[str]:
        with self._lock:
            cells = sorted(self._cells.items())
        if not cells:
            return []
        return [
            f"# TYPE {self.name} counter",
            *(f"{self.name}{{{_pairs(self._labels, values)}}} {count}" for values, count in cells),
        ]


class _Histogram:
    def __init__(self, name: str, *labels: str) -> None:
        self.name = name
        self._labels = labels
        self._cells: dict[tuple[str, ...], tuple[list[int], list[float]]] = {}
        self._lock = threading.Lock()

    def add(self, microseconds: float, *values: str) -> None:
        with self._lock:
            cell = self._cells.get(values)
            if cell is None:
                if len(self._cells) >= _MOST_CELLS:
                    return
                cell = self._cells[values] = ([0] * (len(_LIMITS) + 1), [0.0])
            cell[0][bisect_left(_LIMITS, microseconds)] += 1
            cell[1][0] += microseconds

    def lines(self) -> list[str]:
        with self._lock:
            cells = sorted((values, list(counts), total[0]) for values, (counts, total) in self._cells.items())
        if not cells:
            return []
        lines = [f"# TYPE {self.name} histogram"]
        for values, counts, total in cells:
            pairs = _pairs(self._labels, values)
            below = 0
            for limit, count in zip((*(f"{limit:g}" for limit in _LIMITS), "+Inf"), counts, strict=True):
                below += count
                lines.append(f'{self.name}_bucket{{{pairs},le="{limit}"}} {below}')
            lines.append(f"{self.name}_sum{{{pairs}}} {total:g}")
            lines.append(f"{self.name}_count{{{pairs}}} {below}")
        return lines


class Metrics:
    """What one server counts. Safe to use from many threads."""

    def __init__(self) -> None:
        self._load_attempts = _Counter(":tensorflow:cc:saved_model:load_attempt_count", "model_path", "status")
        self._load_latency = _Counter(":tensorflow:cc:saved_model:load_latency", "model_path")
        self._warmup_latency = _Histogram(":tensorflow:serving:model_warmup_latency", "model_path", "status")
        self._requests = _Counter(":tensorflow:serving:request_count", "model_name", "status")
        self._latency = _Histogram(":tensorflow:serving:request_latency", "model_name", "API", "entrypoint")

    def load_attempt(self, version_dir: Path, status: str) -> None:
        """Count a load that ended with ``success`` or ``fail``."""
        self._load_attempts.add(1, str(version_dir), status)

    def load_latency(self, version_dir: Path, seconds: float) -> None:
        """Add up how long loading has taken."""
        self._load_latency.add(round(seconds * 1e6), str(version_dir))

    def warmup_latency(self, version_dir: Path, status: str, seconds: float) -> None:
        """Note how long a replay of warm-up requests took, and how it ended."""
        self._warmup_latency.add(seconds * 1e6, str(version_dir), status)

    def request(self, model_name: str, api: str, entrypoint: str, status: str, seconds: float) -> None:
        """Count a request; its time counts only if it was answered.

        Args:
            model_name: as the client wrote it.
            api: ``Predict``, ``Classify``, ``Regress`` or ``MultiInference``.
            entrypoint: ``GRPC`` or ``REST``.
            status: name of the status code.
            seconds: from its arrival to its answer.
        """
        self._requests.add(1, model_name, status)
        if status == "OK":
            self._latency.add(seconds * 1e6, model_name, api, entrypoint)

    def page(self) -> str:
        """Return everything in Prometheus' text format."""
        metrics = (self._load_attempts, self._load_latency, self._warmup_latency, self._requests, self._latency)
        return "".join(f"{line}\n" for metric in metrics for line in metric.lines())


def _pairs(labels: tuple[str, ...], values: tuple[str, ...]) -> str:
    return ",".join(f'{label}="{_escape(value)}"' for label, value in zip(labels, values, strict=True))


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
