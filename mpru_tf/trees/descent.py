"""Walking down trees a level at a time, in NumPy arrays: what :mod:`mpru_tf.trees.lowering` gathers from.

For the levels that no :mod:`table of predicates <mpru_tf.trees.predicate_table>` holds: those of deep trees, and all of
them where a table would be too large or too slow. Every node asks the same kind of question of a *column*, whose value
is an integer: is it at least my rank? A column is a feature seen in one way:

=============================  ========================================================================================
column                         its value, for each cell of its feature
=============================  ========================================================================================
feature, missing goes left     how many of the thresholds are not above the value; 0 for NaN
feature, missing goes right    the same; for NaN, how many thresholds there are
feature, some categories,      1 where the value goes right, else 0
where missing goes
=============================  ========================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mpru_tf.errors import UnsupportedModelError, explain
from mpru_tf.trees.cells import CellTable, cell_starts, examples, goes_right, tabulate
from mpru_tf.trees.forest import Ints, Splits, Tree

RANK_BITS, COLUMN_BITS = 24, 16
"""A node is one int64: its left child above, then its column, then its rank."""

_NEVER = 2**RANK_BITS - 1


@dataclass(frozen=True, eq=False)
class Descent:
    """All nodes of some trees, numbered through.

    Attributes:
        columns: int64: the value of each column in each of its cells.
        nodes: int64 ``[nodes]``: left child, column and rank of each. The right child is the next one. A leaf is its
            own left child and has a rank that no column reaches.
        roots: int64 ``[trees]``, where each tree begins.
    """

    columns: CellTable
    nodes: npt.NDArray[np.int64]
    roots: npt.NDArray[np.int64]


def build_descent(trees: Sequence[Tree]) -> Descent:
    """Number the nodes of trees through and give each its column and rank. Some tree has an inner node.

    Raises:
        UnsupportedModelError: there are too many nodes or columns for an int64.
    """
    roots = np.cumsum([0, *(tree.nodes for tree in trees)])
    total = int(roots[-1])
    feature = np.concatenate([tree.feature for tree in trees])
    left = np.concatenate(
        [np.where(tree.left < 0, -1, tree.left + root) for tree, root in zip(trees, roots[:-1], strict=True)]
    )
    inner = left >= 0
    splits = Splits.join([tree.splits for tree in trees])

    column = np.zeros(total, np.int64)
    rank = np.where(inner, 0, _NEVER)
    features: list[int] = []
    starts: list[Ints] = []
    values: list[npt.NDArray[np.int64]] = []
    for number in np.unique(feature[inner]).tolist():
        at = np.flatnonzero(inner & (feature == number))
        mine = splits.select(at)
        begins = cell_starts(mine)
        value = examples(begins)
        missing = np.isnan(value)
        thresholds = np.unique(mine.threshold[~mine.categorical])
        reached = np.searchsorted(thresholds, value, side="right")
        for default_left in (True, False):
            chosen = ~mine.categorical & (mine.default_left == default_left)
            if bool(chosen.any()):
                column[at[chosen]] = len(features)
                rank[at[chosen]] = np.searchsorted(thresholds, mine.threshold[chosen]) + 1
                features.append(number)
                starts.append(begins)
                values.append(np.where(missing, 0 if default_left else len(thresholds), reached))
        seen: dict[tuple[bytes, bool], int] = {}
        for node in np.flatnonzero(mine.categorical).tolist():
            key = mine.codes(node).tobytes(), bool(mine.default_left[node])
            if key not in seen:
                seen[key] = len(features)
                features.append(number)
                starts.append(begins)
                values.append(goes_right(mine.select(np.array([node])), begins)[:, 0].astype(np.int64))
            column[at[node]] = seen[key]
            rank[at[node]] = 1
    longest = max(map(len, starts), default=0)
    if total >= 2 ** (63 - RANK_BITS - COLUMN_BITS) or len(features) >= 2**COLUMN_BITS or longest >= _NEVER - 1:
        raise UnsupportedModelError(
            explain(
                "The forest is too large for the backend ops.",
                received=f"{total} nodes, {len(features)} features or sets of categories in use",
                valid=f"fewer than {2 ** (63 - RANK_BITS - COLUMN_BITS)} nodes and {2**COLUMN_BITS} of the others",
                hint="Train with fewer trees, or serve the first of them (best_iteration).",
            )
        )
    columns = tabulate(features, starts, values)
    places = np.argsort(columns.order)
    own = np.where(inner, left, np.arange(total))
    return Descent(
        columns=columns,
        nodes=(own << (RANK_BITS + COLUMN_BITS)) | (places[column] << RANK_BITS) | rank,
        roots=roots[:-1].astype(np.int64),
    )
