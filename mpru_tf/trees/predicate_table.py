"""The first levels of all trees of a forest as one table look-up, in NumPy: what :mod:`mpru_tf.trees.lowering` runs.

A tree of up to six levels asks at most 63 yes/no questions. Here all of them are asked at once, of all trees, with
nine bytes per tree:

* byte 0 holds the seven questions of the first three levels, bytes 1 to 8 those of the eight subtrees below::

      bit   0      1 2 3          4 5 6
            root   left, its two  right, its two        (the same order in every byte)

* A row of the table belongs to a *group* of features and one combination of their states: all questions about these
  features, answered. Two values of a feature are the same state if no node in the table tells them apart, so a
  feature with n thresholds has n + 1 states, and one more if a missing value is like none of them. Features with few
  states share a group.
* Different groups answer different questions, so their rows have no bit in common, and **the sum of one row per group
  is the answer to all questions**. A sum over chosen rows is one operation of TensorFlow.

The bytes lie plane by plane, ``[1 or 9 planes, trees]``, so that eight trees are one int64, and steps down the trees
are taken for eight trees at a time (:mod:`mpru_tf.trees.lowering`). Our own formalisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mpru_tf.trees.cells import CellTable, cell_starts, goes_right, tabulate
from mpru_tf.trees.forest import Ints, Splits, Tree

WORD = 8
"""Trees whose bytes share an int64."""

_BITS = np.array([0, 1, 4, 2, 3, 5, 6])
"""The bit of each node of a subtree of three levels, numbered level by level."""

_SHARED_ROWS = 256
"""A group of several features has at most this many rows."""

_CACHE_LINE = 64
"""Rows begin where cache lines do: sums over them take half as long."""


@dataclass(frozen=True, eq=False)
class PredicateTable:
    """The table, and how a value finds its row.

    Attributes:
        levels: how many levels of the trees are in it, 3 or 6.
        trees: columns of bytes, a multiple of 8; those beyond the forest's trees are empty.
        parts: float32: what a feature that is in a cell adds to its group's row number.
        groups: float32 ``[columns, groups]``, 1 where a feature belongs to a group, else 0.
        rows: int32 ``[rows, planes * trees / 4]``, and zeros up to a multiple of 16; two int32 are one int64 of eight
            trees.
    """

    levels: int
    trees: int
    parts: CellTable
    groups: npt.NDArray[np.float32]
    rows: npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class _Head:
    """The nodes of the first levels, of all trees."""

    splits: Splits
    feature: Ints
    byte: npt.NDArray[np.int64]
    bit: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _States:
    """The cells of a feature, and what is different among them."""

    starts: Ints
    state: npt.NDArray[np.int64]  # [cells]
    touched: npt.NDArray[np.int64]  # the bytes of a row that a question about this feature lies in
    answers: npt.NDArray[np.uint8]  # [states, touched]


def positions(tree: Tree, levels: int) -> npt.NDArray[np.int64]:
    """The nodes that a tree has after some levels: int64 ``[2 ** levels]``. A leaf before that stands below itself."""
    at = np.zeros(1, np.int64)
    for _ in range(levels):
        at = _children(tree, at)
    return at


def _children(tree: Tree, at: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    left = tree.left[at]
    inner = left >= 0
    both: npt.NDArray[np.int64] = np.stack([np.where(inner, left, at), np.where(inner, left + 1, at)], axis=1).ravel()
    return both


def build_table(trees: list[Tree], levels: int, largest: int) -> PredicateTable | None:
    """Make the table of the first 3 or 6 levels of trees.

    Args:
        trees: in the order of their bytes.
        levels: 3 or 6.
        largest: bytes that the table may take.

    Returns:
        None if there would be nothing in the table, or it would be larger.
    """
    width = -(-len(trees) // WORD) * WORD
    head = _head(trees, levels, width)
    used = np.unique(head.feature)
    row_bytes = -(-width * (1 if levels == 3 else 9) // _CACHE_LINE) * _CACHE_LINE
    numeric = ~head.splits.categorical
    thresholds = head.splits.threshold[numeric] + np.float32(0)  # -0.0 is 0
    distinct = np.unique(head.feature[numeric] * np.int64(2**32) + thresholds.view(np.int32))
    # Each threshold makes one state more. Counted first: the states are found by way of cells times nodes.
    if not len(used) or max(len(distinct), 1) * row_bytes > largest:
        return None
    states: list[_States] = []
    least = 0
    for feature in used.tolist():
        states.append(_states(head, np.flatnonzero(head.feature == feature)))
        least += len(states[-1].answers) * row_bytes
        if least > largest:
            return None
    groups = _groups([len(found.answers) for found in states])
    sizes = [int(np.prod([len(states[column].answers) for column in group])) for group in groups]
    if sum(sizes) * row_bytes > largest or sum(sizes) >= 2**24:  # row numbers are added up in float32
        return None

    parts = [np.zeros(0, np.float32)] * len(used)
    member = np.zeros((len(used), len(groups)), np.float32)
    rows = np.zeros((sum(sizes), row_bytes), np.uint8)
    first = 0
    for number, (group, size) in enumerate(zip(groups, sizes, strict=True)):
        stride = 1
        for place, column in enumerate(group):
            found = states[column]
            parts[column] = (found.state * stride + (first if place == 0 else 0)).astype(np.float32)
            member[column, number] = 1
            chosen = np.arange(size) // stride % len(found.answers)
            rows[first : first + size, found.touched] += found.answers[chosen]
            stride *= len(found.answers)
        first += size
    table = tabulate(used.tolist(), [found.starts for found in states], parts)
    return PredicateTable(levels, width, table, member[table.order], rows.view(np.int32))


def _head(trees: list[Tree], levels: int, width: int) -> _Head:
    splits, features, byte, bit = [], [], [], []
    for number, tree in enumerate(trees):
        at = np.zeros(1, np.int64)
        for level in range(levels):
            inner = np.flatnonzero(tree.left[at] >= 0)
            if level < 3:
                planes = np.zeros(len(inner), np.int64)
                within = (1 << level) - 1 + inner
            else:
                planes = 1 + (inner >> (level - 3))
                within = (1 << (level - 3)) - 1 + (inner & ((1 << (level - 3)) - 1))
            # Below a leaf the same leaf stands many times; only nodes that ask something are left here.
            splits.append(tree.splits.select(at[inner]))
            features.append(tree.feature[at[inner]])
            byte.append(planes * width + number)
            bit.append(_BITS[within])
            at = _children(tree, at)
    return _Head(Splits.join(splits), np.concatenate(features), np.concatenate(byte), np.concatenate(bit))


def _states(head: _Head, nodes: npt.NDArray[np.int64]) -> _States:
    nodes = nodes[np.argsort(head.byte[nodes], kind="stable")]
    splits = head.splits.select(nodes)
    starts = cell_starts(splits)
    touched, firsts = np.unique(head.byte[nodes], return_index=True)
    answers = goes_right(splits, starts).astype(np.uint8) << head.bit[nodes].astype(np.uint8)
    packed = np.add.reduceat(answers, firsts, axis=1, dtype=np.uint8)
    distinct, state = np.unique(packed, axis=0, return_inverse=True)
    return _States(starts, state.reshape(-1).astype(np.int64), touched, distinct)


def _groups(states: list[int]) -> list[list[int]]:
    """Columns that share rows: those with few states together, as long as their combinations stay few."""
    groups: list[list[int]] = []
    product = 0
    for column in np.argsort(states, kind="stable").tolist():
        if groups and product * states[column] <= _SHARED_ROWS:
            groups[-1].append(column)
            product *= states[column]
        else:
            groups.append([column])
            product = states[column]
    return groups
