"""What an attacker who sees only a model's answers can tell.

Two questions. *Membership*: was this example in the training data? *The nearest class*: can the examples of a forgotten
class be recognised by their answers? Both are ranked by the area under the ROC curve: 0.5 is guessing, 1 is certainty.
A score above 0.5 is not by itself a leak: examples of a class that a model never saw look different as well. What
counts is the gap to the score of the retrained model, which is what cannot be avoided.

Answers and labels, and what is refused about them, are as in :mod:`mpru_tf.evaluation.metrics`. The attack on the
nearest class needs scikit-learn, which comes with the extra ``report``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mpru_tf.errors import DataError, ForgetListError, MissingExtraError, explain
from mpru_tf.evaluation.metrics import FLOOR, check_answers, check_labels, check_values
from mpru_tf.filters import Array, check_forget_list

CURVE_POINTS = 200
"""How many points of an ROC curve are kept for drawing."""

FOLDS = 5
"""In how many parts the examples are split: each part is judged by a regression fitted to the others."""

FEWEST = 10
"""How many examples of either class the attack on the nearest class needs."""


# ---------------------------------------------------------------------------------------------------------------
# Scores of two groups


def roc(members: npt.ArrayLike, nonmembers: npt.ArrayLike) -> tuple[Array, Array]:
    """Return the ROC curve of calling everything at or above a threshold a member.

    Args:
        members: ``[M]`` scores, higher for what looks more like a member.
        nonmembers: ``[K]`` scores.

    Returns:
        ``fpr, tpr``, both ``[t + 1]`` float64, non-decreasing, from (0, 0) to (1, 1), one point per distinct score.

    Raises:
        DataError: a group is empty, or has NaN in it.
    """
    m, k = np.sort(check_values(members)), np.sort(check_values(nonmembers))
    thresholds = np.unique(np.concatenate([m, k]))[::-1]
    tpr = (len(m) - np.searchsorted(m, thresholds, side="left")) / len(m)
    fpr = (len(k) - np.searchsorted(k, thresholds, side="left")) / len(k)
    return np.concatenate([[0.0], fpr]), np.concatenate([[0.0], tpr])


def auc(members: npt.ArrayLike, nonmembers: npt.ArrayLike) -> float:
    """Return the area under the ROC curve: how often a member's score is above a non-member's, a tie counting half.

    Source: Mann and Whitney, 1947; Hanley and McNeil, 1982.

    Args:
        members: ``[M]`` scores, higher for what looks more like a member.
        nonmembers: ``[K]`` scores.

    Returns:
        A number in [0, 1]; 0.5 where all scores are equal.

    Raises:
        DataError: a group is empty, or has NaN in it.

    Example:
        >>> auc([0.9, 0.4], [0.4, 0.1])
        0.875
    """
    m, k = check_values(members), np.sort(check_values(nonmembers))
    below = np.searchsorted(k, m, side="left").sum(dtype=np.int64)
    not_above = np.searchsorted(k, m, side="right").sum(dtype=np.int64)
    return float((below + not_above) / (2 * len(m) * len(k)))


def auc_error(area: float, members: int, nonmembers: int) -> float:
    """Return the standard error of an area under the ROC curve that was taken on so many members and non-members.

    Source: Hanley and McNeil, "The Meaning and Use of the Area under a ROC Curve", Radiology 143, 1982.

    Args:
        area: in [0, 1]; as far below 0.5 as above it, the error is the same.
        members: number of members, at least 1.
        nonmembers: number of non-members, at least 1.
    """
    area = max(area, 1.0 - area)
    two_members, two_others = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (members - 1) * (two_members - area**2) + (nonmembers - 1) * (two_others - area**2)
    return math.sqrt(max(spread, 0.0) / (members * nonmembers))


def advantage(members: npt.ArrayLike, nonmembers: npt.ArrayLike) -> float:
    """Return ``max(tpr - fpr)`` over all thresholds, in [0, 1]: what the best threshold gains over guessing.

    Source: Yeom, Giacomelli, Fredrikson, Jha, 2018, arXiv 1709.01604, at the best threshold.

    Args:
        members: ``[M]`` scores, higher for what looks more like a member.
        nonmembers: ``[K]`` scores.

    Raises:
        DataError: a group is empty, or has NaN in it.
    """
    fpr, tpr = roc(members, nonmembers)
    return float((tpr - fpr).max())


# ---------------------------------------------------------------------------------------------------------------
# Membership


def signals(p: npt.ArrayLike, y: npt.ArrayLike, forgotten: Sequence[int]) -> dict[str, Array]:
    """Return how much each example looks like one from the training data, by three signals.

    ====================  =========================================================================
    ``confidence``        ``p_t``
    ``entropy``           ``sum_c p_c log p_c``, minus the entropy
    ``modified_entropy``  ``(1 - p_t) log p_t + sum_(c != t) p_c log(1 - p_c)``, minus the modified
                          entropy of Song and Mittal, 2021, arXiv 2003.10595
    ====================  =========================================================================

    ``t`` is the true class, or, where that is forgotten, the most probable one: the true one has probability 0 in every
    filtered answer, which tells nobody apart (this stand-in is ours). Logarithms are taken of ``max(., FLOOR)``.

    Args:
        p: ``[N, n]`` probabilities.
        y: int ``[N]`` true classes.
        forgotten: the forgotten classes.

    Returns:
        By name of the signal ``[N]`` float64, higher for what looks more like a member.

    Raises:
        DataError: the answers or labels cannot be used.
        ForgetListError: ``forgotten`` is empty, names all classes, one twice, or one that does not exist.
    """
    p = check_answers(p)
    truth = check_labels(y, p)
    gone = np.isin(truth, check_forget_list(p.shape[1], forgotten))
    rows, taken = np.arange(len(p)), np.where(gone, p.argmax(axis=1), truth)
    p_t = p[rows, taken]
    others = p * np.log(np.maximum(1.0 - p, FLOOR))
    others[rows, taken] = 0.0
    return {
        "confidence": p_t,
        "entropy": (p * np.log(np.maximum(p, FLOOR))).sum(axis=1),
        "modified_entropy": (1.0 - p_t) * np.log(np.maximum(p_t, FLOOR)) + others.sum(axis=1),
    }


@dataclass(frozen=True)
class MembershipInference:
    """How well one score tells members from non-members.

    Attributes:
        auc: area under the ROC curve.
        error: its standard error (:func:`auc_error`).
        advantage: largest ``tpr - fpr``.
        fpr: share of non-members called members, at most :data:`CURVE_POINTS` points of the curve.
        tpr: share of members called members, at the same points.
        members: number of members.
        nonmembers: number of non-members.
    """

    auc: float
    error: float
    advantage: float
    fpr: tuple[float, ...]
    tpr: tuple[float, ...]
    members: int
    nonmembers: int

    def to_dict(self) -> dict[str, Any]:
        """Return the result as a dictionary that JSON can carry."""
        return {**asdict(self), "fpr": list(self.fpr), "tpr": list(self.tpr)}


def membership_inference(member_scores: npt.ArrayLike, nonmember_scores: npt.ArrayLike) -> MembershipInference:
    """Return how well a score, such as one of :func:`signals`, tells members from non-members.

    Args:
        member_scores: ``[M]`` scores of examples the original model was trained on.
        nonmember_scores: ``[K]`` scores of examples of the same classes that it never saw.

    Raises:
        DataError: a group is empty, or has NaN in it.
    """
    fpr, tpr = roc(member_scores, nonmember_scores)
    kept = _thinned(fpr, tpr)
    area, counts = auc(member_scores, nonmember_scores), (np.size(member_scores), np.size(nonmember_scores))
    return MembershipInference(
        auc=area,
        error=auc_error(area, *counts),
        advantage=advantage(member_scores, nonmember_scores),
        fpr=tuple(fpr[kept].tolist()),
        tpr=tuple(tpr[kept].tolist()),
        members=counts[0],
        nonmembers=counts[1],
    )


def _thinned(fpr: Array, tpr: Array) -> npt.NDArray[np.int64]:
    """Return which points of a curve to keep: evenly along it, and the one that the advantage is read at."""
    if len(fpr) <= CURVE_POINTS:
        return np.arange(len(fpr))
    # fpr + tpr grows from 0 to 2 with every point.
    even = np.searchsorted(fpr + tpr, np.linspace(0.0, 2.0, CURVE_POINTS - 1))
    best = int((tpr - fpr).argmax())
    return np.asarray(np.unique(np.concatenate([np.minimum(even, len(fpr) - 1), [best]])), dtype=np.int64)


# ---------------------------------------------------------------------------------------------------------------
# The nearest class


@dataclass(frozen=True)
class NearestClassAttack:
    """How well the answers tell a forgotten class from the retained class nearest to it.

    Attributes:
        forgotten: the forgotten class.
        nearest: the retained class that it is told from.
        auc: area under the ROC curve on examples that the attacker did not fit to, mean over the folds.
        error: its standard error (:func:`auc_error`), as if all examples had been ranked together.
        examples: examples of the forgotten class.
        nearest_examples: examples of the nearest class.
    """

    forgotten: int
    nearest: int
    auc: float
    error: float
    examples: int
    nearest_examples: int

    def to_dict(self) -> dict[str, Any]:
        """Return the result as a dictionary that JSON can carry."""
        return asdict(self)


def nearest_class(p: npt.ArrayLike, y: npt.ArrayLike, forgotten_class: int, retained: Sequence[int]) -> int:
    """Return the retained class that has the largest mean probability over the examples of a forgotten class.

    Args:
        p: ``[N, n]`` probabilities.
        y: int ``[N]`` true classes.
        forgotten_class: the forgotten class.
        retained: the classes to choose from, at least one.

    Raises:
        DataError: the answers or labels cannot be used, or no example is of that class.
        ForgetListError: ``retained`` is empty, or names a class that does not exist, or the forgotten one.
    """
    p = check_answers(p)
    examples = check_labels(y, p) == forgotten_class
    if not examples.any():
        raise DataError(
            explain(
                "The nearest class cannot be told without examples of the forgotten one.",
                received=f"no example of class {forgotten_class}",
                valid="at least one",
            )
        )
    if not len(retained) or not all(0 <= c < p.shape[1] and c != forgotten_class for c in retained):
        raise ForgetListError(
            explain(
                "The retained classes do not fit.",
                received=list(retained),
                valid=f"some of 0 to {p.shape[1] - 1}, without the forgotten class {forgotten_class}",
            )
        )
    means = p[examples].mean(axis=0)
    return int(max(retained, key=lambda c: means[c]))


def recognise(
    p: npt.ArrayLike,
    y: npt.ArrayLike,
    forgotten_class: int,
    retained: Sequence[int],
    nearest: int | None = None,
    seed: int = 0,
) -> NearestClassAttack:
    """Return how well a forgotten class ``f`` can be recognised by its answers.

    With a retained class ``g`` near to it, a logistic regression tells the examples of ``f`` from those of ``g`` by the
    answers alone: ``log max(p_c, FLOOR)`` of all classes ``c``, standardised. A filter answers 0 for forgotten classes,
    which tells nothing; an unfiltered model answers them, and is recognised by that. The examples are split
    five-fold, stratified; each part is scored by the regression fitted to the other four, and the AUC is taken per
    part, since scores of two regressions have no common scale.

    Only AUCs on the same pair of classes can be compared: give the ``g`` of one model (of a retrained one, if there is
    one) to all of them.

    Source: the idea, that the probabilities of neighbouring classes betray a forgotten one, is MIA-NN (Wang,
    Ebrahimpour-Boroojeny, Sundaram, arXiv 2506.20893). This is our formalisation, made without the paper's full text.
    By what others write about it, the paper finds neighbours with retrained models and reports accuracies; this attack
    needs nothing but one model's answers, and its scores are not the paper's.

    Args:
        p: ``[N, n]`` probabilities, best on examples that no model was trained on.
        y: int ``[N]`` true classes.
        forgotten_class: the forgotten class.
        retained: the classes that are not forgotten.
        nearest: ``g``, one of them. Default: the nearest by these answers (:func:`nearest_class`).
        seed: decides the split.

    Returns:
        The result. An AUC of 0.5 (by chance somewhat less) means that this attacker cannot tell ``f`` from ``g``; a
        linear one misses what only a curved boundary tells.

    Raises:
        DataError: the answers or labels cannot be used, or ``f`` or ``g`` has fewer than 10 examples.
        ForgetListError: ``retained`` is empty, or names a class that does not exist, or the forgotten one; or
            ``nearest`` is none of them.
        MissingExtraError: scikit-learn is not installed.
    """
    p = check_answers(p)
    truth = check_labels(y, p)
    if nearest is None:
        nearest = nearest_class(p, truth, forgotten_class, retained)
    elif nearest not in retained:
        raise ForgetListError(
            explain("The nearest class is none of the retained ones.", received=nearest, valid=list(retained))
        )
    counts = int(np.count_nonzero(truth == forgotten_class)), int(np.count_nonzero(truth == nearest))
    if min(counts) < FEWEST:
        raise DataError(
            explain(
                "The attack on the nearest class needs more examples.",
                received=f"{counts[0]} of class {forgotten_class}, {counts[1]} of class {nearest}, its nearest",
                valid=f"at least {FEWEST} of each",
            )
        )
    both = np.isin(truth, [forgotten_class, nearest])
    area = _separability(np.log(np.maximum(p[both], FLOOR)), truth[both] == forgotten_class, seed)
    return NearestClassAttack(int(forgotten_class), int(nearest), area, auc_error(area, *counts), *counts)


def nearest_class_attack(
    p: npt.ArrayLike, y: npt.ArrayLike, forgotten: Sequence[int], seed: int = 0
) -> dict[int, NearestClassAttack]:
    """Return :func:`recognise` for each of the forgotten classes, ascending, all others counting as retained.

    Args:
        p: ``[N, n]`` probabilities, best on examples that no model was trained on.
        y: int ``[N]`` true classes.
        forgotten: the forgotten classes.
        seed: decides the split.

    Raises:
        DataError: the answers or labels cannot be used, or a forgotten class or its nearest one has fewer than 10
            examples.
        ForgetListError: ``forgotten`` is empty, names all classes, one twice, or one that does not exist.
        MissingExtraError: scikit-learn is not installed.
    """
    p = check_answers(p)
    gone = check_forget_list(p.shape[1], forgotten)
    retained = [c for c in range(p.shape[1]) if c not in gone]
    return {f: recognise(p, y, f, retained, seed=seed) for f in sorted(gone)}


def _separability(x: Array, member: npt.NDArray[np.bool_], seed: int) -> float:
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedKFold
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise MissingExtraError(
            explain(
                f"The attack on the nearest class needs {error.name}.",
                hint="Install it: pip install 'mpru_tf[report]'.",
            )
        ) from error

    areas = []
    for fit, judge in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(x, member):
        attacker = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x[fit], member[fit])
        scores = attacker.decision_function(x[judge])
        areas.append(auc(scores[member[judge]], scores[~member[judge]]))
    return float(np.mean(areas))
