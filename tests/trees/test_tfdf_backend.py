"""The backend tfdf: equal to the NumPy reference for every float32, saved and loaded like other models, and quiet."""

from __future__ import annotations

import gc
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
from mpru_tf.trees import tfdf_backend as module
from mpru_tf.trees.forest import CATEGORY_LIMIT, LINKS, VECTOR, Floats, Forest, Tree
from mpru_tf.trees.tfdf_backend import DEEPEST, FEW_ROWS, ROWS_AT_ONCE, tfdf_backend
from mpru_tf.trees.xgboost_model import read_xgboost

MODELS = sorted(path for path in (Path(__file__).parent / "models").iterdir() if path.suffix in (".json", ".ubj"))
ROOT = Path(__file__).parents[2]
F32 = np.float32
TINY = np.finfo(F32).tiny  # the smallest normal number
HARD = [0.0, -0.0, 1e-40, -1e-40, TINY, -TINY, np.inf, -np.inf]


@pytest.fixture(autouse=True)
def _tfdf(request: pytest.FixtureRequest) -> None:
    """TF-DF, imported as the backend does it; without it, all but the refusals that come before it are skipped."""
    if request.function in (test_trees_that_are_too_deep, test_without_tfdf_the_extra_is_named):
        return
    try:
        module.import_tfdf()
    except MissingExtraError as error:
        pytest.skip(f"needs the extra 'trees': {error}")


# ---------------------------------------------------------------------------------------------------- forests to try
def leaf(*values: float) -> Tree:
    return Tree.arrange(*[np.array([-1])] * 3, np.zeros(1, F32), np.zeros(1), np.array([values], F32), {})


def stump(
    threshold: float = 0.5,
    values: Any = (1, -1),
    *,
    feature: int = 0,
    default_left: bool = False,
    codes: list[int] | None = None,
) -> Tree:
    """``x[feature] < threshold ? values[0] : values[1]``; with codes, the latter if ``x[feature]`` is among them."""
    values = np.array([np.zeros_like(values[0]), *values], F32).reshape(3, -1)
    return Tree.arrange(
        left=np.array([1, -1, -1]),
        right=np.array([2, -1, -1]),
        feature=np.array([feature, 0, 0]),
        threshold=np.array([threshold, 0, 0], F32),
        default_left=np.array([default_left, 0, 0]),
        values=values,
        categories={} if codes is None else {0: np.array(codes, np.int64)},
    )


def forest(
    *trees: Tree, link: str = "sigmoid", groups: list[int] | None = None, base: Any = 0.25, n: int = 2
) -> Forest:
    given = np.zeros(len(trees)) if groups is None else np.array(groups)
    return Forest(trees, given.astype(np.int32), np.atleast_1d(np.array(base, F32)), n, link)


def grown(rng: np.random.Generator, depth: int, width: int, thresholds: Floats, n: int, coded: set[int]) -> Tree:
    """A random tree: numeric splits at some of the thresholds, splits by category code at the coded features."""
    left, right, feature, values = [-1], [-1], [0], [rng.normal(size=width)]
    categories = {}
    level = [0]
    for _ in range(depth):
        below = []
        for node in level:
            if rng.random() < 0.15 and node:
                continue
            left[node], right[node] = len(left), len(left) + 1
            feature[node] = int(rng.integers(n))
            if feature[node] in coded:
                categories[node] = rng.choice([0, 1, 2, 5, 6, 33, 1000, CATEGORY_LIMIT - 1], rng.integers(5))
            for _ in "lr":
                below.append(len(left))
                left.append(-1), right.append(-1), feature.append(0), values.append(rng.normal(size=width))
        level = below
    return Tree.arrange(
        np.array(left), np.array(right), np.array(feature), rng.choice(thresholds, len(left)),
        rng.integers(2, size=len(left)), np.array(values, F32), categories,
    )  # fmt: skip


def edges(forest: Forest) -> Floats:
    """Rows with each number that matters in each feature, the others at random."""
    thresholds = np.concatenate([tree.threshold for tree in forest.trees])
    codes = np.concatenate([tree.categories for tree in forest.trees]).astype(F32)
    numbers = np.unique(np.concatenate([thresholds, codes, codes + 1, codes + F32(0.7), -codes]))
    special = [np.nan, -np.nan, np.inf, -np.inf, *HARD, -0.5, 2.0**24, 3e38, -3e38]
    near = [np.nextafter(numbers, F32(side), dtype=F32) for side in (-np.inf, np.inf)]
    numbers = np.concatenate([numbers, *near, np.array(special, F32)])
    rng = np.random.default_rng(1)
    rows = rng.choice(numbers, (len(numbers) * forest.n_features, forest.n_features))
    for feature in range(forest.n_features):
        rows[feature * len(numbers) : (feature + 1) * len(numbers), feature] = numbers
    return rows


def in_pool(backend: tf.Module, n_features: int, folder: Path) -> Callable[[Floats], npt.NDArray[Any]]:
    """The backend, saved, loaded as a server does and run by TensorFlow's threads, to which subnormal numbers are 0."""
    loaded = LoadedModel(save(backend, n_features, folder), threads=1)
    return lambda x: loaded.run("serving_default", {"features": x})["probabilities"]


def save(backend: tf.Module, n_features: int, folder: Path) -> Path:
    holder = tf.Module()
    holder.forest = backend
    signature = [tf.TensorSpec([None, n_features], tf.float32, name="features")]
    serve = tf.function(lambda features: {"probabilities": backend(features)}, input_signature=signature)
    tf.saved_model.save(holder, str(folder), signatures={"serving_default": serve})
    return folder


def check(forest: Forest, folder: Path, rows: Floats | None = None) -> None:
    rows = edges(forest) if rows is None else rows
    backend = tfdf_backend(forest)
    expected = forest.probabilities(rows)
    for answer in (backend, in_pool(backend, forest.n_features, folder)):
        for some in (rows, rows[:FEW_ROWS]):
            answers = np.asarray(answer(some))
            assert answers.dtype == np.float32
            np.testing.assert_allclose(answers, expected[: len(some)], rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------------------ equal answers
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_models_of_every_version_of_xgboost(path: Path) -> None:
    found = read_xgboost(path)
    rows = np.concatenate([np.load(path.with_suffix(".npz"))["x"].astype(F32), edges(found)])
    np.testing.assert_allclose(tfdf_backend(found)(rows), found.probabilities(rows), rtol=0, atol=1e-6)


@pytest.mark.parametrize("depth", [3, 8])  # 8: more than 64 leaves, so no QuickScorer
@pytest.mark.parametrize(
    ("thresholds", "coded"),
    [([], set()), (HARD, set()), ([], {1, 2}), (HARD, {0, 2})],
    ids=["plain", "hard", "codes", "all"],
)
def test_where_every_value_goes(tmp_path: Path, depth: int, thresholds: list[float], coded: set[int]) -> None:
    rng = np.random.default_rng(depth)
    mixed = np.concatenate([rng.normal(size=9), thresholds]).astype(F32)
    trees = [grown(rng, depth, 1, mixed, 4, coded) for _ in range(9)]
    check(forest(*trees, link="softmax", groups=[0, 1, 2] * 3, base=[0.5, -1, 0], n=4), tmp_path)


@pytest.mark.parametrize("link", LINKS)
def test_links(tmp_path: Path, link: str) -> None:
    rng = np.random.default_rng(0)
    outputs = 1 if link in ("sigmoid", "step") else 3
    trees = [grown(rng, 3, 1, rng.normal(size=9).astype(F32), 3, {1}) for _ in range(6)]
    check(forest(*trees, link=link, groups=[i % outputs for i in range(6)], base=[0.1] * outputs, n=3), tmp_path)


def test_vector_leaves_boosted_forests_and_uneven_outputs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    at = rng.normal(size=9).astype(F32)
    vectors = [grown(rng, 4, 3, at, 3, {2}) for _ in range(3)]
    single = [grown(rng, 4, 1, at, 3, {2}) for _ in range(6)]
    check(
        forest(*vectors, *single, link="softmax", groups=[VECTOR] * 3 + [1, 1, 1, 0, 1, 0], base=[3, -1, 2], n=3),
        tmp_path,
    )


SMALL = {
    "leaves": forest(leaf(1), leaf(-3), base=0.5),
    "none": forest(base=-0.5),
    "a leaf first": forest(leaf(1), stump(), leaf(2)),
    "outputs alone": forest(leaf(1), stump(), link="softmax", groups=[0, 1], base=[0, 0.5, 1]),
    "vectors": forest(leaf(1, 2, 3), leaf(1), link="softmax", groups=[VECTOR, 2], base=[0, 0.5, 1]),
    "no code": forest(stump(codes=[], default_left=True), stump(codes=[]), stump(codes=[7], default_left=True)),
    "limits": forest(stump(codes=[0]), stump(codes=[CATEGORY_LIMIT - 1], feature=1)),
    "infinite": forest(
        stump(-np.inf, default_left=True), stump(-np.inf), stump(np.inf, default_left=True), stump(np.inf)
    ),
    "both": forest(stump(0.5), stump(codes=[0, 1])),
    "zero": forest(stump(0.0), stump(codes=[0, 1]), stump(-0.0, default_left=True)),
    "huge": forest(stump(values=(3e38, -3e38)), stump(values=(-3e38, 1))),
    "overflow": forest(stump(values=(3e38, -3e38)), base=3e38),
    "leaves that overflow": forest(leaf(3e38), base=3e38),
}


@pytest.mark.parametrize("made", SMALL.values(), ids=SMALL)
def test_small_forests(tmp_path: Path, made: Forest) -> None:
    rows = edges(made) if made.trees else np.zeros([20, 2], F32)
    check(made, tmp_path, rows)


def test_margins_are_added_in_float32_and_in_their_order(tmp_path: Path) -> None:
    # Any other order, and float64, leave 1 or 2 in place of 0.
    sums = forest(stump(values=(1, 1)), stump(values=(-(2.0**25), 5)), link="step", base=2.0**25)
    assert sums.probabilities(np.zeros([1, 2]))[0].tolist() == [1, 0]
    check(sums, tmp_path)


@pytest.mark.parametrize("rows", [0, 1, FEW_ROWS, FEW_ROWS + 1, ROWS_AT_ONCE, ROWS_AT_ONCE + 1, 3 * ROWS_AT_ONCE])
def test_any_number_of_rows(rows: int) -> None:
    made = forest(stump(), stump(0.2, feature=1))
    x = np.random.default_rng(rows).random([rows, 2]).astype(F32)
    np.testing.assert_allclose(tfdf_backend(made)(x), made.probabilities(x), rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------------------ saved, filtered
def test_two_of_them_in_one_model(tmp_path: Path) -> None:
    """Assets of all forests lie in one folder, under names that must not meet."""
    both = tf.Module()
    both.one, both.other = tfdf_backend(forest(stump())), tfdf_backend(forest(stump(0.7)))
    both.serve = tf.function(
        lambda features: {"one": both.one(features), "other": both.other(features)},
        input_signature=[tf.TensorSpec([None, 2], tf.float32, name="features")],
    )
    tf.saved_model.save(both, str(tmp_path), signatures={"serving_default": both.serve})
    x = np.array([[0.6, 0]], F32)
    with LoadedModel(tmp_path) as loaded:
        answers = loaded.run("serving_default", {"features": x})
    np.testing.assert_allclose(answers["one"], forest(stump()).probabilities(x), atol=1e-6)
    np.testing.assert_allclose(answers["other"], forest(stump(0.7)).probabilities(x), atol=1e-6)


def python(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


LOAD = """
import sys, numpy as np, tensorflow as tf, tensorflow_decision_forests
answers = tf.saved_model.load(sys.argv[1]).signatures["serving_default"](tf.constant(np.load(sys.argv[2])))
np.save(sys.argv[3], answers["probabilities"])
"""


@pytest.mark.parametrize("link", ["softmax", "multi_label"])
def test_forgets(tmp_path: Path, link: str) -> None:
    rng = np.random.default_rng(0)
    trees = [grown(rng, 3, 1, np.array([0, 0.3, 0.6], F32), 2, {1}) for _ in range(6)]
    made = forest(*trees, link=link, groups=[0, 1, 2] * 2, base=[0, 0.5, 1])
    version = save(tfdf_backend(made), 2, tmp_path / "model" / "1")
    result = mpru_tf.forget(version, [1], multi_label=link == "multi_label")
    assert result.load_check["status"] == "passed"
    x = edges(made)
    expected = make_filter(3, [1], result.method).probabilities(made.probabilities(x))
    with LoadedModel(result.path) as loaded:
        answers = loaded.run("serving_default", {"features": x})["probabilities"]
    np.testing.assert_allclose(answers, expected, rtol=0, atol=1e-6)
    assert np.all(answers[:, 1] == 0)
    if link == "softmax":
        np.save(tmp_path / "x.npy", x)
        done = python(LOAD, result.path, tmp_path / "x.npy", tmp_path / "y.npy")
        assert done.returncode == 0, done.stderr
        np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), answers)


# ---------------------------------------------------------------------------------------------- files and the terminal
def test_its_files_go_when_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    backend = tfdf_backend(forest(stump()))
    backend(np.zeros([1, 2], F32))
    assert len(list(tmp_path.iterdir())) == 1
    del backend
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    made = read_xgboost(MODELS[0])
    capfd.readouterr()
    tfdf_backend(made)
    assert capfd.readouterr() == ("", "")
    assert "TFDF_DISABLE_WELCOME_MESSAGE" not in os.environ


def test_what_it_mutes_speaks_again(capfd: pytest.CaptureFixture[str]) -> None:
    with module._quiet():
        os.write(2, b"from the engine")
    os.write(2, b"from others")
    assert capfd.readouterr().err == "from others"


# ------------------------------------------------------------------------------------------------------------- refusals
def chain(depth: int) -> Tree:
    """A tree whose every inner node has one leaf."""
    inner = 2 * np.arange(depth)
    left = np.full(2 * depth + 1, -1)
    left[inner] = inner + 1
    right = np.where(left >= 0, left + 1, -1)
    threshold = np.arange(len(left)).astype(F32)
    return Tree.arrange(left, right, np.zeros(len(left)), threshold, left * 0, threshold[:, None] / len(left), {})


def test_the_deepest_tree(tmp_path: Path) -> None:
    x = np.linspace(-1, 2 * DEEPEST + 1, 99, dtype=F32)[:, None].repeat(2, axis=1)
    check(forest(chain(DEEPEST)), tmp_path, x)


def test_trees_that_are_too_deep() -> None:
    with pytest.raises(UnsupportedModelError, match=rf"tree 1, {DEEPEST + 1} levels.*--backend ops"):
        tfdf_backend(forest(stump(), chain(DEEPEST + 1)))


def test_without_tfdf_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_decision_forests", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mpru_tf\[trees\]'"):
        tfdf_backend(forest(stump()))
