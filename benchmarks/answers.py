"""What classifiers trained with and without a class answer, one file per training, so that a long row of them resumes.

A folder of answers holds, beside one file per run, ``labels.npz`` with the classes ``train`` and ``test``. A run's file
has ``train`` and ``test``, log-probabilities or logits float32 [N, n] (-inf for a class that the model never saw), and
what else its training tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

Array = npt.NDArray[Any]
console = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Run:
    """One model: of all classes, or without one of them.

    Attributes:
        without: the class that it never saw; None for all.
        seed: of its training.
    """

    without: int | None
    seed: int

    @property
    def file(self) -> str:
        """Name of the file with its answers."""
        return f"{'all' if self.without is None else f'without-{self.without}'}-seed-{self.seed}.npz"

    @classmethod
    def of_file(cls, name: str) -> Run:
        """The run whose file has this name."""
        head, _, seed = name.removesuffix(".npz").rpartition("-seed-")
        return cls(None if head == "all" else int(head.removeprefix("without-")), int(seed))

    def seen(self, classes: int) -> npt.NDArray[np.int64]:
        """The classes that it is trained on."""
        return np.array([c for c in range(classes) if c != self.without])


def runs(forget: Iterable[int], seeds: Iterable[int], retrain_seeds: Iterable[int]) -> list[Run]:
    """All runs, those of all classes first, then class by class."""
    again = list(retrain_seeds)
    return [Run(None, seed) for seed in seeds] + [Run(c, seed) for c in forget for seed in again]


def make(
    folder: Path, wanted: list[Run], train: Callable[[Run], Mapping[str, Any]], labels: Mapping[str, Array]
) -> None:
    """Train what has no file yet. A file appears when its training is done, complete."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "labels.npz", labels)
    for number, run in enumerate(wanted, start=1):
        path = folder / run.file
        if path.exists():
            console.print(f"{number}/{len(wanted)}  {run.file} is there already")
            continue
        answers = train(run)
        _write(path, answers)
        console.print(
            f"{number}/{len(wanted)}  {run.file}  accuracy {answers['test_accuracy']:.4f} on the test set, "
            f"{answers['seconds']:.0f} s"
        )


def _write(path: Path, arrays: Mapping[str, Any]) -> None:
    partial = path.with_suffix(".part")
    with open(partial, "wb") as file:
        np.savez_compressed(file, **{key: value for key, value in arrays.items() if value is not None})
    partial.replace(path)


def widened(answers: Array, seen: npt.NDArray[np.int64], classes: int) -> Array:
    """Answers of the classes that a model has seen, as [N, n] with -inf elsewhere."""
    wide = np.full((len(answers), classes), -np.inf, np.float32)
    wide[:, seen] = answers
    return wide


def probabilities(logits: Array) -> npt.NDArray[np.float64]:
    """The softmax of each row."""
    z = logits.astype(np.float64)
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))
