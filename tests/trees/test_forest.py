"""What a forest means, on trees small enough to follow by hand, and what is no forest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpru_tf.errors import CorruptModelError, DataError
from mpru_tf.trees.forest import CATEGORY_LIMIT, LINKS, VECTOR, Forest, Tree, link_probabilities

F32 = np.float32


def tree(**changes: Any) -> Tree:
    """``x0 < 0.5 ? (x1 in {1, 33} ? 3 : 2) : 1``, its nodes in no order, one of them unreached; NaN: left, then right.

    Node 3 is the inner child, 5 was deleted.
    """
    given: dict[str, Any] = {
        "left": np.array([3, -1, -1, 4, -1, -1]),
        "right": np.array([1, -1, -1, 2, -1, -1]),
        "feature": np.array([0, 9, 9, 1, 9, 2**31]),
        "threshold": np.array([0.5, 0, 0, np.nan, 0, 0], F32),
        "default_left": np.array([1, 0, 0, 0, 0, 0]),
        "values": np.array([[9], [1], [3], [9], [2], [np.inf]], F32),
        "categories": {3: np.array([33, 1, 33]), 5: np.array([-7])},
    }
    return Tree.arrange(**(given | changes))


def forest(*trees: Tree, **changes: Any) -> Forest:
    given: dict[str, Any] = {
        "trees": trees or (tree(),),
        "groups": np.zeros(len(trees) or 1, np.int32),
        "base_margin": np.array([0.25], F32),
        "n_features": 2,
        "link": "sigmoid",
    }
    return Forest(**(given | changes))


def stump(threshold: float, below: Any, above: Any) -> Tree:
    values = np.array([np.zeros_like(below), below, above], F32).reshape(3, -1)
    return Tree.arrange(
        left=np.array([1, -1, -1]),
        right=np.array([2, -1, -1]),
        feature=np.zeros(3, int),
        threshold=np.array([threshold, 0, 0], F32),
        default_left=np.zeros(3, int),
        values=values,
        categories={},
    )


def test_nodes_come_level_by_level_and_those_not_reached_are_gone() -> None:
    made = tree()
    assert made.left.tolist() == [1, 3, -1, -1, -1]
    assert made.feature.tolist() == [0, 1, 0, 0, 0]
    assert made.threshold.tolist() == [0.5, 0, 0, 0, 0]
    assert made.default_left.tolist() == [True, False, False, False, False]
    assert made.categorical.tolist() == [False, True, False, False, False]
    assert made.category_start.tolist() == [0, 0, 2, 2, 2, 2]
    assert made.categories.tolist() == [1, 33]
    assert made.values.ravel().tolist() == [0, 0, 1, 2, 3]
    assert (made.nodes, made.depth, made.width) == (5, 2, 1)


@pytest.mark.parametrize(
    ("row", "value"),
    [
        ((0.5, 1), 1),
        ((np.nextafter(F32(0.5), F32(0)), 1), 3),
        ((np.nextafter(F32(0.5), F32(1)), 1), 1),
        ((0.5 - 1e-12, 1), 1),  # compared in float32
        ((np.inf, 1), 1),
        ((-np.inf, 1), 3),
        ((1e300, 1), 1),
        ((np.nan, 1), 3),
        ((0, np.nan), 3),
        ((0, 33), 3),
        ((0, 33.9), 3),
        ((0, 1.5), 3),
        ((0, 0.9), 2),
        ((0, 0), 2),
        ((0, 34), 2),
        ((0, -0.0), 2),
        ((0, -0.5), 2),
        ((0, -1), 2),
        ((0, CATEGORY_LIMIT + 1), 2),
        ((0, np.inf), 2),
        ((0, -np.inf), 2),
    ],
)
def test_where_a_row_goes(row: tuple[float, float], value: float) -> None:
    assert forest().margins([row]).tolist() == [[value + 0.25]]


def test_minus_zero_is_the_code_zero_and_the_limit_is_none() -> None:
    made = tree(categories={3: np.array([0, CATEGORY_LIMIT - 1])})
    rows = [(0, -0.0), (0, -0.5), (0, CATEGORY_LIMIT - 1), (0, CATEGORY_LIMIT)]
    assert forest(made).margins(rows).ravel().tolist() == [3.25, 2.25, 3.25, 2.25]


def test_a_categorical_node_without_categories_sends_every_code_left() -> None:
    made = tree(categories={3: np.array([], int)})
    assert forest(made).margins([(0, 1), (0, np.nan)]).ravel().tolist() == [2.25, 3.25]


def test_a_threshold_may_be_infinite() -> None:
    assert forest(stump(np.inf, 1, 2)).margins([(1e30, 0), (np.inf, 0)]).ravel().tolist() == [1.25, 2.25]


def test_trees_are_added_in_float32_and_in_their_order() -> None:
    trees = [stump(0, value, 0) for value in (1e8, 1, -1e8)]
    assert forest(*trees).margins([(-1, 0)]).tolist() == [[0]]
    assert forest(trees[0], trees[2], trees[1], base_margin=np.zeros(1, F32)).margins([(-1, 0)]).tolist() == [[1]]


def test_trees_add_to_their_group_or_to_all() -> None:
    made = forest(
        stump(0, 1, 2),
        stump(0, [10, 20, 30], [40, 50, 60]),
        groups=np.array([2, VECTOR], np.int32),
        base_margin=np.array([0.5, 0, 0], F32),
        link="softmax",
    )
    assert made.margins([(-1, 0), (1, 0)]).tolist() == [[10.5, 20, 31], [40.5, 50, 62]]
    assert (made.outputs, made.classes, made.nodes) == (3, 3, 6)


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_any_number_of_rows(rows: int) -> None:
    made = forest()
    assert made.margins(np.zeros((rows, 2))).shape == (rows, 1)
    assert made.probabilities(np.zeros((rows, 2))).shape == (rows, 2)
    assert made.probabilities(np.zeros((rows, 2))).dtype == np.float32


@pytest.mark.parametrize("x", [np.zeros(2), np.zeros((1, 3)), [["a", "b"]], [[1, 2], [3]], None])
def test_rows_that_do_not_fit(x: Any) -> None:
    with pytest.raises(DataError):
        forest().margins(x)


# ------------------------------------------------------------------------------------------------------------ links
@given(st.lists(st.floats(-200, 200, width=32), min_size=3, max_size=3))
def test_links_agree_with_float64(values: list[float]) -> None:
    margins = np.array([values], F32)
    wide = margins.astype(np.float64)
    powers = np.exp(wide - wide.max())
    softmax, sigmoid = link_probabilities("softmax", margins), link_probabilities("multi_label", margins)
    assert softmax.dtype == sigmoid.dtype == np.float32
    np.testing.assert_allclose(softmax, powers / powers.sum(), atol=3e-7)
    np.testing.assert_allclose(sigmoid, 1 / (1 + np.exp(-wide)), atol=3e-7)
    one = link_probabilities("sigmoid", margins[:, :1])
    np.testing.assert_array_equal(one, [[1 - sigmoid[0, 0], sigmoid[0, 0]]])


def test_a_step_is_above_zero() -> None:
    margins = np.array([[-1], [0], [1e-30]], F32)
    assert link_probabilities("step", margins).tolist() == [[1, 0], [1, 0], [0, 1]]


# ----------------------------------------------------------------------------------------------- no tree, no forest
@pytest.mark.parametrize(
    "changes",
    [
        {"left": np.array([0, -1, -1, 4, -1, -1])},  # the root again
        {"left": np.array([3, -1, -1, 3, -1, -1])},  # its own child
        {"left": np.array([3, -1, -1, 1, -1, -1])},  # two parents
        {"left": np.array([3, -1, -1, 2, -1, -1])},  # the same child twice
        {"left": np.array([6, -1, -1, 4, -1, -1])},  # out of range
        {"right": np.array([-1, -1, -1, 2, -1, -1])},  # one child only
        {"right": np.array([2**40, -1, -1, 2, -1, -1])},
        {"threshold": np.full(6, np.nan, F32)},
        {"feature": np.array([-1, 0, 0, 1, 0, 0])},
        {"feature": np.array([2**31, 0, 0, 1, 0, 0])},
        {"values": np.full((6, 1), np.nan, F32)},
        {"values": np.full((6, 1), np.inf, F32)},
        {"categories": {3: np.array([-1])}},
        {"categories": {3: np.array([CATEGORY_LIMIT])}},
        {name: np.zeros(0, int) for name in ("left", "right", "feature", "default_left")},
    ],
)
def test_no_tree(changes: dict[str, Any]) -> None:
    with pytest.raises(CorruptModelError, match="tree is damaged"):
        tree(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"left": np.array([1, -1, 3, -1, 1], np.int32)},
        {"left": np.array([1, 3, -1, -1], np.int32)},
        {"left": np.array([1, 3, -1, -1, -1])},  # int64
        {"values": np.zeros(5, F32)},
        {"category_start": np.array([0, 0, 3, 2, 2, 2], np.int32)},
        {"category_start": np.array([0, 0, 1, 1, 1, 1], np.int32)},
        {"categories": np.array([33, 1], np.int32)},
        {"categories": np.array([1, 1], np.int32)},
    ],
)
def test_a_tree_is_checked_however_it_is_made(changes: dict[str, Any]) -> None:
    with pytest.raises(CorruptModelError):
        replace(tree(), **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"groups": np.array([1], np.int32)},
        {"groups": np.array([-2], np.int32)},
        {"groups": np.zeros(2, np.int32)},
        {"base_margin": np.array([np.nan], F32)},
        {"base_margin": np.zeros(2, F32)},
        {"base_margin": np.zeros(1, F32), "link": "softmax"},
        {"n_features": 1},
        {"n_features": 0},
        {"feature_names": ("a",)},
        {"trees": (stump(0, [1, 2], [3, 4]),)},
    ],
)
def test_no_forest(changes: dict[str, Any]) -> None:
    with pytest.raises(CorruptModelError):
        replace(forest(), **changes)


def test_links_have_names() -> None:
    assert LINKS == ("softmax", "sigmoid", "step", "multi_label")
    with pytest.raises(CorruptModelError, match="probit.*softmax"):
        replace(forest(), link="probit")


def test_a_forest_cannot_be_changed() -> None:
    made = forest()
    for array in (made.base_margin, made.groups, made.trees[0].values, made.trees[0].left):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
