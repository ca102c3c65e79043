"""The float32 numbers, cut into cells within which no node of a forest tells two values apart.

A cell is a run of *bit patterns*, taken as int32. So a value is placed by comparing integers, which is exact where
comparing floats is not: kernels of TensorFlow treat subnormal numbers as zero, and a NaN compares with nothing. In
the order of the patterns the numbers run like this, the negative ones backwards::

    -2**31                                   0                                    2**31 - 1
      -0.0, -tiny, ..., -huge, -inf, NaN ... | 0.0, tiny, ..., huge, inf, NaN ...

The idea is ours; that trees only need the interval of a value, not the value, is QuickScorer's (Lucchese et al., SIGIR
2015) and that of histogram training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mpru_tf.trees.forest import Floats, Ints, Splits

_FIRST, _LAST = -(2**31), 2**31 - 1
_NEGATIVE_NAN = int(np.float32(-np.inf).view(np.int32)) + 1
_POSITIVE_NAN = int(np.float32(np.inf).view(np.int32)) + 1

_ONE_BLOCK = 2**20
"""Up to so many starts, padded ones counted, are searched at once."""


@dataclass(frozen=True, eq=False)
class CellTable:
    """A number for every cell of some columns: each column is a feature, and the cells that it is looked at in.

    Attributes:
        order: int64 ``[columns]``: row ``i`` is column ``order[i]`` of what the table was made of.
        features: int32 ``[columns]``.
        blocks: one or two arrays int32 ``[rows, longest]`` of the cells' starts, padded at the end. The rows of all
            blocks, one after the other, are the columns.
        firsts: int32 ``[columns]``, where the numbers of a column begin.
        numbers: ``[total]``, the number of each cell of each column.
    """

    order: npt.NDArray[np.int64]
    features: Ints
    blocks: tuple[Ints, ...]
    firsts: Ints
    numbers: npt.NDArray[Any]


def tabulate(features: Sequence[int], starts: Sequence[Ints], numbers: Sequence[npt.NDArray[Any]]) -> CellTable:
    """Make a table of at least one column.

    Args:
        features: the feature of each column.
        starts: of each column, what :func:`cell_starts` gave.
        numbers: of each column, ``[cells]``, of a common dtype.
    """
    lengths = np.array([len(each) for each in starts])
    order = np.argsort(lengths, kind="stable")
    lengths = lengths[order]
    cuts = [len(order)]
    if len(order) * lengths[-1] > _ONE_BLOCK:
        # Many features with few cells are not to be padded to the length of one with many.
        padded = np.arange(1, len(order) + 1) * lengths + np.arange(len(order) - 1, -1, -1) * lengths[-1]
        cuts = sorted({int(np.argmin(padded)) + 1, len(order)})
    blocks, firsts, flat, total, begin = [], [], [], 0, 0
    for end in cuts:
        longest = int(lengths[end - 1])
        block = np.full((end - begin, longest), _LAST, np.int32)
        for row, column in enumerate(order[begin:end].tolist()):
            block[row, : len(starts[column])] = starts[column]
            # A value whose pattern is the padding's own number, a NaN, counts it as well.
            flat.append(np.pad(numbers[column], (0, longest - len(starts[column])), mode="edge"))
            firsts.append(total)
            total += longest + 1
        blocks.append(block)
        begin = end
    return CellTable(
        order=order,
        features=np.array(features, np.int32)[order],
        blocks=tuple(blocks),
        firsts=np.array(firsts, np.int32),
        numbers=np.concatenate(flat),
    )


def cell_starts(splits: Splits) -> Ints:
    """Where the cells begin that some splits of one feature tell apart, save the first, which begins at -2**31.

    Returns:
        int32 ``[cells - 1]``, ascending. The cell of a value is the number of entries not above its bit pattern.
    """
    starts = [np.array([_NEGATIVE_NAN, 0, _POSITIVE_NAN])]
    bounds = splits.threshold[~splits.categorical]
    if len(splits.categories):
        # A code c holds from c to just below c + 1; code 0 holds -0.0 as well.
        codes = np.unique(splits.categories)
        bounds = np.concatenate([bounds, codes.astype(np.float32), (codes + 1).astype(np.float32)])
    bounds = np.unique(bounds)
    patterns = bounds.view(np.int32).astype(np.int64)
    # What is at least t: for t above 0, the patterns from t's own; for t below 0, those up to t's own; for 0, -0.0 too.
    starts.append(patterns[bounds > 0])
    starts.append(patterns[bounds < 0] + 1)
    if bool((bounds == 0).any()):
        starts.append(np.array([_FIRST + 1]))
    found: Ints = np.unique(np.concatenate(starts)).astype(np.int32)
    return found


def examples(starts: Ints) -> Floats:
    """One value of each cell: float32 ``[cells]``."""
    values: Floats = np.concatenate([np.array([_FIRST], np.int32), starts]).view(np.float32)
    return values


def goes_right(splits: Splits, starts: Ints) -> npt.NDArray[np.bool_]:
    """Whether the values of each cell go right at each node: bool ``[cells, nodes]``."""
    nodes = np.arange(len(splits.threshold))
    return ~splits.goes_left(nodes[np.newaxis, :], examples(starts)[:, np.newaxis])
