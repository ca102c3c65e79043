"""What the other ways of forgetting would have answered, from the unfiltered answers alone.

=====================  ================================================================================================
``unfiltered``         the answers as they are
``renormalize``        the methods of :mod:`mpru_tf.filters`, ``mean`` and ``gram_schmidt`` only where their class means
``mean``               are there and to be trusted
``gram_schmidt``
``tempered``
``linear_filtration``  :func:`linear_filtration`, where class means in logit space are there
=====================  ================================================================================================

Answers and labels, and what is refused about them, are as in :mod:`mpru_tf.evaluation.metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from mpru_tf.class_means import ClassMeans
from mpru_tf.errors import ClassMeansError, DataError, explain
from mpru_tf.evaluation.metrics import FLOOR, check_answers, check_labels
from mpru_tf.filters import METHODS, Array, FilterSpec, check_forget_list, make_filter

Rule = Callable[[npt.ArrayLike], Array]

NAMES = ("unfiltered", *METHODS, "linear_filtration")
"""The names, in the order in which they are shown."""

INDEPENDENT = 1e-8
"""The smallest singular value of class means in logit space that counts, as a share of the largest."""


def baseline_rules(
    n: int,
    forgotten: Sequence[int],
    means: ClassMeans | None = None,
    logit_means: npt.ArrayLike | None = None,
) -> tuple[dict[str, Rule], dict[str, str]]:
    """Return what each baseline makes of unfiltered answers, and why the others are left out.

    Args:
        n: number of classes.
        forgotten: the forgotten classes.
        means: class means of the same model, for ``mean`` and ``gram_schmidt``, and for rows without retained
            probability.
        logit_means: ``[n, n]`` from :func:`logit_class_means`, for ``linear_filtration``.

    Returns:
        ``rules, left_out``: by name and in the order of :data:`NAMES` functions from probabilities ``[N, n]`` to
        float64 ``[N, n]`` whose rows sum to 1 (DataError if the answers cannot be used); and by name the reason, a
        paragraph.

    Raises:
        ForgetListError: ``forgotten`` is empty, names all classes, one twice, or one that does not exist.
        ClassMeansError: ``means`` belong to another number of classes.
    """
    rules: dict[str, Rule] = {"unfiltered": check_answers}
    left_out = {}
    for method in METHODS:
        spec_needs_means = method in ("mean", "gram_schmidt")
        try:
            spec = make_filter(n, forgotten, method, class_means=means)
            if spec_needs_means and means is not None:
                means.check(method, forgotten).require()
        except ClassMeansError as error:
            if not spec_needs_means:
                raise
            left_out[method] = str(error)
        else:
            rules[method] = partial(_filtered, spec)
    try:
        if logit_means is None:
            raise ClassMeansError(
                explain(
                    "Linear filtration needs class means in logit space.",
                    received="none",
                    valid="labelled examples of every class",
                )
            )
        rules["linear_filtration"] = partial(
            linear_filtration, means=_checked_means(logit_means, n), forgotten=tuple(forgotten)
        )
    except ClassMeansError as error:
        left_out["linear_filtration"] = str(error)
    return rules, left_out


def _filtered(spec: FilterSpec, p: npt.ArrayLike) -> Array:
    return spec.probabilities(check_answers(p))


def linear_filtration(p: npt.ArrayLike, means: npt.ArrayLike, forgotten: Sequence[int]) -> Array:
    """Return the answers under linear filtration, normalising variant: one matrix on the logits, then a softmax.

    ``q_R = softmax(F z)`` with ``z`` the logits of :func:`logits_of`. ``F [n - k, n]`` takes the mean logits of each
    class to their part over R, for a forgotten class shifted by a constant, so that its average over R is that of the
    retained classes' means: ``F = B A^+``, column ``c`` of ``A`` is ``means[c]``, of ``B`` what it is taken to.

    A constant added to all logits does not move a softmax, and a constant is all that the shift adds: ``F z`` is
    ``z_R`` and one number per row. **As an answer in probabilities this is therefore renormalize, whatever the means**
    (to within :data:`mpru_tf.evaluation.metrics.FLOOR`). The difference is in the logits, which the paper's attacker
    sees and a client of class scores does not.

    Source: Baumhauer, Schöttle, Zeppelzauer, 2020, "Machine Unlearning: Linear Filtration for Logit-based Classifiers",
    arXiv 2002.02730. The matrix is our reading of the normalising variant; two things are ours: the pseudo-inverse (of
    probabilities only centred logits are known, so ``A`` has rank ``n - 1``), and 0 at the forgotten classes in place
    of a narrower answer.

    Args:
        p: ``[N, n]`` probabilities of the unfiltered model.
        means: ``[n, n]`` from :func:`logit_class_means`.
        forgotten: the forgotten classes.

    Returns:
        ``[N, n]`` float64, rows sum to 1, exactly 0 on the forgotten classes.

    Raises:
        DataError: the answers cannot be used.
        ForgetListError: ``forgotten`` is empty, names all classes, one twice, or one that does not exist.
        ClassMeansError: ``means`` have another shape, are not finite, not centred, or not independent enough.
    """
    z = logits_of(p)
    n = z.shape[1]
    gone = np.zeros(n, dtype=np.bool_)
    gone[list(check_forget_list(n, forgotten))] = True
    a = _checked_means(means, n).T
    b = a[~gone]
    b[:, gone] += b[:, ~gone].mean() - b[:, gone].mean(axis=0)
    filtered = z @ (b @ np.linalg.pinv(a, rcond=INDEPENDENT)).T
    shares = np.exp(filtered - filtered.max(axis=1, keepdims=True))
    answers = np.zeros_like(z)
    answers[:, ~gone] = shares / shares.sum(axis=1, keepdims=True)
    return answers


def logits_of(p: npt.ArrayLike) -> Array:
    """Return ``log max(p, FLOOR)`` less its mean over the row: logits whose softmax is ``p``, ``[N, n]`` float64.

    Raises:
        DataError: the answers cannot be used.
    """
    logs = np.log(np.maximum(check_answers(p), FLOOR))
    return np.asarray(logs - logs.mean(axis=1, keepdims=True))


def logit_class_means(p: npt.ArrayLike, y: npt.ArrayLike, n: int) -> Array:
    """Return the mean of :func:`logits_of` over the examples of each class.

    Args:
        p: ``[N, n]`` probabilities of the unfiltered model.
        y: int ``[N]`` true classes.
        n: number of classes.

    Returns:
        ``[n, n]`` float64, row ``c`` is the mean of class ``c``.

    Raises:
        DataError: the answers or labels cannot be used, or a class has no example.
    """
    z = logits_of(p)
    truth = check_labels(y, z)
    missing = sorted(set(range(n)) - set(truth.tolist()))
    if z.shape[1] != n or missing:
        raise DataError(
            explain(
                "Class means in logit space need examples of every class.",
                received=f"{z.shape[1]} columns, {len(missing)} classes without examples {missing[:10]}",
                valid=f"{n} columns, labels from 0 to {n - 1}, each at least once",
            )
        )
    return np.stack([z[truth == c].mean(axis=0) for c in range(n)])


def _checked_means(means: npt.ArrayLike, n: int) -> Array:
    matrix = np.asarray(means, dtype=np.float64)
    if matrix.shape != (n, n) or not np.isfinite(matrix).all():
        raise ClassMeansError(
            explain("The class means in logit space do not fit.", received=matrix.shape, valid=f"({n}, {n}), finite")
        )
    sizes = np.linalg.svd(matrix, compute_uv=False)
    off = np.abs(matrix.sum(axis=1)).max()
    if off > INDEPENDENT * sizes[0] or sizes[-2] < INDEPENDENT * sizes[0] or sizes[0] == 0:
        raise ClassMeansError(
            explain(
                "The class means in logit space cannot be told apart.",
                received=f"singular values from {sizes[-2]:.3g} to {sizes[0]:.3g}, sums up to {off:.3g}",
                valid="means of centred logits, one for each class and no two alike",
            )
        )
    return matrix
