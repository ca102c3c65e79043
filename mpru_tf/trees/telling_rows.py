"""Rows that tell whether a forest was read, lowered and compared rightly, made from the forest itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpru_tf.trees.forest import CATEGORY_LIMIT, Floats, Forest, Tree


def telling_rows(forest: Forest, count: int, seed: int = 0) -> Floats:
    """Rows on which a forest that was read, lowered or compared wrongly gives itself away.

    In every other row, each feature is drawn on its own from what the forest tells apart: its thresholds, one float32
    to each side of them, values between and beyond them, its category codes, codes never seen, fractional, negative and
    too large ones, both infinities, both zeros, the smallest numbers, NaN. The rows between are led to leaves drawn at
    random: deep ones are hardly ever reached otherwise.

    Args:
        forest: any.
        count: number of rows.
        seed: of what is drawn.

    Returns:
        float32 ``[count, n_features]``.
    """
    random = np.random.default_rng(seed)
    rows = random.standard_normal((count, forest.n_features), np.float32)
    thresholds, codes = _told_apart(forest)
    for feature in sorted({*thresholds, *codes}):
        values = _values(thresholds.get(feature), codes.get(feature), random)
        rows[:, feature] = values[random.integers(len(values), size=count)]
        rows[random.random(count) < 0.05, feature] = np.nan
    for row in rows[1::2] if forest.trees else ():
        tree = forest.trees[int(random.integers(len(forest.trees)))]
        _lead_to_a_leaf(row, tree, random)
    return rows


def _told_apart(forest: Forest) -> tuple[dict[int, Floats], dict[int, Floats]]:
    """The thresholds and the category codes of each feature, each ascending."""
    found: tuple[list[tuple[Any, Any]], list[tuple[Any, Any]]] = ([], [])
    for tree in forest.trees:
        numeric = (tree.left >= 0) & ~tree.categorical
        found[0].append((tree.feature[numeric], tree.threshold[numeric]))
        found[1].append((np.repeat(tree.feature, np.diff(tree.category_start)), tree.categories.astype(np.float32)))
    return _by_feature(found[0]), _by_feature(found[1])


def _by_feature(pairs: list[tuple[Any, Any]]) -> dict[int, Floats]:
    if not pairs:
        return {}
    features, values = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    order = np.argsort(features, kind="stable")
    owners, starts = np.unique(features[order], return_index=True)
    runs = np.split(values[order], starts[1:]) if len(owners) else []
    return {int(owner): np.unique(run) for owner, run in zip(owners, runs, strict=True)}


_EVERY_KIND = np.array([np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38, np.nan], np.float32)
_NO_CODES = np.array([-1, -0.5, -0.0, CATEGORY_LIMIT, CATEGORY_LIMIT + 2, 1e10, np.inf, -np.inf, np.nan], np.float32)


def _values(thresholds: Floats | None, codes: Floats | None, random: np.random.Generator) -> Floats:
    """What to draw the values of one feature from."""
    values: list[Floats] = []
    if thresholds is not None:
        up, down = np.float32(np.inf), np.float32(-np.inf)
        finite = thresholds[np.isfinite(thresholds)].astype(np.float64)
        low, high = (finite[0], finite[-1]) if len(finite) else (0.0, 0.0)
        margin = max(1.0, high - low) / 10
        with np.errstate(over="ignore", under="ignore"):
            between = random.uniform(low - margin, high + margin, size=2 * len(thresholds) + 8).astype(np.float32)
            values += [thresholds, np.nextafter(thresholds, up), np.nextafter(thresholds, down), between]
        values.append(_EVERY_KIND)
    if codes is not None:
        unseen = np.arange(min(float(codes[-1]) + 3, 1000.0), dtype=np.float32)
        values += [codes, codes, codes + np.float32(0.5), unseen, _NO_CODES]
    return np.concatenate(values)


def _lead_to_a_leaf(row: Floats, tree: Tree, random: np.random.Generator) -> None:
    """Change a row so that it comes to a leaf of the tree drawn at random; now and then it just misses a threshold."""
    inner = np.flatnonzero(tree.left >= 0)
    node = int(random.choice(np.flatnonzero(tree.left < 0)))
    bounds: dict[int, tuple[float, float]] = {}
    while node:
        parent = int(inner[(node - 1) // 2])
        feature, goes_right = int(tree.feature[parent]), node == tree.left[parent] + 1
        if tree.categorical[parent]:
            codes = tree.categories[tree.category_start[parent] : tree.category_start[parent + 1]]
            if goes_right and len(codes):
                row[feature] = random.choice(codes)
            elif not goes_right and row[feature] in codes:
                row[feature] = -1 if not len(codes) else int(codes[-1]) + 1
        else:
            low, high = bounds.get(feature, (-np.inf, np.inf))
            threshold = float(tree.threshold[parent])
            bounds[feature] = (max(low, threshold), high) if goes_right else (low, min(high, threshold))
        node = parent
    for feature, (low, high) in bounds.items():
        row[feature] = _within(low, high, random)


def _within(low: float, high: float, random: np.random.Generator) -> np.float32:
    """A float32 from ``low`` on and below ``high``, most often next to one of the two."""
    choices = [np.float32(low)] if low > -np.inf else []
    with np.errstate(over="ignore"):  # at the ends of float32
        if high < np.inf:
            choices.append(np.nextafter(np.float32(high), np.float32(-np.inf)))
            if low > -np.inf:
                choices.append(np.float32(low + (high - low) * random.random()))
    return choices[int(random.integers(len(choices)))] if choices else np.float32(0)
