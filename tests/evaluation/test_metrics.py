"""Distances between answers: by hand, by their properties, against scikit-learn and SciPy; what is refused."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from collections.abc import Callable
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from sklearn.metrics import confusion_matrix, log_loss

from mpru_tf.errors import DataError
from mpru_tf.evaluation import attacks, baselines, metrics

Array = npt.NDArray[np.float64]
BETWEEN: dict[str, Callable[[npt.ArrayLike, npt.ArrayLike], Array]] = {
    "kl": metrics.kl,
    "js": metrics.js,
    "tv": metrics.tv,
    "mse": metrics.mse,
}
P = np.array([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]])
Q = np.array([[0.25, 0.25, 0.5], [0.5, 0.0, 0.5]])


def drawn(seed: int, rows: int = 40, n: int = 5, sharp: float = 0.2) -> Array:
    """Rows from next to one-hot to next to uniform, some of them with exact zeros."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(n, sharp), rows)
    p[: rows // 4] *= rng.random((rows // 4, n)) < 0.6
    p[p.sum(axis=1) == 0] = 1.0
    return np.asarray(p / p.sum(axis=1, keepdims=True))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Array, Array]:
    """Two models' answers over the same examples and classes, ordinary and not."""
    n = draw(st.integers(2, 6))
    entry = st.one_of(st.sampled_from([0.0, 1.0, 1e-12, 1e-13, 1e-300, 5e-324]), st.floats(0, 1, allow_subnormal=True))
    row = st.lists(entry, min_size=n, max_size=n).filter(lambda row: sum(row) > 1e-6)
    rows = draw(st.integers(1, 4))
    p, q = (np.array(draw(st.lists(row, min_size=rows, max_size=rows))) for _ in "pq")
    return p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)


# ---------------------------------------------------------------------------------------------------------------
# Two models


def test_by_hand() -> None:
    log2 = np.log(2)
    # 1/2 log 2 - 1/4 log 2; all of it where q has nothing.
    np.testing.assert_allclose(metrics.kl(P, Q), [log2 / 4, -np.log(metrics.FLOOR)])
    np.testing.assert_allclose(metrics.kl(Q, P), [log2 / 4, -log2 - np.log(metrics.FLOOR)])
    # m = [3/8, 1/4, 3/8]: (1/2 log 4/3 + 1/4 log 2/3) both ways.
    np.testing.assert_allclose(metrics.js(P, Q), [np.log(4 / 3) / 2 + np.log(2 / 3) / 4, log2])
    np.testing.assert_allclose(metrics.tv(P, Q), [0.25, 1.0])
    np.testing.assert_allclose(metrics.mse(P, Q), [0.125 / 3, 1.5 / 3])


def test_js_is_scipys_distance_squared() -> None:
    p, q = drawn(0), drawn(1)
    np.testing.assert_allclose(metrics.js(p, q), jensenshannon(p, q, axis=1) ** 2, atol=1e-12)


def test_kl_is_scipys_relative_entropy_above_the_floor() -> None:
    p, q = drawn(0), drawn(1, sharp=5.0)
    q = np.where(q == 0, 1e-6, q)
    q /= q.sum(axis=1, keepdims=True)
    assert (p == 0).any()
    np.testing.assert_allclose(metrics.kl(p, q), entropy(p, q, axis=1), atol=1e-12)


@given(pairs())
def test_ranges(pair: tuple[Array, Array]) -> None:
    n = pair[0].shape[1]
    most = {"kl": -np.log(metrics.FLOOR), "js": np.log(2), "tv": 1.0, "mse": 2 / n}
    for name, between in BETWEEN.items():
        values = between(*pair)
        assert values.shape == (len(pair[0]),)
        assert (values >= 0).all(), name
        assert (values <= most[name] + 1e-9).all(), name


@given(pairs())
def test_nothing_is_apart_from_itself(pair: tuple[Array, Array]) -> None:
    for between in BETWEEN.values():
        np.testing.assert_allclose(between(pair[0], pair[0]), 0.0, atol=1e-10)


@given(pairs())
def test_what_differs_is_apart(pair: tuple[Array, Array]) -> None:
    p, q = pair
    differs = np.abs(p - q).max(axis=1) > 1e-3
    for name, between in BETWEEN.items():
        assert (between(p, q)[differs] > 1e-8).all(), name


@given(pairs())
def test_all_but_kl_are_symmetric(pair: tuple[Array, Array]) -> None:
    for name in ("js", "tv", "mse"):
        np.testing.assert_allclose(BETWEEN[name](*pair), BETWEEN[name](*pair[::-1]), atol=1e-12)


def test_kl_is_not_symmetric() -> None:
    assert abs(metrics.kl([[0.9, 0.1]], [[0.5, 0.5]]) - metrics.kl([[0.5, 0.5]], [[0.9, 0.1]])) > 0.1


@given(pairs(), st.randoms(use_true_random=False))
def test_the_order_of_classes_does_not_matter(pair: tuple[Array, Array], random: Random) -> None:
    order = list(range(pair[0].shape[1]))
    random.shuffle(order)
    for between in BETWEEN.values():
        np.testing.assert_allclose(between(pair[0][:, order], pair[1][:, order]), between(*pair), atol=1e-12)


@given(pairs())
def test_tv_and_kl_keep_pinskers_inequality(pair: tuple[Array, Array]) -> None:
    assert (2 * metrics.tv(*pair) ** 2 <= metrics.kl(*pair) + 1e-9).all()


def test_rounding_of_coarse_dtypes_is_no_distance() -> None:
    p = drawn(3, sharp=2.0)
    coarse = p.astype(np.float16)
    assert np.abs(coarse.astype(np.float64).sum(axis=1) - 1).max() > 1e-5  # there is something to forgive
    assert metrics.kl(p, coarse).max() < 1e-5
    np.testing.assert_allclose(metrics.kl(p, 1.01 * p), 0.0, atol=1e-12)


def test_agreement() -> None:
    assert metrics.agreement(P, Q) == 0.0
    assert metrics.agreement(P, P) == 1.0
    assert metrics.agreement([[0.6, 0.4], [0.6, 0.4]], [[0.9, 0.1], [0.1, 0.9]]) == 0.5


def test_zrf() -> None:
    uniform = np.full((3, 4), 0.25)
    assert metrics.zrf(uniform, uniform) == 1.0
    # Against uniform over 2: JS2 of [1, 0] is 1/2 log2 4/3 + 1/2 (1/2 log2 2/3 + 1/2 log2 2).
    expected = 1 - (np.log2(4 / 3) + (np.log2(2 / 3) + 1) / 2) / 2
    assert metrics.zrf([[1.0, 0.0]], [[0.5, 0.5]]) == pytest.approx(expected)
    assert metrics.zrf([[1.0, 0.0]], [[0.0, 1.0]]) == pytest.approx(0.0)


def test_distance_is_the_means_of_its_parts() -> None:
    answers, reference = drawn(1), drawn(2)
    found = metrics.distance(answers, reference)
    assert found.kl == pytest.approx(metrics.kl(reference, answers).mean())
    assert found.kl_reverse == pytest.approx(metrics.kl(answers, reference).mean())
    assert found.kl != pytest.approx(found.kl_reverse)
    assert found.js == pytest.approx(metrics.js(answers, reference).mean())
    assert found.tv == pytest.approx(metrics.tv(answers, reference).mean())
    assert found.mse == pytest.approx(np.square(answers - reference).mean())
    assert found.agreement == metrics.agreement(answers, reference)
    assert found.rows == 40
    assert list(found.mse_quantiles) == ["0.5", "0.72", "0.9", "0.99"]
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == found.to_dict()


def test_class_kl_is_the_mean_per_class() -> None:
    answers, reference, y = drawn(1), drawn(2), np.arange(40) % 4
    found = metrics.class_kl(answers, reference, y, 5)
    for c in range(4):
        assert found[c] == pytest.approx(metrics.distance(answers[y == c], reference[y == c]).kl)
    assert np.isnan(found[4])


# ---------------------------------------------------------------------------------------------------------------
# One model


def test_accuracy_and_nll_by_hand() -> None:
    p = [[0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [0.2, 0.2, 0.6]]
    assert metrics.accuracy(p, [0, 1, 0]) == pytest.approx(2 / 3)
    assert metrics.nll(p, [0, 1, 2]) == pytest.approx(-(np.log(0.5) + np.log(0.6)) / 3)
    assert metrics.nll(p, [0, 0, 2]) == pytest.approx(-(np.log(0.5) + np.log(metrics.FLOOR) + np.log(0.6)) / 3)
    assert str(metrics.nll([[1.0, 0.0]], [0])) == "0.0"


def test_a_tie_goes_to_the_first_class() -> None:
    assert metrics.accuracy([[0.5, 0.5]], [0]) == 1.0
    assert metrics.accuracy([[0.5, 0.5]], [1]) == 0.0


def test_nll_is_scikit_learns_log_loss() -> None:
    p, y = drawn(5, sharp=3.0), np.arange(40) % 5
    p = np.where(p == 0, 1e-3, p)
    p /= p.sum(axis=1, keepdims=True)
    assert metrics.nll(p, y) == pytest.approx(log_loss(y, p, labels=range(5)))


def test_calibration_error_by_hand() -> None:
    # Two bins: (0, 1/2] holds .5 (right); (1/2, 1] holds .75 (wrong), .75 (right), 1 (right).
    p = [[0.5, 0.3, 0.2], [0.75, 0.25, 0.0], [0.75, 0.25, 0.0], [1.0, 0.0, 0.0]]
    expected = 1 / 4 * abs(1 - 0.5) + 3 / 4 * abs(2 / 3 - 2.5 / 3)
    assert metrics.calibration_error(p, [0, 1, 0, 0], bins=2) == pytest.approx(expected)
    assert metrics.calibration_error(p, [0, 1, 0, 0], bins=1) == pytest.approx(abs(0.75 - 0.75))


def test_calibration_error_against_a_plain_loop() -> None:
    p, y = drawn(7, rows=300, n=4, sharp=1.0), np.random.default_rng(0).integers(0, 4, 300)
    confidence, right, expected = p.max(axis=1), p.argmax(axis=1) == y, 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert metrics.calibration_error(p, y) == pytest.approx(expected)


def test_a_calibrated_model_has_a_small_calibration_error() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet([1.0, 1.0, 1.0], 20_000)
    y = (rng.random((20_000, 1)) > p.cumsum(axis=1)).sum(axis=1)
    assert metrics.calibration_error(p, y) < 0.02
    sharpened = p**3 / (p**3).sum(axis=1, keepdims=True)
    assert metrics.calibration_error(sharpened, y) > 0.1


def test_destinations_by_hand() -> None:
    p = np.eye(3)[[0, 1, 1, 0, 2]]
    found = metrics.destinations(p, [0, 0, 1, 1, 1], 3)
    np.testing.assert_allclose(found[:2], [[0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    assert np.isnan(found[2]).all()


def test_destinations_are_scikit_learns_confusion_matrix() -> None:
    p, y = drawn(5), np.arange(40) % 5
    expected = confusion_matrix(y, p.argmax(axis=1), labels=range(5), normalize="true")
    np.testing.assert_allclose(metrics.destinations(p, y, 5), expected)


# ---------------------------------------------------------------------------------------------------------------
# Values


def test_share_within_counts_the_bound_itself() -> None:
    assert metrics.share_within([0.1, 0.2, 0.3, 0.4], 0.2) == 0.5


def test_quantiles_invert_share_within() -> None:
    values = np.random.default_rng(0).random(101)
    found = metrics.quantiles(values)
    assert metrics.quantiles([0.0, 1.0], at=(0.25, 1.0)) == {"0.25": 0.25, "1": 1.0}
    for share, value in found.items():
        assert metrics.share_within(values, value) == pytest.approx(float(share), abs=0.01)


# ---------------------------------------------------------------------------------------------------------------
# Refusals


@pytest.mark.parametrize(
    ("p", "says"),
    [
        ([[0.5, np.nan], [0.5, 0.5], [np.inf, 0.0]], "NaN or infinity in 2 of 3 rows"),
        ([0.5, 0.5], r"shape \(2,\)"),
        (np.zeros((0, 3)), r"shape \(0, 3\)"),
        (np.zeros((3, 0)), r"shape \(3, 0\)"),
        ([[2.0, -1.0], [0.5, 0.5]], "1 of 2 rows"),
        ([[0.9, 0.9]], "multi-label"),
        ([["a", "b"]], "must be numbers"),
    ],
)
def test_answers_that_are_refused(p: npt.ArrayLike, says: str) -> None:
    good = [[0.5, 0.5]]
    for refused in (
        lambda: metrics.kl(p, good),
        lambda: metrics.kl(good, p),
        lambda: metrics.accuracy(p, [0]),
        lambda: metrics.distance(good, p),
        lambda: metrics.calibration_error(p, [0]),
    ):
        with pytest.raises(DataError, match=says):
            refused()


def test_different_shapes_are_refused() -> None:
    with pytest.raises(DataError, match=r"shapes \(1, 2\) and \(2, 2\)"):
        metrics.js([[0.5, 0.5]], [[0.5, 0.5], [0.5, 0.5]])
    with pytest.raises(DataError, match="same examples and classes"):
        metrics.distance([[0.5, 0.5]], [[0.5, 0.5, 0.0]])


@pytest.mark.parametrize("y", [[0], [0, 2], [0, -1], [0.0, 1.0], [[0], [1]], [True, False]])
def test_labels_that_are_refused(y: npt.ArrayLike) -> None:
    p = [[0.5, 0.5], [0.5, 0.5]]
    for refused in (
        lambda: metrics.accuracy(p, y),
        lambda: metrics.nll(p, y),
        lambda: metrics.destinations(p, y, 2),
        lambda: metrics.class_kl(p, p, y, 2),
    ):
        with pytest.raises(DataError, match="labels"):
            refused()


def test_other_refusals() -> None:
    with pytest.raises(DataError, match="another number of classes"):
        metrics.destinations([[0.5, 0.5]], [0], 3)
    with pytest.raises(DataError, match="1 or more"):
        metrics.calibration_error([[0.5, 0.5]], [0], bins=0)
    with pytest.raises(DataError, match="from 0 to 1"):
        metrics.quantiles([0.5], at=(72,))
    for values in ([], [np.nan, 1.0]):
        with pytest.raises(DataError, match="cannot be summed up"):
            metrics.share_within(values, 0.5)


# ---------------------------------------------------------------------------------------------------------------
# Modules


@pytest.mark.parametrize("module", [metrics, attacks, baselines])
def test_examples_in_docstrings(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


def test_imports_are_light() -> None:
    heavy = ("sklearn", "scipy", "matplotlib", "tensorflow", "xgboost")
    code = (
        "import sys; from mpru_tf.evaluation import attacks, baselines, metrics; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
