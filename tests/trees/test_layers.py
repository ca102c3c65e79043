"""Forests as Keras layers: alone, before the unlearning layer, saved, loaded and exported."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from forests import random_forest, tricky_rows

from mpru_tf import MPRULayer
from mpru_tf.errors import CorruptModelError, DataError
from mpru_tf.filters import renormalize
from mpru_tf.trees.forest import Forest
from mpru_tf.trees.layers import ForestLayer
from mpru_tf.trees.xgboost_model import read_xgboost


@pytest.fixture(scope="module")
def forest() -> Forest:
    return random_forest(30, vector=True)


def test_it_survives_saving_and_export_with_the_unlearning_layer_behind_it(forest: Forest, tmp_path: Path) -> None:
    features = keras.Input([forest.n_features])
    layer = ForestLayer(forest, name="forest")
    model = keras.Model(features, MPRULayer([1], 3, "renormalize")(layer(features)))
    assert layer.trainable_variables == []
    x = tricky_rows(forest, 100)
    want = renormalize(forest.probabilities(x), [1])
    np.testing.assert_allclose(model.predict(x, verbose=0), want, rtol=0, atol=1e-6)

    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))

    model.export(tmp_path / "1", verbose=False)
    exported = tf.saved_model.load(tmp_path / "1")
    np.testing.assert_array_equal(exported.serve(x).numpy(), model.predict(x, verbose=0))


def test_a_policy_of_half_precision_does_not_round_features(forest: Forest) -> None:
    x = tricky_rows(forest, 200)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        answers = ForestLayer(forest)(x)
    finally:
        keras.config.set_dtype_policy(before)
    np.testing.assert_allclose(answers.numpy(), forest.probabilities(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["xgboost_2.0_categories.json", "xgboost_3.4_category_names.json"])
def test_a_forest_as_text(name: str) -> None:
    forest = read_xgboost(Path(__file__).parent / "models" / name)
    again = Forest.from_text(forest.to_text())
    x = tricky_rows(forest, 300)
    np.testing.assert_array_equal(again.margins(x), forest.margins(x))
    for field in ("n_features", "link", "feature_names", "feature_types", "category_names", "origin", "notes"):
        assert getattr(again, field) == getattr(forest, field)


def test_an_empty_forest_as_text() -> None:
    none = Forest((), np.zeros(0, np.int32), np.zeros(2, np.float32), 3, "softmax")
    assert Forest.from_text(none.to_text()).trees == ()


def test_text_that_is_no_forest(forest: Forest) -> None:
    text = forest.to_text()
    for damaged in ("", "no base64!", text[: len(text) // 2], "AAAA" + text[4:]):
        with pytest.raises(CorruptModelError):
            Forest.from_text(damaged)


def test_what_is_refused(forest: Forest) -> None:
    with pytest.raises(DataError, match="There is no such backend"):
        ForestLayer(forest, backend="gpu")
    with pytest.raises(DataError, match="do not fit the forest"):
        ForestLayer(forest)(np.zeros([3, forest.n_features + 1], np.float32))
