"""The backend ops against the reference: margins are equal to the bit, whatever the rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from forests import random_forest, tricky_rows

from mpru_tf.trees import lowering
from mpru_tf.trees.forest import LINKS, Forest, Tree
from mpru_tf.trees.lowering import ROWS_AT_ONCE, OpsBackend, lower
from mpru_tf.trees.predicate_table import build_table, positions
from mpru_tf.trees.xgboost_model import read_xgboost

MODELS = sorted(Path(__file__).parent.joinpath("models").glob("xgboost_*.[ju]*"))


def check(forest: Forest, rows: int = 400, seed: int = 0) -> None:
    x = tricky_rows(forest, rows, seed)
    backend = OpsBackend(forest)
    np.testing.assert_array_equal(backend.margins(tf.constant(x)).numpy(), forest.margins(x))
    np.testing.assert_allclose(backend(tf.constant(x)).numpy(), forest.probabilities(x), rtol=0, atol=3e-7)


@pytest.fixture(params=["table", "small table", "no table"])
def tables(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where a forest's first levels are looked up, and where they are walked because a table would be too large."""
    largest = {"table": 2**30, "small table": None, "no table": 0}[request.param]

    def smaller(forest: Forest, largest_table: int = 0) -> lowering.Lowered:
        if largest is not None:
            return lower(forest, largest)
        small = build_table(list(forest.trees), 3, 2**30)
        return lower(forest, (small.rows.nbytes * 2) if small else 0)

    monkeypatch.setattr(lowering, "lower", smaller)
    return str(request.param)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 6, 7, 10])
def test_any_depth(depth: int, tables: str) -> None:
    check(random_forest(depth, depth=depth))


@pytest.mark.parametrize("link", LINKS)
def test_any_link(link: str, tables: str) -> None:
    check(random_forest(1, outputs=1 if link in ("sigmoid", "step") else 4, link=link))


def test_leaves_that_add_to_all_outputs(tables: str) -> None:
    check(random_forest(2, vector=True))
    check(random_forest(3, vector=True, outputs=1, link="sigmoid"))


@pytest.mark.parametrize("n_features", [1, 40])
def test_few_and_many_features(n_features: int, tables: str) -> None:
    check(random_forest(4, n_features=n_features, trees=30))


def test_more_trees_than_a_word_holds_and_fewer(tables: str) -> None:
    for trees in (1, 5, 8, 17):
        check(random_forest(5, trees=trees, outputs=1, link="sigmoid", depth=4))


def test_full_trees_fill_every_bit(tables: str) -> None:
    check(random_forest(6, full=True, trees=9))


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_models_that_xgboost_wrote(path: Path, tables: str) -> None:
    check(read_xgboost(path))


def test_what_it_chooses() -> None:
    deep, flat = random_forest(7, depth=9, full=True), random_forest(7, depth=3, full=True)
    assert (lower(flat).table.levels, lower(flat).steps) == (3, 0)  # type: ignore[union-attr]
    assert (lower(deep).table.levels, lower(deep).steps) == (6, 3)  # type: ignore[union-attr]
    assert lower(deep, largest_table=0).table is None
    # With hardly a feature shared, most of a larger table would be zeros: it would be slower than a walk.
    wide = random_forest(8, full=True, trees=100, n_features=5000)
    assert (lower(wide).table.levels, lower(wide).steps) == (3, 3)  # type: ignore[union-attr]


def leaf(value: float) -> Tree:
    none = np.zeros(1, np.int32)
    return Tree.arrange(none - 1, none, none, np.zeros(1, np.float32), none, np.array([[value]], np.float32), {})


def test_trees_that_ask_nothing() -> None:
    base = np.array([0.5, -0.25], np.float32)
    none = Forest((), np.zeros(0, np.int32), base, 3, "softmax")
    check(none, rows=5)
    check(Forest((leaf(2.0), leaf(-1.0)), np.arange(2, dtype=np.int32), base, 3, "softmax"), rows=5)


def test_a_question_with_one_answer_for_all() -> None:
    always = Tree.arrange(
        left=np.array([1, -1, -1]),
        right=np.array([2, -1, -1]),
        feature=np.zeros(3, int),
        threshold=np.array([-np.inf, 0, 0], np.float32),
        default_left=np.zeros(3, int),
        values=np.array([[0], [1], [2]], np.float32),
        categories={},
    )
    check(Forest((always,), np.zeros(1, np.int32), np.zeros(1, np.float32), 1, "sigmoid"), rows=50)


@pytest.mark.parametrize("rows", [0, 1, ROWS_AT_ONCE, ROWS_AT_ONCE + 1, 2 * ROWS_AT_ONCE + 7])
def test_batches_of_any_size(rows: int) -> None:
    forest = random_forest(9)
    backend = OpsBackend(forest)
    x = tricky_rows(forest, rows)
    whole = tf.function(backend.margins, input_signature=[tf.TensorSpec([None, forest.n_features], tf.float32)])
    for margins in (backend.margins(tf.constant(x)), whole(x)):
        assert margins.shape == (rows, forest.outputs)
        np.testing.assert_array_equal(margins.numpy(), forest.margins(x))


def test_with_very_many_trees_fewer_rows_are_answered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowering, "MOST_EXITS", 100)
    forest = random_forest(9)
    backend = OpsBackend(forest)
    assert backend._rows_at_once == 100 // 16
    check(forest, rows=50)


def test_a_table_that_would_be_too_large_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    forest = random_forest(13, full=True)
    whole = build_table(list(forest.trees), 6, 2**30)
    assert whole is not None
    monkeypatch.setattr("mpru_tf.trees.predicate_table._states", None)  # would fail if it were asked
    thresholds = {
        (int(tree.feature[node]), float(tree.threshold[node]))
        for tree in forest.trees
        for node in np.flatnonzero((tree.left >= 0) & ~tree.categorical).tolist()
    }
    row = whole.rows.shape[1] * 4
    assert build_table(list(forest.trees), 6, (len(thresholds) - 1) * row) is None


def test_the_graph_does_not_compare_floats() -> None:
    """In TensorFlow's threads a subnormal number is 0, so a comparison would send it the wrong way."""
    forest = random_forest(10)
    graph = (
        tf.function(OpsBackend(forest).margins).get_concrete_function(tf.TensorSpec([None, forest.n_features])).graph
    )
    readers = [op for op in graph.get_operations() if any(t is graph.inputs[0] for t in op.inputs)]
    assert readers
    inside = graph.as_graph_def()
    comparisons = [
        node.name
        for nodes in [inside.node, *(function.node_def for function in inside.library.function)]
        for node in nodes
        if node.op in ("Less", "LessEqual", "Greater", "GreaterEqual")
        and node.attr["T"].type == tf.float32.as_datatype_enum
    ]
    assert comparisons == []


def test_positions_repeat_a_leaf_below_itself() -> None:
    tree = random_forest(11, trees=1, depth=2).trees[0]
    at = positions(tree, 3)
    assert len(at) == 8
    assert (tree.left[at] < 0).all()
    assert list(at) == sorted(at, key=list(at).index)


def test_a_forest_too_large_for_a_node_number(monkeypatch: pytest.MonkeyPatch) -> None:
    from mpru_tf.errors import UnsupportedModelError
    from mpru_tf.trees import descent

    monkeypatch.setattr(descent, "COLUMN_BITS", 1)
    with pytest.raises(UnsupportedModelError, match="too large for the backend ops"):
        lower(random_forest(12), largest_table=0)
