"""Which backend is the faster one for requests of a given size?"""

from __future__ import annotations

import contextlib
import importlib
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from mpru_tf.errors import VerificationError, explain
from mpru_tf.trees.backends import BACKENDS
from mpru_tf.trees.child import Child
from mpru_tf.trees.forest import Floats, Forest
from mpru_tf.trees.telling_rows import telling_rows

_MOST_VALUES = 2**24  # float32 values in the rows that are made up; larger requests repeat them
_ROUNDS, _ROUND_SECONDS = 15, 0.02  # the backends take turns


def fastest(
    backends: Sequence[str], directories: Mapping[str, Path], forest: Forest, batch_size: int | None, staging: Path
) -> tuple[str, dict[str, float] | None]:
    """The backend to publish, and what each takes for one request."""
    if batch_size is None or len(backends) == 1:
        return backends[0], None
    folder = staging / "timing"
    folder.mkdir()
    few = min(batch_size, max(1, _MOST_VALUES // forest.n_features))
    np.save(folder / "rows.npy", np.resize(telling_rows(forest, few), (batch_size, forest.n_features)))
    question = {"directories": {name: str(directories[name]) for name in backends}}
    with Child("time_backends", folder, question) as child:
        ended = child.wait()
    if ended:
        raise VerificationError(
            explain("The backends could not be timed.", received=ended, hint="Name one of them with --backend.")
        )
    seconds: dict[str, float] = json.loads((folder / "said.json").read_text(encoding="utf-8"))
    return min(backends, key=lambda name: seconds[name]), seconds


def time_backends(folder: Path, directories: Mapping[str, str]) -> dict[str, float]:
    """The median seconds of a request, by backend. They take turns, so that a busy machine is busy for both."""
    if BACKENDS[1] in directories:
        with contextlib.suppress(ImportError):  # without the op that it brings, the model does not load, and says so
            importlib.import_module("tensorflow_decision_forests")
    from mpru_tf.saved_model.session import LoadedModel

    rows = np.load(folder / "rows.npy")
    with contextlib.ExitStack() as stack:
        steps, repeats = {}, {}
        for name, directory in directories.items():
            loaded = stack.enter_context(LoadedModel(directory, threads=1))
            steps[name] = loaded.step("serving_default", ("probabilities",))
            for _ in range(3):
                seconds = _seconds(steps[name], rows, 1)
            repeats[name] = max(1, round(_ROUND_SECONDS / seconds))
        taken: dict[str, list[float]] = {name: [] for name in directories}
        for _ in range(_ROUNDS):
            for name, step in steps.items():
                taken[name].append(_seconds(step, rows, repeats[name]))
    return {name: statistics.median(values) for name, values in taken.items()}


def _seconds(step: Callable[..., object], rows: Floats, repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        step(rows)
    return (time.perf_counter() - started) / repeats
