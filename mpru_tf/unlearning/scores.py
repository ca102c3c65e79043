"""A classifier's class scores in a form that cross-entropy does not saturate on: logits, or log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mpru_tf.errors import UnsupportedModelError, explain

if TYPE_CHECKING:
    import keras
    import numpy as np
    import numpy.typing as npt

Scores = Callable[..., Any]
"""From inputs [batch, ...] to float32 [batch, n], whose softmax is the model's probabilities; takes ``training``."""

_LEAST = 1e-37  # below it, float32 has no normal numbers and log no gradient worth having


def count_classes(model: keras.Model) -> int:
    """The number n of classes.

    Raises:
        UnsupportedModelError: the model does not answer one vector of class scores to one input.
    """
    inputs: list[Any] = getattr(model, "inputs", None) or []
    outputs: list[Any] = getattr(model, "outputs", None) or []
    if len(inputs) != 1 or len(outputs) != 1:
        raise UnsupportedModelError(
            explain(
                "UNSIR works on models with one input and one output.",
                received=f"{len(inputs)} inputs and {len(outputs)} outputs",
                valid="a built Keras model from examples [batch, ...] to class scores [batch, n]",
            )
        )
    shape = tuple(outputs[0].shape)
    if len(shape) != 2 or shape[1] is None or shape[1] < 2:
        raise UnsupportedModelError(
            explain("The model answers no class scores.", received=f"shape {shape}", valid="[batch, n], n >= 2")
        )
    if not str(inputs[0].dtype).startswith(("float", "bfloat")):
        raise UnsupportedModelError(
            explain(
                "Noise cannot be learned where inputs are no real numbers.",
                received=f"inputs of type {inputs[0].dtype}",
                valid="float32, float16, bfloat16 or float64",
            )
        )
    return int(shape[1])


def are_probabilities(answers: npt.NDArray[np.float64]) -> bool:
    """Whether answers [N, n] are rows of the simplex, to within what half precision makes of it."""
    return bool((answers >= 0).all() and (abs(answers.sum(-1) - 1) < 1e-2).all())


@contextmanager
def bare_scores(model: keras.Model, probabilities: bool) -> Iterator[Scores]:
    """The class scores of ``model`` as logits, or as logarithms of its probabilities where a softmax cannot be removed.

    A softmax that is the activation of the last layer is switched off while the context lasts: graphs must be traced
    inside, and the model itself answers logits there.

    Args:
        model: one input, one output.
        probabilities: whether that is what it answers.
    """
    import keras

    def as_logits(answers: Any) -> Any:
        return keras.ops.cast(answers, "float32")

    def as_logarithms(answers: Any) -> Any:
        return keras.ops.log(keras.ops.maximum(keras.ops.cast(answers, "float32"), _LEAST))

    def of(function: Scores, convert: Callable[[Any], Any]) -> Scores:
        return lambda x, training=False: convert(function(x, training=training))

    last: Any = getattr(getattr(model.outputs[0], "_keras_history", None), "operation", None)
    if not probabilities:
        yield of(model, as_logits)
    elif isinstance(last, keras.layers.Softmax) and last in model.layers:
        yield of(keras.Model(model.inputs[0], last.input), as_logits)
    elif getattr(last, "activation", None) is keras.activations.softmax and last in model.layers:
        last.activation = keras.activations.linear
        try:
            yield of(model, as_logits)
        finally:
            last.activation = keras.activations.softmax
    else:
        yield of(model, as_logarithms)
