"""Labelled examples and what models answer to them, all of it in memory: an evaluation goes over the answers often.

A model is a version in a C++ Session, or a file of answers: outputs, not weights, are what evaluation needs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mpru_tf import calibration, examples
from mpru_tf.array_files import read_arrays
from mpru_tf.class_means import SUM_TOLERANCE
from mpru_tf.errors import DataError, explain
from mpru_tf.saved_model.score_site import ScoreSite

if TYPE_CHECKING:
    from mpru_tf.inspection import Inspection

Floats = npt.NDArray[np.float64]

_DATA = "an .npz file with arrays x [N, ...] (or one per input) and y int [N], or x_test, y_test, x_train and y_train"
_ANSWERS = (
    "an .npz file with `answers` or `test` [N, n], probabilities or logits, or with `logits` [N, n], row by row those "
    "of the data"
)
_BATCH = 256

TRAIN_ROWS, MOST_TRAIN_ROWS = 1000, 100_000
"""Training examples of each class, and in all, that are asked about, the first ones: more make no figure much surer."""


@dataclass(frozen=True)
class Examples:
    """Labelled examples.

    Attributes:
        x: ``[N, ...]``, or one such array per input of the model.
        y: int64 ``[N]``, the true classes.
        file: name of the file that they come from.
        rows: int64 ``[N]``, the place of each in the file.
        all_rows: how many examples the file has.
    """

    x: npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]]
    y: npt.NDArray[np.int64]
    file: str
    rows: npt.NDArray[np.int64]
    all_rows: int

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: npt.NDArray[np.int64]) -> Examples:
        """Some of them, by their place among these."""
        x = {key: array[rows] for key, array in self.x.items()} if isinstance(self.x, Mapping) else self.x[rows]
        return Examples(x, self.y[rows], self.file, self.rows[rows], self.all_rows)


def read_examples(path: str | os.PathLike[str]) -> tuple[Examples | None, Examples | None]:
    """Read test and training examples out of one file.

    Arrays called ``x`` (or as the model's inputs) and ``y`` are taken for whatever the caller looks for and come
    first; in a file without ``x``, ``x_test`` and ``y_test`` do, and ``x_train`` and ``y_train`` second.

    Raises:
        DataError: the file cannot be read, or holds no labelled examples.
    """
    file = Path(path)
    arrays = read_arrays(file, _DATA)
    split = [part for part in ("test", "train") if f"x_{part}" in arrays and f"y_{part}" in arrays]
    if "x" in arrays or not split:
        y = arrays.pop("y", None)
        if y is None or not arrays:
            raise DataError(explain(f"{file} holds no labelled examples.", received=_names(arrays, y), valid=_DATA))
        return _examples(file, arrays.get("x", arrays), y), None
    test, train = (
        _examples(file, arrays[f"x_{part}"], arrays[f"y_{part}"]) if part in split else None
        for part in ("test", "train")
    )
    return test, train


def _examples(file: Path, x: npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]], y: npt.NDArray[Any]) -> Examples:
    if y.ndim == 2 and y.shape[1] == 1:  # as keras.datasets has them
        y = y[:, 0]
    if y.ndim != 1 or y.dtype.kind not in "iu" or not len(y):
        raise DataError(
            explain(f"The labels in {file} are no class indices.", received=f"{y.dtype} {y.shape}", valid="int [N]")
        )
    lengths = {array.shape[:1] for array in (x.values() if isinstance(x, Mapping) else [x])}
    if lengths != {(len(y),)}:
        raise DataError(
            explain(
                f"Inputs and labels in {file} must have as many rows as each other.",
                received=f"{len(y)} labels, inputs {', '.join(map(str, sorted(lengths)))}",
                valid="[N, ...] for all of them",
            )
        )
    return Examples(x, y.astype(np.int64), file.name, np.arange(len(y)), len(y))


def check_labels(given: Examples, classes: int) -> None:
    """Check that the true classes are classes of the model.

    Raises:
        DataError: they are not.
    """
    if given.y.min() < 0 or given.y.max() >= classes:
        raise DataError(
            explain(
                f"The labels in {given.file} do not fit the model.",
                received=f"classes {given.y.min()} to {given.y.max()}",
                valid=f"0 to {classes - 1}",
            )
        )


@dataclass(frozen=True)
class Answered:
    """What one model answers.

    Attributes:
        test: float64 ``[N, n]`` probabilities, for the test examples.
        train: the same for the training examples; None if there are none, or their answers are not in the file.
        kind: what the model answers or the file holds: 'probabilities' or 'logits'.
        seconds: how long it took the model; None for a file.
    """

    test: Floats
    train: Floats | None
    kind: str
    seconds: float | None


def ask(
    inspection: Inspection,
    classes: int,
    forgotten: Sequence[int],
    test: Examples,
    train: Examples | None,
    progress: bool = False,
) -> Answered:
    """Ask a version about the examples, in the C++ Session that TensorFlow Serving uses.

    Args:
        inspection: the version.
        classes: number n of classes of the original; the version answers as many, or those not forgotten only.
        forgotten: the forgotten classes.
        test, train: the examples.
        progress: show a progress bar on stderr.

    Raises:
        ModelError: it cannot be loaded, or answers no class scores.
        DataError: it does not accept the examples, or its answers are no probabilities of these classes.
    """
    from mpru_tf.saved_model.session import LoadedModel

    # What refuses a filtered version there refuses to take class means of it.
    unfiltered = replace(inspection, forgotten=())
    _, signature, output, kind = calibration.pick_output(unfiltered, None, None)
    parts = [part for part in (test, train) if part is not None]
    with LoadedModel(inspection.path) as loaded:
        feed = calibration.Feed(loaded, signature, output, _BATCH)
        start = time.perf_counter()
        answers = []
        with calibration.progress_bar(progress, sum(map(len, parts))) as advance:
            for part in parts:
                batches, _ = examples.batches((part.x, part.y), feed.keys, feed.batch_size)
                scores = []
                for x, _ in batches:
                    scores.append(feed.run(x))
                    advance(len(scores[-1]))
                answers.append(np.concatenate(scores))
        seconds = time.perf_counter() - start
    kind = "probabilities" if kind == "probabilities" else "logits"
    told = [probabilities(part, classes, forgotten, str(inspection.path), kind) for part in answers]
    return Answered(told[0], told[1] if train is not None else None, kind, seconds)


def read_answers(
    path: str | os.PathLike[str],
    classes: int,
    forgotten: Sequence[int],
    test: Examples,
    train: Examples | None,
) -> Answered:
    """Read what a model answered from a file.

    Its answers are called ``answers``, ``test`` or ``logits``; for the training examples ``answers_train``, ``train``
    or ``logits_train``, if there. What is not called logits is probabilities if no row holds a negative number, and
    logits otherwise.

    Raises:
        DataError: the file cannot be read, or its rows are not those of the examples.
    """
    file = Path(path)
    arrays = read_arrays(file, _ANSWERS)
    kind = None
    told: list[Floats | None] = []
    for names, wanted in ((("answers", "test", "logits"), test), (("answers_train", "train", "logits_train"), train)):
        name = next((name for name in names if name in arrays), None)
        if name is None and wanted is test:
            raise DataError(explain(f"{file} holds no answers.", received=_names(arrays, None), valid=_ANSWERS))
        if name is None or wanted is None:
            told.append(None)
            continue
        scores = arrays[name]
        if scores.ndim != 2 or len(scores) != wanted.all_rows:
            raise DataError(
                explain(
                    f"The answers in {file} are not about the examples in {wanted.file}.",
                    received=f"{name} {list(scores.shape)}",
                    valid=f"[{wanted.all_rows}, n]: one row per example, in the same order",
                )
            )
        kind = "logits" if name.startswith("logits") else kind or guessed_kind(scores, str(file))
        told.append(probabilities(scores[wanted.rows], classes, forgotten, str(file), kind))
    assert told[0] is not None
    assert kind is not None
    return Answered(told[0], told[1], kind, None)


def guessed_kind(scores: npt.NDArray[Any], source: str) -> str:
    """What scores ``[N, n]`` are that nobody has called by a name: 'probabilities', or 'logits' if one is negative.

    Raises:
        DataError: none is negative, and yet rows do not sum to 1: percentages, rounded or independent probabilities,
            or logits that happen to be positive. Taken for logits, they would be flattened to no purpose.
    """
    if scores.dtype.kind not in "fiu" or (scores < -SUM_TOLERANCE).any():
        return "logits"
    off = abs(scores.sum(axis=1, dtype=np.float64) - 1) > SUM_TOLERANCE
    if off.any():
        raise DataError(
            explain(
                f"It cannot be told what {source} answers: nothing is negative, and not every row sums to 1.",
                received=f"{int(off.sum())} of {len(scores)} rows with another sum, row {int(off.argmax())} first",
                valid="probabilities whose rows sum to 1, or logits",
                hint="If these are logits, call the array `logits` (and `logits_train`).",
            )
        )
    return "probabilities"


def probabilities(scores: npt.NDArray[Any], classes: int, forgotten: Sequence[int], source: str, kind: str) -> Floats:
    """Class scores as probabilities over all classes.

    Args:
        scores: ``[N, n]``, or ``[N, n - k]`` of a model that never had the k forgotten classes, which then answer 0.
        classes: n.
        forgotten: the forgotten classes.
        source: whose they are, for messages.
        kind: 'probabilities' or 'logits'.

    Returns:
        float64 ``[N, n]``, rows sum to 1.

    Raises:
        DataError: they are not numbers of that shape, or no probabilities.
    """
    retained = [c for c in range(classes) if c not in set(forgotten)]
    if scores.ndim != 2 or scores.dtype.kind not in "fiu" or scores.shape[1] not in (classes, len(retained)):
        raise DataError(
            explain(
                f"{source} answers other classes.",
                received=f"{scores.dtype} {scores.shape}",
                valid=f"[N, {classes}], or [N, {len(retained)}] without the forgotten classes",
            )
        )
    values = scores.astype(np.float64)
    if bad := int((np.isnan(values) | (values == np.inf)).any(axis=1).sum()):
        raise DataError(
            explain(f"{source} answers what is no number.", received=f"NaN or infinity in {bad} of {len(values)} rows")
        )
    if kind == "logits":
        largest = values.max(axis=1, keepdims=True)
        if not np.isfinite(largest).all():
            raise DataError(explain(f"{source} answers rows of minus infinity."))
        values = np.exp(values - largest)
    # Entries below 0 by rounding are forgiven.
    elif (values < -SUM_TOLERANCE).any() or (abs(values.sum(axis=1) - 1) > SUM_TOLERANCE).any():
        raise DataError(
            explain(
                f"{source} does not answer a distribution over classes.",
                received=f"rows that sum to between {values.sum(axis=1).min():.3g} and {values.sum(axis=1).max():.3g}",
                valid="probabilities that sum to 1; multi-label models cannot be evaluated",
            )
        )
    values = np.maximum(values, 0.0)
    values /= values.sum(axis=1, keepdims=True)
    if values.shape[1] == classes:
        return values
    whole = np.zeros((len(values), classes))
    whole[:, retained] = values
    return whole


def over_retained(p: Floats, forgotten: Sequence[int]) -> Floats:
    """Probabilities ``[N, n]`` given that the class is a retained one: 0 on the forgotten ones, rows sum to 1.

    A row without retained probability answers all retained classes alike.
    """
    q = p.copy()
    q[:, list(forgotten)] = 0.0
    left = q.sum(axis=1, keepdims=True)
    alike = np.isin(np.arange(p.shape[1]), list(forgotten), invert=True) / (p.shape[1] - len(set(forgotten)))
    return np.asarray(np.where(left > 0, q / np.where(left > 0, left, 1.0), alike))


def is_file_of_answers(model: str | os.PathLike[str]) -> bool:
    """Whether this names a file of answers, not a version."""
    return Path(model).suffix == ".npz"


def classes_of(inspection: Inspection) -> int:
    """The number of classes of a version.

    Raises:
        UnsupportedModelError: it has no class scores.
    """
    return calibration.pick_output(replace(inspection, forgotten=()), None, None)[0]


def is_multi_label(sites: Sequence[ScoreSite]) -> bool:
    """Whether class scores are judged each on its own."""
    return any(site.multi_label for site in sites)


def _names(arrays: Mapping[str, Any], y: Any) -> str:
    return ", ".join(sorted([*arrays, *(["y"] if y is not None else [])])) or "no arrays"
