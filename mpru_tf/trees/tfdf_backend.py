"""The backend ``tfdf``: a decision forest run by the inference engines of TensorFlow Decision Forests (TF-DF).

One forest per output, each a regression whose answer is the margin; softmax and sigmoid are TensorFlow's. One forest
of all classes would be one call, but a generic engine runs it, while single outputs get QuickScorer (trees of up to 64
leaves) or another fast one. A regression also adds its trees in float32 in their order, as XGBoost does.

Measured, in µs per row: 7 x 100 trees over the 54 features of Covertype, in a Session with one thread. "Afterwards" is
batch 1 again, once the same Session has answered 10,000 rows.

============================================== ================================ ================================
trees of                                                   depth 6                          depth 10
---------------------------------------------- -------------------------------- --------------------------------
batch                                              1   256  10,000   afterwards     1   256  10,000   afterwards
============================================== ===== ===== ======= ============ ===== ===== ======= ============
XGBoost's ``inplace_predict``                    306   8.9     6.8          383   762  15.0    10.8          808
one forest of all classes, a tensor per feature  248  20.4    19.6          862   262  30.8    29.3          787
one forest per class, a matrix                   478   9.5     8.8         2370   956  16.8    13.0         3710
the same, small batches apart, large in chunks    52   8.2     8.1           52    53  13.9    13.5           52
============================================== ===== ===== ======= ============ ===== ===== ======= ============

* The op takes a matrix; TF-DF's Python side makes it of one tensor per feature. Here it gets one directly, the same for
  all forests.
* The op keeps room for the largest batch it has seen and wipes all of it in every call: after one batch of 10,000, each
  single row pays for 10,000. So up to :data:`FEW_ROWS` rows go to ops of their own, and larger batches are cut into
  chunks of :data:`ROWS_AT_ONCE`, which also stay in the cache.

Where TF-DF sees numbers in another way than XGBoost, it is shown others:

* TensorFlow's threads take subnormal numbers for 0, so -1e-40 would not be below 0. A feature with a threshold that is
  0 or subnormal is handed over as a rank: how many of its thresholds it has reached, found by its bit pattern.
* Category codes are ranks, too: how many of the runs of codes that splits know have begun or ended. So codes may be
  any, and between them, before them and after them is a code that no split knows. A missing code is one more.

Written against TF-DF 1.12.0, the last release; the private attribute ``_compiled_model`` of its ModelV2 is used.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import uuid
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mpru_tf.errors import MissingExtraError, UnsupportedModelError, explain
from mpru_tf.trees.forest import VECTOR, Floats, Forest, Ints, Tree
from mpru_tf.trees.links import probabilities

FEW_ROWS = 16
"""Batches up to this size are answered by ops of their own."""

ROWS_AT_ONCE = 256
"""Larger batches are answered this many rows at a time."""

DEEPEST = 500
"""TF-DF's builder walks a tree by recursion, and Python ends that at 1000 calls."""

_SMALLEST_NORMAL = np.finfo(np.float32).tiny
_GREETING = "TFDF_DISABLE_WELCOME_MESSAGE"
_NEVER = np.iinfo(np.int32).max  # larger than the pattern of any number


def tfdf_backend(forest: Forest) -> tf.Module:
    """Build a forest with TF-DF.

    Args:
        forest: any forest with trees no deeper than :data:`DEEPEST`.

    Returns:
        A ``tf.Module`` that takes float32 ``[None, n_features]`` and answers class probabilities, float32
        ``[None, classes]``, within 1e-6 of :meth:`Forest.probabilities`, for every float32 there is. It can be saved on
        its own or as an attribute. Its files lie in a temporary directory, which goes when the module does; a
        SavedModel has them as assets. To load one in Python, import ``tensorflow_decision_forests`` first; TensorFlow
        Serving has its ops built in.

    Raises:
        MissingExtraError: TF-DF is not installed, or not for this TensorFlow.
        UnsupportedModelError: a tree is too deep for TF-DF's builder.
    """
    for index, tree in enumerate(forest.trees):
        if tree.depth > DEEPEST:
            raise UnsupportedModelError(
                explain(
                    "The builder of TensorFlow Decision Forests cannot make a tree this deep.",
                    received=f"tree {index}, {tree.depth} levels",
                    valid=f"at most {DEEPEST} levels",
                    hint="Use --backend ops.",
                )
            )
    return _TFDFBackend(forest, import_tfdf())


def import_tfdf() -> Any:
    """Import ``tensorflow_decision_forests`` without its greeting.

    Raises:
        MissingExtraError: it is not installed, or not for this TensorFlow.
    """
    greets = _GREETING not in os.environ
    try:
        with _quiet():
            os.environ.setdefault(_GREETING, "1")
            import tensorflow_decision_forests as tfdf
            from tensorflow_decision_forests.tensorflow.ops.inference import api  # noqa: F401 (an attribute from here on)
    except (ImportError, tf.errors.OpError) as error:  # OpError: its library does not fit this TensorFlow
        raise MissingExtraError(
            explain(
                "TensorFlow Decision Forests is needed here and cannot be imported.",
                received=f"{type(error).__name__}: {error}",
                hint="pip install 'mpru_tf[trees]'. The backend ops does without it.",
            )
        ) from error
    finally:
        if greets:
            del os.environ[_GREETING]
    return tfdf


class _TFDFBackend(tf.Module):
    """What :func:`tfdf_backend` returns."""

    def __init__(self, forest: Forest, tfdf: Any) -> None:
        super().__init__(name="tfdf_backend")
        self._link = forest.link
        self._columns = _Columns(forest, tfdf.py_tree)
        self._ops = tfdf.tensorflow.ops.inference.op
        folder = Path(tempfile.mkdtemp(prefix="mpru-tfdf-"))
        # Not TemporaryDirectory, which warns when it goes with its owner.
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        # A number where no tree of an output asks anything.
        self._sources = [_source(forest, output, self._columns, folder, tfdf) for output in range(forest.outputs)]
        signature = [tf.TensorSpec([None, forest.n_features], tf.float32, name="features")]
        self._answer = tf.function(self._probabilities, input_signature=signature, autograph=False)

    def __call__(self, features: tf.Tensor) -> tf.Tensor:
        return self._answer(features)

    def _probabilities(self, features: tf.Tensor) -> tf.Tensor:
        rows = tf.shape(features)[0]
        margins = tf.cond(rows <= FEW_ROWS, lambda: self._margins(features), lambda: self._in_chunks(features, rows))
        margins.set_shape([None, len(self._sources)])
        return probabilities(self._link, margins)

    def _in_chunks(self, features: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        chunks = (rows + ROWS_AT_ONCE - 1) // ROWS_AT_ONCE
        answers = tf.TensorArray(tf.float32, chunks, element_shape=[None, len(self._sources)], infer_shape=False)

        def answer(chunk: tf.Tensor, answers: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
            first = chunk * ROWS_AT_ONCE
            return chunk + 1, answers.write(chunk, self._margins(features[first : first + ROWS_AT_ONCE]))

        _, answers = tf.while_loop(lambda chunk, _: chunk < chunks, answer, [0, answers])
        return answers.concat()

    def _margins(self, features: tf.Tensor) -> tf.Tensor:
        values, codes = self._columns.of(features)
        no_sets = tf.constant([], tf.int32), tf.constant([0], tf.int64), tf.constant([0], tf.int64)
        margins = []
        for source in self._sources:
            if isinstance(source, np.float32):
                margins.append(tf.fill([tf.shape(features)[0], 1], source))
                continue
            answers, _ = self._ops.SimpleMLInferenceOpWithHandle(
                model_handle=source._compiled_model.resource_handle,
                numerical_features=values,
                boolean_features=tf.zeros([0, 0]),
                categorical_int_features=codes,
                categorical_set_int_features_values=no_sets[0],
                categorical_set_int_features_row_splits_dim_1=no_sets[1],
                categorical_set_int_features_row_splits_dim_2=no_sets[2],
                dense_output_dim=1,
            )
            margins.append(answers)
        return tf.concat(margins, axis=1)


# ---------------------------------------------------------------------------------------------------------- the ranks
def _ranked_features(forest: Forest) -> dict[int, Ints]:
    """The features with a threshold that is 0 or subnormal: the patterns of all their thresholds."""
    thresholds: dict[int, list[Floats]] = {}
    for tree in forest.trees:
        numeric = (tree.left >= 0) & ~tree.categorical
        for feature in np.unique(tree.feature[numeric]).tolist():
            thresholds.setdefault(feature, []).append(tree.threshold[numeric & (tree.feature == feature)])
    every = {feature: np.unique(np.concatenate(thresholds[feature])) for feature in sorted(thresholds)}
    return {f: np.unique(_patterns(every[f])) for f in every if bool((np.abs(every[f]) < _SMALLEST_NORMAL).any())}


def _coded_features(forest: Forest) -> dict[int, Ints]:
    """The features with category codes: patterns of all codes that splits know, and of all that follow on one."""
    codes: dict[int, list[Ints]] = {}
    for tree in forest.trees:
        for node in np.flatnonzero(tree.categorical).tolist():
            codes.setdefault(int(tree.feature[node]), []).append(_categories(tree, node))
    every = {feature: np.unique(np.concatenate(codes[feature])) for feature in sorted(codes)}
    return {f: np.unique(_patterns(np.concatenate([every[f], every[f] + 1]))) for f in every}


def _categories(tree: Tree, node: int) -> Ints:
    return tree.categories[tree.category_start[node] : tree.category_start[node + 1]]


def _missing_code(starts: Ints) -> int:
    """What a missing code becomes: one more than the largest rank."""
    return len(starts) + 1


def _patterns(values: npt.NDArray[Any]) -> Ints:
    """The bits of float32 as int32 that order like the numbers: -0.0 and 0.0 are one, subnormals are told apart."""
    bits = values.astype(np.float32).view(np.int32)
    return np.where(bits < 0, np.int32(-(2**31)) - bits, bits)


def _rank(starts: Ints, value: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """How many of the starts each value has reached."""
    return np.searchsorted(starts, _patterns(value), side="right")


def _ranks(values: tf.Tensor, starts: list[Ints]) -> tf.Tensor:
    """:func:`_rank` in TensorFlow: of float32 ``[rows, columns]``, each column with its own starts, as int32."""
    table = np.full([len(starts), max(map(len, starts))], _NEVER, np.int32)
    for row, ascending in zip(table, starts, strict=True):
        row[: len(ascending)] = ascending
    bits = tf.bitcast(values, tf.int32)
    patterns = tf.where(bits < 0, np.int32(-(2**31)) - bits, bits)
    return tf.transpose(tf.raw_ops.UpperBound(sorted_inputs=table, values=tf.transpose(patterns)))


# --------------------------------------------------------------------------------------------------------- the forests
class _Columns:
    """The columns that all forests of TF-DF take, and the conditions that can be put to them."""

    def __init__(self, forest: Forest, py_tree: Any) -> None:
        self._py_tree = py_tree
        self._ranked, self._coded = _ranked_features(forest), _coded_features(forest)
        kinds = py_tree.dataspec.ColumnType
        self._plain = [self._spec(f"feature_{feature}", kinds.NUMERICAL) for feature in range(forest.n_features)]
        self._ranks = {feature: self._spec(f"rank_{feature}", kinds.NUMERICAL) for feature in self._ranked}
        self._codes = {feature: self._spec(f"code_{feature}", kinds.CATEGORICAL) for feature in self._coded}

    def _spec(self, name: str, kind: int) -> Any:
        return self._py_tree.dataspec.SimpleColumnSpec(name=name, type=kind)

    def announce(self, builder: Any) -> None:
        """Name all of them, used or not, in their order: so one matrix serves all forests."""
        for spec in [*self._plain, *self._ranks.values()]:
            builder.observe_feature(spec)
        for feature, spec in self._codes.items():
            builder.observe_feature(spec, [_missing_code(self._coded[feature])])

    def of(self, features: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """What the op takes: numbers, float32 ``[rows, numeric columns]``, and codes, int32 ``[rows, coded]``."""
        values, codes = features, tf.zeros([0, 0], tf.int32)
        if self._ranked:
            picked = tf.gather(features, list(self._ranked), axis=1)
            ranks = tf.cast(_ranks(picked, list(self._ranked.values())), tf.float32)
            values = tf.concat([features, tf.where(tf.math.is_nan(picked), np.float32(np.nan), ranks)], axis=1)
        if self._coded:
            picked = tf.gather(features, list(self._coded), axis=1)
            missing = np.array([_missing_code(starts) for starts in self._coded.values()], np.int32)
            codes = tf.where(tf.math.is_nan(picked), missing, _ranks(picked, list(self._coded.values())))
        return values, codes

    def condition(self, tree: Tree, node: int) -> Any:
        """What is true of the values that go right at an inner node."""
        feature, goes_right = int(tree.feature[node]), not tree.default_left[node]
        conditions = self._py_tree.condition
        if tree.categorical[node]:
            starts = self._coded[feature]
            codes = _rank(starts, _categories(tree, node)).tolist() + [_missing_code(starts)] * goes_right
            return conditions.CategoricalIsInCondition(self._codes[feature], codes, missing_evaluation=False)
        spec, threshold = self._plain[feature], float(tree.threshold[node])
        if feature in self._ranked:
            spec = self._ranks[feature]
            threshold = float(_rank(self._ranked[feature], tree.threshold[node : node + 1])[0])
        return conditions.NumericalHigherThanCondition(spec, threshold, missing_evaluation=goes_right)


def _source(forest: Forest, output: int, columns: _Columns, folder: Path, tfdf: Any) -> Any:
    """The margin of one output: a model of TF-DF, or a number if it is always the same."""
    base = forest.base_margin[output]
    parts = [
        (tree, tree.values[:, output if group == VECTOR else 0])
        for tree, group in zip(forest.trees, forest.groups.tolist(), strict=True)
        if group in (VECTOR, output)
    ]
    with np.errstate(over="ignore"):  # as Forest.margins
        if all(tree.nodes == 1 for tree, _ in parts):
            return np.float32(sum((values[0] for _, values in parts), start=base))
        # XGBoost begins with the base margin, and the sum of float32 depends on the order.
        parts[0] = (parts[0][0], parts[0][1] + base)
    path, prefix = folder / str(output), f"margin_{uuid.uuid4().hex}_"  # a SavedModel keeps all assets in one folder
    builder = tfdf.builder.GradientBoostedTreeBuilder(
        path=str(path),
        objective=tfdf.py_tree.objective.RegressionObjective(label="margin"),
        model_format=tfdf.builder.ModelFormat.YGGDRASIL_DECISION_FOREST,
        file_prefix=prefix,
        verbose=0,
    )
    columns.announce(builder)
    for tree, values in parts:
        builder.add_tree(tfdf.py_tree.tree.Tree(_root(tree, values, columns, tfdf.py_tree)))
    builder.close()
    with _quiet():
        return tfdf.tensorflow.ops.inference.api.ModelV2(str(path), verbose=False, file_prefix=prefix)


def _root(tree: Tree, values: Floats, columns: _Columns, py_tree: Any) -> Any:
    """One tree as TF-DF's nodes, made from the last to the first: children have larger numbers than their parent."""
    nodes: dict[int, Any] = {}
    for node in range(tree.nodes - 1, -1, -1):
        left = int(tree.left[node])
        if left < 0:
            nodes[node] = py_tree.node.LeafNode(py_tree.value.RegressionValue(float(values[node])))
        else:
            condition = columns.condition(tree, node)
            nodes[node] = py_tree.node.NonLeafNode(condition, pos_child=nodes.pop(left + 1), neg_child=nodes.pop(left))
    return nodes[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what TF-DF's C++ side logs off the terminal.

    Its own switch, ``cc_logging.set_yggdrasil_logging_level``, and TF_CPP_MIN_LOG_LEVEL leave lines of the engines
    ("Engine ... built") that go straight to file descriptor 2. For the moment this is the null device for all threads.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    try:
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), 2)
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
