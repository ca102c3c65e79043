"""What is written is a SavedModel like any other: three signatures, read by the C++ loader and forgotten from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from forests import random_forest, tricky_rows

import mpru_tf
from mpru_tf.errors import UnsupportedModelError
from mpru_tf.saved_model.session import LoadedModel
from mpru_tf.trees.export import input_names, write_saved_model
from mpru_tf.trees.forest import Forest
from mpru_tf.trees.lowering import OpsBackend

NAMES = ("age", "capital gain", "capital-gain", "class", "7th", "Größe")


@pytest.fixture(scope="module")
def forest() -> Forest:
    return replace(random_forest(20, n_features=len(NAMES)), feature_names=NAMES)


@pytest.fixture(scope="module")
def version(forest: Forest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base") / "1"
    directory.mkdir()
    write_saved_model(
        forest, directory, OpsBackend(forest), named_inputs=True, classify=True, labels=["cat", "dog", "owl"]
    )
    return directory


def example(forest: Forest, row: np.ndarray) -> bytes:  # type: ignore[type-arg]
    features = {
        name: tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
        for name, value in zip(forest.feature_names, row.tolist(), strict=True)
        if not np.isnan(value)
    }
    return bytes(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())


def test_all_signatures_answer_the_same(forest: Forest, version: Path) -> None:
    x = tricky_rows(forest, 50)
    want = forest.probabilities(x)
    with LoadedModel(version) as model:
        assert model.signatures["classify"].method_name == "tensorflow/serving/classify"
        matrix = model.run("serving_default", {"features": x})
        assert set(matrix) == {"probabilities"}
        np.testing.assert_allclose(matrix["probabilities"], want, rtol=0, atol=3e-7)
        columns = dict(zip(input_names(forest), x.T, strict=True))
        np.testing.assert_array_equal(model.run("named", columns)["probabilities"], matrix["probabilities"])
        asked = model.run("classify", {"inputs": np.array([example(forest, row) for row in x], object)})
        np.testing.assert_array_equal(asked["scores"], matrix["probabilities"])
        assert asked["classes"].tolist() == [[b"cat", b"dog", b"owl"]] * 50


def test_names_become_keys(forest: Forest) -> None:
    assert input_names(forest) == ["age", "capital_gain", "capital_gain_2", "f_class", "f_7th", "Gr__e"]
    assert input_names(random_forest(0, n_features=3)) == ["f0", "f1", "f2"]
    # TensorFlow compares them in small letters.
    cases = replace(random_forest(0, n_features=4), feature_names=("Age", "age", "AGE", "age_2"))
    assert input_names(cases) == ["Age", "age_2", "AGE_3", "age_2_2"]
    many = replace(random_forest(0, n_features=5), n_features=50_000, feature_names=("a b",) * 50_000)
    assert len(set(input_names(many))) == 50_000
    twins = replace(random_forest(0, n_features=3), feature_names=("a_2", "a", "a "))
    assert input_names(twins) == ["a_2", "a", "a_"]


def test_names_that_differ_in_case_alone_can_be_written(tmp_path: Path) -> None:
    forest = replace(random_forest(0, n_features=2), feature_names=("Age", "age"))
    write_saved_model(forest, tmp_path, OpsBackend(forest), named_inputs=True, classify=True)
    x = tricky_rows(forest, 5)
    with LoadedModel(tmp_path) as model:
        answers = model.run("named", {"Age": x[:, 0], "age_2": x[:, 1]})["probabilities"]
    np.testing.assert_allclose(answers, forest.probabilities(x), rtol=0, atol=3e-7)


def test_the_same_name_twice_is_no_example(tmp_path: Path) -> None:
    forest = replace(random_forest(0, n_features=2), feature_names=("age", "age"))
    with pytest.raises(UnsupportedModelError, match="Two features have the same name.*'age'"):
        write_saved_model(forest, tmp_path, OpsBackend(forest), classify=True)
    assert list(tmp_path.iterdir()) == []


def test_without_wishes_there_is_one_signature(forest: Forest, tmp_path: Path) -> None:
    write_saved_model(forest, tmp_path, OpsBackend(forest))
    with LoadedModel(tmp_path) as model:
        assert set(model.signatures) - {"__saved_model_init_op"} == {"serving_default"}
    # The graph itself is small: what is large is in the variables.
    assert (tmp_path / "saved_model.pb").stat().st_size < 200_000


@pytest.mark.parametrize("link", ["softmax", "sigmoid", "step", "multi_label"])
def test_it_forgets(link: str, tmp_path: Path) -> None:
    forest = random_forest(21, outputs=1 if link in ("sigmoid", "step") else 3, link=link)
    directory = tmp_path / "1"
    directory.mkdir()
    write_saved_model(forest, directory, OpsBackend(forest), classify=True)
    result = mpru_tf.forget(tmp_path, classes=[1], multi_label=link == "multi_label")
    assert result.dropped_outputs == ()
    x = tricky_rows(forest, 2000)
    with LoadedModel(result.path) as model:
        filtered = model.run("serving_default", {"features": x})["probabilities"]
    assert (filtered[:, 1] == 0).all()
    if link == "multi_label":
        np.testing.assert_allclose(filtered[:, [0, 2]], forest.probabilities(x)[:, [0, 2]], rtol=0, atol=3e-7)
    else:
        np.testing.assert_allclose(filtered.sum(axis=1), 1, atol=1e-6)
