"""Decision forests as a Keras layer, for people who put a model together themselves.

>>> from mpru_tf.trees.layers import ForestLayer                                       # doctest: +SKIP
>>> from mpru_tf.trees.xgboost_model import read_xgboost                               # doctest: +SKIP
>>> features = keras.Input([54])                                                       # doctest: +SKIP
>>> scores = ForestLayer(read_xgboost("model.json"))(features)                         # doctest: +SKIP
>>> keras.Model(features, MPRULayer([3], 7)(scores)).export("models/forest/1")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from mpru_tf.errors import DataError, explain
from mpru_tf.trees.backends import make_backend
from mpru_tf.trees.forest import Forest


@keras.saving.register_keras_serializable(package="mpru_tf")
class ForestLayer(keras.layers.Layer):
    """A forest: float32 ``[batch, n_features]`` in, class probabilities float32 ``[batch, classes]`` out.

    Nothing in it is trained. ``Model.export`` writes a SavedModel for TensorFlow Serving; ``Model.save`` puts the
    forest into the .keras file.

    Args:
        forest: for instance of :func:`mpru_tf.trees.xgboost_model.read_xgboost`.
        backend: 'ops' (:mod:`mpru_tf.trees.lowering`) or 'tfdf' (:mod:`mpru_tf.trees.tfdf_backend`).
        kwargs: as for every Keras layer. Computation is in float32 whatever the dtype policy says.

    Raises:
        UnsupportedModelError: the backend cannot express the forest.
        MissingExtraError: 'tfdf' without TF Decision Forests.
        DataError: there is no such backend, or the input has another width.
    """

    def __init__(self, forest: Forest, backend: str = "ops", **kwargs: Any) -> None:
        # Features are not to be rounded to the policy's dtype on their way in.
        super().__init__(**{"dtype": "float32", **kwargs, "trainable": False, "autocast": False})
        self.forest = forest
        self.backend = backend
        self._backend = make_backend(forest, backend)

    def build(self, input_shape: Any) -> None:
        shape = tf.TensorShape(input_shape)
        if shape.rank != 2 or shape[-1] != self.forest.n_features:
            valid = f"[batch, {self.forest.n_features}]"
            raise DataError(explain("The rows do not fit the forest.", received=tuple(shape), valid=valid))
        super().build(input_shape)

    def call(self, features: tf.Tensor) -> tf.Tensor:
        return self._backend(tf.cast(features, tf.float32))

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, int]:
        return input_shape[0], self.forest.classes

    def get_config(self) -> dict[str, Any]:
        """What :meth:`from_config` needs, as JSON-able values; the forest is base64 of compressed arrays."""
        return {**super().get_config(), "forest": self.forest.to_text(), "backend": self.backend}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ForestLayer:
        """Return the layer that :meth:`get_config` described."""
        rest = {key: value for key, value in config.items() if key not in ("forest", "trainable")}
        return cls(Forest.from_text(config["forest"]), **rest)
