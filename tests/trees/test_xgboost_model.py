"""XGBoost's model files: read as each version means them, or refused by name. tests/trees/models has README.txt."""

from __future__ import annotations

import json
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mpru_tf.errors import CorruptModelError, ModelNotFoundError, MPRUError, UnsupportedModelError
from mpru_tf.trees.forest import Forest
from mpru_tf.trees.xgboost_model import read_xgboost

MODELS = sorted(path for path in (Path(__file__).parent / "models").iterdir() if path.suffix in (".json", ".ubj"))
CLASSES = "xgboost_3.1_classes.json"
CATEGORIES = "xgboost_2.0_categories.json"
Json = dict[str, Any]


def path_of(name: str) -> Path:
    return next(path for path in MODELS if path.name == name)


def document(name: str = CLASSES) -> Json:
    found: Json = json.loads(path_of(name).read_bytes())
    return found


def model_of(found: Json) -> Json:
    booster = found["learner"]["gradient_booster"]
    model: Json = booster.get("gbtree", booster)["model"]
    return model


def read(found: Json, **options: bool) -> Forest:
    return read_xgboost(json.dumps(found).encode(), **options)


def with_base_score(name: str, base_score: object) -> npt.NDArray[np.float32]:
    found = document(name)
    found["learner"]["learner_model_param"]["base_score"] = base_score
    return read(found).base_margin


# ------------------------------------------------------------------------------------------------- other people's files
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_margins_are_those_of_the_version_that_wrote_the_file(path: Path) -> None:
    expected = np.load(path.with_suffix(".npz"))
    margins = read_xgboost(path).margins(expected["x"])
    assert np.isnan(expected["x"]).any()
    assert np.isinf(expected["x"]).any()
    np.testing.assert_allclose(margins, expected["margins"], rtol=0, atol=1e-6)


def test_what_a_file_says_about_itself() -> None:
    forest = read_xgboost(path_of("xgboost_3.4_category_names.json"))
    assert forest.origin.startswith("XGBoost 3.4.")
    assert forest.feature_names == ("a", "b", "c", "d", "e", "f")
    assert forest.feature_types == ("float", "float", "float", "float", "c", "c")
    assert forest.category_names[:4] == (None, None, None, None)
    assert forest.category_names[4] == tuple(f"é{code:02}" for code in range(40))
    assert forest.category_names[5] == ("0", "10", "20", "30", "40")
    assert (forest.n_features, forest.outputs, forest.classes, forest.link) == (6, 3, 3, "softmax")


@pytest.mark.parametrize(
    ("name", "link", "classes"),
    [
        ("xgboost_3.1_binary.ubj", "sigmoid", 2),
        ("xgboost_3.2_hinge.ubj", "step", 2),
        ("xgboost_3.3_labels.ubj", "multi_label", 3),
        ("xgboost_2.1_logitraw.json", "sigmoid", 2),
    ],
)
def test_links(name: str, link: str, classes: int) -> None:
    forest = read_xgboost(path_of(name))
    assert (forest.link, forest.classes) == (link, classes)


def test_deleted_nodes_are_gone() -> None:
    # Written as UBJSON, so that what is left is seen through the reader alone.
    forest = read_xgboost(path_of("xgboost_1.7_pruned.ubj"))
    assert all(tree.nodes == 2 * int((tree.left >= 0).sum()) + 1 for tree in forest.trees)
    assert min(tree.nodes for tree in forest.trees) < 15


def test_early_stopping_cuts_whole_rounds_off() -> None:
    path = path_of("xgboost_3.0_early.ubj")
    forest, whole = read_xgboost(path), read_xgboost(path, all_trees=True)
    assert len(forest.trees) == 3 * 2 * 3  # rounds, parallel trees, classes
    assert len(whole.trees) == 5 * 2 * 3
    assert "first 3 of 5 rounds" in forest.notes[0]
    assert "All 5 rounds" in whole.notes[0]
    x = np.load(path.with_suffix(".npz"))["x"]
    assert np.abs(forest.margins(x) - whole.margins(x)).max() > 0.01


def test_rounds_are_counted_where_the_file_does_not_list_them() -> None:
    found = document()
    del model_of(found)["iteration_indptr"]
    found["learner"]["attributes"]["best_iteration"] = "1"
    assert len(read(found).trees) == 2 * 3
    model_of(found)["gbtree_model_param"]["num_parallel_tree"] = "2"
    assert len(read(found).trees) == 2 * 2 * 3


@pytest.mark.parametrize("best", ["-1", "3", "99"])
def test_a_best_round_that_cuts_nothing_off(best: str) -> None:
    found = document()
    found["learner"]["attributes"]["best_iteration"] = best
    forest = read(found)
    assert (len(forest.trees), forest.notes) == (12, ())


def test_dermatology(shared: Path) -> None:
    """A model of XGBoost 1.x with the answers that came with it."""
    folder = shared / "models" / "xgboost"
    forest = read_xgboost(folder / "dermatology6.json")
    lines = (folder / "dermatology6.test").read_text().splitlines()
    x = np.full((len(lines), forest.n_features), np.nan, np.float32)
    for row, line in enumerate(lines):
        for entry in line.split()[1:]:
            feature, value = entry.split(":")
            x[row, int(feature)] = float(value)
    for suffix, answers in ((".margin", forest.margins(x)), (".prob", forest.probabilities(x))):
        expected = np.loadtxt(folder / f"dermatology6.test{suffix}").reshape(answers.shape)
        np.testing.assert_allclose(answers, expected, rtol=0, atol=1e-6)


# ----------------------------------------------------------------------------------------------------------- base_score
@pytest.mark.parametrize(
    ("name", "base_score", "margins"),
    [
        (CLASSES, "5E-1", [0.5, 0.5, 0.5]),
        (CLASSES, "[5E-1]", [0.5, 0.5, 0.5]),
        (CLASSES, "[1E0,-2.5E0,3E-1]", [1, -2.5, 0.3]),
        (CLASSES, 0.25, [0.25, 0.25, 0.25]),
        ("xgboost_1.7_dart.json", "3E-1", [np.log(0.3 / 0.7)]),
        ("xgboost_1.7_dart.json", "[3E-1]", [np.log(0.3 / 0.7)]),
        ("xgboost_2.1_logitraw.json", "1.08E0", [1.08]),
    ],
)
def test_base_scores(name: str, base_score: object, margins: list[float]) -> None:
    np.testing.assert_allclose(with_base_score(name, base_score), margins, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "base_score", ["", "[]", "[1,2]", "[1,2,3,4]", "nan", "1e999", "0x1", "1_0", "[1", None, True, []]
)
def test_base_scores_that_are_none(base_score: object) -> None:
    with pytest.raises(CorruptModelError, match="base_score"):
        with_base_score(CLASSES, base_score)


@pytest.mark.parametrize("base_score", ["0", "1", "-0.5", "1.5"])
def test_a_probability_is_between_0_and_1(base_score: str) -> None:
    with pytest.raises(CorruptModelError, match="between 0 and 1"):
        with_base_score("xgboost_1.7_dart.json", base_score)


# ---------------------------------------------------------------------------------------------------- XGBoost beside it
Rows = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def data() -> tuple[Rows, npt.NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6)).astype(np.float32)
    x[:, 4:] = rng.integers(0, 40, (400, 2))
    y = ((x[:, 0] > 0).astype(int) + (x[:, 1] + np.sin(x[:, 4] * 3) > 0.5)).clip(0, 2)
    y[:60] = rng.integers(0, 3, 60)
    x[rng.random(x.shape) < 0.1] = np.nan
    return x, y


def probes(forest: Forest, x: Rows) -> Rows:
    """Rows with values at thresholds and one float32 to each side, infinities, and codes that are none."""
    rng = np.random.default_rng(1)
    splits = [
        (int(tree.feature[node]), tree.threshold[node])
        for tree in forest.trees
        for node in np.flatnonzero((tree.left >= 0) & ~tree.categorical)
    ]
    wanted = [
        (feature, value)
        for feature, threshold in splits[:200]
        for value in (threshold, np.nextafter(threshold, -np.inf), np.nextafter(threshold, np.inf))
    ]
    odd = (-1, -0.5, -0.0, 0.3, 2.7, 31, 32, 39.9, 40, 64, 2**24 - 1, 2**24, 1e30, np.inf, -np.inf)
    wanted += [(feature, np.float32(value)) for feature in range(6) for value in odd]
    rows = x[rng.integers(0, len(x), len(wanted))]
    for row, (feature, value) in zip(rows, wanted, strict=True):
        row[feature] = value
    return np.concatenate([x, rows])


@pytest.mark.parametrize(
    "parameters",
    [
        {"objective": "multi:softprob"},
        {"objective": "multi:softprob", "base_score": 0.3, "tree_method": "exact", "gamma": 3},
        {"objective": "multi:softmax", "num_parallel_tree": 3, "subsample": 0.5},
        {"objective": "multi:softprob", "multi_strategy": "multi_output_tree"},
        {"objective": "multi:softprob", "booster": "dart", "rate_drop": 0.5},
        {"objective": "multi:softprob", "max_cat_to_onehot": 1, "categorical": True},
        {"objective": "multi:softprob", "max_cat_to_onehot": 100, "categorical": True},
        {"objective": "binary:logistic"},
        {"objective": "binary:logistic", "base_score": 0.3, "scale_pos_weight": 3},
        {"objective": "binary:logistic", "booster": "dart", "one_drop": 1, "normalize_type": "forest"},
        {"objective": "binary:logistic", "max_cat_to_onehot": 1, "categorical": True, "tree_method": "approx"},
        {"objective": "binary:logistic", "labels": True},
        {"objective": "binary:logistic", "labels": True, "multi_strategy": "multi_output_tree"},
        {"objective": "binary:logitraw"},
        {"objective": "binary:hinge"},
    ],
    ids=lambda parameters: " ".join(str(value) for value in parameters.values()),
)
def test_equal_to_xgboost(data: tuple[Rows, npt.NDArray[np.int64]], parameters: Json) -> None:
    xgboost = pytest.importorskip("xgboost")
    x, y = data
    parameters = dict(parameters)
    types = {"feature_types": ["q"] * 4 + ["c", "c"], "enable_categorical": True}
    options = types if parameters.pop("categorical", False) else {}
    if parameters["objective"].startswith("multi"):
        parameters["num_class"] = 3
    else:
        y = (y > 0).astype(np.int64)
    if parameters.pop("labels", False):
        y = np.stack([y, np.nan_to_num(x[:, 2]) > 0, np.nan_to_num(x[:, 3]) > 1], axis=1)
    parameters = {"tree_method": "hist", "max_depth": 5, "nthread": 1, "seed": 0, **parameters}
    booster = xgboost.train(parameters, xgboost.DMatrix(x, y, **options), 6)
    booster.set_param({"nthread": 1})
    forest, from_json = read_xgboost(booster.save_raw("ubj")), read_xgboost(booster.save_raw("json"))
    rows = probes(forest, x)
    expected = booster.inplace_predict(rows, predict_type="margin", validate_features=False)
    margins = forest.margins(rows)
    np.testing.assert_allclose(margins, expected.reshape(margins.shape), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(margins, from_json.margins(rows))
    finite = rows[~np.isinf(rows).any(axis=1)]
    answers = booster.predict(xgboost.DMatrix(finite, **options))
    probabilities = forest.probabilities(finite)
    if parameters["objective"] == "multi:softmax":
        np.testing.assert_array_equal(probabilities.argmax(axis=1), answers)
    elif parameters["objective"] == "binary:logitraw":
        np.testing.assert_allclose(probabilities[:, 1], 1 / (1 + np.exp(-answers)), rtol=0, atol=1e-6)
    elif answers.ndim == 1:
        np.testing.assert_allclose(probabilities[:, 1], answers, rtol=0, atol=1e-6)
    else:
        np.testing.assert_allclose(probabilities, answers, rtol=0, atol=1e-6)


def test_equal_to_the_classifier_that_stopped_early(data: tuple[Rows, npt.NDArray[np.int64]], tmp_path: Path) -> None:
    xgboost = pytest.importorskip("xgboost")
    x, y = data
    made = xgboost.XGBClassifier(n_estimators=60, max_depth=4, learning_rate=0.9, early_stopping_rounds=4, n_jobs=1)
    made.fit(x[:250], y[:250], eval_set=[(x[250:], y[250:])], verbose=False)
    path = tmp_path / "model.ubj"
    made.save_model(path)
    forest = read_xgboost(str(path))
    assert len(forest.trees) == 3 * (made.best_iteration + 1) < 3 * made.get_booster().num_boosted_rounds()
    np.testing.assert_allclose(forest.probabilities(x), made.predict_proba(x), rtol=0, atol=1e-6)


# -------------------------------------------------------------------------------------------------------------- refused
def with_objective(name: str, **parameters: str) -> bytes:
    found = document()
    found["learner"]["objective"]["name"] = name
    found["learner"]["learner_model_param"] |= parameters
    return json.dumps(found).encode()


def linear() -> bytes:
    found = document()
    found["learner"]["gradient_booster"] = {"name": "gblinear", "model": {"weights": [1.0]}}
    return json.dumps(found).encode()


def unknown_booster() -> bytes:
    found = document()
    found["learner"]["gradient_booster"]["name"] = "gbforest"
    return json.dumps(found).encode()


def settings() -> bytes:
    found = document()
    del found["learner"]["gradient_booster"]["model"]
    return json.dumps(found).encode()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (with_objective("reg:squarederror"), "reg:squarederror.*regression, ranking and survival"),
        (with_objective("reg:logistic"), "reg:logistic"),
        (with_objective("rank:ndcg"), "rank:ndcg"),
        (with_objective("survival:cox"), "survival:cox"),
        (with_objective("binary:hinge", num_target="3"), "Several labels"),
        (with_objective("multi:softprob", num_class="1"), "num_class 1"),
        (with_objective("multi:softprob", num_class=str(2**40)), "num_class"),
        (with_objective("multi:softprob", num_target="2"), "num_target 2"),
        (linear(), "linear.*gblinear"),
        (unknown_booster(), "gbforest"),
        (settings(), "save_config"),
        (pickle.dumps([1]), "pickle"),
        (b"binf" + bytes(200), "old binary format"),
        (struct.pack("<fII", 0.5, 6, 3) + bytes(200), "old binary format"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"PK\x03\x04", "zip"),
        (b"tree\nversion=v4\n", "LightGBM"),
        (b'{"name": "tree", "num_tree_per_iteration": 3}', "LightGBM"),
        (b'{"oblivious_trees": []}', "CatBoost"),
        (b"booster[0]:\n0:[f0<1] yes=1,no=2", "text dump"),
        (b'[{"nodeid": 0, "leaf": 1}]', "dump"),
        (b'{"Config": {}, "Model": {}}', "snapshot"),
        (b"{}", "something else"),
        (b"[]", "something else"),
        (b"<html>", "begins with"),
    ],
)
def test_refused_by_name(data: bytes, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        read_xgboost(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.json", ".", "a\0b"])
def test_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        read_xgboost(tmp_path / name)


def first_tree(**changes: Any) -> Callable[[Json], None]:
    return lambda found: model_of(found)["trees"][0].update(changes)


def entry(key: str, at: int, value: Any, tree: int = 0) -> Callable[[Json], None]:
    def change(found: Json) -> None:
        model_of(found)["trees"][tree][key][at] = value

    return change


def model(**changes: Any) -> Callable[[Json], None]:
    return lambda found: model_of(found).update(changes)


def learner(**changes: Any) -> Callable[[Json], None]:
    return lambda found: found["learner"].update(changes)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (entry("left_children", 0, 0), "tree 0.*root"),
        (entry("left_children", 0, 10**6), "tree 0.*out of range"),
        (entry("right_children", 0, 1), "twice"),
        (entry("right_children", 0, -1), "out of range"),
        (entry("left_children", 0, 1.5), "no integer"),
        (entry("left_children", 0, "1"), "no integer"),
        (entry("left_children", 0, 2**70), "no integer"),
        (entry("left_children", 0, [1]), "no number"),
        (entry("left_children", 0, None), "no integer"),
        (entry("split_indices", 0, 6), "feature 6 of 6"),
        (entry("split_indices", 0, -1), "feature"),
        (entry("split_conditions", 0, float("nan")), "NaN"),
        (entry("split_conditions", -1, float("inf")), "infinite"),
        (entry("split_conditions", -1, 1e300), "infinite"),
        (entry("split_conditions", 0, "0.5"), "no number"),
        (entry("default_left", 0, "x"), "no integer"),
        (first_tree(default_left=[]), "default_left of tree 0 has 0 entries"),
        (first_tree(left_children=[]), "entries"),
        (first_tree(left_children=None), "no array left_children"),
        (first_tree(tree_param={"num_deleted": "2"}), "not all others were deleted"),
        (first_tree(tree_param={"size_leaf_vector": "2"}), "hold 2 numbers for 3"),
        (first_tree(tree_param={"size_leaf_vector": "3"}), "base_weights of tree 0 has"),
        (first_tree(tree_param={"size_leaf_vector": "3"}, leaf_weights=[1.0, 2.0]), "whole number of leaves"),
        (first_tree(tree_param={"size_leaf_vector": "3"}, leaf_weights=[1.0, 2.0, 3.0]), "not among its leaf_weights"),
        (model(trees=[]), "tree_info has 12 entries for 0"),
        (model(trees=None), "no list trees"),
        (model(trees=[1] * 12), "tree 0 is no object"),
        (model(tree_info=[3] * 12), "not one of 3"),
        (model(tree_info=[-1] * 12), "not one of 3"),
        (model(iteration_indptr=[0, 3, 6]), "iteration_indptr"),
        (model(iteration_indptr=[0, 9, 6, 12]), "iteration_indptr"),
        (model(weight_drop=[1.0]), "weight_drop"),
        (model(weight_drop=[float("nan")] * 12), "weight_drop"),
        (model(cats={"enc": [{}]}), "categories of 1 features"),
        (model(cats={"enc": [{"offsets": [0, 9], "values": [65]}] * 6}), "begin where"),
        (model(cats={"enc": [{"offsets": [0, 1], "values": [255]}] * 6}), "UTF-8"),
        (learner(feature_names=["a"]), "1 feature names"),
        (learner(feature_names=[1] * 6), "no list of texts"),
        (learner(attributes={"best_iteration": "two"}), "best_iteration"),
        (learner(learner_model_param={"num_class": "3", "num_feature": "0", "base_score": "0"}), "num_feature is 0"),
        (learner(learner_model_param={"num_class": "3", "num_feature": "1e3", "base_score": "0"}), "num_feature"),
        (learner(learner_model_param=3), "no object learner_model_param"),
        (learner(objective={}), "no name"),
    ],
)
def test_damage_is_named(change: Callable[[Json], None], reason: str) -> None:
    found = document()
    change(found)
    with pytest.raises(CorruptModelError, match=reason) as caught:
        read(found)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"split_type": 2}, "neither 0 nor 1"),
        ({"categories": -1}, "below 0"),
        ({"categories": 2**24}, "above"),
        ({"categories_sizes": 10**9}, "one run"),
        ({"categories_sizes": -1}, "one run"),
        ({"categories_segments": 1}, "one run"),
        ({"categories_nodes": 0}, "not its categorical nodes"),
    ],
)
def test_damaged_categories_are_named(changes: Json, reason: str) -> None:
    found = document(CATEGORIES)
    tree = next(tree for tree in model_of(found)["trees"] if 0 not in tree["categories_nodes"][:1] != [])
    for key, value in changes.items():
        tree[key][0] = value
    with pytest.raises(CorruptModelError, match=reason):
        read(found)


def test_a_dart_model_needs_its_weights() -> None:
    found = document("xgboost_1.7_dart.json")
    del found["learner"]["gradient_booster"]["weight_drop"]
    with pytest.raises(CorruptModelError, match="weight_drop"):
        read(found)


def test_a_newer_version_is_read_with_a_note() -> None:
    found = document()
    found["version"] = [4, 0, 0]
    forest = read(found)
    assert forest.origin == "XGBoost 4.0.0"
    assert "newer" in forest.notes[0]


# ------------------------------------------------------------------------------------------------------- hostile bytes
def ubjson(*parts: bytes) -> bytes:
    return b"{" + b"".join(parts)


def length(value: int) -> bytes:
    return b"L" + struct.pack(">q", value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"  \n",
        b"{",
        b'{"learner": ',
        b'{"learner": \xff}',
        b'{"learner": {"gradient_booster": ' + b"[" * 100_000,
        b"[" * 100_000,
        b'{"a": ' + b"9" * 10_000 + b"}",
        ubjson(length(1), b"a", b"[$L#", length(2**62)),
        ubjson(length(1), b"a", b"[#", length(2**62)),
        ubjson(length(1), b"a", b"[#", length(-1)),
        ubjson(length(1), b"a", b"[$T#", length(2**40)),
        ubjson(length(1), b"a", b"[$[#", length(3)),
        ubjson(length(1), b"a", b"[$d]"),
        ubjson(length(1), b"a", b"S", length(2**62)),
        ubjson(length(1), b"\xff", b"Z}"),
        ubjson(length(1), b"a", b"[" * 1000),
        ubjson(length(1), b"a", (b"{" + length(1) + b"a") * 1000),
        ubjson(length(1), b"a", b"Z}", b"}"),
        ubjson(length(1), b"a", b"?}"),
        ubjson(b"Sa"),
        ubjson(b"L\0\0"),
    ],
)
def test_hostile_bytes(data: bytes) -> None:
    with pytest.raises(CorruptModelError):
        read_xgboost(data)


def test_all_of_ubjson_that_a_model_may_use() -> None:
    """Values that XGBoost writes in one way today and might write in another: all mean the same."""
    encoded = read_xgboost(_encoded(document()))
    x = np.load(path_of(CLASSES).with_suffix(".npz"))["x"]
    np.testing.assert_array_equal(encoded.margins(x), read_xgboost(path_of(CLASSES)).margins(x))


def _encoded(value: Any) -> bytes:
    """UBJSON with arrays of values of any type, closed by a bracket, and numbers in the smallest form."""
    if isinstance(value, dict):
        return b"{" + b"".join(_encoded(key)[1:] + _encoded(item) for key, item in value.items()) + b"}"
    if isinstance(value, list):
        return b"[" + b"".join(map(_encoded, value)) + b"]"
    if isinstance(value, str):
        return b"SU" + bytes([len(value.encode())]) + value.encode()
    if isinstance(value, bool) or value is None:
        return {True: b"T", False: b"F", None: b"Z"}[value]
    if isinstance(value, float):
        return b"D" + struct.pack(">d", value)
    for marker, form in ((b"i", ">b"), (b"I", ">h"), (b"l", ">i")):
        try:
            return marker + struct.pack(form, value)
        except struct.error:
            continue
    return b"L" + struct.pack(">Q", value % 2**64)


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Bytes flipped, cut out, doubled, or overwritten with what has a meaning in both formats."""
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(data))
        to = min(len(data), at + rng.choice((1, 2, 8, 200)))
        data = {
            "flip": lambda at=at, data=data: data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :],
            "cut": lambda at=at, to=to, data=data: data[:at] + data[to:],
            "end": lambda at=at, data=data: data[: at + 1],
            "double": lambda at=at, to=to, data=data: data[:to] + data[at:],
            "write": lambda at=at, data=data: data[:at] + rng.choice(_MEANINGFUL) + data[at + 1 :],
        }[rng.choice(("flip", "flip", "cut", "end", "double", "write"))]()
        if not data:
            break
    return data


_MEANINGFUL = (
    b"-",
    b"9",
    b"e99",
    b"null",
    b"[",
    b"]",
    b"{",
    b"}",
    b'"',
    b"NaN",
    b"\xff\xff\xff\xff",
    b"\x7f",
    b"[$d#L",
)


HOSTILE: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        1,
        2,
        7,
        255,
        2**24,
        2**31,
        2**63,
        2**80,
        1e39,
        float("nan"),
        float("inf"),
        "",
        "-1",
        "0",
        "3",
    ),
    *("x", "9" * 30, [], [[]], [1], [1.5], ["a"], {}, {"a": 1}),
)


def damaged_values(rng: random.Random, found: Json) -> Json:
    """Some values anywhere in a document replaced, deleted, or repeated."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        holder: Any = found
        while True:
            keys = list(holder) if isinstance(holder, dict) else range(len(holder))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(holder[key], (dict, list)) and rng.random() < 0.9:
                holder = holder[key]
                continue
            what = rng.random()
            if what < 0.7:
                holder[key] = rng.choice(HOSTILE)
            elif what < 0.85 or isinstance(holder, dict):
                del holder[key]
            else:
                holder.append(holder[key])
            break
    return found


def outcome(data: bytes, x: Rows) -> str:
    """What became of damaged bytes. Anything but an error of ours, or a forest that works, is raised."""
    try:
        forest = read_xgboost(data)
    except MPRUError as error:
        return str(error)
    if forest.n_features == x.shape[1]:
        assert forest.probabilities(x).shape == (len(x), forest.classes)
    return ""


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_damage_is_refused_or_read_never_worse(path: Path) -> None:
    honest = path.read_bytes()
    x = np.load(path.with_suffix(".npz"))["x"]
    mutants = [damaged(random.Random(f"{path.name} {seed}"), honest) for seed in range(60)]
    if path.suffix == ".json":
        for seed in range(100):
            found = damaged_values(random.Random(f"{path.name} {seed}"), json.loads(honest))
            mutants.append((json.dumps(found) if seed % 2 else "").encode() or _encoded(found))
    outcomes = [outcome(data, x) for data in mutants]
    assert sum(bool(text) for text in outcomes) > 10
    assert not any("\n" in text for text in outcomes)


def test_a_base_score_at_the_end_of_its_range() -> None:
    """From 3.2 on XGBoost writes 0 or 1 where all rows are of one class, and clips them when it reads them."""
    found = json.loads(path_of("xgboost_2.1_logitraw.json").read_bytes())
    found["learner"]["objective"]["name"] = "binary:logistic"
    found["learner"]["learner_model_param"]["base_score"] = "[1E0]"
    with pytest.raises(CorruptModelError, match="base_score"):
        read_xgboost(json.dumps(found).encode())
    found["version"] = [3, 2, 0]
    np.testing.assert_allclose(read_xgboost(json.dumps(found).encode()).base_margin, [13.815], atol=0.1)


def test_half_a_character_in_a_name() -> None:
    found = document()
    found["learner"]["feature_names"] = ["\ud800"] + [
        str(n) for n in range(1, read_xgboost(path_of(CLASSES)).n_features)
    ]
    with pytest.raises(CorruptModelError, match="not Unicode"):
        read_xgboost(json.dumps(found).encode())
