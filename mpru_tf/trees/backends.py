"""Which ways there are to compute a forest in TensorFlow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpru_tf.errors import DataError, explain

if TYPE_CHECKING:
    import tensorflow as tf

    from mpru_tf.trees.forest import Forest

BACKENDS = ("ops", "tfdf")
"""The default comes first: plain TensorFlow operations, and the custom operations of TF Decision Forests."""


def make_backend(forest: Forest, backend: str = "ops") -> tf.Module:
    """Return a ``tf.Module`` that takes float32 ``[batch, n_features]`` and answers ``[batch, classes]`` probabilities.

    Raises:
        DataError: there is no such backend.
        UnsupportedModelError: it cannot express the forest.
        MissingExtraError: it needs a package that is not installed.
    """
    if backend == "ops":
        from mpru_tf.trees.lowering import OpsBackend

        return OpsBackend(forest)
    if backend == "tfdf":
        from mpru_tf.trees.tfdf_backend import tfdf_backend

        return tfdf_backend(forest)
    raise DataError(explain("There is no such backend.", received=repr(backend), valid=", ".join(BACKENDS)))
