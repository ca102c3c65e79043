"""The NumPy reference of the filter: properties that hold for all inputs, values worked out by hand, odd rows."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpru_tf.class_means import ClassMeans
from mpru_tf.errors import ClassMeansError, DataError, ForgetListError, MPRUError
from mpru_tf.filters import (
    DEFAULT_METHOD,
    FORGOTTEN_LOGIT,
    MASK,
    METHODS,
    UNDERFLOW,
    FilterSpec,
    gram_schmidt,
    make_filter,
    mask,
    mean,
    renormalize,
    tempered,
)

Array = npt.NDArray[np.float64]
PROJECTIONS = ("mean", "gram_schmidt")


def class_means(means: Array) -> ClassMeans:
    """Wrap a matrix of means of all classes."""
    n = len(means)
    return ClassMeans(n, tuple(range(n)), means, np.full(n, 100), np.full(n, 0.01), True, "test")


def distributions(random: np.random.Generator, rows: int, n: int, concentration: float = 0.4) -> Array:
    """Return rows of probabilities, none of them so small that float32 would lose it."""
    p = random.dirichlet(np.full(n, concentration), rows) + 1e-9
    return np.asarray(p / p.sum(axis=1, keepdims=True))


def confident_means(random: np.random.Generator, n: int, own: float = 0.85) -> Array:
    return np.asarray((1 - own) * distributions(random, n, n, 1.0) + own * np.eye(n))


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


@st.composite
def cases(draw: st.DrawFn, methods: tuple[str, ...] = METHODS) -> tuple[FilterSpec, Array, Array]:
    """Draw a filter, probabilities ``[rows, n]`` and the means of all classes."""
    n = draw(st.integers(2, 7))
    k = draw(st.integers(1, n - 1))
    forgotten = draw(st.permutations(range(n)))[:k]
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    means = confident_means(random, n)
    method = draw(st.sampled_from(methods))
    temperature = draw(st.sampled_from([1.0, 1.5, 3.0, 1000.0]))
    known = draw(st.booleans()) or method in PROJECTIONS
    spec = make_filter(n, forgotten, method, class_means=class_means(means) if known else None, temperature=temperature)
    p = distributions(random, draw(st.sampled_from([0, 1, 7])), n, draw(st.sampled_from([0.05, 0.4, 2.0])))
    return spec, p, means


# ---------------------------------------------------------------------------------------------------------------
# Properties


@given(cases())
def test_answers_are_distributions_without_the_forgotten(case: tuple[FilterSpec, Array, Array]) -> None:
    spec, p, _ = case
    q = spec.probabilities(p)
    assert q.shape == p.shape
    assert q.dtype == np.float64
    assert (q >= 0).all()
    assert (q[:, spec.forgotten] == 0).all()
    np.testing.assert_allclose(q.sum(axis=1), 1.0, atol=1e-12)


@given(cases(), st.randoms(use_true_random=False))
def test_naming_the_classes_otherwise_renames_the_answers(case: tuple[FilterSpec, Array, Array], random: Any) -> None:
    spec, p, means = case
    n = spec.classes
    order = list(range(n))
    random.shuffle(order)  # new class i is old class order[i]
    renamed = make_filter(
        n,
        [order.index(c) for c in spec.forgotten],
        spec.method,
        class_means=None if spec.fallback is None else class_means(means[order][:, order]),
        temperature=spec.temperature or 1.5,
    )
    np.testing.assert_allclose(renamed.probabilities(p[:, order]), spec.probabilities(p)[:, order], atol=1e-9)


@given(cases(methods=("renormalize", "tempered")))
def test_retained_ranking_stays(case: tuple[FilterSpec, Array, Array]) -> None:
    spec, p, _ = case
    kept = list(spec.retained)
    q = spec.probabilities(p)[:, kept]
    before, after = p[:, kept], q
    for i, j in itertools.combinations(range(len(kept)), 2):
        higher = before[:, i] > before[:, j]
        assert (after[higher, i] >= after[higher, j]).all()


@given(cases(methods=("gram_schmidt",)))
def test_gram_schmidt_leaves_retained_means_to_renormalisation(case: tuple[FilterSpec, Array, Array]) -> None:
    spec, _, means = case
    kept = list(spec.retained)
    assert spec.directions is not None
    np.testing.assert_allclose(means[kept] @ spec.directions, 0.0, atol=1e-9)
    np.testing.assert_allclose(
        spec.probabilities(means[kept]), renormalize(means[kept], spec.forgotten), rtol=1e-6, atol=1e-9
    )


@given(cases(methods=("gram_schmidt",)))
def test_gram_schmidt_basis_is_orthonormal(case: tuple[FilterSpec, Array, Array]) -> None:
    spec, _, _ = case
    assert spec.directions is not None
    np.testing.assert_allclose(spec.directions.T @ spec.directions, np.eye(len(spec.forgotten)), atol=1e-12)


@given(cases(methods=PROJECTIONS))
def test_the_projection_is_one(case: tuple[FilterSpec, Array, Array]) -> None:
    """``P = I - D C'`` is a symmetric projection that takes the directions out."""
    spec, _, _ = case
    assert spec.coefficients is not None
    assert spec.directions is not None
    projection = np.eye(spec.classes) - spec.directions @ spec.coefficients.T
    np.testing.assert_allclose(projection @ projection, projection, atol=1e-9)
    np.testing.assert_allclose(projection, projection.T, atol=1e-9)
    np.testing.assert_allclose(projection @ spec.directions, 0.0, atol=1e-9)


@given(cases(methods=PROJECTIONS))
def test_closed_form_is_the_projection(case: tuple[FilterSpec, Array, Array]) -> None:
    """What is computed with constants of rank k is what the projection and the redistribution say, step by step."""
    spec, p, _ = case
    assert spec.coefficients is not None
    assert spec.directions is not None
    kept = list(spec.retained)
    y = p - (p @ spec.coefficients) @ spec.directions.T
    w = p[:, kept] / p[:, kept].sum(axis=1, keepdims=True)
    q = np.maximum(0.0, y[:, kept] + (1.0 - y[:, kept].sum(axis=1, keepdims=True)) * w)
    np.testing.assert_allclose(spec.probabilities(p)[:, kept], q / q.sum(axis=1, keepdims=True), atol=1e-9)


@given(cases())
def test_the_order_of_the_forget_list_does_not_matter(case: tuple[FilterSpec, Array, Array]) -> None:
    spec, p, means = case
    known = None if spec.fallback is None else class_means(means)
    for order in itertools.islice(itertools.permutations(spec.forgotten), 6):
        other = make_filter(spec.classes, order, spec.method, class_means=known, temperature=spec.temperature or 1.5)
        assert other == spec
        if spec.method == "mean":
            np.testing.assert_allclose(mean(p, order, means[list(order)]), spec.probabilities(p), atol=1e-9)
        if spec.method == "gram_schmidt":
            np.testing.assert_allclose(gram_schmidt(p, order, means), spec.probabilities(p), atol=1e-9)


@given(cases(methods=("tempered",)))
def test_tempered_leaves_rows_without_forgotten_probability_alone(case: tuple[FilterSpec, Array, Array]) -> None:
    spec, p, _ = case
    p = p.copy()
    p[:, spec.forgotten] = 0.0
    p /= p.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(spec.probabilities(p), p, rtol=1e-12)


@given(cases(methods=("tempered",)))
def test_tempered_never_sharpens(case: tuple[FilterSpec, Array, Array]) -> None:
    spec, p, _ = case
    assert (spec.probabilities(p).max(axis=1) <= renormalize(p, spec.forgotten).max(axis=1) + 1e-12).all()


@given(cases(methods=("mean",)))
def test_mean_with_one_hot_means_is_renormalize(case: tuple[FilterSpec, Array, Array]) -> None:
    spec, p, _ = case
    one_hot = np.eye(spec.classes)[list(spec.forgotten)]
    np.testing.assert_allclose(mean(p, spec.forgotten, one_hot), renormalize(p, spec.forgotten), atol=1e-12)


@given(cases())
def test_logits_and_probabilities_agree(case: tuple[FilterSpec, Array, Array]) -> None:
    spec, p, _ = case
    filtered = spec.logits(np.log(p))
    assert filtered.shape == p.shape
    assert (filtered[:, spec.forgotten] == FORGOTTEN_LOGIT["float64"]).all()
    if len(p):
        q = softmax(filtered)
        assert (q[:, spec.forgotten] == 0).all()
        np.testing.assert_allclose(q, spec.probabilities(p), atol=1e-9)


@given(cases(), st.floats(-50, 50))
def test_shifted_logits_give_shifted_logits(case: tuple[FilterSpec, Array, Array], shift: float) -> None:
    spec, p, _ = case
    z, kept = np.log(p), list(spec.retained)
    here, there = spec.logits(z)[:, kept], spec.logits(z + shift)[:, kept]
    counted = here > -1e29  # a zero of q stays the same stand-in
    np.testing.assert_allclose(there[counted], here[counted] + shift, atol=1e-6)


@given(cases())
def test_logits_are_log_q_plus_logsumexp_of_the_retained(case: tuple[FilterSpec, Array, Array]) -> None:
    spec, p, _ = case
    kept = list(spec.retained)
    z = np.log(p) + 3.0
    lse = np.log(np.exp(z[:, kept]).sum(axis=1, keepdims=True))
    q = spec.probabilities(p)[:, kept]
    counted = q > 1e-12
    expected = np.log(np.where(counted, q, 1.0)) + lse
    np.testing.assert_allclose(spec.logits(z)[:, kept][counted], expected[counted], atol=1e-6)


@given(cases(methods=("renormalize",)))
def test_renormalize_does_not_move_retained_logits_by_a_bit(case: tuple[FilterSpec, Array, Array]) -> None:
    spec, p, _ = case
    z = np.log(p) * 1.7 + 0.3
    kept = list(spec.retained)
    assert (spec.logits(z)[:, kept] == z[:, kept]).all()


@given(cases())
def test_config_survives_json(case: tuple[FilterSpec, Array, Array]) -> None:
    spec, p, _ = case
    again = FilterSpec.from_config(json.loads(json.dumps(spec.to_config(), allow_nan=False)))
    assert again == spec
    assert hash(again) == hash(spec)
    assert again.digest() == spec.digest()
    assert (again.probabilities(p) == spec.probabilities(p)).all()


@given(cases())
def test_the_function_of_each_method_is_the_filter(case: tuple[FilterSpec, Array, Array]) -> None:
    spec, p, means = case
    by_method: dict[str, Callable[[], Array]] = {
        "renormalize": lambda: renormalize(p, spec.forgotten, fallback=spec.fallback),
        "mean": lambda: mean(p, spec.forgotten, means[list(spec.forgotten)]),
        "gram_schmidt": lambda: gram_schmidt(p, spec.forgotten, means),
        "tempered": lambda: tempered(p, spec.forgotten, spec.temperature or 0.0, spec.fallback),
    }
    assert (by_method[spec.method]() == spec.probabilities(p)).all()


@given(cases(), st.sampled_from([(), (3,), (2, 3)]))
def test_leading_axes_do_not_matter(case: tuple[FilterSpec, Array, Array], lead: tuple[int, ...]) -> None:
    spec, p, _ = case
    p = np.resize(p, (*lead, spec.classes)) if p.size else np.zeros((*lead, 0, spec.classes))
    flat = p.reshape(-1, spec.classes)
    assert spec.probabilities(p).shape == p.shape
    np.testing.assert_allclose(spec.probabilities(p), spec.probabilities(flat).reshape(p.shape), atol=1e-15)
    with np.errstate(divide="ignore"):
        z = np.log(p)
    np.testing.assert_allclose(spec.logits(z), spec.logits(np.reshape(z, flat.shape)).reshape(p.shape), atol=1e-12)


# ---------------------------------------------------------------------------------------------------------------
# Values


def test_renormalize_by_hand() -> None:
    np.testing.assert_allclose(renormalize([0.1, 0.2, 0.3, 0.4], [3]), [1 / 6, 1 / 3, 1 / 2, 0])
    np.testing.assert_allclose(renormalize([[0.1, 0.2, 0.3, 0.4]], [0, 2]), [[0, 1 / 3, 0, 2 / 3]])


def test_tempered_by_hand() -> None:
    # t = 1 + (3 - 1) * 0.5 = 2: square roots of 0.16, 0.09 and 0.25, which sum to 1.2
    np.testing.assert_allclose(tempered([0.16, 0.09, 0.25, 0.5], [3], 3.0), [4 / 12, 3 / 12, 5 / 12, 0])
    # p_F = 1 - 0.16 - 0.04 = 0.8, T = 2.25: t = 2
    np.testing.assert_allclose(tempered([0.16, 0.5, 0.04, 0.3], [1, 3], 2.25), [2 / 3, 0, 1 / 3, 0])


def test_mean_by_hand() -> None:
    # mu = (0, .6, .8), p = (.5, .3, .2): A = mu.p / mu.mu = .34; w = (.625, .375); s = .6, m = (0, 1)
    # q = w + A s (w - m) = (.625 + .204 * .625, .375 - .204 * .625)
    np.testing.assert_allclose(mean([0.5, 0.3, 0.2], [2], [[0.0, 0.6, 0.8]]), [0.7525, 0.2475, 0.0])
    # The closed form of class 0 is .5 + .5/.68 * .4 * (.5 - 1) < .5 and of 1 > .5; a negative entry is cut to 0:
    # mu = (.5, 0, .5), p = (.1, .1, .8): A = .45 / .5 = .9, w = (.5, .5), q = (.5 - .225, .5 + .225)
    np.testing.assert_allclose(mean([0.1, 0.1, 0.8], [2], [[0.5, 0.0, 0.5]]), [0.275, 0.725, 0.0])
    # w = (.1, .9), A = (.02 * .5 + .8 * .5) / .5 = .82: q_0 = .1 + .41 * (.1 - 1) < 0
    np.testing.assert_allclose(mean([0.02, 0.18, 0.8], [2], [[0.5, 0.0, 0.5]]), [0.0, 1.0, 0.0])


def test_gram_schmidt_by_hand() -> None:
    # Retained means (1, 0, 0) and (0, 1, 0) leave (0, 0, 1) free: A s = 0, so this is renormalize.
    means = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.2, 0.2, 0.6]])
    np.testing.assert_allclose(gram_schmidt([0.3, 0.2, 0.5], [2], means), [0.6, 0.4, 0.0])
    # Retained means (.8, 0, .2) and (0, .8, .2) leave b = (1, 1, -4) / sqrt(18) free. p = (.3, .2, .5):
    # A = -1.5 / sqrt(18), s = 2 / sqrt(18), q = w + A (s w - b_R) = w + (-1.5 / 18) (2 w - 1), w = (.6, .4)
    means = np.array([[0.8, 0.0, 0.2], [0.0, 0.8, 0.2], [0.1, 0.1, 0.8]])
    shift = -1.5 / 18 * 0.2
    np.testing.assert_allclose(gram_schmidt([0.3, 0.2, 0.5], [2], means), [0.6 + shift, 0.4 - shift, 0.0])


def test_one_class_after_another_is_something_else() -> None:
    """Why the joint form: in sequence, the answer depends on which class goes first."""
    random = np.random.default_rng(5)
    means, p = confident_means(random, 5, own=0.4), distributions(random, 20, 5)
    first = mean(mean(p, [0], means[[0]]), [1], means[[1]])
    second = mean(mean(p, [1], means[[1]]), [0], means[[0]])
    assert np.abs(first - second).max() > 0.01


def test_default_is_tempered() -> None:
    assert DEFAULT_METHOD == "tempered"
    spec = make_filter(10, [3])
    assert (spec.method, spec.temperature, spec.forgotten, spec.retained) == (
        "tempered",
        1.5,
        (3,),
        (0, 1, 2, 4, 5, 6, 7, 8, 9),
    )


def test_equal_means_of_two_forgotten_classes_are_projected_off_once() -> None:
    mu = np.array([0.5, 0.1, 0.2, 0.2])
    p = [0.3, 0.3, 0.2, 0.2]
    twice = mean(p, [0, 1], np.stack([mu, mu]))
    assert twice[[0, 1]].tolist() == [0, 0]
    assert np.isfinite(twice).all()
    np.testing.assert_allclose(twice.sum(), 1.0)


# ---------------------------------------------------------------------------------------------------------------
# Rows that are not ordinary

MEANS = np.array([[0.8, 0.1, 0.06, 0.04], [0.1, 0.7, 0.1, 0.1], [0.05, 0.05, 0.8, 0.1], [0.03, 0.09, 0.08, 0.8]])


def every_filter(forgotten: list[int], n: int = 4, means: Array = MEANS) -> list[FilterSpec]:
    known = class_means(means)
    specs = [make_filter(n, forgotten, method, class_means=known) for method in METHODS]
    return [*specs, *(make_filter(n, forgotten, method) for method in ("renormalize", "tempered"))]


@pytest.mark.parametrize("spec", every_filter([3]), ids=lambda spec: f"{spec.method}-{spec.fallback is not None}")
def test_all_mass_on_the_forgotten_class(spec: FilterSpec) -> None:
    expected = [1 / 3] * 3 if spec.fallback is None else [0.03 / 0.2, 0.09 / 0.2, 0.08 / 0.2]
    for p in ([0, 0, 0, 1.0], [UNDERFLOW / 4] * 3 + [1.0], [0.0] * 4, [-0.1, 0, 0, 1.0]):
        np.testing.assert_allclose(spec.probabilities(p), [*expected, 0.0])
    filtered = spec.logits([-np.inf, -np.inf, -np.inf, 0.0])
    np.testing.assert_allclose(filtered, [*np.log(expected), FORGOTTEN_LOGIT["float64"]])
    np.testing.assert_allclose(softmax(spec.logits([-np.inf] * 4)), [*expected, 0.0])


def test_several_forgotten_classes_mix_their_destinations() -> None:
    spec = make_filter(4, [2, 3], class_means=class_means(MEANS))
    expected = 0.25 * np.array([0.5, 0.5]) + 0.75 * np.array([0.25, 0.75])
    np.testing.assert_allclose(spec.probabilities([0, 0, 0.25, 0.75]), [*expected, 0, 0])
    with np.errstate(divide="ignore"):
        z = np.log([0, 0, 0.25, 0.75])
    np.testing.assert_allclose(np.exp(spec.logits(z)), [*expected, 0, 0])
    np.testing.assert_allclose(spec.probabilities([0.0] * 4), [0.375, 0.625, 0, 0])  # nothing known: evenly


def test_a_mean_that_gives_nothing_to_the_retained_falls_back_to_uniform() -> None:
    spec = make_filter(3, [2], class_means=class_means(np.eye(3)))
    np.testing.assert_allclose(spec.probabilities([0, 0, 1.0]), [0.5, 0.5, 0])


def test_a_gap_where_one_minus_the_forgotten_is_zero_in_float32() -> None:
    z = np.array([1.0, 0.0, 40.0], np.float32)
    p = softmax(z.astype(np.float64)).astype(np.float32)
    assert np.float32(1) - p[2] == 0
    spec = make_filter(3, [2], "renormalize")
    np.testing.assert_allclose(spec.probabilities(p)[:2], softmax(np.array([1.0, 0.0])), rtol=1e-6)
    far = make_filter(3, [2], "renormalize").logits([1.0, 0.0, 1e4])
    np.testing.assert_allclose(softmax(far)[:2], softmax(np.array([1.0, 0.0])), rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_huge_gaps_in_logits(method: str) -> None:
    spec = make_filter(4, [3], method, class_means=class_means(MEANS))
    for z in ([1e4, 0, 0, 0], [0, 0, 0, 1e4], [1e4, -1e4, 0, 2e4], [1e30, 0, 0, -1e30], [-1e20, -2e20, 0, 1e20]):
        q = softmax(spec.logits(np.array(z)))
        assert q[3] == 0
        np.testing.assert_allclose(q.sum(), 1.0)


@pytest.mark.parametrize("where", range(4))
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("spec", every_filter([1, 3]), ids=lambda spec: f"{spec.method}-{spec.fallback is not None}")
def test_a_row_without_meaning_stays_in_its_row(spec: FilterSpec, bad: float, where: int) -> None:
    p = np.array([[0.4, 0.3, 0.2, 0.1]] * 3)
    p[1, where] = bad
    for filtered, unbroken, gone in (
        (spec.probabilities(p), spec.probabilities(p[0]), 0.0),
        (spec.logits(p), spec.logits(p[0]), FORGOTTEN_LOGIT["float64"]),
    ):
        assert np.isnan(filtered[1, [0, 2]]).all()
        assert (filtered[:, [1, 3]] == gone).all()
        np.testing.assert_allclose(filtered[[0, 2]], np.stack([unbroken] * 2))


@pytest.mark.parametrize("method", METHODS)
def test_minus_infinity_is_an_ordinary_logit(method: str) -> None:
    spec = make_filter(4, [3], method, class_means=class_means(MEANS))
    with np.errstate(divide="ignore"):
        z = np.log([0.5, 0.0, 0.3, 0.2])
    q = softmax(spec.logits(z))
    np.testing.assert_allclose(q, spec.probabilities([0.5, 0.0, 0.3, 0.2]), atol=1e-12)
    if method == "renormalize":
        assert spec.logits(z)[1] == -np.inf  # not moved by a bit
    if method == "tempered":
        assert spec.logits(z)[1] == FORGOTTEN_LOGIT["float64"]


@pytest.mark.parametrize("method", METHODS)
def test_all_mass_goes_to_the_only_one_left(method: str) -> None:
    spec = make_filter(4, [0, 1, 3], method, class_means=class_means(MEANS))
    p = np.array([[0.25] * 4, [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0.5, 0.5, 1e-30, 0]])
    np.testing.assert_array_equal(spec.probabilities(p), [[0, 0, 1, 0]] * 5)
    z = np.array([[0, 0, 0, 0], [0, 0, -np.inf, 0], [9.0, 0, -1e5, 0]])
    np.testing.assert_array_equal(softmax(spec.logits(z)), [[0, 0, 1, 0]] * 3)


@pytest.mark.parametrize(
    ("dtype", "gone"), [("float16", -3e4), ("float32", -1e30), ("float64", -1e30), ("int64", -1e30)]
)
def test_the_dtype_decides_the_forgotten_logit(dtype: str, gone: float) -> None:
    filtered = make_filter(3, [0]).logits(np.array([1, 2, 3], dtype))
    assert filtered.dtype == np.float64
    assert filtered[0] == gone


def test_forgotten_logits_are_finite_in_their_dtype() -> None:
    assert all(np.isfinite(np.dtype(name).type(value)) for name, value in FORGOTTEN_LOGIT.items() if name[0] == "f")


# ---------------------------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize(
    ("forgotten", "said"),
    [
        ([], "no class to forget"),
        ([0, 1, 2], "All 3 classes"),
        ([3], "no class 3"),
        ([-1], "no class -1"),
        ([1, 1], "more than once"),
        ([1.0], "not a class index"),
        ([True], "not a class index"),
        (["cat"], "not a class index"),
    ],
)
def test_forget_lists_that_are_refused(forgotten: list[Any], said: str) -> None:
    for attempt in (
        lambda: make_filter(3, forgotten),
        lambda: renormalize([0.2, 0.3, 0.5], forgotten),
        lambda: tempered([0.2, 0.3, 0.5], forgotten),
        lambda: FilterSpec(3, tuple(forgotten), "renormalize"),
    ):
        with pytest.raises(ForgetListError, match=said):
            attempt()


def test_one_class_is_too_few() -> None:
    with pytest.raises(ForgetListError, match="one class must be left"):
        make_filter(1, [0])


def test_numpy_integers_are_class_indices() -> None:
    assert make_filter(3, np.array([2, 0])).forgotten == (0, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.5, 0, -1, np.nan, np.inf, 1001, "2", None])
def test_temperatures_that_are_refused(temperature: Any) -> None:
    with pytest.raises(MPRUError, match="temperature"):
        make_filter(3, [0], temperature=temperature)


def test_unknown_method() -> None:
    with pytest.raises(MPRUError, match="renormalize, mean, gram_schmidt, tempered"):
        make_filter(3, [0], "median")


@pytest.mark.parametrize("scores", [np.zeros((2, 4)), np.float64(1.0), [["a", "b", "c"]], [[1, 2, 3], [1, 2]], 1j])
def test_scores_that_are_refused(scores: Any) -> None:
    for spec in every_filter([1], 3, np.eye(3)):
        with pytest.raises(DataError, match="Class scores"):
            spec.probabilities(scores)
        with pytest.raises(DataError, match="Class scores"):
            spec.logits(scores)


def test_means_that_do_not_fit() -> None:
    with pytest.raises(ClassMeansError, match="needs class means"):
        make_filter(4, [0], "mean")
    with pytest.raises(ClassMeansError, match="means of 4 classes"):
        make_filter(5, [0], "tempered", class_means=class_means(MEANS))
    some = ClassMeans(4, (0, 2), MEANS[[0, 2]], np.array([9, 9]), np.zeros(2), True, "test")
    with pytest.raises(ClassMeansError, match="no mean of class 1"):
        make_filter(4, [0, 1], "mean", class_means=some)
    with pytest.raises(ClassMeansError, match="no mean of class 1, 3"):
        make_filter(4, [0], "gram_schmidt", class_means=some)
    assert make_filter(4, [0], "mean", class_means=some).fallback is not None
    assert make_filter(4, [0, 1], "tempered", class_means=some).fallback is None
    for means in (MEANS[:1, :3], MEANS[:2], MEANS[:1] * np.nan):
        with pytest.raises(ClassMeansError, match="means of the forgotten classes"):
            mean([0.25] * 4, [0], means)
    with pytest.raises(ClassMeansError, match="means of all classes"):
        gram_schmidt([0.25] * 4, [0], MEANS[:3])
    with pytest.raises(ClassMeansError, match="fallback"):
        renormalize([0.25] * 4, [0], fallback=[[0.5, 0.5]])


def test_specs_that_are_refused() -> None:
    spec = make_filter(4, [0], "mean", class_means=class_means(MEANS))
    with pytest.raises(MPRUError, match="needs coefficients and directions"):
        replace(spec, coefficients=None)
    with pytest.raises(MPRUError, match="has no coefficients"):
        replace(spec, method="renormalize", directions=None)
    with pytest.raises(MPRUError, match="has no temperature"):
        replace(spec, temperature=2.0)
    with pytest.raises(MPRUError, match="fallback"):
        replace(spec, fallback=MEANS)
    with pytest.raises(MPRUError, match="does not describe a filter"):
        FilterSpec.from_config({"classes": 4})


def test_constants_cannot_be_changed() -> None:
    spec = make_filter(4, [0], "mean", class_means=class_means(MEANS))
    assert spec.directions is not None
    with pytest.raises(ValueError, match="read-only"):
        spec.directions[0, 0] = 1.0


def test_digest_tells_filters_apart() -> None:
    known = class_means(MEANS)
    specs = [
        make_filter(4, [0]),
        make_filter(4, [1]),
        make_filter(5, [0]),
        make_filter(4, [0], temperature=2.0),
        make_filter(4, [0], "renormalize"),
        make_filter(4, [0], class_means=known),
        make_filter(4, [0], "mean", class_means=known),
        make_filter(4, [0], "gram_schmidt", class_means=known),
    ]
    assert len({spec.digest() for spec in specs}) == len(set(specs)) == len(specs)
    assert specs[0] != "a filter"


# ---------------------------------------------------------------------------------------------------------------
# Multi-label


def test_mask_leaves_the_retained_alone() -> None:
    random = np.random.default_rng(5)
    z = random.normal(0, 4, (20, 6))
    z[3, 2], z[4, 0], z[5, 1] = np.nan, np.inf, -np.inf
    p = 1 / (1 + np.exp(-z))
    spec = make_filter(6, [4, 1], MASK)
    assert (spec.method, spec.forgotten, spec.temperature, spec.fallback) == (MASK, (1, 4), None, None)
    kept = list(spec.retained)
    np.testing.assert_array_equal(spec.probabilities(p)[:, kept], p[:, kept])
    np.testing.assert_array_equal(mask(p, [1, 4]), spec.probabilities(p))
    assert (spec.probabilities(p)[:, [1, 4]] == 0.0).all()
    np.testing.assert_array_equal(spec.logits(z)[:, kept], z[:, kept])
    assert (spec.logits(z)[:, [1, 4]] == FORGOTTEN_LOGIT["float64"]).all()
    assert (spec.logits(z.astype(np.float16))[:, [1, 4]] == FORGOTTEN_LOGIT["float16"]).all()
    assert FilterSpec.from_config(json.loads(json.dumps(spec.to_config()))) == spec
    assert spec != make_filter(6, [4, 1], "renormalize")
    assert make_filter(6, [1, 4], MASK, class_means=class_means(confident_means(random, 6))) == spec  # not needed


@pytest.mark.parametrize("forgotten", [[], [0, 1], [2], [0, 0]])
def test_mask_refuses_what_the_other_methods_refuse(forgotten: list[int]) -> None:
    with pytest.raises(ForgetListError):
        make_filter(2, forgotten, MASK)
    with pytest.raises(ForgetListError):
        mask([0.5, 0.5], forgotten)
