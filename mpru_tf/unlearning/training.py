"""One phase of training: impair, or repair. Batches are drawn here, so that a seed decides them on any backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mpru_tf.errors import ModelError, UnsupportedModelError, explain
from mpru_tf.unlearning.scores import Scores

if TYPE_CHECKING:
    import keras

Array = npt.NDArray[Any]

_MOMENTUM = 0.9
_FIRST_LOSS_SCALE = 2.0**10  # Keras begins at 2^15, which overflows for the first steps; an epoch has only dozens


@dataclass(frozen=True)
class Mixed:
    """Noise [m, ...] seen so many times and examples [N, ...] behind it; rows are put together when asked for."""

    noise: Array
    times: int
    examples: Array

    def __len__(self) -> int:
        return self.times * len(self.noise) + len(self.examples)

    def __getitem__(self, chosen: npt.NDArray[np.int64]) -> Array:
        rows = np.empty((len(chosen), *self.examples.shape[1:]), self.examples.dtype)
        first = self.times * len(self.noise)
        noisy = chosen < first
        rows[noisy] = self.noise[chosen[noisy] % len(self.noise)]
        rows[~noisy] = self.examples[chosen[~noisy] - first]
        return rows


def check_trainable(model: keras.Model) -> None:
    """Refuse models that Adam cannot change.

    Raises:
        ModelError: it has no trainable weights.
        UnsupportedModelError: they are too short.
    """
    if not model.trainable_weights:
        raise ModelError(
            explain(
                "The model has no trainable weights, so nothing can be learned or unlearned in them.",
                received="a frozen model" if model.weights else "a model without weights",
                hint="Set `trainable = True` on the layers that may change.",
            )
        )
    short = {str(weight.dtype) for weight in model.trainable_weights} & {"float16", "bfloat16"}
    if short:
        raise UnsupportedModelError(
            explain(
                "Adam cannot train weights of 16 bits: small squares of gradients are 0 there, and 0.999 is 1.",
                received=f"trainable weights of type {', '.join(sorted(short))}",
                valid="float32 weights; the policies mixed_float16 and mixed_bfloat16 keep them",
            )
        )


def trainer(model: keras.Model, scores: Scores, shape: tuple[int, ...], learning_rate: float, training: bool) -> Any:
    """A compiled model that shares the layers of ``model``: its optimiser is fresh, and theirs is left alone.

    Args:
        model: whose weights are trained.
        scores: its class scores.
        shape: of one input.
        learning_rate: of Adam.
        training: whether batch normalisation and dropout work as in training.
    """
    import keras

    class Trainer(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(dtype="float32")
            self.classifier = model

        def call(self, x: Any) -> Any:
            return scores(x, training=training)

    optimizer = keras.optimizers.Adam(learning_rate)
    if any(layer.compute_dtype == "float16" for layer in model._flatten_layers()):
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=_FIRST_LOSS_SCALE)
    made = Trainer()
    made.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
        auto_scale_loss=False,
    )
    return made


def train_epoch(
    made: Any,
    x: Array | Mixed,
    y: Array,
    batch_size: int,
    random: np.random.Generator,
    on_step: Callable[[float], bool],
) -> bool:
    """Train one epoch in a new order.

    Args:
        made: what :func:`trainer` made.
        x: examples [N, ...]; y: classes int [N].
        batch_size: examples per step. A rest of less than half a batch is left out of this epoch, as its statistics
            would upset batch normalisation.
        random: decides the order.
        on_step: told the loss before each step; true ends the epoch.

    Returns:
        Whether it was ended.

    Raises:
        ModelError: the loss is not finite.
    """
    order = random.permutation(len(x))
    for start in range(0, len(x), batch_size):
        chosen = order[start : start + batch_size]
        if start and len(chosen) < batch_size / 2:
            break
        made.reset_metrics()
        loss = float(made.train_on_batch(x[chosen], y[chosen], return_dict=True)["loss"])
        if not np.isfinite(loss):
            raise ModelError(
                explain(
                    "Training went astray; the model is as it was.",
                    received=f"a loss of {loss}",
                    valid="a finite loss",
                    hint="Lower the learning rates of impair and repair, and see whether the examples are in the "
                    "range that the model was trained with.",
                )
            )
        if on_step(loss):
            return True
    return False


@contextmanager
def quick_statistics(model: keras.Model) -> Iterator[None]:
    """Batch normalisation follows its batches within an epoch, not only after hundreds of steps."""
    import keras

    kept = [
        (layer, layer.momentum)
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization) and layer.momentum > _MOMENTUM
    ]
    for layer, _ in kept:
        layer.momentum = _MOMENTUM
    try:
        yield
    finally:
        for layer, momentum in kept:
            layer.momentum = momentum


@contextmanager
def seeded(model: keras.Model, seed: int) -> Iterator[None]:
    """Dropout, and whatever else draws from a generator of its layer, draws what ``seed`` says; put back afterwards."""
    import keras

    states = [generator.state for layer in model._flatten_layers() for generator in layer._seed_generators]
    kept = [keras.ops.convert_to_numpy(state) for state in states]
    # Each gets a seed of its own: layers of one size would drop the same units otherwise.
    for state, own in zip(states, np.random.SeedSequence(seed).generate_state(len(states)), strict=True):
        state.assign(np.array([own, 0]))
    try:
        yield
    finally:
        for state, value in zip(states, kept, strict=True):
            state.assign(value)
