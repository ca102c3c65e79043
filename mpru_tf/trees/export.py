"""Write a forest as a SavedModel that any stock TensorFlow Serving loads."""

from __future__ import annotations

import keyword
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from mpru_tf.errors import UnsupportedModelError, explain
from mpru_tf.trees.forest import Forest

FEATURES, PROBABILITIES = "features", "probabilities"
"""The input and the output of ``serving_default``."""


def write_saved_model(
    forest: Forest,
    directory: Path,
    backend: tf.Module,
    *,
    named_inputs: bool = False,
    classify: bool = False,
    labels: Sequence[str] | None = None,
) -> None:
    """Write a SavedModel into a directory.

    =================== ========================================= ==================================================
    SignatureDef        inputs                                    outputs, each ``[batch, classes]``
    =================== ========================================= ==================================================
    ``serving_default`` ``features`` float32 [batch, n_features]  ``probabilities`` float32
    ``named``           each feature by its name, float32 [batch] ``probabilities`` float32
    ``classify``        ``inputs``, serialized tf.Example [batch] ``scores`` float32, ``classes`` string
    =================== ========================================= ==================================================

    A feature that a tf.Example does not hold is missing (NaN), as is NaN itself in the other two.

    Args:
        forest: what ``backend`` computes; its names are used.
        directory: exists and is empty.
        backend: float32 ``[batch, n_features]`` to class probabilities ``[batch, classes]``.
        named_inputs: whether to write ``named``.
        classify: whether to write ``classify``, for TensorFlow Serving's Classify call.
        labels: class labels for ``classify``; class indices without.

    Raises:
        UnsupportedModelError: ``classify``, and two features have the same name.
    """
    if classify and len(set(feature_names(forest))) < forest.n_features:
        raise UnsupportedModelError(
            explain(
                "Two features have the same name, so a tf.Example cannot tell them apart.",
                received=next(repr(name) for name, count in Counter(feature_names(forest)).items() if count > 1),
                hint="Leave --classify away; --named-inputs numbers them.",
            )
        )
    served = tf.Module()
    served.backend = backend
    names = input_names(forest)
    rows = tf.TensorSpec([None, forest.n_features], tf.float32, name=FEATURES)
    one = tf.TensorSpec([None], tf.float32)

    def matrix(features: tf.Tensor) -> dict[str, tf.Tensor]:
        return {PROBABILITIES: backend(features)}

    def named(**features: tf.Tensor) -> dict[str, tf.Tensor]:
        return matrix(tf.stack([features[name] for name in names], axis=1))

    def classified(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        missing = tf.io.FixedLenFeature([], tf.float32, default_value=np.float32("nan"))
        found = tf.io.parse_example(inputs, dict.fromkeys(feature_names(forest), missing))
        scores = backend(tf.stack([found[name] for name in feature_names(forest)], axis=1))
        texts = list(labels) if labels is not None else [str(index) for index in range(forest.classes)]
        return {"scores": scores, "classes": tf.tile(tf.constant([texts]), [tf.shape(inputs)[0], 1])}

    signatures = {"serving_default": _signature(matrix, features=rows)}
    if named_inputs:
        signatures["named"] = _signature(named, **dict.fromkeys(names, one))
    if classify:
        signatures["classify"] = _signature(classified, inputs=tf.TensorSpec([None], tf.string))
    tf.saved_model.save(served, str(directory), signatures=signatures)
    if classify:
        _answer_classify(directory)


def feature_names(forest: Forest) -> tuple[str, ...]:
    """The features' names; XGBoost's own for features without: f0, f1, ..."""
    return forest.feature_names or tuple(f"f{index}" for index in range(forest.n_features))


def input_names(forest: Forest) -> list[str]:
    """The features' names as keys of a SignatureDef: TensorFlow wants what Python could call an argument."""
    names: list[str] = []
    taken: set[str] = set()  # in small letters, which is how TensorFlow compares them
    tried: dict[str, int] = {}
    for name in feature_names(forest):
        key = re.sub(r"[^0-9A-Za-z_]", "_", name)
        if not key or key[0].isdigit() or key[0] == "_" or keyword.iskeyword(key) or key == "self":
            key = f"f_{key}"
        free, small = key, key.lower()
        while free.lower() in taken:
            tried[small] = tried.get(small, 1) + 1
            free = f"{key}_{tried[small]}"
        taken.add(free.lower())
        names.append(free)
    return names


def _signature(function: Any, **specs: tf.TensorSpec) -> Any:
    return tf.function(function, autograph=False).get_concrete_function(**specs)


def _answer_classify(directory: Path) -> None:
    """Say that ``classify`` answers Classify; ``tf.saved_model.save`` calls every signature a Predict."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    path = directory / "saved_model.pb"
    model = SavedModel.FromString(path.read_bytes())
    model.meta_graphs[0].signature_def["classify"].method_name = tf.saved_model.CLASSIFY_METHOD_NAME
    path.write_bytes(model.SerializeToString(deterministic=True))
