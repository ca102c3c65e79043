"""A classifier's class scores in a form that cross-entropy does not saturate on: logits, or log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
        UnsupportedModelError: the model does not answer one vector of class scores to one input, or judges each class
            on its own.
    """
    inputs: list[Any] = getattr(model, "inputs", None) or []
    outputs: list[Any] = getattr(model, "outputs", None) or []
    names: Any = getattr(getattr(model, "_functional", None) or model, "output", None) if outputs else None
    if len(inputs) != 1 or len(outputs) != 1 or isinstance(names, dict):
        raise UnsupportedModelError(
            explain(
                "UNSIR works on models with one input and one output.",
                received=f"{len(inputs)} inputs and "
                + (f"a dict of outputs {list(names)}" if isinstance(names, dict) else f"{len(outputs)} outputs"),
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
    if _ends_in_sigmoid(outputs[0]):
        raise UnsupportedModelError(
            explain(
                "The model ends in a sigmoid: it judges each class on its own, so an input does not have one class.",
                received="a multi-label or binary model",
                valid="probabilities or logits of classes of which an input has one, ending in a softmax or nothing",
            )
        )
    return int(shape[1])


@dataclass(frozen=True)
class Step:
    """A call in a model's graph.

    Attributes:
        operation: the layer or operation that was called.
        inputs: the Keras tensors that it was called on, in the innermost model around it.
        outward: makes of a Keras tensor of that model the same tensor of the outermost.
    """

    operation: Any
    inputs: tuple[Any, ...]
    outward: Callable[[Any], Any]


def way_back(tensor: Any, outward: Callable[[Any], Any] = lambda tensor: tensor) -> Generator[Step, None, bool]:
    """The calls that made a Keras tensor, last first, into nested models; it ends where a call takes several tensors.

    Returns:
        Whether it came to an input.
    """
    import keras

    while True:
        history = tensor._keras_history
        if history.operation is None:
            return True
        inputs = tuple(history.operation._inbound_nodes[history.node_index].input_tensors)
        if not inputs:
            return True
        nested = isinstance(history.operation, keras.Model) and getattr(history.operation, "outputs", None)
        if nested:
            inner = way_back(nested[history.tensor_index], _out_of(history.operation, inputs, outward))
            if not (yield from inner):
                return False
        else:
            yield Step(history.operation, inputs, outward)
        if len(inputs) != 1:
            return False
        tensor = inputs[0]


def _out_of(model: keras.Model, inputs: tuple[Any, ...], outward: Callable[[Any], Any]) -> Callable[[Any], Any]:
    import keras

    return lambda tensor: outward(keras.Model(list(model.inputs), tensor)(list(inputs)))


def _ends_in_sigmoid(tensor: Any) -> bool:
    """Whether a sigmoid is the last that is done to class scores, pooling and change of shape aside."""
    import keras

    mixing = (keras.layers.Softmax, keras.layers.Lambda, keras.layers.UnitNormalization)
    for step in way_back(tensor):
        operation = step.operation
        activation = getattr(operation, "activation", None) or operation
        name = getattr(activation, "__name__", type(activation).__name__).lower()
        if name.endswith("sigmoid"):
            return True
        # What a layer of the caller's does with scores cannot be told.
        known = type(operation).__module__.startswith("keras.") and not isinstance(operation, mixing)
        if not known or name.endswith("softmax") or getattr(operation, "weights", None):
            return False
    return False


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

    step = next(way_back(model.outputs[0]), None)
    last: Any = step.operation if step is not None and step.operation in model.layers else None
    if not probabilities:
        yield of(model, as_logits)
    elif step is not None and isinstance(last, keras.layers.Softmax) and len(step.inputs) == 1:
        # In front of this call of it, as it may be called elsewhere, too.
        yield of(keras.Model(model.inputs[0], step.inputs[0]), as_logits)
    elif getattr(last, "activation", None) is keras.activations.softmax:
        last.activation = keras.activations.linear
        try:
            yield of(model, as_logits)
        finally:
            last.activation = keras.activations.softmax
    else:
        yield of(model, as_logarithms)
