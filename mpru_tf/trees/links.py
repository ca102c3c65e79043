"""From margins to class probabilities, in TensorFlow."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

_CERTAIN = 1000.0
"""The Softmax of 0 and this is exactly 0 and 1."""


def probabilities(link: str, margins: tf.Tensor) -> tf.Tensor:
    """What :func:`mpru_tf.trees.forest.link_probabilities` computes, of float32 ``[batch, outputs]``.

    Of two classes, too, the answer is a Softmax: that is where a filter goes later.
    """
    if link == "softmax":
        return tf.nn.softmax(margins)
    if link == "multi_label":
        return tf.sigmoid(margins)
    if link == "step":
        margins = tf.where(margins > 0, np.float32(_CERTAIN), np.float32(-_CERTAIN))
    else:
        # The Softmax of 0 and infinity is NaN, the sigmoid of infinity 1.
        margins = tf.clip_by_value(margins, -_CERTAIN, _CERTAIN)
    return tf.nn.softmax(tf.concat([tf.zeros_like(margins), margins], axis=-1))
