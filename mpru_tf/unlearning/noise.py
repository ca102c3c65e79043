"""Error-maximising noise: inputs that a classifier is as wrong about as can be, learned from the model alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mpru_tf.errors import DataError, ModelError, explain
from mpru_tf.unlearning.config import UnsirConfig
from mpru_tf.unlearning.scores import Scores

Array = npt.NDArray[Any]

_VALUES_AT_ONCE = 2**18  # that are widened to float64


@dataclass(frozen=True)
class Range:
    """Where a model's inputs lie: mean and standard deviation of each channel (the last axis).

    The paper draws noise from N(0, 1), for inputs that are normalised. A model that takes pixels of 0 to 255 hardly
    sees such noise, so ours is ``mean + deviation * z``, with z from N(0, 1) and the penalty on z: the same for
    normalised inputs, and in range for all others.
    """

    mean: Array
    deviation: Array

    @classmethod
    def of(cls, x: Array) -> Range:
        """That of examples [N, ..., channels].

        Raises:
            DataError: they are all the same.
        """
        axes = tuple(range(x.ndim - 1))
        values = x.size / x.shape[-1]  # of each channel
        step = max(1, _VALUES_AT_ONCE // max(1, x[0].size))
        chunks = [x[start : start + step] for start in range(0, len(x), step)]
        exact = sum(chunk.sum(axes, dtype=np.float64) for chunk in chunks) / values
        variance = sum(np.square(chunk - exact).sum(axes) for chunk in chunks) / values
        mean, deviation = (np.asarray(each, np.float32) for each in (exact, np.sqrt(variance)))
        if not deviation.any():
            raise DataError(explain("The retained examples are all the same, so noise like them cannot be made."))
        return cls(mean, deviation)


def learn_noise(
    scores: Scores,
    shape: tuple[int, ...],
    forgotten: Sequence[int],
    config: UnsirConfig,
    inputs: Range,
    *,
    on_step: Callable[[int, int, float], None],
) -> Array:
    """Learn a batch of noise for each forgotten class: Adam on ``-CE(class, noise) + penalty * mean(|z|^2)``.

    The classifier stays as it is, its batch normalisation in inference mode: its weights are no part of what is trained
    here, whatever Keras' backend.

    Args:
        scores: of the classifier.
        shape: of one input.
        forgotten: the classes.
        config: the settings.
        inputs: the range to make noise in.
        on_step: told the class, the step (from 1) and the loss before it.

    Returns:
        float32 [k, noise_batch, ...], in the model's input range.

    Raises:
        ModelError: the loss is not finite.

    Source: arXiv 2111.08947, section on error-maximising noise.
    """
    import keras

    mean, deviation = inputs.mean, inputs.deviation

    class Noise(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(dtype="float32")
            self.z = self.add_weight(shape=(config.noise_batch, *shape), initializer="zeros", name="z")

        def call(self, label: Any) -> Any:
            # Reached through a closure, so that Keras does not take the classifier's weights for this model's.
            return scores(self.z * deviation + mean, training=False)

        def compute_loss(
            self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
        ) -> Any:
            del y, sample_weight, training
            labels = keras.ops.broadcast_to(x, (config.noise_batch,))
            error = keras.losses.sparse_categorical_crossentropy(labels, y_pred, from_logits=True)
            norm = keras.ops.sum(keras.ops.square(self.z), axis=tuple(range(1, len(shape) + 1)))
            return -keras.ops.mean(error) + config.noise_penalty * keras.ops.mean(norm)

    random = np.random.default_rng(config.seed)
    model = Noise()
    optimizer = keras.optimizers.Adam(config.noise_learning_rate)
    optimizer.build([model.z])
    fresh = [keras.ops.convert_to_numpy(variable) for variable in optimizer.variables]
    model.compile(optimizer=optimizer, jit_compile=False, auto_scale_loss=False)
    learned = []
    for label in forgotten:
        for variable, value in zip(optimizer.variables, fresh, strict=True):
            variable.assign(value)
        model.z.assign(random.standard_normal((config.noise_batch, *shape), dtype=np.float32))
        for step in range(1, config.noise_rounds * config.noise_steps + 1):
            model.reset_metrics()
            loss = float(model.train_on_batch(np.full(1, label, np.int32), return_dict=True)["loss"])
            if not np.isfinite(loss):
                raise ModelError(
                    explain(
                        f"Learning noise for class {label} went astray.",
                        received=f"a loss of {loss} at step {step}",
                        hint="See whether the model answers finite numbers; or lower noise_learning_rate.",
                    )
                )
            on_step(label, step, loss)
        learned.append(mean + deviation * keras.ops.convert_to_numpy(model.z))
    stacked: Array = np.stack(learned).astype(np.float32)
    return stacked
