"""How far two models' answers are apart, and how right and how honest one model's answers are.

Answers are class probabilities ``p [N, n]``, one row per example; labels ``y`` are int ``[N]``. Logarithms are natural.
Every function takes any float dtype, computes in float64 and divides each row by its sum first, so that the rounding of
a float16 model does not look like a distance.

What all functions refuse, with a DataError: no examples, another shape than ``[N, n]``, rows with NaN or infinity
(it says how many), negative entries, rows that do not sum to 1 within
:data:`mpru_tf.class_means.SUM_TOLERANCE` (logits, or a multi-label model's answers, which are no distribution), two
models' answers of different shapes, and labels that are not ``[N]`` integers from 0 to ``n - 1``.

The most probable class of a row is the first one where several are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mpru_tf.class_means import SUM_TOLERANCE
from mpru_tf.errors import DataError, explain
from mpru_tf.filters import Array, check_scores

Labels = npt.NDArray[np.int64]

FLOOR = 1e-12
"""A probability below this counts as this where a logarithm would make it infinite."""

QUANTILES = (0.5, 0.72, 0.9, 0.99)
"""Which quantiles of the squared error a :class:`Distance` has; 0.72 is the share that the MPRU paper reports."""


# ---------------------------------------------------------------------------------------------------------------
# Two models, row by row


def kl(p: npt.ArrayLike, q: npt.ArrayLike) -> Array:
    """Return the Kullback-Leibler divergence ``KL(p || q) = sum_c p_c log(p_c / max(q_c, FLOOR))`` of each row.

    The floor keeps it finite where ``q`` rules out what ``p`` does not: such a row is at most ``log(1 / FLOOR)``, 27.6,
    and how far it is then depends on the floor. Source: Kullback and Leibler, 1951.

    Args:
        p: ``[N, n]`` probabilities; entries of 0 add nothing.
        q: ``[N, n]`` probabilities.

    Returns:
        ``[N]`` float64 in [0, 27.7], 0 where the rows are equal.

    Raises:
        DataError: the answers cannot be used, see the module.

    Example:
        >>> kl([[1.0, 0.0]], [[0.5, 0.5]])
        array([0.69314718])
    """
    return _kl(*_pair(p, q))


def js(p: npt.ArrayLike, q: npt.ArrayLike) -> Array:
    """Return the Jensen-Shannon divergence ``(KL(p || m) + KL(q || m)) / 2``, ``m = (p + q) / 2``, of each row.

    Symmetric, and finite without a floor. Source: Lin, 1991, "Divergence measures based on the Shannon entropy".

    Args:
        p: ``[N, n]`` probabilities.
        q: ``[N, n]`` probabilities.

    Returns:
        ``[N]`` float64 in [0, log 2]; 0 where the rows are equal, log 2 where no class has a share of both.

    Raises:
        DataError: the answers cannot be used, see the module.
    """
    return _js(*_pair(p, q))


def tv(p: npt.ArrayLike, q: npt.ArrayLike) -> Array:
    """Return the total variation distance ``sum_c |p_c - q_c| / 2`` of each row.

    It is the largest difference that two models' probabilities of any one event can have.

    Args:
        p: ``[N, n]`` probabilities.
        q: ``[N, n]`` probabilities.

    Returns:
        ``[N]`` float64 in [0, 1].

    Raises:
        DataError: the answers cannot be used, see the module.
    """
    return _tv(*_pair(p, q))


def mse(p: npt.ArrayLike, q: npt.ArrayLike) -> Array:
    """Return the mean squared error ``sum_c (p_c - q_c)^2 / n`` of each row.

    The mean is over all ``n`` classes, the forgotten ones too.

    Args:
        p: ``[N, n]`` probabilities.
        q: ``[N, n]`` probabilities.

    Returns:
        ``[N]`` float64 in [0, 2 / n].

    Raises:
        DataError: the answers cannot be used, see the module.
    """
    return _mse(*_pair(p, q))


def agreement(p: npt.ArrayLike, q: npt.ArrayLike) -> float:
    """Return the share of rows whose most probable class is the same in both, in [0, 1].

    Args:
        p: ``[N, n]`` probabilities.
        q: ``[N, n]`` probabilities.

    Raises:
        DataError: the answers cannot be used, see the module.
    """
    return _agreement(*_pair(p, q))


def zrf(p: npt.ArrayLike, incompetent: npt.ArrayLike) -> float:
    """Return the zero-retrain-forgetting score ``1 - mean_i JS2(p_i, incompetent_i)``, JS to base 2.

    1 means that forgotten examples are answered as by a model that learned nothing (random weights, or uniform rows).
    That is not what a retrained model answers, so the score belongs beside the retrained model's own, and higher is not
    by itself better. Source: Chundawat, Tarun, Mandal, Kankanhalli, 2023, arXiv 2205.08096.

    Args:
        p: ``[N, n]`` probabilities on forgotten examples.
        incompetent: ``[N, n]`` probabilities of a model without training on the same examples.

    Returns:
        A number in [0, 1].

    Raises:
        DataError: the answers cannot be used, see the module.
    """
    return float(1.0 - np.mean(js(p, incompetent)) / np.log(2.0))


# ---------------------------------------------------------------------------------------------------------------
# Two models, summed up


@dataclass(frozen=True)
class Distance:
    """How far one model's answers are from a reference's, over the same examples.

    Attributes:
        kl: mean of ``KL(reference || answers)``.
        kl_reverse: mean of ``KL(answers || reference)``.
        js: mean Jensen-Shannon divergence, natural logarithm.
        tv: mean total variation distance.
        mse: mean squared error, over rows and classes.
        mse_quantiles: quantiles over the rows of a row's mean squared error, by :data:`QUANTILES` as text.
        agreement: share of rows with the same most probable class.
        rows: number ``N`` of examples.
    """

    kl: float
    kl_reverse: float
    js: float
    tv: float
    mse: float
    mse_quantiles: dict[str, float]
    agreement: float
    rows: int

    def to_dict(self) -> dict[str, Any]:
        """Return the distance as a dictionary that JSON can carry."""
        return asdict(self)


def distance(answers: npt.ArrayLike, reference: npt.ArrayLike) -> Distance:
    """Return how far ``answers`` are from those of a ``reference``: the retrained model, or the original one.

    Args:
        answers: ``[N, n]`` probabilities of the model that is judged.
        reference: ``[N, n]`` probabilities of the model that it is judged by.

    Raises:
        DataError: the answers cannot be used, see the module.
    """
    p, q = _pair(answers, reference)
    errors = _mse(p, q)
    return Distance(
        kl=float(_kl(q, p).mean()),
        kl_reverse=float(_kl(p, q).mean()),
        js=float(_js(p, q).mean()),
        tv=float(_tv(p, q).mean()),
        mse=float(errors.mean()),
        mse_quantiles=quantiles(errors),
        agreement=_agreement(p, q),
        rows=len(p),
    )


def class_kl(answers: npt.ArrayLike, reference: npt.ArrayLike, y: npt.ArrayLike, n: int) -> Array:
    """Return the mean of ``KL(reference || answers)`` over the examples of each true class.

    Args:
        answers: ``[N, n]`` probabilities of the model that is judged.
        reference: ``[N, n]`` probabilities of the model that it is judged by.
        y: int ``[N]`` true classes.
        n: number of classes.

    Returns:
        ``[n]`` float64, NaN for a class without examples.

    Raises:
        DataError: the answers or labels cannot be used, see the module.
    """
    p, q = _pair(answers, reference)
    _check_width(p, n)
    truth = check_labels(y, p)
    return _over(np.bincount(truth, _kl(q, p), minlength=n), np.bincount(truth, minlength=n))


# ---------------------------------------------------------------------------------------------------------------
# One model


def accuracy(p: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Return the share of rows whose most probable class is the true one, in [0, 1].

    Args:
        p: ``[N, n]`` probabilities.
        y: int ``[N]`` true classes.

    Raises:
        DataError: the answers or labels cannot be used, see the module.
    """
    p = check_answers(p)
    return float(np.mean(p.argmax(axis=1) == check_labels(y, p)))


def nll(p: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Return the mean negative log-likelihood ``-mean_i log max(p[i, y_i], FLOOR)``, in [0, 27.7].

    Args:
        p: ``[N, n]`` probabilities.
        y: int ``[N]`` true classes.

    Raises:
        DataError: the answers or labels cannot be used, see the module.
    """
    p = check_answers(p)
    # Zero less a mean of logarithms: never minus zero.
    return float(0.0 - np.log(np.maximum(_at(p, check_labels(y, p)), FLOOR)).mean())


def calibration_error(p: npt.ArrayLike, y: npt.ArrayLike, bins: int = 15) -> float:
    """Return the expected calibration error ``sum_b |B_b| / N |accuracy(B_b) - confidence(B_b)|``, in [0, 1].

    Rows fall by their confidence, the largest probability, into ``bins`` intervals ``(b / bins, (b + 1) / bins]`` of
    equal width; empty ones add nothing. Source: Guo, Pleiss, Sun, Weinberger, 2017, arXiv 1706.04599.

    Args:
        p: ``[N, n]`` probabilities.
        y: int ``[N]`` true classes.
        bins: number of intervals, at least 1.

    Raises:
        DataError: the answers or labels cannot be used, see the module, or ``bins`` is less than 1.

    Example:
        >>> calibration_error([[0.75, 0.25], [0.75, 0.25]], [0, 1])
        0.25
    """
    p = check_answers(p)
    truth = check_labels(y, p)
    if bins < 1:
        raise DataError(explain("The calibration error needs bins.", received=bins, valid="1 or more"))
    confidence = p.max(axis=1)
    bin_of = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    right = (p.argmax(axis=1) == truth).astype(np.float64)
    # |B| / N |mean - mean| is |sum - sum| / N.
    gaps = np.bincount(bin_of, right, minlength=bins) - np.bincount(bin_of, confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(p))


def destinations(p: npt.ArrayLike, y: npt.ArrayLike, n: int) -> Array:
    """Return where the examples of each class go: a confusion matrix whose rows sum to 1.

    Args:
        p: ``[N, n]`` probabilities.
        y: int ``[N]`` true classes.
        n: number of classes.

    Returns:
        ``[n, n]`` float64; row ``c``, column ``d`` is the share of the examples of class ``c`` whose most probable
        class is ``d``. The row of a class without examples is NaN.

    Raises:
        DataError: the answers or labels cannot be used, see the module.
    """
    p = check_answers(p)
    _check_width(p, n)
    truth = check_labels(y, p)
    counts = np.bincount(truth * n + p.argmax(axis=1), minlength=n * n).reshape(n, n)
    return _over(counts, counts.sum(axis=1, keepdims=True))


# ---------------------------------------------------------------------------------------------------------------
# Values per row, summed up


def share_within(values: npt.ArrayLike, bound: float) -> float:
    """Return the share of ``values [N]`` that are at most ``bound``, in [0, 1].

    Raises:
        DataError: there are no values, or NaN among them.
    """
    return float(np.mean(check_values(values) <= bound))


def quantiles(values: npt.ArrayLike, at: Sequence[float] = QUANTILES) -> dict[str, float]:
    """Return quantiles of ``values [N]``, interpolated linearly, by the share as text: ``{"0.5": ...}``.

    Args:
        values: ``[N]`` numbers.
        at: shares in [0, 1].

    Raises:
        DataError: there are no values, NaN among them, or a share is out of its range.
    """
    if not all(0 <= share <= 1 for share in at):
        raise DataError(explain("Quantiles are taken at shares.", received=list(at), valid="numbers from 0 to 1"))
    found = np.quantile(check_values(values), list(at))
    return {f"{share:g}": float(value) for share, value in zip(at, found, strict=True)}


# ---------------------------------------------------------------------------------------------------------------
# Checks


def check_answers(p: npt.ArrayLike) -> Array:
    """Return answers as float64 ``[N, n]`` whose rows sum to 1.

    Raises:
        DataError: the answers cannot be used, see the module.
    """
    rows = check_scores(p)
    if rows.ndim != 2 or 0 in rows.shape:
        raise DataError(
            explain(
                "Answers must be one row of class probabilities per example.",
                received=f"shape {rows.shape}",
                valid="[N, n], at least one example",
            )
        )
    odd = int(np.count_nonzero(~np.isfinite(rows).all(axis=1)))
    if odd:
        raise DataError(
            explain(
                "Some answers are no numbers.",
                received=f"NaN or infinity in {odd} of {len(rows)} rows",
                valid="finite probabilities",
                hint="Find the examples that the model cannot answer, and leave them out for all models alike.",
            )
        )
    sums = rows.sum(axis=1)
    wrong = int(np.count_nonzero((rows < -SUM_TOLERANCE).any(axis=1) | (np.abs(sums - 1.0) > SUM_TOLERANCE)))
    if wrong:
        raise DataError(
            explain(
                "Some answers are no probabilities.",
                received=f"{wrong} of {len(rows)} rows with negative entries, or another sum than 1",
                valid="rows that are at least 0 everywhere and sum to 1",
                hint="Logits need a softmax first; the answers of a multi-label model cannot be compared like this.",
            )
        )
    rows = np.maximum(rows, 0.0)  # rounding below 0, as in class_means
    return np.asarray(rows / rows.sum(axis=1, keepdims=True))


def check_labels(y: npt.ArrayLike, p: Array) -> Labels:
    """Return labels as int64 ``[N]``, checked against the answers ``p [N, n]`` that they belong to.

    Raises:
        DataError: they are not integers, not ``N``, or not all from 0 to ``n - 1``.
    """
    labels = np.asarray(y)
    rows, n = p.shape
    if labels.shape != (rows,) or labels.dtype.kind not in "iu":
        raise DataError(
            explain(
                "The labels do not fit the answers.",
                received=f"{labels.dtype} of shape {labels.shape}",
                valid=f"integers of shape ({rows},)",
            )
        )
    if labels.min() < 0 or labels.max() >= n:
        raise DataError(
            explain(
                "The labels name classes that the model does not have.",
                received=f"labels from {labels.min()} to {labels.max()}",
                valid=f"0 to {n - 1}",
            )
        )
    return labels.astype(np.int64)


def check_values(values: npt.ArrayLike) -> Array:
    """Return one number per example as float64 ``[N]``.

    Raises:
        DataError: there are no values, or NaN among them.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size or np.isnan(array).any():
        raise DataError(
            explain(
                "These values cannot be summed up.",
                received=f"shape {array.shape}, {int(np.count_nonzero(np.isnan(array)))} NaN",
                valid="[N] numbers, at least one",
            )
        )
    return array


def _pair(p: npt.ArrayLike, q: npt.ArrayLike) -> tuple[Array, Array]:
    first, second = check_answers(p), check_answers(q)
    if first.shape != second.shape:
        raise DataError(
            explain(
                "Two models' answers can only be compared on the same examples and classes.",
                received=f"shapes {first.shape} and {second.shape}",
                valid="the same shape [N, n]",
            )
        )
    return first, second


def _check_width(p: Array, n: int) -> None:
    if p.shape[1] != n:
        raise DataError(
            explain("The answers are about another number of classes.", received=p.shape[1], valid=f"{n} classes")
        )


# ---------------------------------------------------------------------------------------------------------------
# Kernels: what they are given has been checked


def _kl(p: Array, q: Array) -> Array:
    # Rounding, and entries of q that the floor raised, could make it less than 0 by next to nothing.
    return np.maximum(_relative_entropy(p, np.maximum(q, FLOOR)), 0.0)


def _js(p: Array, q: Array) -> Array:
    m = p / 2 + q / 2
    return np.clip((_relative_entropy(p, m) + _relative_entropy(q, m)) / 2, 0.0, np.log(2.0))


def _tv(p: Array, q: Array) -> Array:
    return np.asarray(np.minimum(np.abs(p - q).sum(axis=1) / 2, 1.0))


def _mse(p: Array, q: Array) -> Array:
    return np.asarray(np.square(p - q).mean(axis=1))


def _agreement(p: Array, q: Array) -> float:
    return float(np.mean(p.argmax(axis=1) == q.argmax(axis=1)))


def _relative_entropy(p: Array, q: Array) -> Array:
    # Where a denormal p was halved to nothing, q is 0 beside it: what it would add is next to nothing as well.
    there = (p > 0) & (q > 0)
    ratio = np.log(np.where(there, p, 1.0)) - np.log(np.where(there, q, 1.0))
    return np.asarray((p * ratio).sum(axis=1))


def _at(p: Array, classes: Labels) -> Array:
    return np.asarray(p[np.arange(len(p)), classes])


def _over(sums: npt.NDArray[Any], counts: npt.NDArray[np.int64]) -> Array:
    with np.errstate(invalid="ignore"):  # 0 / 0: a class without examples is NaN
        return np.asarray(sums / counts, dtype=np.float64)
