"""The exported graph against XGBoost itself: 100,000 rows for each objective, where trees are easily wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from forests import tricky_rows

from mpru_tf.saved_model.session import LoadedModel
from mpru_tf.trees.export import write_saved_model
from mpru_tf.trees.forest import link_probabilities
from mpru_tf.trees.lowering import OpsBackend
from mpru_tf.trees.xgboost_model import read_xgboost

xgboost = pytest.importorskip("xgboost", reason="XGBoost is not installed: nothing to compare with")

ROWS = 100_000
FEATURES = 6
TYPES = ["float", "float", "int", "c", "c", "float"]


def training_data(labels: Callable[[Any], Any], categorical: bool) -> Any:
    random = np.random.default_rng(0)
    x = random.normal(0, 2, (1500, FEATURES)).astype(np.float32)
    x[:, 2] = random.integers(-3, 4, len(x))
    x[:, 3] = random.integers(0, 3, len(x))
    x[:, 4] = random.integers(0, 60, len(x))
    x[:, 5] = np.where(random.random(len(x)) < 0.3, 0, x[:, 5])
    y = labels(x)
    x[random.random(x.shape) < 0.1] = np.nan
    types = TYPES if categorical else None
    return xgboost.DMatrix(x, y, feature_types=types, enable_categorical=categorical)


def classes(x: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    return ((x[:, 0] > 0).astype(int) + (x[:, 3] == 1) + (x[:, 4] % 7 < 3)) % 4


def yes_or_no(x: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    return (x[:, 0] * x[:, 1] + (x[:, 4] % 5 < 2) > 0.5).astype(int)


def three_labels(x: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    return np.stack([x[:, 0] > 0, x[:, 3] == 1, x[:, 4] % 7 < 3], axis=1).astype(int)


MODELS: dict[str, tuple[dict[str, Any], Callable[[Any], Any]]] = {
    "softprob": ({"objective": "multi:softprob", "num_class": 4}, classes),
    "softmax": ({"objective": "multi:softmax", "num_class": 4, "max_depth": 8}, classes),
    "sets of categories": ({"objective": "multi:softprob", "num_class": 4, "max_cat_to_onehot": 1}, classes),
    "single categories": ({"objective": "multi:softprob", "num_class": 4, "max_cat_to_onehot": 100}, classes),
    "no categories": ({"objective": "multi:softprob", "num_class": 4}, classes),
    "binary": ({"objective": "binary:logistic"}, yes_or_no),
    "all rows of one class": ({"objective": "binary:logistic"}, lambda x: np.ones(len(x), int)),
    "raw binary": ({"objective": "binary:logitraw"}, yes_or_no),
    "hinge": ({"objective": "binary:hinge"}, yes_or_no),
    "several labels": ({"objective": "binary:logistic", "tree_method": "hist"}, three_labels),
    "dart": (
        {"objective": "multi:softprob", "num_class": 4, "booster": "dart", "rate_drop": 0.3, "one_drop": 1},
        classes,
    ),
    "boosted random forests": (
        {"objective": "multi:softprob", "num_class": 4, "num_parallel_tree": 3, "subsample": 0.7},
        classes,
    ),
    "vector leaves": (
        {"objective": "multi:softprob", "num_class": 4, "multi_strategy": "multi_output_tree", "tree_method": "hist"},
        classes,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_it_answers_as_xgboost(name: str, tmp_path: Path) -> None:
    settings, labels = MODELS[name]
    # Trees with vectors in their leaves cannot ask for categories in the versions of XGBoost so far.
    categorical = name not in ("no categories", "vector leaves")
    data = training_data(labels, categorical)
    booster = xgboost.train({"max_depth": 5, "eta": 0.5, "seed": 1, "nthread": 2, **settings}, data, 12)
    booster.save_model(tmp_path / "model.ubj")
    forest = read_xgboost(tmp_path / "model.ubj")
    x = tricky_rows(forest, ROWS, seed=1)
    # In place, XGBoost takes rows as they are: a DMatrix refuses infinities and codes that cannot be.
    margins = booster.inplace_predict(x, predict_type="margin", validate_features=False).reshape(ROWS, -1)
    np.testing.assert_allclose(OpsBackend(forest).margins(x).numpy(), margins, rtol=0, atol=1e-5)
    probabilities = booster.inplace_predict(x, validate_features=False)
    if probabilities.ndim == 1:
        probabilities = link_probabilities(forest.link, margins) if forest.link == "softmax" else probabilities
    if forest.link in ("sigmoid", "step"):
        one = link_probabilities("sigmoid", margins)[:, 1] if name == "raw binary" else probabilities.reshape(-1)
        probabilities = np.stack([1 - one, one], axis=1)

    directory = tmp_path / "1"
    directory.mkdir()
    write_saved_model(forest, directory, OpsBackend(forest))
    with LoadedModel(directory) as model:
        answers = model.run("serving_default", {"features": x})["probabilities"]
    np.testing.assert_allclose(answers, probabilities, rtol=0, atol=1e-6)
