"""A decision forest that classifies: plain NumPy arrays, checked once, and a reference that says what they mean.

Readers make a :class:`Forest` of a model file; backends lower it to TensorFlow; tests and self-checks hold both
against :meth:`Forest.margins`. Everything is float32 and is added up in the order of the trees, as XGBoost does, so
that the numbers agree to the last bit or two.

How a row ``x`` moves down a tree, node by node:

===================  ==============================================================================================
node                 goes left if
===================  ==============================================================================================
feature is NaN       ``default_left``, whatever kind of node it is
numeric              ``x < threshold``, both in float32. Infinities compare like any other number
categorical          the category code is *not* among the node's categories. The code is ``x`` cut towards zero (2.7
                     is 2). What is no code goes left: ``x < 0`` (-0.5 too, -0.0 not) and ``x >= 2**24``. So does every
                     code not seen in training
===================  ==============================================================================================

========== ============================ ===============================================================================
link       margins                      probabilities
========== ============================ ===============================================================================
softmax    one per class                their softmax
sigmoid    one, of class 1              ``[1 - s, s]``, ``s`` the sigmoid of the margin
step       one, of class 1              ``[1 - s, s]``, ``s`` = 1 where the margin is above 0, else 0
multi_label one per label               the sigmoid of each: they do not sum to one
========== ============================ ===============================================================================
"""

from __future__ import annotations

import base64
import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from mpru_tf.errors import CorruptModelError, DataError, explain

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]

LINKS = ("softmax", "sigmoid", "step", "multi_label")
"""How margins become probabilities."""

CATEGORY_LIMIT = 2**24
"""Category codes are below this: float32 tells no two larger integers apart."""

VECTOR = -1
"""The group of a tree whose leaves add to all outputs at once."""


class Splits:
    """What inner nodes ask of a value, for any number of nodes, of one tree or of many.

    Attributes:
        threshold, default_left, categorical, category_start, categories: as in :class:`Tree`.
    """

    def __init__(
        self, threshold: Floats, default_left: Flags, categorical: Flags, category_start: Ints, categories: Ints
    ) -> None:
        self.threshold = threshold
        self.default_left = default_left
        self.categorical = categorical
        self.category_start = category_start
        self.categories = categories
        # One sorted number per node and category code.
        owners = np.repeat(np.arange(len(threshold)), np.diff(category_start))
        self._keys = owners * CATEGORY_LIMIT + categories

    @property
    def ascending(self) -> bool:
        """Whether the categories of every node are in ascending order."""
        return not bool((np.diff(self._keys) <= 0).any())

    def codes(self, node: int) -> Ints:
        """The category codes that go right at a node."""
        return self.categories[self.category_start[node] : self.category_start[node + 1]]

    def select(self, nodes: npt.NDArray[Any]) -> Splits:
        """Those of some nodes, in the given order."""
        runs = [self.codes(node) for node in nodes.tolist()] if self.categorical.any() else []
        sizes = [len(run) for run in runs] or [0] * len(nodes)
        return Splits(
            threshold=self.threshold[nodes],
            default_left=self.default_left[nodes],
            categorical=self.categorical[nodes],
            category_start=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32),
            categories=np.concatenate([*runs, np.zeros(0, np.int32)]).astype(np.int32),
        )

    def goes_left(self, nodes: npt.NDArray[Any], value: Floats) -> Flags:
        """Whether each value goes left at the node beside it: bool, of the common shape of ``nodes`` and ``value``."""
        left = value < self.threshold[nodes]
        if len(self._keys):
            left = np.where(self.categorical[nodes], ~_chosen(self._keys, nodes, value), left)
        elif self.categorical.any():  # nothing goes right
            left = left | self.categorical[nodes]
        return np.where(np.isnan(value), self.default_left[nodes], left)

    @staticmethod
    def join(parts: Sequence[Splits]) -> Splits:
        """Those of several trees, one after the other."""
        sizes = [np.diff(part.category_start) for part in parts]
        return Splits(
            threshold=np.concatenate([part.threshold for part in parts]),
            default_left=np.concatenate([part.default_left for part in parts]),
            categorical=np.concatenate([part.categorical for part in parts]),
            category_start=np.concatenate([[0], np.cumsum(np.concatenate(sizes))]).astype(np.int32),
            categories=np.concatenate([part.categories for part in parts]),
        )


@dataclass(frozen=True, eq=False)
class Tree:
    """One binary tree, its nodes numbered level by level from the root, which is node 0.

    So siblings lie side by side, a child always has a larger number than its parent, and the ``i``-th inner node has
    the children ``2 i + 1`` and ``2 i + 2``. :meth:`arrange` makes this of nodes in any order.

    Attributes:
        left: int32 ``[nodes]``, the left child; the right one is ``left + 1``. -1 at leaves.
        feature: int32 ``[nodes]``, the feature that an inner node looks at; 0 at leaves.
        threshold: float32 ``[nodes]``, of numeric inner nodes; 0 elsewhere. May be infinite, never NaN.
        default_left: bool ``[nodes]``, whether a missing value (NaN) goes left; False at leaves.
        categorical: bool ``[nodes]``, which inner nodes look at category codes.
        category_start: int32 ``[nodes + 1]``, node ``i`` has ``categories[category_start[i]:category_start[i + 1]]``.
        categories: int32, the codes that go *right*, ascending within each node.
        values: float32 ``[nodes, width]``, what a leaf adds to the margins; 0 at inner nodes.

    Raises:
        CorruptModelError: the arrays do not describe a tree.
    """

    left: Ints
    feature: Ints
    threshold: Floats
    default_left: Flags
    categorical: Flags
    category_start: Ints
    categories: Ints
    values: Floats

    def __post_init__(self) -> None:
        nodes = len(self.left)
        shapes: dict[str, tuple[npt.DTypeLike, tuple[int, ...]]] = {
            "left": (np.int32, (nodes,)),
            "feature": (np.int32, (nodes,)),
            "threshold": (np.float32, (nodes,)),
            "default_left": (np.bool_, (nodes,)),
            "categorical": (np.bool_, (nodes,)),
            "category_start": (np.int32, (nodes + 1,)),
            "categories": (np.int32, (len(self.categories),)),
            "values": (np.float32, (nodes, self.values.shape[-1])),
        }
        for name, (dtype, shape) in shapes.items():
            _hold(self, name, dtype, shape)
        inner = np.flatnonzero(self.left >= 0)
        # With siblings side by side in the order of their parents, this one comparison rules out every cycle, every
        # node with two parents and every node without one.
        if not (
            nodes == 2 * len(inner) + 1
            and np.array_equal(self.left[inner], 2 * np.arange(len(inner)) + 1)
            and bool((self.left[inner] > inner).all())
        ):
            raise _not_a_tree("its nodes are not numbered level by level")
        if bool((self.feature < 0).any()) or bool(np.isnan(self.threshold).any()):
            raise _not_a_tree("a node has a negative feature or a threshold that is NaN")
        if not np.isfinite(self.values).all():
            raise _not_a_tree("a leaf value is NaN or infinite")
        starts = self.category_start
        if starts[0] != 0 or starts[-1] != len(self.categories) or bool((np.diff(starts) < 0).any()):
            raise _not_a_tree("category_start does not split the categories into one run per node")
        if bool((self.categories < 0).any()) or bool((self.categories >= CATEGORY_LIMIT).any()):
            raise _not_a_tree(f"a category code is below 0 or above {CATEGORY_LIMIT - 1}")
        if not self.splits.ascending:
            raise _not_a_tree("the categories of a node are not in ascending order")

    @classmethod
    def arrange(
        cls,
        left: npt.NDArray[Any],
        right: npt.NDArray[Any],
        feature: npt.NDArray[Any],
        threshold: Floats,
        default_left: npt.NDArray[Any],
        values: Floats,
        categories: Mapping[int, npt.NDArray[Any]],
    ) -> Tree:
        """Make a tree of nodes in any order, of which node 0 is the root. Nodes that it does not reach are left out.

        Args:
            left: integers ``[nodes]``, negative at leaves.
            right: integers ``[nodes]``; what stands at leaves does not matter.
            feature: integers ``[nodes]``.
            threshold: float32 ``[nodes]``.
            default_left: ``[nodes]``, 0 or 1.
            values: float32 ``[nodes, width]``; what stands at inner nodes does not matter.
            categories: the codes that go right, by categorical node.

        Raises:
            CorruptModelError: a child is out of range, or a node is reached twice.
        """
        order = _level_by_level(left, right)
        inner = left[order] >= 0
        categorical = np.zeros(len(order), np.bool_)
        runs: list[npt.NDArray[Any]] = []
        sizes = np.zeros(len(order) + 1, np.int64)
        if categories:
            # By the new numbers, and only nodes that are still inner nodes: pruning leaves the categories behind.
            for number, node in enumerate(order):
                if inner[number] and int(node) in categories:
                    runs.append(np.unique(categories[int(node)]))
                    categorical[number] = True
                    sizes[number + 1] = len(runs[-1])
        numbers = np.full(len(order), -1, np.int64)
        numbers[inner] = 2 * np.arange(np.count_nonzero(inner)) + 1
        codes = np.concatenate(runs) if runs else np.zeros(0, np.int64)
        if bool((codes < 0).any()) or bool((codes >= CATEGORY_LIMIT).any()):
            raise _not_a_tree(f"a category code is below 0 or above {CATEGORY_LIMIT - 1}")
        features = np.where(inner, feature[order], 0)
        if bool((features < 0).any()) or bool((features >= 2**31).any()):
            raise _not_a_tree("a split names a feature that cannot be")
        return cls(
            left=numbers.astype(np.int32),
            feature=features.astype(np.int32),
            threshold=np.where(inner & ~categorical, threshold[order], np.float32(0)),
            default_left=(default_left[order] != 0) & inner,
            categorical=categorical,
            category_start=np.cumsum(sizes).astype(np.int32),
            categories=codes.astype(np.int32),
            values=np.where(inner[:, None], np.float32(0), values[order]),
        )

    @cached_property
    def splits(self) -> Splits:
        """What the nodes ask; leaves ask something without a meaning."""
        return Splits(self.threshold, self.default_left, self.categorical, self.category_start, self.categories)

    @property
    def nodes(self) -> int:
        return len(self.left)

    @property
    def width(self) -> int:
        """Numbers per leaf: 1, or the number of outputs."""
        return int(self.values.shape[1])

    @property
    def depth(self) -> int:
        """Steps from the root to the deepest leaf."""
        depth, level = 0, np.zeros(1, np.int32)
        while True:
            level = self.left[level]
            level = level[level >= 0]
            if not len(level):
                return depth
            level = np.concatenate([level, level + 1])
            depth += 1

    def leaves(self, x: Floats) -> Ints:
        """The leaf that each row of ``x``, float32 ``[rows, features]``, ends in: int32 ``[rows]``."""
        node = np.zeros(len(x), np.int32)
        rows = np.arange(len(x))
        while len(rows) and bool((moving := self.left[node[rows]] >= 0).any()):
            rows = rows[moving]
            at = node[rows]
            node[rows] = self.left[at] + ~self.splits.goes_left(at, x[rows, self.feature[at]])
        return node


@dataclass(frozen=True, eq=False)
class Forest:
    """Trees that add up to margins, and how margins become class probabilities.

    Attributes:
        trees: in the order in which they are added up.
        groups: int32 ``[trees]``, the output that each tree adds to; :data:`VECTOR` if it adds to all of them.
        base_margin: float32 ``[outputs]``, what the sum begins with.
        n_features: length of an input row.
        link: one of :data:`LINKS`.
        feature_names: one per feature, or none.
        feature_types: one per feature, or none, as the model's trainer wrote them ("float", "int", "c", ...).
        category_names: for each feature the names of its category codes in order, None if it has none; or none.
        origin: who wrote the model, for people to read ("XGBoost 3.2.0").
        notes: sentences about what the reader of the file decided.

    Raises:
        CorruptModelError: the parts do not fit together.
    """

    trees: tuple[Tree, ...]
    groups: Ints
    base_margin: Floats
    n_features: int
    link: str
    feature_names: tuple[str, ...] = ()
    feature_types: tuple[str, ...] = ()
    category_names: tuple[tuple[str, ...] | None, ...] = ()
    origin: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _hold(self, "groups", np.int32, (len(self.trees),))
        _hold(self, "base_margin", np.float32, (len(self.base_margin),))
        if self.link not in LINKS:
            raise _not_a_forest(f"its link is {self.link!r} and not one of {', '.join(LINKS)}")
        alone = self.link in ("sigmoid", "step")
        if (self.outputs != 1) if alone else (self.outputs < 2):
            raise _not_a_forest(f"{self.outputs} outputs do not go with the link {self.link}")
        if not np.isfinite(self.base_margin).all():
            raise _not_a_forest("a base margin is NaN or infinite")
        if self.n_features < 1:
            raise _not_a_forest("it has no features")
        for name in ("feature_names", "feature_types", "category_names"):
            length = len(getattr(self, name))
            if length not in (0, self.n_features):
                raise _not_a_forest(f"it has {length} {name.replace('_', ' ')} for {self.n_features} features")
        for index, (tree, group) in enumerate(zip(self.trees, self.groups.tolist(), strict=True)):
            if not VECTOR <= group < self.outputs:
                raise _not_a_forest(f"tree {index} adds to output {group} of {self.outputs}")
            if tree.width != (self.outputs if group == VECTOR else 1):
                raise _not_a_forest(f"the leaves of tree {index} hold {tree.width} numbers")
            if int(tree.feature.max()) >= self.n_features:
                raise _not_a_forest(f"tree {index} looks at feature {tree.feature.max()} of {self.n_features}")

    @property
    def outputs(self) -> int:
        """Number of margins."""
        return len(self.base_margin)

    @property
    def classes(self) -> int:
        """Number of class probabilities (labels, for multi_label)."""
        return 2 if self.link in ("sigmoid", "step") else self.outputs

    @property
    def nodes(self) -> int:
        return sum(tree.nodes for tree in self.trees)

    def margins(self, x: npt.ArrayLike) -> Floats:
        """The margins of the rows of ``x``, ``[rows, n_features]``: float32 ``[rows, outputs]``.

        Raises:
            DataError: ``x`` has another shape, or is no array of numbers.
        """
        rows = self._rows(x)
        margins = np.tile(self.base_margin, (len(rows), 1))
        with np.errstate(over="ignore", invalid="ignore"):  # leaves near the end of float32 may add up to infinity
            for tree, group in zip(self.trees, self.groups.tolist(), strict=True):
                added = tree.values[tree.leaves(rows)]
                if group == VECTOR:
                    margins += added
                else:
                    margins[:, group] += added[:, 0]
        return margins

    def probabilities(self, x: npt.ArrayLike) -> Floats:
        """The class probabilities of the rows of ``x``, ``[rows, n_features]``: float32 ``[rows, classes]``.

        Raises:
            DataError: as :meth:`margins`.
        """
        return link_probabilities(self.link, self.margins(x))

    def to_text(self) -> str:
        """Everything, as base64 of compressed arrays: for configurations that must be JSON."""
        named = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "trees"}
        arrays = {name: named.pop(name) for name in ("groups", "base_margin")}
        for field in fields(Tree):
            parts = [getattr(tree, field.name).reshape(-1) for tree in self.trees]
            arrays[field.name] = np.concatenate(parts) if parts else np.zeros(0)
        for name in ("nodes", "width"):
            arrays[name] = np.array([getattr(tree, name) for tree in self.trees], np.int64)
        arrays["codes"] = np.array([len(tree.categories) for tree in self.trees], np.int64)
        file = io.BytesIO()
        np.savez_compressed(file, __rest__=np.array(json.dumps(named)), **arrays)
        return base64.b64encode(file.getvalue()).decode("ascii")

    @classmethod
    def from_text(cls, text: str) -> Forest:
        """Return the forest that :meth:`to_text` wrote.

        Raises:
            CorruptModelError: it was not, or it is damaged.
        """
        try:
            with np.load(io.BytesIO(base64.b64decode(text, validate=True)), allow_pickle=False) as file:
                rest: dict[str, Any] = json.loads(str(file["__rest__"]))
                nodes, codes, width = file["nodes"], file["codes"], file["width"]
                sizes = {"categories": codes, "category_start": nodes + 1, "values": nodes * width}
                parts = {
                    field.name: np.split(file[field.name], np.cumsum(sizes.get(field.name, nodes))[:-1])
                    for field in fields(Tree)
                }
                parts["values"] = [part.reshape(-1, wide) for part, wide in zip(parts["values"], width, strict=False)]
                each_tree = zip(*parts.values(), strict=True) if len(nodes) else ()
                trees = tuple(Tree(**dict(zip(parts, arrays, strict=True))) for arrays in each_tree)
                names = [None if each is None else tuple(each) for each in rest.pop("category_names")]
                rest = {key: tuple(value) if isinstance(value, list) else value for key, value in rest.items()}
                return cls(trees, file["groups"], file["base_margin"], category_names=tuple(names), **rest)
        except (KeyError, OSError, TypeError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise _not_a_forest(f"its text cannot be read ({type(error).__name__})") from error

    def _rows(self, x: npt.ArrayLike) -> Floats:
        try:
            # A float64 beyond float32 becomes an infinity, as it does on its way into XGBoost.
            with np.errstate(over="ignore"):
                rows = np.asarray(x).astype(np.float32)
        except (TypeError, ValueError) as error:
            raise DataError(
                explain("The rows are no array of numbers.", received=type(x).__name__, valid="[rows, n_features]")
            ) from error
        if rows.ndim != 2 or rows.shape[1] != self.n_features:
            raise DataError(
                explain("The rows do not fit the forest.", received=rows.shape, valid=f"[rows, {self.n_features}]")
            )
        return rows


def link_probabilities(link: str, margins: Floats) -> Floats:
    """Class probabilities from margins, float32 ``[rows, outputs]``, in the arithmetic of XGBoost.

    A softmax is taken relative to the largest margin, its sum in float64; a sigmoid is ``1 / (1 + exp(-margin))``. A
    row with an infinite margin has no softmax: NaN.
    """
    if link == "softmax":
        with np.errstate(invalid="ignore"):  # infinite margins have no shares
            powers = np.exp(margins - margins.max(axis=-1, keepdims=True))
            shares: Floats = powers / powers.sum(axis=-1, keepdims=True, dtype=np.float64).astype(np.float32)
        return shares
    if link == "step":
        positive = (margins > 0).astype(np.float32)
    else:
        # Below -88.7 the exponential leaves float32. XGBoost bounds it there, too.
        positive = np.float32(1) / (np.float32(1) + np.exp(np.minimum(-margins, np.float32(88.7))))
    return positive if link == "multi_label" else np.concatenate([np.float32(1) - positive, positive], axis=-1)


def _level_by_level(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The nodes that the root reaches, level by level, siblings side by side."""
    nodes = len(left)
    if not nodes:
        raise _not_a_tree("it has no nodes")
    level = np.zeros(1, np.int64)
    levels, count = [level], 1
    while True:
        parents = level[left[level] >= 0]
        if not len(parents):
            break
        level = np.stack([left[parents], right[parents]], axis=1).ravel().astype(np.int64)
        if bool((level <= 0).any()) or bool((level >= nodes).any()):
            raise _not_a_tree(f"a child is out of range, or the root: {nodes} nodes")
        levels.append(level)
        count += len(level)
        if count > nodes:
            raise _not_a_tree("a node is reached twice")
    order = np.concatenate(levels)
    if np.bincount(order, minlength=nodes).max() > 1:
        raise _not_a_tree("a node is reached twice")
    return order


def _chosen(keys: npt.NDArray[np.int64], nodes: npt.NDArray[Any], value: Floats) -> Flags:
    """Whether each value is a code among the categories of its node. NaN is not."""
    a_code = (value >= 0) & (value < CATEGORY_LIMIT)
    wanted = nodes.astype(np.int64) * CATEGORY_LIMIT + np.where(a_code, value, 0).astype(np.int64)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    chosen: Flags = (keys[at] == wanted) & a_code
    return chosen


def _hold(owner: object, name: str, dtype: npt.DTypeLike, shape: Sequence[int]) -> None:
    """Check one array of a frozen dataclass and make it read-only."""
    array = getattr(owner, name)
    if array.dtype != np.dtype(dtype) or array.shape != tuple(shape):
        raise CorruptModelError(
            explain(
                f"The array {name!r} of a {type(owner).__name__.lower()} has another form than it must.",
                received=f"{array.dtype} {list(array.shape)}",
                valid=f"{np.dtype(dtype)} {list(shape)}",
            )
        )
    held = array.view()
    held.flags.writeable = False
    object.__setattr__(owner, name, held)


def _not_a_tree(reason: str) -> CorruptModelError:
    return CorruptModelError(explain("A decision tree is damaged.", received=reason))


def _not_a_forest(reason: str) -> CorruptModelError:
    return CorruptModelError(explain("The parts of a decision forest do not fit together.", received=reason))
