"""SavedModels that TF-DF and YDF trained and exported are filtered like any other.

Run as a script with a folder, this file trains and exports them. That is a process of its own because TF-DF and YDF
leave temporary directories to the garbage collector, which warns about them some tests later.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf

import mpru_tf
from mpru_tf.errors import MissingExtraError, UnsupportedModelError
from mpru_tf.filters import make_filter
from mpru_tf.saved_model.session import LoadedModel
from mpru_tf.trees.tfdf_backend import import_tfdf

Features = dict[str, npt.NDArray[Any]]
ROWS = 300
KINDS = np.random.default_rng(0).integers(4, size=ROWS)
TREES = np.array(["ash", "birch", "cedar", "elm"])


def make_features() -> Features:
    """Two numbers, one sometimes missing, two categories, one of strings, and a boolean: all but one tell something."""
    random = np.random.default_rng(1)
    height = (KINDS + random.normal(size=ROWS)).astype("float32")
    height[::9] = np.nan
    return {
        "height": height,
        "girth": random.normal(size=ROWS).astype("float32"),
        "bark": np.where(random.random(ROWS) < 0.7, np.array(["grey", "white", "red", "dark"])[KINDS], "grey"),
        "zone": (KINDS + random.integers(3, size=ROWS)) % 7,
        "evergreen": random.random(ROWS) < KINDS / 4,
    }


FEATURES = make_features()

# ------------------------------------------------------------------------------------------------------------ training
Trainer = Callable[[Path], None]


def by_tfdf(learner: str, kinds: npt.NDArray[np.int64], **options: Any) -> Trainer:
    """Train and save as TF-DF's users do; its models take booleans as numbers."""

    def train(path: Path) -> None:
        keras = import_tfdf().keras
        if options.pop("two_probabilities", False):
            single = "predict_single_probability_for_binary_classification"
            options["advanced_arguments"] = keras.AdvancedArguments(**{single: False})
        model = getattr(keras, learner)(max_depth=3, verbose=0, **options)
        numbers = {key: value.astype("int32") if value.dtype == bool else value for key, value in FEATURES.items()}
        model.fit(tf.data.Dataset.from_tensor_slices((numbers, kinds)).batch(64), verbose=0)
        model.save(str(path))

    return train


def by_ydf(learner: str, kinds: npt.NDArray[Any], mode: str = "tf", **options: Any) -> Trainer:
    def train(path: Path) -> None:
        import ydf

        model = getattr(ydf, learner)("kind", max_depth=3).train({**FEATURES, "kind": kinds}, verbose=0)
        model.to_tensorflow_saved_model(str(path), mode=mode, **options)

    return train


BOOSTED, FOREST, CART = "GradientBoostedTrees", "RandomForest", "Cart"
TRAINED: dict[str, Trainer] = {
    "tfdf_boosted": by_tfdf(f"{BOOSTED}Model", KINDS, num_trees=5),
    "tfdf_forest_of_votes": by_tfdf(f"{FOREST}Model", KINDS, num_trees=5),
    "tfdf_forest_of_means": by_tfdf(f"{FOREST}Model", KINDS, num_trees=5, winner_take_all=False),
    "tfdf_cart": by_tfdf(f"{CART}Model", KINDS),
    "tfdf_two_classes": by_tfdf(f"{BOOSTED}Model", KINDS // 2, num_trees=5, two_probabilities=True),
    "tfdf_one_probability": by_tfdf(f"{BOOSTED}Model", KINDS // 2, num_trees=5),
    "ydf_boosted": by_ydf(f"{BOOSTED}Learner", TREES[KINDS]),
    "ydf_boosted_keras": by_ydf(f"{BOOSTED}Learner", TREES[KINDS], "keras"),
    "ydf_boosted_servo": by_ydf(f"{BOOSTED}Learner", TREES[KINDS], servo_api=True),
    "ydf_boosted_examples": by_ydf(f"{BOOSTED}Learner", TREES[KINDS], feed_example_proto=True),
    "ydf_boosted_both": by_ydf(f"{BOOSTED}Learner", TREES[KINDS], servo_api=True, feed_example_proto=True),
    "ydf_forest": by_ydf(f"{FOREST}Learner", TREES[KINDS]),
    "ydf_cart": by_ydf(f"{CART}Learner", TREES[KINDS]),
    "ydf_two_classes": by_ydf(f"{BOOSTED}Learner", TREES[KINDS // 2], servo_api=True),
    "ydf_one_probability": by_ydf(f"{CART}Learner", TREES[KINDS // 2]),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all models, each as version 1 of a base path."""
    try:
        import_tfdf()  # its ops must be here, too, for whoever loads the models
    except MissingExtraError as error:
        pytest.skip(f"needs the extra 'trees': {error}")
    pytest.importorskip("ydf", reason="needs the extra 'trees', which brings YDF")
    folder = tmp_path_factory.mktemp("trained")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


# ---------------------------------------------------------------------------------------------------------- the filter
def inputs_of(signature: Any) -> Features:
    """The features as a signature wants them: by name, or as serialized examples."""
    if list(signature.inputs) == ["inputs"]:
        return {"inputs": np.array([example(row) for row in range(ROWS)], object)}
    dtypes = {key: tf.as_dtype(info.dtype).as_numpy_dtype for key, info in signature.inputs.items()}
    return {key: FEATURES[key].astype(dtype) for key, dtype in dtypes.items()}


def example(row: int) -> bytes:
    feature = {}
    for key, column in FEATURES.items():
        value = column[row]
        if column.dtype.kind == "f":
            feature[key] = tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
        elif column.dtype.kind == "U":
            feature[key] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[value.encode()]))
        else:
            feature[key] = tf.train.Feature(int64_list=tf.train.Int64List(value=[int(value)]))
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


@pytest.mark.parametrize(
    ("name", "classes", "key"),
    [
        ("tfdf_boosted", 4, "output_1"),
        ("tfdf_forest_of_votes", 4, "output_1"),
        ("tfdf_forest_of_means", 4, "output_1"),
        ("tfdf_cart", 4, "output_1"),
        ("tfdf_two_classes", 2, "output_1"),
        ("ydf_boosted", 4, "output"),
        ("ydf_boosted_keras", 4, "output_1"),
        ("ydf_boosted_servo", 4, "scores"),
        ("ydf_boosted_examples", 4, "output"),
        ("ydf_boosted_both", 4, "scores"),
        ("ydf_forest", 4, "output"),
        ("ydf_cart", 4, "output"),
        ("ydf_two_classes", 2, "scores"),
    ],
)
def test_forgets(trained: Path, tmp_path: Path, name: str, classes: int, key: str) -> None:
    forgotten = [1, 3] if classes == 4 else [1]
    result = mpru_tf.forget(trained / name / "1", forgotten, into=tmp_path)
    verification = mpru_tf.verify(result.path)
    assert {check.name for check in verification.checks} >= {"load", f"answers of serving_default:{key}"}
    assert all(check.passed for check in verification.checks), verification.checks
    with LoadedModel(trained / name / "1") as before, LoadedModel(result.path) as after:
        inputs = inputs_of(before.signatures["serving_default"])
        old, new = before.run("serving_default", inputs), after.run("serving_default", inputs)
    assert old[key].shape == (ROWS, classes)
    assert len(np.unique(old[key], axis=0)) > 3
    assert np.all(old[key][:, forgotten].max(axis=0) > 0.2)
    expected = make_filter(classes, forgotten).probabilities(old[key])
    np.testing.assert_allclose(new[key], expected, rtol=0, atol=1e-6)
    assert np.all(new[key][:, forgotten] == 0)
    for other in old.keys() - {key}:
        np.testing.assert_array_equal(new[other], old[other])


def test_nobody_has_to_import_tf_df(trained: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mpru_tf.cli", "forget", str(trained / "tfdf_cart"), "--classes", "1", "--json"]
    done = subprocess.run([*command, "--into", str(tmp_path)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["load_check"]["status"] == "passed"


def test_labels_of_ydf_are_found(trained: Path, tmp_path: Path) -> None:
    with LoadedModel(trained / "ydf_boosted_servo" / "1") as model:
        answers = model.run("serving_default", inputs_of(model.signatures["serving_default"]))
    labels = [label.decode() for label in answers["classes"][0]]
    result = mpru_tf.forget(trained / "ydf_boosted_servo", ["cedar"], into=tmp_path)
    assert result.forgotten == (labels.index("cedar"),)
    assert result.labels == ("cedar",)


@pytest.mark.parametrize("name", ["tfdf_one_probability", "ydf_one_probability"])
def test_one_probability_for_two_classes_is_refused(trained: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsupportedModelError, match="one of two classes"):
        mpru_tf.forget(trained / name, [1], into=tmp_path)


if __name__ == "__main__":
    for name, train in TRAINED.items():
        train(Path(sys.argv[1]) / name / "1")
