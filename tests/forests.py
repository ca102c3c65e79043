"""Forests made up at random, and rows that lie where a forest decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mpru_tf.trees.forest import VECTOR, Forest, Tree

F32 = np.float32

SPECIAL = np.array(
    [0.0, -0.0, 1e-45, -1e-45, 1e-38, -1e-38, 3.4e38, -3.4e38, np.inf, -np.inf, np.nan, -0.5, 2**24 - 1, 2**24], F32
)
"""What is treated in its own way somewhere: by XGBoost, by NumPy or by TensorFlow's kernels."""

NANS = np.array([0x7FC00000, 0x7FFFFFFF, 0x7F800001, -0x400000, -1, -0x7FFFFF], np.int64).astype(np.int32).view(F32)
"""Missing values with either sign, and with the first and the last bit pattern."""


def random_tree(random: np.random.Generator, depth: int, n_features: int, width: int, full: bool = False) -> Tree:
    """A tree of at most ``depth`` levels, a third of its questions about categories."""
    nodes: list[dict[str, Any]] = []
    categories: dict[int, npt.NDArray[Any]] = {}

    def grow(level: int) -> int:
        number = len(nodes)
        node: dict[str, Any] = {"left": -1, "right": -1, "feature": 0, "threshold": 0.0, "missing": 0}
        node["values"] = random.normal(0, 0.3, width)
        nodes.append(node)
        if level < depth and (full or level == 0 or random.random() < 0.8):
            node["feature"] = int(random.integers(n_features))
            node["missing"] = int(random.integers(2))
            if random.random() < 1 / 3:
                categories[number] = random.choice(40, int(random.integers(1, 6)), replace=False)
            else:
                usual = np.round(random.normal(0, 3), 1)
                node["threshold"] = usual if random.random() < 0.8 else float(random.choice(SPECIAL[:10]))
            node["left"], node["right"] = grow(level + 1), grow(level + 1)
        return number

    grow(0)
    return Tree.arrange(
        left=np.array([node["left"] for node in nodes]),
        right=np.array([node["right"] for node in nodes]),
        feature=np.array([node["feature"] for node in nodes]),
        threshold=np.array([node["threshold"] for node in nodes], F32),
        default_left=np.array([node["missing"] for node in nodes]),
        values=np.array([node["values"] for node in nodes], F32),
        categories=categories,
    )


def random_forest(
    seed: int,
    *,
    trees: int = 12,
    depth: int = 6,
    n_features: int = 5,
    outputs: int = 3,
    link: str = "softmax",
    **how: Any,
) -> Forest:
    """A forest; ``vector=True`` makes half of its trees add to all outputs."""
    random = np.random.default_rng(seed)
    wide = random.random(trees) < 0.5 if how.pop("vector", False) else np.zeros(trees, bool)
    return Forest(
        trees=tuple(random_tree(random, depth, n_features, outputs if each else 1, **how) for each in wide),
        groups=np.where(wide, VECTOR, np.arange(trees) % outputs).astype(np.int32),
        base_margin=random.normal(0, 0.5, outputs).astype(F32),
        n_features=n_features,
        link=link,
    )


def tricky_rows(forest: Forest, rows: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Values at, just below and just above what nodes ask about, missing ones, infinities and ordinary ones.

    Returns:
        float32 ``[rows, n_features]``.
    """
    random = np.random.default_rng(seed)
    x = random.normal(0, 3, (rows, forest.n_features)).astype(F32)
    asked: dict[int, set[float]] = {}
    for tree in forest.trees:
        for node in np.flatnonzero(tree.left >= 0).tolist():
            values = asked.setdefault(int(tree.feature[node]), set())
            if tree.categorical[node]:
                values |= {float(code) + by for code in tree.splits.codes(node) for by in (-1, -0.5, 0, 0.5, 1)}
            else:
                values.add(float(tree.threshold[node]))
    for feature in range(forest.n_features):
        at = np.array(sorted(asked.get(feature, {0.0})), F32)
        with np.errstate(over="ignore"):
            near = [np.nextafter(at, F32(np.inf)), np.nextafter(at, F32(-np.inf))]
        pool = np.concatenate([at, *near, SPECIAL, NANS])
        chosen = random.random(rows) < 0.8
        # By bit patterns: a copy of floats may change a NaN.
        x.view(np.int32)[chosen, feature] = random.choice(pool.view(np.int32), int(chosen.sum()))
    return x
