"""Baselines: each is what it says it is, what cannot be trusted is left out with its reason, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from mpru_tf.class_means import ClassMeans
from mpru_tf.errors import ClassMeansError, DataError, ForgetListError
from mpru_tf.evaluation import baselines, metrics
from mpru_tf.filters import METHODS, make_filter, renormalize

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


def drawn(seed: int, n: int = 5, rows: int = 200, own: float = 0.9) -> tuple[Array, Labels]:
    """Answers of a fair classifier, and the true classes."""
    rng = np.random.default_rng(seed)
    y = np.arange(rows) % n
    return own * np.eye(n)[y] + (1 - own) * rng.dirichlet(np.full(n, 0.5), rows), y


@pytest.fixture(scope="module")
def digits() -> tuple[Array, Array, Labels, Labels]:
    """What a softmax regression answers to digits it learned and others, and what they are."""
    data = load_digits()
    train = np.arange(len(data.target)) % 2 == 0
    x = data.data / 16
    p = LogisticRegression(max_iter=2000).fit(x[train], data.target[train]).predict_proba(x)
    return p[train], p[~train], data.target[train], data.target[~train]


def answers_of(p: Any, forgotten: Any, *means: Any, **by_name: Any) -> tuple[dict[str, Array], dict[str, str]]:
    rules, left_out = baselines.baseline_rules(np.shape(p)[1], forgotten, *means, **by_name)
    return {name: rule(p) for name, rule in rules.items()}, left_out


# ---------------------------------------------------------------------------------------------------------------
# All of them


def test_all_baselines_in_order(digits: tuple[Array, Array, Labels, Labels]) -> None:
    seen, p, y, _ = digits
    means = ClassMeans.from_outputs(seen, y)
    answers, left_out = answers_of(p, [8, 3], means, baselines.logit_class_means(seen, y, 10))
    assert left_out == {}
    assert tuple(answers) == baselines.NAMES
    assert baselines.NAMES[0] == "unfiltered"
    assert baselines.NAMES[-1] == "linear_filtration"
    for name, q in answers.items():
        assert (q.shape, q.dtype) == (p.shape, np.float64)
        np.testing.assert_allclose(q.sum(axis=1), 1.0)
        assert (q >= 0).all(), name
        assert (q[:, [3, 8]] == 0).all() == (name != "unfiltered"), name
    for method in METHODS:
        expected = make_filter(10, (3, 8), method, class_means=means).probabilities(p)
        np.testing.assert_allclose(answers[method], expected, atol=1e-12)
    np.testing.assert_allclose(answers["unfiltered"], p, atol=1e-12)
    # They are different answers, but for linear filtration (see below).
    for name in ("unfiltered", "mean", "gram_schmidt", "tempered"):
        assert metrics.tv(answers[name], answers["renormalize"]).max() > 0.01, name


def test_without_means_three_are_left_out() -> None:
    p, _ = drawn(0)
    answers, left_out = answers_of(p, [1])
    assert [name for name in baselines.NAMES if name not in answers] == list(left_out)
    assert set(left_out) >= {"mean", "gram_schmidt", "linear_filtration"}
    assert set(answers) >= {"unfiltered", "renormalize", "tempered"}
    assert "needs class means" in left_out["mean"]


def test_means_that_cannot_be_trusted_are_left_out() -> None:
    p, y = drawn(0, own=0.5)
    answers, left_out = answers_of(p, [1], ClassMeans.from_outputs(p, y))
    assert "mean" not in answers
    assert "gram_schmidt" not in answers
    assert "would not be trustworthy" in left_out["mean"]


def test_means_of_some_classes_will_do_for_some_methods() -> None:
    p, y = drawn(0)
    some = y != 3
    answers, left_out = answers_of(p, [1], ClassMeans.from_outputs(p[some], y[some]))
    assert "mean" in answers
    assert "no mean of class 3" in left_out["gram_schmidt"]


def test_refusals() -> None:
    p, y = drawn(0)
    with pytest.raises(ClassMeansError, match="another number of classes"):
        answers_of(p, [1], ClassMeans.from_outputs(*drawn(0, n=4)))
    for forgotten in ([], [5], [1, 1], range(5)):
        with pytest.raises(ForgetListError):
            answers_of(p, forgotten)
    with pytest.raises(DataError, match="NaN or infinity in 1 of 1 rows"):
        answers_of([[np.nan, 1.0]], [0])
    with pytest.raises(DataError, match=r"1 classes without examples \[4\]"):
        baselines.logit_class_means(p[y != 4], y[y != 4], 5)
    with pytest.raises(DataError, match="5 columns"):
        baselines.logit_class_means(p, y, 6)


# ---------------------------------------------------------------------------------------------------------------
# Linear filtration


@given(st.integers(0, 10_000), st.integers(2, 8), st.data())
def test_linear_filtration_is_renormalize_as_an_answer(seed: int, n: int, data: st.DataObject) -> None:
    p, y = drawn(seed, n=n)
    forgotten = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n - 1, unique=True))
    q = baselines.linear_filtration(p, baselines.logit_class_means(p, y, n), forgotten)
    np.testing.assert_allclose(q, renormalize(p, forgotten), atol=1e-8)
    assert (q[:, forgotten] == 0).all()


def test_linear_filtration_against_the_definition() -> None:
    """With logits that are known (and not centred) the matrix is ``B A^-1``; the answer is the same."""
    rng = np.random.default_rng(0)
    z = 3 * np.eye(4)[np.arange(80) % 4] + rng.normal(0, 1, (80, 4)) + 2.0
    y = np.arange(80) % 4
    a = np.stack([z[y == c].mean(axis=0) for c in range(4)], axis=1)
    b = a[[0, 1, 3]].copy()
    b[:, 2] += b[:, [0, 1, 3]].mean() - b[:, 2].mean()
    matrix = b @ np.linalg.inv(a)
    # What defines it: retained means stay, and the forgotten one's looks on average like theirs.
    np.testing.assert_allclose(matrix @ a[:, 0], a[[0, 1, 3], 0])
    assert (matrix @ a[:, 2]).mean() == pytest.approx(a[np.ix_([0, 1, 3], [0, 1, 3])].mean())
    expected = np.exp(z @ matrix.T)
    expected /= expected.sum(axis=1, keepdims=True)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    q = baselines.linear_filtration(p, baselines.logit_class_means(p, y, 4), [2])
    np.testing.assert_allclose(q[:, [0, 1, 3]], expected, atol=1e-10)


def test_linear_filtration_of_certain_answers_is_finite() -> None:
    _, y = drawn(0)
    p = np.eye(5)[y]
    q = baselines.linear_filtration(p, baselines.logit_class_means(p, y, 5), [1])
    np.testing.assert_allclose(q[y != 1], p[y != 1], atol=1e-8)
    np.testing.assert_allclose(q[y == 1], np.tile([0.25, 0, 0.25, 0.25, 0.25], (40, 1)), atol=1e-8)


@given(st.integers(0, 1000))
def test_the_softmax_of_the_logits_is_the_answer(seed: int) -> None:
    p, _ = drawn(seed)
    z = baselines.logits_of(p)
    np.testing.assert_allclose(z.sum(axis=1), 0.0, atol=1e-9)
    np.testing.assert_allclose(np.exp(z) / np.exp(z).sum(axis=1, keepdims=True), p, atol=1e-9)


def test_logit_class_means_are_means() -> None:
    p, y = drawn(0)
    means = baselines.logit_class_means(p, y, 5)
    np.testing.assert_allclose(means[2], baselines.logits_of(p[y == 2]).mean(axis=0))
    assert (means.argmax(axis=1) == np.arange(5)).all()


@pytest.mark.parametrize(
    ("means", "says"),
    [
        (np.zeros((4, 4)), r"\(4, 4\)"),
        (np.full((5, 5), np.nan), "finite"),
        (np.zeros((5, 5)), "told apart"),
        (np.tile([4.0, -1, -1, -1, -1], (5, 1)), "told apart"),
        (np.eye(5), "told apart"),
    ],
)
def test_means_that_are_refused(means: Array, says: str) -> None:
    p, _ = drawn(0)
    with pytest.raises(ClassMeansError, match=says):
        baselines.linear_filtration(p, means, [1])
    answers, left_out = answers_of(p, [1], logit_means=means)
    assert "linear_filtration" not in answers
    assert says.strip("\\") in left_out["linear_filtration"] or "(4, 4)" in left_out["linear_filtration"]
