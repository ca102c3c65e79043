"""The backend ``ops``: a decision forest in plain TensorFlow operations, exact and fast.

Nothing but operations that every TensorFlow Serving has on the CPU, and no float comparison: values are placed by
their bit patterns (:mod:`mpru_tf.trees.cells`), so subnormal numbers, infinities, both zeros and NaN go where XGBoost
sends them. In the order of a request:

1. *cells*: one ``UpperBound`` per request places every value of every feature;
2. *table*: one ``SparseSegmentSum`` answers all questions of the first three or six levels of all trees
   (:mod:`mpru_tf.trees.predicate_table`);
3. *steps*: of these answers, eight trees to an int64, bit operations pick those on the way down;
4. *descent*: deeper levels, if there are any, are walked by ``Gather`` (:mod:`mpru_tf.trees.descent`);
5. *sum*: one ``SparseTensorDenseMatMul`` looks the leaves up and adds them, tree by tree, in float32 and in the order
   in which XGBoost adds them: in another order, probabilities differ by up to 2e-6.

Steps 1 to 3 replace 63 comparisons per tree by 9 bytes per tree and group of features; benchmarks/NOTES.md has what
else was tried, and the figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mpru_tf.trees.cells import CellTable
from mpru_tf.trees.descent import COLUMN_BITS, RANK_BITS, Descent, build_descent
from mpru_tf.trees.forest import VECTOR, Floats, Forest, Tree
from mpru_tf.trees.links import probabilities
from mpru_tf.trees.predicate_table import WORD, PredicateTable, build_table, positions

LARGEST_TABLE = 256 * 2**20
"""Bytes that the table of predicates may take."""

ROWS_AT_ONCE = 1024
"""Larger batches are answered this many rows at a time: what lies between two operations takes 20 to 40 kB a row."""

MOST_EXITS = 2**22
"""Rows times trees that are answered at once: with very many trees, fewer rows."""

_EACH_BYTE = np.int64(0x0101010101010101)

# What a row costs in ns on one core of 2024, to choose how many levels the table takes. Only their ratios matter.
_PER_GROUP, _PER_TABLE_BYTE, _PER_STEP = 30.0, 0.05, 12.0


@dataclass(frozen=True, eq=False)
class Lowered:
    """A forest as the arrays that the operations read.

    Attributes:
        table: the first levels, or None if all are walked.
        starts: int64 ``[trees * 2 ** levels]``: the node that a tree stands at after them; None if nothing is left to
            walk.
        descent: the nodes for the levels that are left, or None.
        steps: how many levels are left.
        leaves: float32 ``[exits, width]``, what a tree adds when it ends here. An exit is a node of the descent, or,
            without one, ``tree * 2 ** levels + place``.
        owners: int64 ``[trees]``, the output that a tree adds to; all 0 if ``width`` is the number of outputs.
        outputs: number of margins.
    """

    table: PredicateTable | None
    starts: npt.NDArray[np.int64] | None
    descent: Descent | None
    steps: int
    leaves: Floats
    owners: npt.NDArray[np.int64]
    outputs: int


def lower(forest: Forest, largest_table: int = LARGEST_TABLE) -> Lowered:
    """Turn a forest into arrays, and choose how many levels the table holds.

    Raises:
        UnsupportedModelError: the forest is too large.
    """
    wide = bool((forest.groups == VECTOR).any())
    width = forest.outputs if wide else 1
    # The sum begins with the base margins: trees of a single leaf.
    trees = (
        [_leaf(forest.base_margin[np.newaxis])]
        if wide
        else [_leaf(margin[None, None]) for margin in forest.base_margin]
    )
    owners = [VECTOR] if wide else list(range(forest.outputs))
    trees += forest.trees
    owners += forest.groups.tolist()
    spare = -len(trees) % WORD
    trees += [_leaf(np.zeros((1, 1), np.float32))] * spare
    owners += [0] * spare

    depth = max(tree.depth for tree in trees)
    table = _cheapest_table(trees, depth, largest_table)
    levels = table.levels if table else 0
    steps = max(depth - levels, 0)
    ends = [positions(tree, levels) for tree in trees]
    descent = starts = None
    if steps:
        descent = build_descent(trees)
        starts = np.concatenate([root + at for root, at in zip(descent.roots, ends, strict=True)])
        ends = [np.arange(tree.nodes) for tree in trees]
    leaves = [_widened(tree.values[at], owner, width) for tree, at, owner in zip(trees, ends, owners, strict=True)]
    return Lowered(
        table=table,
        starts=starts,
        descent=descent,
        steps=steps,
        leaves=np.concatenate(leaves),
        owners=np.zeros(len(trees), np.int64) if wide else np.array(owners, np.int64),
        outputs=forest.outputs,
    )


def _leaf(values: Floats) -> Tree:
    none = np.zeros(1, np.int32)
    return Tree.arrange(none - 1, none, none, np.zeros(1, np.float32), none, values, {})


def _widened(values: Floats, owner: int, width: int) -> Floats:
    """Leaf values ``[places, 1 or width]`` as ``[places, width]``."""
    if values.shape[1] == width:
        return values
    wide = np.zeros((len(values), width), np.float32)
    wide[:, owner] = values[:, 0]
    return wide


def _cheapest_table(trees: list[Tree], depth: int, largest: int) -> PredicateTable | None:
    best, least = None, depth * _PER_STEP * len(trees)
    for levels in (3, 6):
        if depth > levels - 3:
            table = build_table(trees, levels, largest)
            if table is not None:
                cost = table.groups.shape[1] * (_PER_GROUP + table.rows.shape[1] * 4 * _PER_TABLE_BYTE)
                cost += max(depth - levels, 0) * _PER_STEP * len(trees)
                if cost < least:
                    best, least = table, cost
    return best


class OpsBackend(tf.Module):
    """A forest as a ``tf.Module``: float32 ``[batch, n_features]`` in, class probabilities ``[batch, classes]`` out.

    Its batches may be empty, or larger than memory could hold at once.

    Raises:
        UnsupportedModelError: the forest is too large.
    """

    def __init__(self, forest: Forest, name: str | None = None) -> None:
        super().__init__(name=name)
        self._link = forest.link
        self._features = forest.n_features
        self._lowered = lower(forest)
        table, descent = self._lowered.table, self._lowered.descent
        if table:
            self._rows = _variable(table.rows, "predicates")
            self._parts = _Cells(table.parts)
        if descent and self._lowered.starts is not None:
            self._starts = _variable(self._lowered.starts, "starts")
            self._nodes = _variable(descent.nodes, "nodes")
            self._columns = _Cells(descent.columns)
        self._leaves = _variable(self._lowered.leaves, "leaves")
        self._rows_at_once = min(ROWS_AT_ONCE, max(1, MOST_EXITS // len(self._lowered.owners)))

    def __call__(self, features: tf.Tensor) -> tf.Tensor:
        """Class probabilities, float32 ``[batch, classes]``, of float32 ``[batch, n_features]``."""
        return probabilities(self._link, self.margins(features))

    def margins(self, features: tf.Tensor) -> tf.Tensor:
        """The margins, float32 ``[batch, outputs]``, of float32 ``[batch, n_features]``."""
        in_parts = tf.function(
            self._totals_in_parts,
            input_signature=[tf.TensorSpec([None, self._features], tf.float32)],
            autograph=False,
            # One node of the graph. Inlined, its hundred nodes would be skipped one by one with every small batch,
            # which costs a request of one row a tenth.
            experimental_attributes={"_noinline": True},
        ).get_concrete_function()
        large = tf.shape(features)[0] > self._rows_at_once
        totals = tf.cond(large, lambda: in_parts(features), lambda: self._totals(features))
        # Here and not before: behind a condition the shape would be unknown, of which Grappler complains at length.
        return tf.reshape(totals, [-1, self._lowered.outputs])

    def _totals_in_parts(self, features: tf.Tensor) -> tf.Tensor:
        """As :meth:`_totals` for a batch of any size, with memory for one part at a time."""
        batch = tf.shape(features)[0]
        totals = tf.TensorArray(
            tf.float32,
            size=(batch + self._rows_at_once - 1) // self._rows_at_once,
            infer_shape=False,
            element_shape=[None, self._lowered.leaves.shape[1]],
        )

        def add(first: tf.Tensor, totals: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
            part = self._totals(features[first : first + self._rows_at_once])
            return first + self._rows_at_once, totals.write(first // self._rows_at_once, part)

        _, totals = tf.while_loop(lambda first, _: first < batch, add, [0, totals], parallel_iterations=1)
        return totals.concat()

    def _totals(self, features: tf.Tensor) -> tf.Tensor:
        """The margins as one column, or as they are where leaves hold one number per output."""
        lowered = self._lowered
        batch = tf.shape(features)[0]
        rows = tf.range(batch)
        patterns = tf.transpose(tf.bitcast(features, tf.int32))
        trees = len(lowered.owners)
        levels = 0
        exits = tf.zeros([1, 1], tf.int64)
        if lowered.table is not None:
            levels = lowered.table.levels
            exits = _places(lowered.table, self._rows, self._parts(patterns), rows)
        first = np.arange(trees) * 2**levels
        if lowered.descent is not None:
            exits = tf.gather(self._starts, exits + first)
            if lowered.table is None:
                exits = tf.broadcast_to(exits, [batch, trees])
            first = np.zeros(trees, np.int64)
            exits = _descend(self._nodes, self._columns(patterns), rows, exits, lowered.steps)

        # Numbers per row that leaves are added to: every output, or all of them as one.
        totals = lowered.outputs // lowered.leaves.shape[1]
        rows = tf.cast(rows, tf.int64)
        where = (first + lowered.owners * 2**32) + (rows * np.int64(totals * 2**32))[:, tf.newaxis]
        # An int64 is read as two int32, the lower one first: the leaf, and the number that it is added to.
        pairs = tf.reshape(tf.bitcast(exits + where, tf.int32), [-1, 2])
        return tf.raw_ops.SparseTensorDenseMatMul(
            a_indices=pairs,
            a_values=tf.ones(tf.shape(pairs)[:1], tf.float32),
            a_shape=tf.stack([np.int64(len(lowered.leaves)), tf.size(rows, tf.int64) * np.int64(totals)]),
            b=self._leaves,
            adjoint_a=True,
        )


def _variable(value: npt.NDArray[Any], name: str) -> tf.Variable:
    return tf.Variable(value, trainable=False, name=name)


class _Cells(tf.Module):
    """A table of cells to look values up in: int32 patterns ``[n_features, batch]`` to numbers ``[columns, batch]``."""

    def __init__(self, table: CellTable) -> None:
        super().__init__()
        self._table = table
        self._blocks = [_variable(block, "starts") for block in table.blocks]
        self._numbers = _variable(table.numbers, "numbers")

    def __call__(self, patterns: tf.Tensor) -> tf.Tensor:
        if not np.array_equal(self._table.features, np.arange(patterns.shape[0])):
            patterns = tf.gather(patterns, self._table.features)
        parts = (
            tf.split(patterns, [len(block) for block in self._table.blocks]) if len(self._blocks) > 1 else [patterns]
        )
        cells = [
            tf.raw_ops.UpperBound(sorted_inputs=block, values=part, out_type=tf.int32)
            for block, part in zip(self._blocks, parts, strict=True)
        ]
        cell = tf.concat(cells, axis=0) if len(cells) > 1 else cells[0]
        return tf.gather(self._numbers, cell + self._table.firsts[:, np.newaxis])


def _places(table: PredicateTable, rows: tf.Variable, parts: tf.Tensor, batch: tf.Tensor) -> tf.Tensor:
    """Where each tree stands after the levels of the table: int64 ``[batch, trees]``, from 0 to ``2 ** levels - 1``."""
    numbers = tf.cast(tf.matmul(parts, table.groups, transpose_a=True), tf.int32)
    segments = batch[:, tf.newaxis] + np.zeros((1, table.groups.shape[1]), np.int32)
    answers = tf.raw_ops.SparseSegmentSum(
        data=rows, indices=tf.reshape(numbers, [-1]), segment_ids=tf.reshape(segments, [-1])
    )
    answers = tf.bitcast(tf.reshape(answers, [-1, table.rows.shape[1] // 2, 2]), tf.int64)
    words = table.trees // WORD
    if table.levels == 3:
        first, second, third = _three_levels(answers[:, :words])
        place = first * np.int64(4) + second * np.int64(2) + third
    else:
        top, low, high, _ = tf.split(answers, [words, 4 * words, 4 * words, -1], axis=1)
        first, second, third = _three_levels(top)
        below = _choose(_planes(low, words), _planes(high, words), _bytes(first))
        for chosen in (second, third):
            left, right = tf.split(below, 2, axis=1)
            below = _choose(left, right, _bytes(chosen))
        fourth, fifth, sixth = _three_levels(tf.reshape(below, [-1, words]))
        place = first * np.int64(32) + second * np.int64(16) + third * np.int64(8)
        place += fourth * np.int64(4) + fifth * np.int64(2) + sixth
    return tf.cast(tf.reshape(tf.bitcast(place, tf.uint8), [-1, table.trees]), tf.int64)


def _planes(words: tf.Tensor, width: int) -> tf.Tensor:
    return tf.reshape(words, [-1, 4, width])


def _bytes(bits: tf.Tensor) -> tf.Tensor:
    """Bit 0 of each byte, spread over the byte, for the planes ``[batch, planes, words]``."""
    return (bits * np.int64(255))[:, tf.newaxis]


def _choose(left: tf.Tensor, right: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """``right`` where the mask is set, else ``left``, bit by bit."""
    bitwise = tf.bitwise
    return bitwise.bitwise_xor(left, bitwise.bitwise_and(bitwise.bitwise_xor(left, right), mask))


def _three_levels(asked: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The answers on the way down three levels, as bit 0 of each byte.

    The bits of a byte: the root; its left child and that one's children; its right child and that one's. What is
    shifted in from the next byte is cut off.
    """
    bitwise = tf.bitwise
    first = bitwise.bitwise_and(asked, _EACH_BYTE)
    left = bitwise.right_shift(asked, np.int64(1))
    below = _choose(left, bitwise.right_shift(left, np.int64(3)), first * np.int64(7))
    second = bitwise.bitwise_and(below, _EACH_BYTE)
    left = bitwise.right_shift(below, np.int64(1))
    below = _choose(left, bitwise.right_shift(left, np.int64(1)), second)
    return first, second, bitwise.bitwise_and(below, _EACH_BYTE)


def _descend(nodes: tf.Variable, values: tf.Tensor, rows: tf.Tensor, at: tf.Tensor, steps: int) -> tf.Tensor:
    """Walk down: the nodes int64 ``[batch, trees]`` where each tree stands ``steps`` levels further."""
    values = tf.reshape(values, [-1])  # [columns, batch], read as one row
    batch = tf.size(rows, tf.int64)
    rows = tf.cast(rows, tf.int64)[:, tf.newaxis]
    for _ in range(steps):
        node = tf.gather(nodes, at)
        column = tf.bitwise.bitwise_and(tf.bitwise.right_shift(node, np.int64(RANK_BITS)), np.int64(2**COLUMN_BITS - 1))
        rank = tf.bitwise.bitwise_and(node, np.int64(2**RANK_BITS - 1))
        value = tf.gather(values, column * batch + rows)
        at = tf.bitwise.right_shift(node, np.int64(RANK_BITS + COLUMN_BITS)) + tf.cast(value >= rank, tf.int64)
    return at
