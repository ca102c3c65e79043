"""What is left of a forgotten class in the weights: how fast it is relearned, how far they moved, what a probe sees.

None of this says anything about an output filter, which leaves the weights as they are: whoever holds the file takes
the filter off, and relearns in 0 steps.

Sources: relearn time and anamnesis index, Chundawat, Tarun, Mandal, Kankanhalli, "Zero-Shot Machine Unlearning", 2023,
arXiv 2201.05629. Linear probes, Alain and Bengio, 2016, arXiv 1610.01644.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mpru_tf.errors import DataError, MissingExtraError, UnsupportedModelError, explain

if TYPE_CHECKING:
    import keras

Array = npt.NDArray[Any]

_PREDICT_BATCH = 500


@dataclass(frozen=True)
class Relearning:
    """How a forgotten class came back.

    Attributes:
        steps: of fine-tuning until the accuracy on it was back; 0 if it never was away, None if it was not back after
            the last step.
        target: the accuracy that counts as back.
        accuracies: after 0, 1, 2, ... steps.
    """

    steps: int | None
    target: float
    accuracies: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {"steps": self.steps, "target": self.target, "accuracies": list(self.accuracies)}


def relearn_time(
    model: keras.Model,
    examples: tuple[npt.ArrayLike, npt.ArrayLike],
    forgotten_examples: tuple[npt.ArrayLike, npt.ArrayLike],
    original_accuracy: float,
    *,
    alpha: float = 0.1,
    learning_rate: float = 1e-3,
    batch_size: int = 256,
    most_steps: int = 100,
    seed: int = 0,
) -> Relearning:
    """Fine-tune a copy until its accuracy on the forgotten classes is within ``alpha`` of the original's.

    Args:
        model: a Keras classifier; it stays as it is.
        examples: what to fine-tune on with Adam, x [N, ...] and classes int [N], in batches in a new order per epoch.
        forgotten_examples: others, of forgotten classes only, that the accuracy is taken on after each step.
        original_accuracy: on these, of the model before it forgot.
        alpha: what may be missing of it: back is ``accuracy >= (1 - alpha) * original_accuracy``.
        learning_rate: of Adam.
        batch_size: examples per step.
        most_steps: when to give up.
        seed: of the order, and of dropout.

    Returns:
        A :class:`Relearning`.

    Raises:
        DataError: there are no examples, or not as many as classes of them, or ``alpha`` is not in [0, 1) or
            ``original_accuracy`` not in (0, 1].
        ModelError: the model is none that can be fine-tuned, or its loss is not finite.
    """
    from mpru_tf.unlearning.copying import copied
    from mpru_tf.unlearning.scores import are_probabilities, bare_scores, count_classes
    from mpru_tf.unlearning.training import check_trainable, quick_statistics, seeded, train_epoch, trainer

    (x, y), (x_f, y_f) = ([np.asarray(each) for each in pair] for pair in (examples, forgotten_examples))
    if not len(x) or not len(x_f):
        raise DataError(explain("Relearning takes examples.", received=f"{len(x)} to learn from, {len(x_f)} to ask"))
    if len(x) != len(y) or len(x_f) != len(y_f):
        raise DataError(
            explain(
                "Examples and classes do not belong together.",
                received=f"{len(x)} with {len(y)} to learn from, {len(x_f)} with {len(y_f)} to ask",
                valid="one class each",
            )
        )
    if not (0 <= alpha < 1 and 0 < original_accuracy <= 1):
        raise DataError(
            explain(
                "These are no shares.",
                received=f"alpha {alpha}, original accuracy {original_accuracy}",
                valid="alpha in [0, 1), accuracy in (0, 1]",
            )
        )
    count_classes(model)
    check_trainable(model)
    model = copied(model)
    target = (1 - alpha) * original_accuracy
    accuracies = [_accuracy(model, x_f, y_f)]

    def on_step(loss: float) -> bool:
        del loss
        accuracies.append(_accuracy(model, x_f, y_f))
        return accuracies[-1] >= target or len(accuracies) > most_steps

    if accuracies[0] < target and most_steps > 0:
        random = np.random.default_rng(seed)
        probabilities = are_probabilities(_answers(model, x[:64]))
        with bare_scores(model, probabilities) as scores, quick_statistics(model), seeded(model, seed):
            made = trainer(model, scores, x.shape[1:], learning_rate, training=True)
            while not train_epoch(made, x.astype(np.float32), y.astype(np.int32), batch_size, random, on_step):
                pass
    back = accuracies[-1] >= target
    return Relearning(len(accuracies) - 1 if back else None, target, tuple(accuracies))


def anamnesis_index(unlearned: Relearning, retrained: Relearning) -> float | None:
    """Anamnesis index AIN = r_t(unlearned) / r_t(retrained), with r_t the steps of :func:`relearn_time`.

    1 is what retraining reaches. Near 0, the class comes back faster than it is learned: it is still in the weights.
    Far above 1, relearning is harder than learning, which can give the class away as well.

    Returns:
        The index; infinity if the unlearned model never relearned, None if the retrained one did not learn, or knew the
        class from the start: then there is nothing to compare with.
    """
    if not retrained.steps:
        return None
    return math.inf if unlearned.steps is None else unlearned.steps / retrained.steps


@dataclass(frozen=True)
class WeightDistance:
    """How far weights moved, each as |a - b| / |b| (Euclidean norms).

    Attributes:
        whole: of all weights as one vector.
        layers: by layer, in the model's order; layers without weights are left out.
    """

    whole: float
    layers: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {"whole": self.whole, "layers": self.layers}


def weight_distance(model: keras.Model, original: keras.Model) -> WeightDistance:
    """Compare the weights of two models of one architecture.

    Raises:
        DataError: their weights differ in number or shape.
    """
    ours, theirs = (list(_layer_weights(each)) for each in (model, original))
    shapes = [[[weight.shape for weight in weights] for _, weights in each] for each in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise DataError(
            explain(
                "Weights can be compared between models of one architecture only.",
                received=f"{model.name} with {model.count_params()} weights, {original.name} with "
                f"{original.count_params()}",
            )
        )
    layers: dict[str, float] = {}
    moved = length = 0.0
    for (name, a), (_, b) in zip(ours, theirs, strict=True):
        difference = sum(float(np.sum((u - v) ** 2)) for u, v in zip(a, b, strict=True))
        norm = sum(float(np.sum(v**2)) for v in b)
        layers[name] = _relative(difference, norm)
        moved, length = moved + difference, length + norm
    return WeightDistance(_relative(moved, length), layers)


def _layer_weights(model: keras.Model) -> list[tuple[str, list[Array]]]:
    import keras

    leaves = [layer for layer in model._flatten_layers(include_self=False) if not isinstance(layer, keras.Model)]
    return [
        (layer.name, [keras.ops.convert_to_numpy(weight).astype(np.float64) for weight in layer.weights])
        for layer in leaves
        # The state of random generators counts as weights for Keras, and says nothing.
        if layer.weights and "Dropout" not in type(layer).__name__
    ]


def _relative(squared: float, of: float) -> float:
    return math.sqrt(squared / of) if of else (0.0 if not squared else math.inf)


@dataclass(frozen=True)
class Probe:
    """What a linear probe finds of forgotten classes among others; 0.5 is chance.

    Attributes:
        balanced_accuracy: mean of the shares of both kinds that it names rightly.
        auc: area under the ROC curve.
    """

    balanced_accuracy: float
    auc: float

    def to_dict(self) -> dict[str, float]:
        """As JSON-able values."""
        return {"balanced_accuracy": self.balanced_accuracy, "auc": self.auc}


def linear_probe(
    train: tuple[npt.ArrayLike, npt.ArrayLike], test: tuple[npt.ArrayLike, npt.ArrayLike], forgotten: Sequence[int]
) -> Probe:
    """Train a logistic regression on activations to tell examples of forgotten classes from all others.

    Args:
        train: activations [N, d] and classes int [N], of both kinds.
        test: others, likewise.
        forgotten: the forgotten classes.

    Raises:
        DataError: one kind has no examples.
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import balanced_accuracy_score, roc_auc_score
    except ImportError as error:
        raise MissingExtraError(
            explain("The linear probe needs scikit-learn.", hint="pip install 'mpru_tf[report]'")
        ) from error
    (x, y), (x_test, y_test) = ((np.asarray(a, np.float64), np.isin(b, forgotten)) for a, b in (train, test))
    for name, kinds in (("train", y), ("test", y_test)):
        if kinds.all() or not kinds.any():
            raise DataError(
                explain(
                    "A probe needs examples of forgotten and of other classes.",
                    received=f"{int(kinds.sum())} forgotten among {len(kinds)} to {name}",
                )
            )
    mean, deviation = x.mean(0), x.std(0)
    deviation[deviation == 0] = 1
    probe = LogisticRegression(class_weight="balanced", max_iter=2000).fit((x - mean) / deviation, y)
    margins = probe.decision_function((x_test - mean) / deviation)
    return Probe(float(balanced_accuracy_score(y_test, margins > 0)), float(roc_auc_score(y_test, margins)))


def penultimate(model: keras.Model, x: npt.ArrayLike) -> Array:
    """The activations that class scores are made of, float32 [N, d]: what the last Dense or convolution layer gets.

    Activations, pooling, dropout, changes of shape and batch normalisation may follow it, and it may be in a nested
    model.

    Raises:
        UnsupportedModelError: the model has no such layer, or it cannot be told.
    """
    import keras

    before = _before_scores(model)
    if before is None:
        raise UnsupportedModelError(
            explain(
                "The model has no last layer to look in front of.",
                valid="a model with a Dense or convolution layer at its end that makes one value per class",
            )
        )
    answers = _answers(keras.Model(model.inputs[0], before), np.asarray(x))
    return answers.reshape(len(answers), -1).astype(np.float32)


def _before_scores(model: keras.Model) -> Any | None:
    """The Keras tensor that class scores are made of; None if that cannot be told."""
    import keras

    from mpru_tf.unlearning.scores import way_back

    layers = keras.layers
    outputs = getattr(model, "outputs", None) or []
    if len(outputs) != 1 or len(model.inputs) != 1:
        return None
    for step in way_back(outputs[0]):
        if isinstance(step.operation, layers.Dense | layers.Conv1D | layers.Conv2D | layers.Conv3D):
            made = getattr(step.operation, "units", None) or step.operation.filters
            return step.outward(step.inputs[0]) if made == outputs[0].shape[-1] else None
        if getattr(step.operation, "weights", None) and not isinstance(step.operation, layers.BatchNormalization):
            return None
    return None


def _answers(model: keras.Model, x: Array) -> Array:
    import keras

    parts = [
        keras.ops.convert_to_numpy(
            keras.ops.cast(model(x[i : i + _PREDICT_BATCH].astype(np.float32), training=False), "float32")
        )
        for i in range(0, len(x), _PREDICT_BATCH)
    ]
    return np.concatenate(parts)


def _accuracy(model: keras.Model, x: Array, y: Array) -> float:
    return float((_answers(model, x).argmax(-1) == y).mean())
