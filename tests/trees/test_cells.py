"""Cells: within one, no split tells two values apart; and every value is in the cell that it belongs to."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from forests import NANS, SPECIAL, random_forest, tricky_rows
from hypothesis import given
from hypothesis import strategies as st

from mpru_tf.trees.cells import _ONE_BLOCK, cell_starts, examples, goes_right, tabulate
from mpru_tf.trees.forest import Splits

F32 = np.float32


def splits(*thresholds: float, codes: tuple[int, ...] = (), missing_left: bool = True) -> Splits:
    nodes = len(thresholds) + bool(codes)
    categorical = np.arange(nodes) >= len(thresholds)
    return Splits(
        threshold=np.array([*thresholds, *[0.0] * bool(codes)], F32),
        default_left=np.full(nodes, missing_left),
        categorical=categorical,
        category_start=np.concatenate([[0], np.cumsum(np.where(categorical, len(codes), 0))]).astype(np.int32),
        categories=np.array(sorted(codes), np.int32),
    )


def cell_of(values: npt.NDArray[np.float32], starts: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    return np.searchsorted(starts, values.view(np.int32), side="right")


def check(found: Splits, values: npt.NDArray[np.float32]) -> None:
    starts = cell_starts(found)
    assert (np.diff(starts.astype(np.int64)) > 0).all()
    nodes = np.arange(len(found.threshold))
    direct = ~found.goes_left(nodes[np.newaxis], values[:, np.newaxis])
    np.testing.assert_array_equal(goes_right(found, starts)[cell_of(values, starts)], direct)


@pytest.mark.parametrize("threshold", [0.0, -0.0, 1.5, -1.5, 1e-45, -1e-45, 3.4e38, -3.4e38, np.inf, -np.inf])
@pytest.mark.parametrize("missing_left", [True, False])
def test_values_at_and_beside_a_threshold(threshold: float, missing_left: bool) -> None:
    at = np.array([threshold], F32)
    with np.errstate(over="ignore"):
        beside = [np.nextafter(at, F32(np.inf)), np.nextafter(at, F32(-np.inf))]
    check(splits(threshold, missing_left=missing_left), np.concatenate([at, *beside, SPECIAL, NANS]))


@pytest.mark.parametrize("codes", [(0,), (1,), (0, 1, 2), (3, 7), (2**24 - 1,)])
def test_category_codes(codes: tuple[int, ...]) -> None:
    around = np.array([code + by for code in codes for by in (-1, -0.5, 0, 0.5, 0.999, 1)], F32)
    check(splits(codes=codes), np.concatenate([around, SPECIAL, NANS]))
    check(splits(0.5, -3.0, codes=codes, missing_left=False), np.concatenate([around, SPECIAL, NANS]))


@given(
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=8),
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=50),
    st.booleans(),
)
def test_any_bit_pattern(thresholds: list[float], patterns: list[int], missing_left: bool) -> None:
    check(splits(*thresholds, missing_left=missing_left), np.array(patterns, np.int32).view(F32))


def test_each_cell_has_an_example_in_it() -> None:
    starts = cell_starts(splits(-2.0, 0.0, 7.5, codes=(4,)))
    np.testing.assert_array_equal(cell_of(examples(starts), starts), np.arange(len(starts) + 1))


@pytest.mark.parametrize("long", [3, _ONE_BLOCK])
def test_a_table_finds_the_number_of_a_cell(long: int) -> None:
    """With a long column among short ones, the short ones are not padded to its length."""
    starts = [np.array([0, 5]), np.arange(long), np.array([7]), np.array([-9, 0, 9])]
    starts = [each.astype(np.int32) for each in starts]
    numbers = [np.arange(len(each) + 1) + 100 * row for row, each in enumerate(starts)]
    table = tabulate([4, 3, 2, 1], starts, numbers)
    assert len(table.blocks) == (1 if long == 3 else 2)
    assert sum(block.size for block in table.blocks) < long + 20
    rows = [row for block in table.blocks for row in block]
    for pattern in (-10, -9, 0, 4, 5, 6, 7, 8, 9, 2**31 - 1):
        for row, column, feature, first in zip(rows, table.order, table.features, table.firsts, strict=True):
            assert feature == 4 - column
            want = numbers[column][np.searchsorted(starts[column], pattern, side="right")]
            assert table.numbers[first + np.searchsorted(row, pattern, side="right")] == want


def test_random_forests() -> None:
    for seed in range(5):
        forest = random_forest(seed)
        x = tricky_rows(forest, 200, seed)
        for tree in forest.trees:
            for feature in range(forest.n_features):
                nodes = np.flatnonzero((tree.left >= 0) & (tree.feature == feature))
                check(tree.splits.select(nodes), x[:, feature])
