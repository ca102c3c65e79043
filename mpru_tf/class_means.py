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
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mpru_tf.errors import ClassMeansError, DataError, PreconditionError, UnsupportedModelError, explain
from mpru_tf.filters import Array, check_forget_list, check_method, check_scores

if TYPE_CHECKING:
    from mpru_tf.inspection import Inspection
    from mpru_tf.saved_model.session import LoadedModel

FORMAT_VERSION = 1

SELF_PROBABILITY = 0.8
"""What a projection needs the mean of a class to give to that class."""
EXAMPLES = 20
"""What a projection needs each mean to be taken over."""
CONDITION = 1e6
"""What the condition numbers of a projection must not exceed."""

SUM_TOLERANCE = 0.02
"""How far from 1 a row of probabilities may sum: float16 and bfloat16 models are that coarse."""

_KINDS = ("probabilities", "logits", "log_probabilities")  # outputs that means can be taken of, the best first

Batch = tuple[Any, Any]
"""Inputs (an array, or arrays by input key) and labels (int ``[N]``, or None)."""


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
        from mpru_tf.inspection import inspect
        from mpru_tf.saved_model.session import LoadedModel

        if batch_size < 1:
            raise DataError(explain("A batch needs examples.", received=f"batch_size {batch_size}", valid="1 or more"))
        inspection = inspect(model)
        site_classes, signature_key, output_key, kind = _pick_output(inspection, signature, output)
        sums = _Sums(site_classes, logits=kind != "probabilities")
        with LoadedModel(inspection.path) as loaded:
            feed = _Feed(loaded, signature_key, output_key, batch_size)
            batches, total = _batches(data, feed.keys, feed.batch_size)
            with _progress_bar(progress, total) as advance:
                for x, y in batches:
                    scores = feed.run(x)
                    sums.add(scores, y)
                    advance(len(scores))
        return sums.result(f"{signature_key}:{output_key} of {inspection.path.name} on {_describe(data)}")

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


# ---------------------------------------------------------------------------------------------------------------
# A SavedModel and examples


def _pick_output(inspection: Inspection, signature: str | None, output: str | None) -> tuple[int, str, str, str]:
    """Return (classes, signature key, output key, kind) of the output to take the means of."""
    if inspection.forgotten:
        raise UnsupportedModelError(
            explain(
                f"{inspection.path} answers nothing about forgotten classes any more, so it has no means of them.",
                received=f"a version without classes {', '.join(map(str, inspection.forgotten))}",
                valid="the unfiltered version that it was made from",
            )
        )
    usable = {
        name: (site.classes, kind)
        for site in inspection.score_sites
        for name, kind in sorted(site.output_kinds.items())
        if kind in _KINDS
    }
    if not usable:
        raise UnsupportedModelError(
            explain(
                f"{inspection.path} has no output that answers class scores.",
                received=inspection.refusal or "outputs that are only derived from class scores",
                valid="an output that holds probabilities or logits",
            )
        )
    fitting = {
        name: found
        for name, found in usable.items()
        if (signature is None or name.startswith(f"{signature}:"))
        and (output is None or name == output or name.endswith(f":{output}"))
    }
    if not fitting:
        raise UnsupportedModelError(
            explain(
                "No such output answers class scores.",
                received=":".join(part for part in (signature, output) if part is not None),
                valid=", ".join(usable),
            )
        )
    name = min(
        fitting, key=lambda name: (_KINDS.index(fitting[name][1]), not name.startswith("serving_default:"), name)
    )
    # An output key may hold a colon and so may a signature key: the signatures are known.
    signature_key = max((key for key in inspection.signatures if name.startswith(f"{key}:")), key=len)
    return fitting[name][0], signature_key, name[len(signature_key) + 1 :], fitting[name][1]


class _Feed:
    """Turns batches of examples into requests to one signature."""

    def __init__(self, loaded: LoadedModel, signature_key: str, output_key: str, batch_size: int) -> None:
        self.loaded = loaded
        self.signature_key = signature_key
        self.output_key = output_key
        self.infos = dict(loaded.signatures[signature_key].inputs)
        self.keys = tuple(sorted(self.infos))
        fixed = {
            info.tensor_shape.dim[0].size
            for info in self.infos.values()
            if info.tensor_shape.dim and info.tensor_shape.dim[0].size > 0
        }
        self.fixed = min(fixed) if fixed else None
        self.batch_size = self.fixed or batch_size

    def run(self, x: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """Answer one batch, of at most :attr:`batch_size` examples; returns ``[N, n]``."""
        import tensorflow as tf

        examples = len(next(iter(x.values())))
        inputs = {key: self.cast(key, x[key]) for key in self.keys}
        if self.fixed is not None and examples < self.fixed:
            # The graph answers batches of one size only: repeat the last example, and drop its answers.
            last = np.minimum(np.arange(self.fixed), examples - 1)
            inputs = {key: array[last] for key, array in inputs.items()}
        try:
            scores = self.loaded.run(self.signature_key, inputs, [self.output_key])[self.output_key]
        except tf.errors.OpError as error:
            raise DataError(
                explain(
                    "The model does not accept the data.",
                    received=", ".join(f"{key} {array.dtype} {array.shape}" for key, array in inputs.items()),
                    hint="TensorFlow says: " + " ".join(str(error.message).split())[:300],
                )
            ) from error
        if scores.ndim == 1 and examples == 1:  # a model of single examples may not show the batch axis
            scores = scores[None, :]
        return scores[:examples]

    def cast(self, key: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        import tensorflow as tf

        info = self.infos[key]
        dtype = tf.as_dtype(info.dtype)
        sizes = [dim.size for dim in info.tensor_shape.dim]
        shape_fits = info.tensor_shape.unknown_rank or (
            array.ndim == len(sizes)
            and all(size < 0 or size == have for size, have in zip(sizes[1:], array.shape[1:], strict=True))
        )
        text = array.dtype.kind in "SUO"
        if not shape_fits or text != (dtype == tf.string):
            raise DataError(
                explain(
                    f"The data does not fit input {key!r} of signature {self.signature_key!r}.",
                    received=f"{array.dtype} {('N', *array.shape[1:])}",
                    valid=f"{dtype.name} {'of any shape' if info.tensor_shape.unknown_rank else ('N', *sizes[1:])}",
                )
            )
        return array if text else array.astype(dtype.as_numpy_dtype, copy=False)


def _batches(data: Any, keys: tuple[str, ...], size: int) -> tuple[Iterator[Batch], int | None]:
    """Return the data as batches of at most ``size`` examples, and how many examples there are, where known."""
    if isinstance(data, (str, os.PathLike)):
        return _from_npz(Path(data), keys, size)
    if _is_arrays(data):
        x, y = _pair(data, keys)
        examples = _length(x, y)
        return _slices(x, y, examples, size), examples
    if not isinstance(data, Iterable):
        raise DataError(
            explain(
                "This is no calibration data.",
                received=type(data).__name__,
                valid="the path of an .npz file, arrays (x, y), or an iterable over batches (x, y)",
            )
        )

    def batches() -> Iterator[Batch]:
        for item in data:
            x, y = _pair(item, keys)
            yield from _slices(x, y, _length(x, y), size)

    return batches(), None


def _is_arrays(data: Any) -> bool:
    if isinstance(data, tuple) and 1 <= len(data) <= 2:
        return isinstance(data[0], Mapping) or hasattr(data[0], "shape")
    return isinstance(data, Mapping) or hasattr(data, "shape")


def _pair(item: Any, keys: tuple[str, ...]) -> tuple[dict[str, npt.NDArray[Any]], npt.NDArray[Any] | None]:
    """Return inputs by key, and labels, of (x, y), (x,) or x."""
    x, y = item if isinstance(item, tuple) and len(item) == 2 else (item[0] if isinstance(item, tuple) else item, None)
    if isinstance(x, Mapping):
        _check_keys(x, keys)
        inputs = {key: np.asarray(x[key]) for key in keys}
    elif len(keys) == 1:
        inputs = {keys[0]: np.asarray(x)}
    else:
        raise DataError(
            explain("The model has several inputs.", received="one array", valid=f"arrays for {', '.join(keys)}")
        )
    return inputs, None if y is None else np.asarray(y)


def _check_keys(x: Iterable[str], keys: tuple[str, ...]) -> None:
    if set(x) != set(keys):
        raise DataError(
            explain("The data has other inputs than the model.", received=", ".join(sorted(x)), valid=", ".join(keys))
        )


def _length(x: Mapping[str, npt.NDArray[Any]], y: npt.NDArray[Any] | None) -> int:
    arrays = [*x.values(), *([] if y is None else [y])]
    lengths = {array.shape[:1] for array in arrays}
    if len(lengths) != 1 or () in lengths:
        raise DataError(
            explain(
                "Inputs and labels must have as many rows as each other.",
                received=", ".join(f"shape {array.shape}" for array in arrays),
                valid="[N, ...] for all of them",
            )
        )
    return int(arrays[0].shape[0])


def _slices(x: Mapping[str, npt.NDArray[Any]], y: npt.NDArray[Any] | None, examples: int, size: int) -> Iterator[Batch]:
    for start in range(0, examples, size):
        end = start + size
        yield {key: array[start:end] for key, array in x.items()}, None if y is None else y[start:end]


def _from_npz(path: Path, keys: tuple[str, ...], size: int) -> tuple[Iterator[Batch], int]:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(
            explain(f"The data cannot be read from {path}.", received=_reason(error), valid=_NPZ)
        ) from error
    with archive:
        have = {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
        names = dict.fromkeys(keys) if have.issuperset(keys) else {}
        members = {key: key for key in names} or ({keys[0]: "x"} if len(keys) == 1 and "x" in have else {})
        if not members:
            raise DataError(
                explain(
                    f"{path} has not the arrays that the model needs.",
                    received=", ".join(sorted(have)) or "no arrays",
                    valid=("x and, if labelled, y" if len(keys) == 1 else f"{', '.join(keys)} and, if labelled, y"),
                )
            )
        label = ["y"] if "y" in have and "y" not in members.values() else []
        lengths = {name: _npy_header(archive, path, name)[0][:1] for name in [*members.values(), *label]}
    if len(set(lengths.values())) != 1 or () in lengths.values():
        raise DataError(
            explain(
                f"The arrays in {path} must have as many rows as each other.",
                received=", ".join(f"{name} {shape}" for name, shape in lengths.items()),
                valid="[N, ...] for all of them",
            )
        )

    def batches() -> Iterator[Batch]:
        with zipfile.ZipFile(path) as opened:
            streams = {key: _npy_rows(opened, path, name, size) for key, name in members.items()}
            labels = _npy_rows(opened, path, "y", size) if label else None
            for parts in zip(*streams.values(), strict=True):
                yield dict(zip(streams, parts, strict=True)), None if labels is None else next(labels)

    return batches(), next(iter(lengths.values()))[0]


_NPZ = "an .npz file with arrays x [N, ...] and, if labelled, y int [N]"


def _npy_header(archive: zipfile.ZipFile, path: Path, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether it is in Fortran order, and dtype of an array in an .npz file."""
    with archive.open(f"{name}.npy") as member:
        return _read_header(member, path, name)


def _read_header(member: Any, path: Path, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    npy: Any = np.lib.format  # untyped
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    try:
        version = npy.read_magic(member)
        shape, fortran, dtype = readers[version](member)
    except (ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(
            explain(f"The array {name} in {path} is damaged.", received=_reason(error), valid=_NPZ)
        ) from error
    if dtype.hasobject or dtype.names is not None:
        raise DataError(
            explain(f"The array {name} in {path} is not plain.", received=f"dtype {dtype}", valid="numbers or bytes")
        )
    return tuple(shape), bool(fortran), dtype


def _npy_rows(archive: zipfile.ZipFile, path: Path, name: str, size: int) -> Iterator[npt.NDArray[Any]]:
    """Yield an array's rows, ``size`` at a time, without ever holding more of them."""
    with archive.open(f"{name}.npy") as member:
        shape, fortran, dtype = _read_header(member, path, name)
        if fortran and len(shape) > 1:  # its first axis is the innermost one on disk: there are no rows to stream
            raise DataError(
                explain(
                    f"The array {name} in {path} is stored in Fortran order and cannot be streamed.",
                    hint="Save it again after numpy.ascontiguousarray.",
                )
            )
        row = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        for start in range(0, shape[0], size):
            count = min(size, shape[0] - start)
            try:
                data = member.read(count * row)
            except (OSError, zipfile.BadZipFile, EOFError, ValueError, zlib.error) as error:
                raise DataError(
                    explain(f"The array {name} in {path} is damaged.", received=_reason(error), valid=_NPZ)
                ) from error
            if len(data) != count * row:
                raise DataError(
                    explain(
                        f"The array {name} in {path} is cut off.",
                        received=f"{start + len(data) // max(row, 1)} rows",
                        valid=f"{shape[0]} rows",
                    )
                )
            yield np.frombuffer(data, dtype=dtype).reshape(count, *shape[1:])


def _describe(data: Any) -> str:
    return Path(data).name if isinstance(data, (str, os.PathLike)) else "data in memory"


@contextmanager
def _progress_bar(shown: bool, total: int | None) -> Iterator[Any]:
    """Yield a function that is told how many more examples are done."""
    if not shown:
        yield lambda examples: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from mpru_tf.console import messages

    columns = (TextColumn("[progress.description]{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=messages()) as bar:
        task = bar.add_task("class means", total=total)
        yield lambda examples: bar.advance(task, examples)
