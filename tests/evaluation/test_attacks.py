"""Attacks: curves by hand and against scikit-learn, signals, and real models that do and do not give things away."""

from __future__ import annotations

import json
import sys

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve

from mpru_tf.errors import DataError, ForgetListError, MissingExtraError
from mpru_tf.evaluation import attacks, metrics
from mpru_tf.filters import renormalize

Array = npt.NDArray[np.float64]
# Few distinct numbers, so that there are ties.
SCORES = st.lists(st.one_of(st.sampled_from([0.0, 0.25, 0.5]), st.floats(-1, 1)), min_size=1, max_size=12)


# ---------------------------------------------------------------------------------------------------------------
# Scores of two groups


def test_by_hand() -> None:
    members, nonmembers = [0.9, 0.4], [0.4, 0.1]
    fpr, tpr = attacks.roc(members, nonmembers)
    assert fpr.tolist() == [0.0, 0.0, 0.5, 1.0]
    assert tpr.tolist() == [0.0, 0.5, 1.0, 1.0]
    assert attacks.auc(members, nonmembers) == 0.875
    assert attacks.advantage(members, nonmembers) == 0.5


def test_certainty_guessing_and_the_wrong_way_round() -> None:
    assert (attacks.auc([2, 3], [0, 1]), attacks.advantage([2, 3], [0, 1])) == (1.0, 1.0)
    assert (attacks.auc([1, 1], [1, 1]), attacks.advantage([1, 1], [1, 1])) == (0.5, 0.0)
    assert (attacks.auc([0, 1], [2, 3]), attacks.advantage([0, 1], [2, 3])) == (0.0, 0.0)


@given(SCORES, SCORES)
def test_curve_and_area_are_scikit_learns(members: list[float], nonmembers: list[float]) -> None:
    truth, scores = [1] * len(members) + [0] * len(nonmembers), members + nonmembers
    expected_fpr, expected_tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    fpr, tpr = attacks.roc(members, nonmembers)
    np.testing.assert_allclose(fpr, expected_fpr)
    np.testing.assert_allclose(tpr, expected_tpr)
    assert attacks.auc(members, nonmembers) == pytest.approx(roc_auc_score(truth, scores))
    assert attacks.advantage(members, nonmembers) == pytest.approx((expected_tpr - expected_fpr).max())


@given(SCORES, SCORES)
def test_area_of_the_groups_exchanged_is_the_rest(members: list[float], nonmembers: list[float]) -> None:
    assert attacks.auc(members, nonmembers) == pytest.approx(1 - attacks.auc(nonmembers, members))
    assert attacks.auc(members, members) == 0.5


@given(SCORES, SCORES)
def test_only_the_order_of_scores_counts(members: list[float], nonmembers: list[float]) -> None:
    ranks = np.unique(members + nonmembers, return_inverse=True)[1].astype(float)
    m, k = ranks[: len(members)], ranks[len(members) :]
    assert attacks.auc(m, k) == attacks.auc(members, nonmembers)
    assert attacks.advantage(m, k) == attacks.advantage(members, nonmembers)


def test_a_long_curve_is_thinned_and_keeps_its_shape() -> None:
    rng = np.random.default_rng(0)
    members, nonmembers = rng.normal(1, 1, 3000), rng.normal(0, 1, 2000)
    found = attacks.membership_inference(members, nonmembers)
    assert len(attacks.roc(members, nonmembers)[0]) > 4000
    assert 150 < len(found.fpr) == len(found.tpr) <= attacks.CURVE_POINTS
    assert (found.fpr[0], found.tpr[0], found.fpr[-1], found.tpr[-1]) == (0, 0, 1, 1)
    assert (np.diff(found.fpr) >= 0).all()
    assert (np.diff(found.tpr) >= 0).all()
    assert found.advantage == max(np.subtract(found.tpr, found.fpr))
    area = np.sum(np.diff(found.fpr) * (np.add(found.tpr[1:], found.tpr[:-1]) / 2))
    assert area == pytest.approx(found.auc, abs=1e-3)
    assert (found.members, found.nonmembers) == (3000, 2000)
    # Two normal distributions one deviation apart: Phi(1 / sqrt 2).
    assert found.auc == pytest.approx(0.7602, abs=0.02)


def test_a_short_curve_is_kept_whole() -> None:
    found = attacks.membership_inference([0.9, 0.4], [0.4, 0.1])
    assert found.fpr == (0.0, 0.0, 0.5, 1.0)
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()


@pytest.mark.parametrize(("members", "nonmembers"), [([], [1.0]), ([1.0], []), ([np.nan], [1.0]), ([1.0], [[1.0]])])
def test_groups_that_are_refused(members: npt.ArrayLike, nonmembers: npt.ArrayLike) -> None:
    for refused in (attacks.roc, attacks.auc, attacks.advantage, attacks.membership_inference):
        with pytest.raises(DataError, match="cannot be summed up"):
            refused(members, nonmembers)


# ---------------------------------------------------------------------------------------------------------------
# Signals


def test_signals_by_hand() -> None:
    p = [[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]
    found = attacks.signals(p, [0, 1], [2])
    entropy = 1.5 * np.log(0.5)
    half, quarter, most = np.log(0.5), np.log(0.25), np.log(0.75)
    np.testing.assert_allclose(found["confidence"], [0.5, 0.25])
    np.testing.assert_allclose(found["entropy"], [entropy, entropy])
    np.testing.assert_allclose(
        found["modified_entropy"], [0.5 * half + 2 * 0.25 * most, 0.75 * quarter + 0.5 * half + 0.25 * most]
    )


def test_a_forgotten_true_class_gives_way_to_the_most_probable_one() -> None:
    p = [[0.0, 0.3, 0.7]]
    gone, there = attacks.signals(p, [0], [0]), attacks.signals(p, [2], [0])
    for name in gone:
        assert gone[name] == there[name], name
        assert gone[name] > attacks.signals(p, [1], [0])[name] or name == "entropy"


def test_signals_of_a_certain_answer_are_finite() -> None:
    certain = attacks.signals([[1.0, 0.0, 0.0]], [0], [2])
    wrong = attacks.signals([[1.0, 0.0, 0.0]], [1], [2])
    assert {name: float(value[0]) for name, value in certain.items()} == {
        "confidence": 1.0,
        "entropy": 0.0,
        "modified_entropy": 0.0,
    }
    assert wrong["modified_entropy"][0] == pytest.approx(2 * np.log(metrics.FLOOR))


@given(st.integers(0, 100))
def test_surer_and_right_is_more_like_a_member(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(4), 20)
    y = rng.integers(0, 3, 20)
    surer = 0.5 * p + 0.5 * np.eye(4)[y]
    before, after = attacks.signals(p, y, [3]), attacks.signals(surer, y, [3])
    for name in ("confidence", "modified_entropy"):
        assert (after[name] > before[name]).all(), name


def test_signals_refuse() -> None:
    with pytest.raises(ForgetListError):
        attacks.signals([[0.5, 0.5]], [0], [])
    with pytest.raises(DataError):
        attacks.signals([[0.5, np.nan]], [0], [1])
    with pytest.raises(DataError):
        attacks.signals([[0.5, 0.5]], [2], [1])


# ---------------------------------------------------------------------------------------------------------------
# Real models of the digits


@pytest.fixture(scope="module")
def digits() -> tuple[Array, npt.NDArray[np.int64]]:
    data = load_digits()
    return data.data / 16, data.target.astype(np.int64)


def answers_of(x: Array, y: npt.NDArray[np.int64], train: npt.NDArray[np.bool_], n: int) -> Array:
    """What a softmax regression answers to ``x``, having seen those of ``train``; 0 for classes it never saw."""
    model = LogisticRegression(max_iter=2000).fit(x[train], y[train])
    p = np.zeros((len(x), n))
    p[:, model.classes_] = model.predict_proba(x)
    return p


def test_a_model_that_learned_by_heart_gives_its_members_away(digits: tuple[Array, npt.NDArray[np.int64]]) -> None:
    x, y = digits
    train = np.arange(len(y)) % 2 == 0
    forest = RandomForestClassifier(20, random_state=0).fit(x[train], y[train]).predict_proba(x)
    plain = answers_of(x, y, train, 10)
    for p, lowest, highest in ((forest, 0.7, 0.9), (plain, 0.49, 0.56)):
        members, others = attacks.signals(p[train], y[train], [3]), attacks.signals(p[~train], y[~train], [3])
        for name, scores in members.items():
            assert lowest < attacks.membership_inference(scores, others[name]).auc < highest, name


def test_a_filter_is_recognised_about_as_well_as_the_retrained_model(
    digits: tuple[Array, npt.NDArray[np.int64]],
) -> None:
    x, y = digits
    train = np.arange(len(y)) % 2 == 0
    test = ~train
    coarse = x.reshape(-1, 8, 8)[:, 1::3, 1::3].reshape(len(x), -1)  # nine pixels: an 8 is no longer plain to see
    filtered = renormalize(answers_of(coarse, y, train, 10)[test], [8])
    retrained = answers_of(coarse, y, train & (y != 8), 10)[test]
    found, unavoidable = (attacks.nearest_class_attack(p, y[test], [8])[8] for p in (filtered, retrained))
    assert found.nearest == unavoidable.nearest
    assert 0.6 < unavoidable.auc < 0.9
    assert found.auc == pytest.approx(unavoidable.auc, abs=0.02)


def test_a_class_like_its_neighbour_is_recognised_only_by_a_mark(
    digits: tuple[Array, npt.NDArray[np.int64]],
) -> None:
    x, y = digits
    split = np.where((y == 1) & (np.random.default_rng(0).random(len(y)) < 0.5), 10, y)
    train = np.arange(len(y)) % 2 == 0
    truth = split[~train]
    retrained = answers_of(x, split, train & (split != 10), 11)[~train]
    found = attacks.nearest_class_attack(retrained, truth, [10])[10]
    assert found.nearest == 1
    assert found.auc == pytest.approx(0.5, abs=0.15)

    marked = np.where((truth == 10)[:, None], retrained**0.5, retrained)
    marked /= marked.sum(axis=1, keepdims=True)
    assert attacks.nearest_class_attack(marked, truth, [10])[10].auc > 0.9


def test_of_several_forgotten_classes_each_has_its_result(digits: tuple[Array, npt.NDArray[np.int64]]) -> None:
    x, y = digits
    p = renormalize(answers_of(x, y, np.arange(len(y)) % 2 == 0, 10), [3, 8])
    found = attacks.nearest_class_attack(p, y, [8, 3])
    assert list(found) == [3, 8]
    assert [(one.forgotten, one.examples) for one in found.values()] == [(3, 183), (8, 174)]
    for f, one in found.items():
        assert one.nearest not in (3, 8)
        assert one.nearest_examples == np.count_nonzero(y == one.nearest)
        assert one == attacks.recognise(p, y, f, [c for c in range(10) if c not in (3, 8)])
        assert json.loads(json.dumps(one.to_dict())) == one.to_dict()
    assert found == attacks.nearest_class_attack(p, y, [8, 3], seed=0)


def test_the_attacker_sees_all_that_is_answered() -> None:
    rng = np.random.default_rng(0)
    y = np.where(np.arange(200) < 100, 2, 0)
    p = np.zeros((200, 4))
    p[:, :2] = 0.8 * rng.dirichlet([6.0, 3.0], 200)
    p[np.arange(200), np.where(y == 2, 2, 3)] = 0.2  # an unfiltered model's own class
    assert attacks.recognise(p, y, 2, [0, 1, 3]).auc == 1.0
    filtered = renormalize(p, [2, 3])
    assert attacks.recognise(filtered, y, 2, [0, 1]).auc == pytest.approx(0.5, abs=0.15)


def test_all_models_are_attacked_on_one_pair() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    p = np.zeros((300, 3))
    p[:, :2] = rng.dirichlet([6.0, 3.0], 300)
    p[y == 1] = p[y == 1][:, [1, 0, 2]]
    assert attacks.nearest_class(p, y, 2, [0, 1]) == 0
    assert attacks.recognise(p, y, 2, [0, 1]) == attacks.recognise(p, y, 2, [0, 1], nearest=0)
    other = attacks.recognise(p, y, 2, [0, 1], nearest=1)
    assert (other.nearest, other.nearest_examples) == (1, 100)
    assert other.auc > 0.7 > attacks.recognise(p, y, 2, [0, 1]).auc
    with pytest.raises(ForgetListError, match="none of the retained"):
        attacks.recognise(p, y, 2, [0], nearest=1)


def test_standard_error_of_an_area() -> None:
    # By hand: A = 0.8, 50 and 50: Q1 = 2/3, Q2 = 1.28/1.8; (0.16 + 49 (Q1 - 0.64) + 49 (Q2 - 0.64)) / 2500
    assert attacks.auc_error(0.8, 50, 50) == pytest.approx(((0.16 + 49 * (2 / 3 + 1.28 / 1.8 - 1.28)) / 2500) ** 0.5)
    assert attacks.auc_error(0.2, 50, 50) == pytest.approx(attacks.auc_error(0.8, 50, 50))
    assert attacks.auc_error(1.0, 50, 50) == 0.0
    # As many draws show it: areas of two normal distributions a unit apart
    rng = np.random.default_rng(0)
    areas = [attacks.auc(rng.normal(1.0, 1.0, 80), rng.normal(0.0, 1.0, 40)) for _ in range(2000)]
    assert attacks.auc_error(float(np.mean(areas)), 80, 40) == pytest.approx(np.std(areas), rel=0.1)


# ---------------------------------------------------------------------------------------------------------------
# The nearest class


def test_nearest_class_goes_by_the_mean_probability() -> None:
    p = [[0.9, 0.1, 0.0], [0.4, 0.6, 0.0], [0.4, 0.6, 0.0], [0.0, 1.0, 0.0]]
    assert attacks.nearest_class(p, [2, 2, 2, 0], 2, [0, 1]) == 0
    assert attacks.nearest_class(p, [2, 2, 2, 0], 2, [1]) == 1


def test_too_few_examples_are_refused() -> None:
    p = np.tile([0.6, 0.4, 0.0], (40, 1))
    y = np.array([2] * 10 + [0] * 9 + [1] * 21)
    with pytest.raises(DataError, match="10 of class 2, 9 of class 0"):
        attacks.nearest_class_attack(p, y, [2])
    y[-1] = 0
    assert attacks.nearest_class_attack(p, y, [2])[2].auc == 0.5


def test_other_refusals() -> None:
    p = [[0.5, 0.5, 0.0]]
    with pytest.raises(DataError, match="no example of class 2"):
        attacks.nearest_class(p, [0], 2, [0, 1])
    for retained in ([], [3], [0, 2]):
        with pytest.raises(ForgetListError, match="retained"):
            attacks.nearest_class(p, [2], 2, retained)
    with pytest.raises(ForgetListError):
        attacks.nearest_class_attack(p, [2], [0, 1, 2])


def test_a_missing_scikit_learn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(MissingExtraError, match=r"sklearn.*mpru_tf\[report\]"):
        attacks.nearest_class_attack(np.tile([0.6, 0.4, 0.0], (40, 1)), np.arange(40) % 3, [2])
