"""Class means: what a model answers, on average, to examples of each class.

``mu_c`` is the mean of the model's class probabilities over calibration examples of class ``c``. The projection
methods of :mod:`mpru_tf.filters` are built from them; the other methods use them, where they are known, for rows
without retained probability. They come from outputs that were logged anyway, from a SavedModel and examples, or from
a file written earlier; only the model's outputs are ever needed, never its weights.

Source: MPRU (Peng, Gunamardi, Tjuawinata, Lam, 2025, arXiv 2510.26230) works on class averages of outputs and assumes
an accuracy of at least 0.8 and outputs of low variance. How those assumptions are tested here
(:meth:`ClassMeans.check`) is our formalisation.
"""

from __future__ import annotations

import bisect
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mpru_tf.errors import ClassMeansError, DataError, PreconditionError, explain
from mpru_tf.filters import Array, check_forget_list, check_method, check_scores

if TYPE_CHECKING:
    pass

FORMAT_VERSION = 1

SELF_PROBABILITY = 0.8
"""What a projection needs the mean of a class to give to that class."""
EXAMPLES = 20
"""What a projection needs each mean to be taken over."""
CONDITION = 1e6
"""What the condition numbers of a projection must not exceed."""

SUM_TOLERANCE = 0.02
"""How far from 1 a row of probabilities may sum: float16 and bfloat16 models are that coarse."""


# ---------------------------------------------------------------------------------------------------------------
# Preconditions


@dataclass(frozen=True)
class Finding:
    """One precondition, looked at.

    Attributes:
        name: what was looked at.
        value: what was found; of several classes the worst.
        threshold: what it was compared with; None where it is only reported.
        ok: whether the projection can be trusted as far as this goes.
        detail: one sentence.
    """

    name: str
    value: float
    threshold: float | None
    ok: bool
    detail: str

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as a dictionary that JSON can carry; an infinite value is None there."""
        value = self.value if np.isfinite(self.value) else None
        return {
            "name": self.name,
            "value": value,
            "threshold": self.threshold,
            "ok": self.ok,
            "detail": self.detail,
        }


@dataclass(frozen=True)
class Preconditions:
    """Whether a method can be trusted with these class means.

    Attributes:
        method: one of ``mpru_tf.filters.METHODS``.
        forgotten: the classes to forget, ascending.
        items: the findings; none for the methods that do not project.
    """

    method: str
    forgotten: tuple[int, ...]
    items: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether every finding is."""
        return all(item.ok for item in self.items)

    def require(self) -> None:
        """Raise unless :attr:`ok`.

        Raises:
            PreconditionError: names every precondition that is not met.
        """
        failed = [item for item in self.items if not item.ok]
        if failed:
            raise PreconditionError(
                explain(
                    f"The method {self.method} would not be trustworthy with these class means.",
                    received="; ".join(item.detail.rstrip(".") for item in failed),
                    valid=_requirements(self.method),
                    hint="Use more calibration examples, or tempered or renormalize, which need no means, or force it.",
                )
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the findings as a dictionary that JSON can carry."""
        return {
            "method": self.method,
            "forgotten": list(self.forgotten),
            "ok": self.ok,
            "items": [item.to_dict() for item in self.items],
        }


# ---------------------------------------------------------------------------------------------------------------
# Class means


@dataclass(frozen=True, eq=False)
class ClassMeans:
    """Class means of one model.

    Build them with :meth:`from_outputs`, :meth:`from_batches`, :meth:`from_saved_model` or :meth:`load`.

    Attributes:
        classes: number ``n`` of classes.
        rows: class index of each row, ascending; classes without examples have no row.
        means: ``[m, n]`` float64, row ``i`` is the mean of the class probabilities over examples of ``rows[i]``.
        counts: ``[m]`` int64, examples behind each row, at least 1.
        variances: ``[m]`` float64, mean over those examples of the squared distance to the mean, in [0, 2].
        labelled: True if the examples came with labels, False if each was taken for what the model said it is.
        source: where they come from, in words.
        accuracy: share of examples whose most probable class is their label, in [0, 1]; None without labels.

    Raises:
        ClassMeansError: lengths, ranges or sums do not fit.
    """

    classes: int
    rows: tuple[int, ...]
    means: Array
    counts: npt.NDArray[np.int64]
    variances: Array
    labelled: bool
    source: str
    accuracy: float | None = None

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            received, valid = problems[0]
            raise ClassMeansError(explain("These are not class means.", received=received, valid=valid))
        for name, dtype in (("means", np.float64), ("counts", np.int64), ("variances", np.float64)):
            array = np.array(getattr(self, name), dtype=dtype)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        object.__setattr__(self, "rows", tuple(int(c) for c in self.rows))

    @classmethod
    def from_outputs(
        cls,
        outputs: npt.ArrayLike,
        labels: npt.ArrayLike | None = None,
        *,
        logits: bool = False,
        source: str = "outputs",
    ) -> ClassMeans:
        """Return the class means of outputs that were computed or logged before.

        Args:
            outputs: ``[N, n]`` probabilities, or logits with ``logits=True``.
            labels: int ``[N]`` in 0 to n - 1, or None to take each example for its most probable class.
            logits: True if ``outputs`` are logits.
            source: where they come from, in words, for the record.

        Raises:
            DataError: there are no examples, or outputs or labels are malformed.

        Example:
            >>> means = ClassMeans.from_outputs([[0.9, 0.1], [0.7, 0.3], [0.0, 1.0]], [0, 0, 1])
            >>> means.row(0)
            array([0.8, 0.2])
        """
        return cls.from_batches([(outputs, labels)], logits=logits, source=source)

    @classmethod
    def from_batches(
        cls,
        batches: Iterable[tuple[npt.ArrayLike, npt.ArrayLike | None]],
        classes: int | None = None,
        logits: bool = False,
        *,
        source: str = "batches of outputs",
    ) -> ClassMeans:
        """Return the class means of outputs that come in batches; one batch is in memory at a time.

        Args:
            batches: pairs of outputs ``[N, n]`` and labels int ``[N]`` or None; all of them with labels, or none.
            classes: ``n``, where it should be checked.
            logits: True if the outputs are logits.
            source: where they come from, in words, for the record.

        Raises:
            DataError: there are no examples, or outputs or labels are malformed.
        """
        sums = _Sums(classes, logits)
        for outputs, labels in batches:
            sums.add(outputs, labels)
        return sums.result(source)

    @classmethod
    def from_saved_model(
        cls,
        model: str | os.PathLike[str],
        data: Any,
        *,
        signature: str | None = None,
        output: str | None = None,
        batch_size: int = 256,
        progress: bool = False,
    ) -> ClassMeans:
        """Run a SavedModel over calibration examples, in the C++ Session that TensorFlow Serving uses.

        Memory does not grow with the number of examples. Values go into the model as they are, cast to the
        signature's dtype: they must be scaled as a client scales them.

        Args:
            model: a version directory or a base path (then its newest version).
            data: one of::

                    "FILE.npz"            arrays x (or one per input key) and, if labelled, y; streamed out of the file
                    (x, y) or x           arrays; x may be a dictionary of arrays by input key, y may be None
                    [(x, y), (x, y), ..]  anything iterable over batches of those, a tf.data.Dataset for example

                where ``x`` is ``[N, ...]`` and ``y`` is int ``[N]`` in 0 to n - 1.
            signature: signature key; by default serving_default where that answers class scores.
            output: output key, or SIG:KEY; by default one that holds probabilities, or else logits.
            batch_size: examples per step; the signature's own where that is fixed.
            progress: show a progress bar on stderr.

        Raises:
            ModelError: the model cannot be found, read or loaded, no such output answers class scores, or classes were
                forgotten in it before: their means can only be had from the unfiltered version.
            DataError: the data cannot be read, or does not fit the signature or the number of classes.
        """
        from mpru_tf.calibration import answers

        with answers(
            model, data, signature=signature, output=output, batch_size=batch_size, progress=progress
        ) as asked:
            sums = _Sums(asked.classes, asked.logits)
            for scores, y in asked.batches:
                sums.add(scores, y)
            return sums.result(asked.source)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ClassMeans:
        """Read class means that :meth:`save` wrote.

        Raises:
            ClassMeansError: the file cannot be read, or what it holds are no class means.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ClassMeansError(
                explain(f"The class means cannot be read from {path}.", received=_reason(error), valid=_FILE)
            ) from error
        try:
            return cls.from_dict(json.loads(text))
        except json.JSONDecodeError as error:
            raise ClassMeansError(
                explain(f"{path} holds no class means: it is not JSON.", received=str(error), valid=_FILE)
            ) from error
        except ClassMeansError as error:
            raise ClassMeansError(f"{path} holds no class means. {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the class means as JSON, without loss; a reader sees the old file or the whole new one.

        Raises:
            ClassMeansError: the file cannot be written.
        """
        target = Path(path)
        text = json.dumps(self.to_dict(), allow_nan=False) + "\n"
        try:
            with tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", dir=target.parent, prefix=f".{target.name}.", delete=False
            ) as file:
                file.write(text)
            os.chmod(file.name, 0o666 & ~_umask())  # temporary files are private, this one is no secret
            os.replace(file.name, target)
        except OSError as error:
            raise ClassMeansError(
                explain(
                    f"The class means cannot be written to {path}.", received=_reason(error), valid="a writable path"
                )
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Return the class means as a dictionary that JSON can carry without loss."""
        return {
            "format_version": FORMAT_VERSION,
            "classes": self.classes,
            "rows": list(self.rows),
            "counts": self.counts.tolist(),
            "variances": self.variances.tolist(),
            "labelled": self.labelled,
            "accuracy": self.accuracy,
            "source": self.source,
            "means": self.means.tolist(),
        }

    @classmethod
    def from_dict(cls, values: Any) -> ClassMeans:
        """Return the class means that :meth:`to_dict` described.

        Raises:
            ClassMeansError: it is another format, keys are missing or unknown, or values do not fit.
        """
        if not isinstance(values, Mapping):
            raise ClassMeansError(
                explain("These are not class means.", received=type(values).__name__, valid="a JSON object")
            )
        if values.get("format_version") != FORMAT_VERSION:
            raise ClassMeansError(
                explain(
                    "These are not class means in a format known here.",
                    received=f"format_version {values.get('format_version')!r}",
                    valid=f"format_version {FORMAT_VERSION}",
                )
            )
        rest = {key: value for key, value in values.items() if key != "format_version"}
        if set(rest) != set(cls.__dataclass_fields__):
            raise ClassMeansError(
                explain(
                    "These are not class means.",
                    received=f"keys {sorted(rest)}",
                    valid=f"keys {sorted(cls.__dataclass_fields__)}",
                )
            )
        return cls(**rest)

    @property
    def self_probability(self) -> Array:
        """``[m]`` float64: what each mean gives to its own class."""
        return np.asarray(self.means[np.arange(len(self.rows)), list(self.rows)])

    def row(self, c: int) -> Array:
        """Return the mean of class ``c``, ``[n]`` float64.

        Raises:
            ClassMeansError: there were no examples of that class.
        """
        at = bisect.bisect_left(self.rows, c)
        if self.rows[at : at + 1] != (c,):
            raise ClassMeansError(
                explain(
                    f"There is no mean of class {c}.",
                    received=f"means of {len(self.rows)} of {self.classes} classes",
                    valid="calibration examples of that class",
                )
            )
        return np.asarray(self.means[at])

    def check(self, method: str, forgotten: Sequence[int]) -> Preconditions:
        """Look at what a method assumes about the class means.

        For the projection methods: the means used give at least 0.8 to their own class, each is taken over 20 examples
        or more, and the condition number of ``U'U`` (``gram_schmidt``: of the means of all classes, too) is at most
        1e6. The variance of the outputs and, where known, the accuracy are reported. Our formalisation.

        Args:
            method: one of ``mpru_tf.filters.METHODS``.
            forgotten: the classes to forget.

        Raises:
            ForgetListError: ``forgotten`` is empty, names all classes, one twice, or one that does not exist.
            ClassMeansError: a row that the method needs is not there.
        """
        check_method(method)
        gone = tuple(sorted(check_forget_list(self.classes, forgotten)))
        used = {"mean": gone, "gram_schmidt": tuple(range(self.classes))}.get(method, ())
        if not used:
            return Preconditions(method, gone, ())
        matrix = np.stack([self.row(c) for c in used])
        at = np.searchsorted(self.rows, used)
        u = np.stack([self.row(c) for c in gone])
        items = [
            _worst_of(used, self.self_probability[at], "self_probability", SELF_PROBABILITY, least=True),
            _worst_of(used, self.counts[at].astype(np.float64), "examples", EXAMPLES, least=True),
            _condition(u @ u.T, "condition_forgotten", "U'U of the forgotten classes"),
        ]
        if method == "gram_schmidt":
            items.append(_condition(matrix, "condition_all", "the means of all classes"))
        items.append(_worst_of(used, self.variances[at], "variance", None, least=False))
        origin = "came with labels" if self.labelled else "were labelled by the model itself"
        items.append(Finding("labelled", float(self.labelled), None, True, f"The calibration examples {origin}."))
        if self.accuracy is not None:
            items.append(
                Finding(
                    "accuracy", self.accuracy, None, True, f"Accuracy on the calibration examples {self.accuracy:.3g}."
                )
            )
        return Preconditions(method, gone, tuple(items))


def _requirements(method: str) -> str:
    condition = "U'U" + (" and of the means of all classes" if method == "gram_schmidt" else "")
    return (
        f"a mean probability of at least {SELF_PROBABILITY:g} for the own class, {EXAMPLES} examples or more "
        f"per class, a condition number of {condition} of at most {CONDITION:g}"
    )


def _worst_of(classes: Sequence[int], values: Array, name: str, threshold: float | None, *, least: bool) -> Finding:
    worst = int(np.argmin(values) if least else np.argmax(values))
    value = float(values[worst])
    shown = name.replace("_", " ")
    failed = [] if threshold is None else [c for c, v in zip(classes, values, strict=True) if v < threshold]
    detail = f"{'Least' if least else 'Largest'} {shown} {value:.4g} (class {classes[worst]})."
    if len(failed) > 1:
        detail = detail[:-1] + f"; below {threshold:g} in {len(failed)} classes."
    return Finding(name, value, threshold, not failed, detail)


def _condition(matrix: Array, name: str, what: str) -> Finding:
    value = float(np.linalg.cond(matrix))
    return Finding(name, value, CONDITION, value <= CONDITION, f"Condition number of {what} {value:.4g}.")


def _problems(means: ClassMeans) -> Iterator[tuple[str, str]]:
    """Yield what is wrong as (received, valid), the most basic first; whatever JSON can hold may be in the fields."""
    n, rows = means.classes, means.rows
    if not _is_int(n) or n < 2:
        yield f"{n!r} classes", "2 classes or more"
        return
    if not isinstance(rows, Sequence) or not all(_is_int(c) and 0 <= c < n for c in rows):
        yield "rows of classes that do not exist", f"class indices in 0 to {n - 1}"
        return
    if not rows or list(rows) != sorted(set(rows)):
        yield f"rows {list(rows)[:10]}", "one row or more, ascending, each class once"
        return
    for name, shape in (("means", (len(rows), n)), ("counts", (len(rows),)), ("variances", (len(rows),))):
        try:
            array = np.asarray(getattr(means, name), dtype=np.float64)
        except (TypeError, ValueError):
            yield f"{name} that are no rectangle of numbers", f"shape {shape}"
            return
        if array.shape != shape:
            yield f"{name} of shape {array.shape}", f"shape {shape}"
            return
        if not np.isfinite(array).all():
            yield f"{name} with NaN or infinity in them", "finite numbers"
            return
    matrix, counts, variances = (np.asarray(x, np.float64) for x in (means.means, means.counts, means.variances))
    off = np.abs(matrix.sum(axis=1) - 1.0)
    if matrix.min() < 0 or matrix.max() > 1 + SUM_TOLERANCE or off.max() > SUM_TOLERANCE:
        yield f"a mean of class {rows[int(off.argmax())]} that is no distribution", "rows >= 0 that sum to 1"
    if counts.min() < 1 or (counts != np.floor(counts)).any():
        yield f"counts down to {counts.min():g}", "whole numbers from 1"
    if variances.min() < 0 or variances.max() > 2 + 2 * SUM_TOLERANCE:
        yield f"variances from {variances.min():g} to {variances.max():g}", "0 to 2"
    if not isinstance(means.labelled, bool) or not isinstance(means.source, str):
        yield f"labelled {means.labelled!r}, source {means.source!r}", "labelled true or false, source a text"
    accuracy = means.accuracy
    if accuracy is not None and (not isinstance(accuracy, (int, float)) or not 0 <= accuracy <= 1):
        yield f"accuracy {accuracy!r}", "0 to 1, or null"


def _is_int(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


_FILE = "a file written by `mpru-tf means` or ClassMeans.save"


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# ---------------------------------------------------------------------------------------------------------------
# Sums over batches


class _Sums:
    """Running sums per class, in float64; squared lengths lie in [0, 1], so that they do not cancel badly."""

    def __init__(self, classes: int | None, logits: bool) -> None:
        self.classes = classes
        self.logits = logits
        self.labelled: bool | None = None
        self.hits = 0
        self.sums: dict[int, Array] = {}
        self.squares: dict[int, float] = {}
        self.counts: dict[int, int] = {}

    def add(self, outputs: npt.ArrayLike, labels: npt.ArrayLike | None) -> None:
        p = self.probabilities(outputs)
        said = p.argmax(axis=1)
        if self.labelled is None:
            self.labelled = labels is not None
        if self.labelled != (labels is not None):
            raise DataError(
                explain("Some batches have labels and some have none.", valid="labels with every batch, or with none")
            )
        named = said if labels is None else self.checked_labels(labels, len(p))
        self.hits += int((said == named).sum())
        order = np.argsort(named, kind="stable")
        found, starts = np.unique(named[order], return_index=True)
        if not len(found):
            return
        sums = np.add.reduceat(p[order], starts, axis=0)
        squares = np.add.reduceat((p[order] ** 2).sum(axis=1), starts)
        counts = np.diff([*starts, len(p)])
        for i, c in enumerate(found.tolist()):
            self.sums[c] = self.sums.get(c, 0.0) + sums[i]
            self.squares[c] = self.squares.get(c, 0.0) + float(squares[i])
            self.counts[c] = self.counts.get(c, 0) + int(counts[i])

    def probabilities(self, outputs: npt.ArrayLike) -> Array:
        scores = check_scores(outputs, self.classes)
        if scores.ndim != 2 or scores.shape[1] < 2:
            raise DataError(
                explain(
                    "Outputs must be one row of class scores per example.",
                    received=f"shape {scores.shape}",
                    valid=f"[N, {self.classes or 'n'}]",
                )
            )
        self.classes = scores.shape[1]
        if np.isnan(scores).any() or (scores == np.inf).any():
            raise DataError(explain("The outputs hold NaN or infinity.", valid="finite class scores"))
        if self.logits:
            top = scores.max(axis=1, keepdims=True, initial=-np.inf)
            if (top == -np.inf).any():
                raise DataError(explain("A row of logits is minus infinity throughout.", valid="finite class scores"))
            scores = np.exp(scores - top)
            return np.asarray(scores / scores.sum(axis=1, keepdims=True))
        off = np.abs(scores.sum(axis=1) - 1.0)
        if scores.size and (scores.min() < -SUM_TOLERANCE or off.max() > SUM_TOLERANCE):
            raise DataError(
                explain(
                    "The outputs are no probabilities.",
                    received=f"values from {scores.min():.4g} to {scores.max():.4g}, sums up to {off.max():.4g} off",
                    valid="rows >= 0 that sum to 1",
                    hint="If they are logits, say so.",
                )
            )
        return np.clip(scores, 0.0, 1.0)

    def checked_labels(self, labels: npt.ArrayLike, examples: int) -> npt.NDArray[np.int64]:
        array = np.asarray(labels)
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if array.shape != (examples,) or array.dtype.kind not in "iu":
            raise DataError(
                explain(
                    "Labels must be one class index per example.",
                    received=f"shape {array.shape}, dtype {array.dtype}",
                    valid=f"shape ({examples},), an integer dtype",
                    hint="One-hot labels become indices with argmax.",
                )
            )
        assert self.classes is not None
        if examples and not (array.min() >= 0 and array.max() < self.classes):
            raise DataError(
                explain(
                    "A label names a class that does not exist.",
                    received=f"labels from {array.min()} to {array.max()}",
                    valid=f"0 to {self.classes - 1}",
                )
            )
        return array.astype(np.int64)

    def result(self, source: str) -> ClassMeans:
        if self.classes is None or not self.counts:
            raise DataError(explain("There are no calibration examples.", received="no rows", valid="one or more"))
        rows = sorted(self.counts)
        counts = np.array([self.counts[c] for c in rows], dtype=np.int64)
        means = np.stack([self.sums[c] for c in rows]) / counts[:, None]
        squares = np.array([self.squares[c] for c in rows]) / counts
        return ClassMeans(
            classes=self.classes,
            rows=tuple(rows),
            means=means,
            counts=counts,
            variances=np.maximum(squares - (means**2).sum(axis=1), 0.0),
            labelled=bool(self.labelled),
            source=source,
            accuracy=self.hits / int(counts.sum()) if self.labelled else None,
        )
