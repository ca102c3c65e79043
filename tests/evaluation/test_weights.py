"""What is left in the weights: relearning, the anamnesis index, distances, and a linear probe."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import pytest

from mpru_tf.errors import DataError, ModelError, UnsupportedModelError
from mpru_tf.evaluation.weights import (
    Relearning,
    anamnesis_index,
    linear_probe,
    penultimate,
    relearn_time,
    weight_distance,
)


def blobs(seed: int, each: int = 60) -> tuple[Any, Any]:
    """Three classes in the plane, easily told apart."""
    random = np.random.default_rng(seed)
    y = np.repeat(np.arange(3), each)
    centres = np.array([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0]])
    return (centres[y] + 0.3 * random.standard_normal((len(y), 2))).astype("float32"), y


def build() -> Any:
    return keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(8, activation="relu", name="hidden"),
            keras.layers.Dense(3, activation="softmax", name="scores"),
        ]
    )


@pytest.fixture(scope="module")
def trained() -> Any:
    keras.utils.set_random_seed(0)
    model = build()
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    model.fit(*blobs(0), epochs=30, verbose=0)
    return model


@pytest.fixture(scope="module")
def forgot(trained: Any) -> Any:
    """Class 2 is hidden by the last layer's bias alone: all else is left."""
    model = keras.models.clone_model(trained)
    model.set_weights(trained.get_weights())
    model.layers[-1].bias.assign(np.asarray(model.layers[-1].bias) - np.array([0, 0, 20], "float32"))
    return model


def of_class(examples: tuple[Any, Any], label: int) -> tuple[Any, Any]:
    keep = examples[1] == label
    return examples[0][keep], examples[1][keep]


def test_relearn_time(trained: Any, forgot: Any) -> None:
    gone, before = of_class(blobs(1), 2), [np.copy(weight) for weight in forgot.get_weights()]
    known = relearn_time(trained, blobs(0), gone, 1.0)
    assert (known.steps, known.accuracies) == (0, (1.0,))
    hidden = relearn_time(forgot, blobs(0), gone, 1.0, alpha=0.2, learning_rate=0.1, batch_size=64, most_steps=300)
    assert hidden.steps is not None
    assert hidden.steps > 0
    assert len(hidden.accuracies) == hidden.steps + 1
    assert hidden.accuracies[0] == 0
    assert hidden.accuracies[-1] >= hidden.target == 0.8
    assert all(accuracy < 0.8 for accuracy in hidden.accuracies[:-1])
    for a, b in zip(forgot.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_relearning_is_given_up(forgot: Any) -> None:
    found = relearn_time(forgot, blobs(0), of_class(blobs(1), 2), 1.0, learning_rate=1e-6, most_steps=3)
    assert found.steps is None
    assert len(found.accuracies) == 4


def test_relearning_refuses() -> None:
    nothing = np.zeros((0, 2), "float32"), np.zeros(0, int)
    with pytest.raises(DataError, match="0 to ask"):
        relearn_time(build(), blobs(0), nothing, 1.0)
    with pytest.raises(DataError, match="no shares"):
        relearn_time(build(), blobs(0), blobs(1), 0.0)
    x, y = blobs(0)
    for pairs in (((x, y[:-1]), (x, y)), ((x, y), (x[1:], y))):
        with pytest.raises(DataError, match="180 with 179|179 with 180"):
            relearn_time(build(), *pairs, 1.0)
    frozen = build()
    frozen.trainable = False
    with pytest.raises(ModelError, match="frozen"):
        relearn_time(frozen, blobs(0), blobs(1), 1.0)


def test_relearning_is_the_same_again_with_dropout(forgot: Any) -> None:
    def run(seed: int) -> tuple[float, ...]:
        keras.utils.set_random_seed(seed)
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dropout(0.5), *forgot.layers])
        gone = of_class(blobs(1), 2)
        return relearn_time(model, blobs(0), gone, 1.0, learning_rate=0.1, batch_size=64, most_steps=20).accuracies

    assert run(1) == run(2)


def test_anamnesis_index() -> None:
    def took(steps: int | None) -> Relearning:
        return Relearning(steps, 0.8, ())

    assert anamnesis_index(took(5), took(20)) == 0.25
    assert anamnesis_index(took(0), took(20)) == 0
    assert anamnesis_index(took(None), took(20)) == math.inf
    assert anamnesis_index(took(5), took(None)) is None
    assert anamnesis_index(took(5), took(0)) is None


def test_weight_distance(trained: Any, forgot: Any) -> None:
    assert weight_distance(trained, trained).to_dict() == {"whole": 0, "layers": {"hidden": 0, "scores": 0}}
    found = weight_distance(forgot, trained)
    assert found.layers["hidden"] == 0
    scores = math.sqrt(sum(float(np.sum(weight**2)) for weight in trained.layers[-1].get_weights()))
    whole = math.sqrt(sum(float(np.sum(weight**2)) for weight in trained.get_weights()))
    assert found.layers["scores"] == pytest.approx(20 / scores)
    assert found.whole == pytest.approx(20 / whole)


def test_weight_distance_of_what_was_zero(trained: Any) -> None:
    empty = keras.models.clone_model(trained)
    empty.set_weights([np.zeros_like(weight) for weight in trained.get_weights()])
    assert weight_distance(empty, empty).whole == 0
    assert weight_distance(trained, empty).whole == math.inf


def test_weight_distance_refuses_other_architectures(trained: Any) -> None:
    other = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    with pytest.raises(DataError, match="one architecture"):
        weight_distance(trained, other)


def test_probe_sees_what_the_answers_hide(forgot: Any) -> None:
    train, test = blobs(0), blobs(1)
    assert not (np.asarray(forgot(test[0])).argmax(-1) == 2).any()
    activations = penultimate(forgot, train[0])
    assert activations.shape == (180, 8)
    found = linear_probe((activations, train[1]), (penultimate(forgot, test[0]), test[1]), [2])
    assert found.balanced_accuracy > 0.95
    assert found.auc > 0.95


def test_probe_finds_nothing_where_there_is_nothing() -> None:
    random = np.random.default_rng(0)
    (a, y), (b, z) = ((random.standard_normal((3000, 4)), random.integers(0, 5, 3000)) for _ in range(2))
    found = linear_probe((a, y), (b, z), [1])
    assert found.balanced_accuracy == pytest.approx(0.5, abs=0.04)
    assert found.auc == pytest.approx(0.5, abs=0.04)


def test_probe_refuses_one_kind_alone() -> None:
    x, y = blobs(0)
    with pytest.raises(DataError, match="0 forgotten among 120"):
        linear_probe((x[y != 2], y[y != 2]), (x, y), [2])


def test_penultimate_refuses_models_without_a_last_layer() -> None:
    with pytest.raises(UnsupportedModelError, match="Dense"):
        penultimate(keras.Sequential([keras.Input((2,)), keras.layers.Softmax()]), np.zeros((1, 2)))


def test_penultimate_finds_what_makes_the_scores() -> None:
    """Not the gate in the middle, whose Dense layers come last in the list of layers of their kind."""
    random = np.random.default_rng(0).standard_normal((3, 4, 4, 2)).astype("float32")
    x = keras.Input((4, 4, 2))
    features = keras.layers.Conv2D(8, 3, padding="same")(x)
    gate = keras.layers.Dense(8, activation="sigmoid")(keras.layers.GlobalAveragePooling2D()(features))
    gated = keras.layers.Multiply()([features, keras.layers.Reshape((1, 1, 8))(gate)])
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(5, 1)(gated))
    model = keras.Model(x, keras.layers.Softmax()(pooled))
    seen = penultimate(model, random)
    np.testing.assert_allclose(seen, np.asarray(keras.Model(x, gated)(random)).reshape(3, -1), atol=1e-6)
    outer = keras.Input((4, 4, 2))
    nested = keras.Model(outer, keras.layers.Dropout(0.5)(model(keras.layers.Rescaling(1.0)(outer))))
    np.testing.assert_allclose(penultimate(nested, random), seen, atol=1e-6)
    twice = keras.Sequential([keras.Input((4, 4, 2)), nested, keras.layers.Activation("linear")])
    np.testing.assert_allclose(penultimate(twice, random), seen, atol=1e-6)


def test_penultimate_refuses_what_it_cannot_tell() -> None:
    x = keras.Input((2,))
    one, other = (keras.layers.Dense(3)(x) for _ in range(2))
    halves = keras.layers.GlobalMaxPooling1D()(keras.layers.Reshape((2, 3))(keras.layers.Dense(6)(x)))
    for answers in (keras.layers.Add()([one, other]), halves, keras.layers.PReLU()(one)):
        with pytest.raises(UnsupportedModelError, match="no last layer"):
            penultimate(keras.Model(x, answers), np.zeros((1, 2)))
