"""Conversion: the answers are those of who wrote the model, what is wrong is refused, and nothing is left behind."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
from typer.testing import CliRunner, Result

import mpru_tf
from mpru_tf import cli, conversion
from mpru_tf.conversion import convert_xgboost
from mpru_tf.errors import ForgetListError, LabelsError, MPRUError, VerificationError
from mpru_tf.labels import find_labels
from mpru_tf.manifest import read_manifest
from mpru_tf.saved_model.session import LoadedModel
from mpru_tf.trees import export
from mpru_tf.trees.backends import make_backend
from mpru_tf.trees.forest import Forest, Tree, link_probabilities
from mpru_tf.trees.self_check import LARGEST_DIFFERENCE
from mpru_tf.trees.telling_rows import telling_rows
from mpru_tf.trees.xgboost_model import read_xgboost
from mpru_tf.versions import STAGING_PREFIX

FOLDER = Path(__file__).parent / "trees" / "models"
MODELS = sorted(path for path in FOLDER.iterdir() if path.suffix in (".json", ".ubj"))
CLASSES = FOLDER / "xgboost_3.1_classes.json"
LABELS = ["red", "green", "blue"]

runner = CliRunner()


def run(*arguments: str | Path) -> Result:
    return runner.invoke(cli.app, ["convert", "xgboost", *map(str, arguments)])


def one_paragraph(stderr: str) -> str:
    """Return the reason of a refusal after checking its form."""
    lines = stderr.strip().splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("refused: ")
    return lines[0].removeprefix("refused: ")


def answers(version: Path, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    with LoadedModel(version) as loaded:
        found: npt.NDArray[np.float32] = loaded.run("serving_default", {"features": x})["probabilities"]
    return found


def content(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir())


@pytest.fixture
def no_xgboost(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if XGBoost were not installed: comparing with the reference takes no process of its own."""
    monkeypatch.setitem(sys.modules, "xgboost", None)


@pytest.fixture
def foreign_xgboost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Put another package in XGBoost's place, to do what the real one does only in the wrong version."""

    def put(code: str) -> None:
        package = tmp_path / "packages" / "xgboost"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(code)
        monkeypatch.syspath_prepend(package.parent)

    return put


def installed_xgboost() -> tuple[int, ...]:
    """The version of XGBoost, or skip."""
    if importlib.util.find_spec("xgboost") is None:
        pytest.skip("needs XGBoost, to compare with; it is not installed")
    for name in ("xgboost", "xgboost-cpu"):
        try:
            return tuple(int(part) for part in importlib.metadata.version(name).split(".")[:2])
        except importlib.metadata.PackageNotFoundError:
            continue
    pytest.skip("the version of XGBoost cannot be told")


# ----------------------------------------------------------------------------------------------------------- answers
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_answers_are_those_of_the_version_that_wrote_the_file(path: Path, tmp_path: Path) -> None:
    expected = np.load(path.with_suffix(".npz"))
    result = convert_xgboost(path, tmp_path / "model", self_check=False)
    link = read_xgboost(path).link
    probabilities = answers(result.path, expected["x"])
    margins = expected["margins"].reshape(len(expected["x"]), -1)
    settled = np.abs(margins[:, 0]) > 1e-5 if link == "step" else np.ones(len(margins), bool)
    wanted = link_probabilities(link, margins)[settled]
    np.testing.assert_allclose(probabilities[settled], wanted, rtol=0, atol=LARGEST_DIFFERENCE)
    assert result.self_check == {"status": "skipped", "detail": "not asked for"}
    assert content(tmp_path / "model") == ["1"]


def test_dermatology(shared: Path, tmp_path: Path) -> None:
    folder = shared / "models" / "xgboost"
    result = convert_xgboost(folder / "dermatology6.json", tmp_path)
    lines = (folder / "dermatology6.test").read_text().splitlines()
    x = np.full((len(lines), result.features), np.nan, np.float32)
    for row, line in enumerate(lines):
        for entry in line.split()[1:]:
            feature, value = entry.split(":")
            x[row, int(feature)] = float(value)
    expected = np.loadtxt(folder / "dermatology6.test.prob").reshape(len(x), 6)
    np.testing.assert_allclose(answers(result.path, x), expected, rtol=0, atol=1e-6)
    assert result.self_check["status"] == "passed"


def test_result(tmp_path: Path, no_xgboost: None) -> None:
    steps: list[str] = []
    path = FOLDER / "xgboost_3.4_category_names.json"
    result = convert_xgboost(path, tmp_path, named_inputs=True, classify=True, labels=LABELS, progress=steps.append)
    assert (result.version, result.path, result.model) == (1, tmp_path / "1", path)
    assert result.origin.startswith("XGBoost 3.4")
    assert (result.classes, result.features, result.trees) == (3, 6, 12)
    assert result.feature_names == ("a", "b", "c", "d", "e", "f")
    assert result.feature_types[-1] == "c"
    assert result.signatures == ("classify", "named", "serving_default")
    assert (result.backend, result.choice) == ("ops", "ops, the default")
    assert result.labels == ("red", "green", "blue")
    assert result.forgotten is None
    assert find_labels(result.path) == LABELS
    assert json.loads(json.dumps(result.to_dict()))["path"] == str(tmp_path / "1")
    assert result.bytes == sum(file.stat().st_size for file in result.path.rglob("*") if file.is_file())
    assert steps == ["reading the model", "loading TensorFlow", "writing", "comparing"]


def test_next_version_and_bytes(tmp_path: Path, no_xgboost: None) -> None:
    first = convert_xgboost(CLASSES, tmp_path)
    second = convert_xgboost(CLASSES.read_bytes(), str(tmp_path))
    assert (first.version, second.version) == (1, 2)
    assert second.model is None
    x = telling_rows(read_xgboost(CLASSES), 50)
    np.testing.assert_array_equal(answers(first.path, x), answers(second.path, x))


def test_import_is_light() -> None:
    heavy = ("tensorflow", "keras", "xgboost", "google.protobuf")
    script = f"import sys, mpru_tf.conversion; print(*(m for m in {heavy!r} if m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.split() == []


# -------------------------------------------------------------------------------------------------------------- rows
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_rows_reach_the_leaves_and_the_edges(path: Path) -> None:
    forest = read_xgboost(path)
    rows = telling_rows(forest, 4096)
    assert rows.dtype == np.float32
    assert rows.shape == (4096, forest.n_features)
    np.testing.assert_array_equal(rows, telling_rows(forest, 4096))
    reached = sum(len(np.unique(tree.leaves(rows))) for tree in forest.trees)
    assert reached > 0.97 * sum(int((tree.left < 0).sum()) for tree in forest.trees)
    assert np.isnan(rows).any()
    assert np.isposinf(rows).any()
    assert np.isneginf(rows).any()
    for tree in forest.trees:
        for node in np.flatnonzero((tree.left >= 0) & ~tree.categorical):
            column, threshold = rows[:, tree.feature[node]], tree.threshold[node]
            for value in (threshold, np.nextafter(threshold, np.float32(np.inf)), np.nextafter(threshold, -np.inf)):
                assert np.float32(value) in column
        if tree.categorical.any():
            column = rows[:, tree.feature[np.flatnonzero(tree.categorical)[0]]]
            assert {-1, 2**24} <= set(column.tolist())
            assert set(tree.categories.tolist()) <= set(rows[:, tree.feature[tree.categorical]].ravel().tolist())


def test_rows_of_odd_forests() -> None:
    leaf = Tree.arrange(*[np.array([-1])] * 3, np.zeros(1, np.float32), np.zeros(1), np.ones((1, 1), np.float32), {})
    base = np.zeros(1, np.float32)
    for trees in ((), (leaf,)):
        forest = Forest(trees, np.zeros(len(trees), np.int32), base, n_features=3, link="sigmoid")
        assert telling_rows(forest, 10).shape == (10, 3)
    # At the ends of float32, where there is nothing beyond or between.
    for threshold in (np.inf, -np.inf, np.finfo(np.float32).max, -np.finfo(np.float32).max, 1e-45, 0.0, -0.0):
        tree = Tree.arrange(
            left=np.array([1, 3, -1, -1, -1]),
            right=np.array([2, 4, -1, -1, -1]),
            feature=np.zeros(5, int),
            threshold=np.full(5, threshold, np.float32),
            default_left=np.zeros(5),
            values=np.ones((5, 1), np.float32),
            categories={},
        )
        rows = telling_rows(Forest((tree,), np.zeros(1, np.int32), base, n_features=1, link="sigmoid"), 64)
        assert np.float32(threshold) in rows


# -------------------------------------------------------------------------------------------------------- self-check
@pytest.mark.parametrize("name", ["xgboost_3.1_classes.json", "xgboost_3.2_hinge.ubj", "xgboost_2.0_categories.json"])
def test_compared_with_xgboost(name: str, tmp_path: Path) -> None:
    installed = installed_xgboost()
    # XGBoost goes by the name of a file, we by what is in it.
    model = shutil.copy(FOLDER / name, tmp_path / "model.bin")
    result = convert_xgboost(model, tmp_path / "base", named_inputs=True, classify=True)
    check = result.self_check
    assert check["status"] == "passed"
    assert check["rows"] == 4096
    assert 0 <= check["largest_difference"] <= LARGEST_DIFFERENCE
    if installed >= (3, 2):
        assert check["compared_with"].startswith(f"XGBoost {installed[0]}.{installed[1]}.")
    assert f"{check['largest_difference']:.2g}" in check["detail"]


@pytest.mark.parametrize("all_trees", [False, True])
def test_early_stopping_is_compared_round_for_round(all_trees: bool, tmp_path: Path) -> None:
    installed = installed_xgboost()
    result = convert_xgboost(FOLDER / "xgboost_3.0_early.ubj", tmp_path, all_trees=all_trees)
    assert result.trees == (30 if all_trees else 18)
    assert ("All 5 rounds" if all_trees else "first 3 of 5 rounds") in result.notes[0]
    if installed >= (3, 0):
        assert result.self_check["compared_with"].startswith("XGBoost")


def test_a_file_newer_than_xgboost(tmp_path: Path) -> None:
    installed = installed_xgboost()
    check = convert_xgboost(FOLDER / "xgboost_3.4_dart.ubj", tmp_path).self_check
    if installed >= (3, 4):
        assert check["compared_with"].startswith("XGBoost")
    else:
        assert check["compared_with"] == "the reference"
        assert "older than the file (XGBoost 3.4" in check["detail"]


def test_without_xgboost(tmp_path: Path, no_xgboost: None) -> None:
    check = convert_xgboost(CLASSES, tmp_path, named_inputs=True, classify=True).self_check
    assert check["compared_with"] == "the reference"
    assert check["detail"].startswith("XGBoost is not installed: compared with the reference")
    assert check["largest_difference"] <= LARGEST_DIFFERENCE


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os; os.abort()", "XGBoost could not be asked (it crashed with signal 6): compared with the reference"),
        ("raise ImportError('no libgomp')", "XGBoost could not be asked (ImportError: no libgomp)"),
    ],
)
def test_an_xgboost_that_cannot_be_asked(
    code: str, words: str, tmp_path: Path, foreign_xgboost: Callable[[str], None]
) -> None:
    foreign_xgboost(code)
    check = convert_xgboost(CLASSES, tmp_path / "model").self_check
    assert check["detail"].startswith(words)
    assert check["compared_with"] == "the reference"


ZEROS = """
import numpy
__version__ = {version!r}
class Booster:
    def load_model(self, path): assert path.is_file()
    def attr(self, name): return None
    def num_boosted_rounds(self): return 4
    def inplace_predict(self, rows, **options): return numpy.zeros([len(rows), 3], "float32")
"""


def test_an_xgboost_that_answers_otherwise(tmp_path: Path, foreign_xgboost: Callable[[str], None]) -> None:
    foreign_xgboost(ZEROS.format(version="9.0.0"))
    with pytest.raises(VerificationError) as raised:
        convert_xgboost(CLASSES, tmp_path / "model")
    assert "compared with XGBoost 9.0.0, a difference of 0." in str(raised.value)
    assert "nothing was published" in str(raised.value)
    assert not (tmp_path / "model").exists()


def test_an_old_xgboost_that_answers_otherwise(tmp_path: Path, foreign_xgboost: Callable[[str], None]) -> None:
    foreign_xgboost(ZEROS.format(version="2.1.4"))
    check = convert_xgboost(CLASSES, tmp_path / "model").self_check
    assert "XGBoost 2.1.4 is older than the file (XGBoost 3.1." in check["detail"]
    assert check["compared_with"] == "the reference"


def test_an_xgboost_of_other_outputs(tmp_path: Path, foreign_xgboost: Callable[[str], None]) -> None:
    foreign_xgboost(ZEROS.format(version="9.0.0").replace("3]", "2]"))
    check = convert_xgboost(CLASSES, tmp_path / "model").self_check
    assert check["detail"].startswith("XGBoost 9.0.0 answers [4096, 2] for 4096 rows: compared with the reference")


def test_a_wrong_backend_is_refused(tmp_path: Path, no_xgboost: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def slightly_wrong(forest: Forest, backend: str) -> Any:
        tree = forest.trees[5]
        values = tree.values.copy()
        values[-1] += np.float32(1e-4)  # one leaf
        trees = (*forest.trees[:5], replace(tree, values=values), *forest.trees[6:])
        return make_backend(replace(forest, trees=trees), backend)

    monkeypatch.setattr(conversion, "make_backend", slightly_wrong)
    (tmp_path / "model").mkdir()
    with pytest.raises(VerificationError, match="compared with the reference, a difference of"):
        convert_xgboost(CLASSES, tmp_path / "model")
    assert content(tmp_path / "model") == []


def test_a_wrong_signature_is_refused(tmp_path: Path, no_xgboost: None, monkeypatch: pytest.MonkeyPatch) -> None:
    write = export.write_saved_model

    def swapped(forest: Forest, *arguments: Any, **options: Any) -> None:
        names = ("f1", "f0", *(f"f{index}" for index in range(2, forest.n_features)))
        write(replace(forest, feature_names=names), *arguments, **options)

    monkeypatch.setattr(export, "write_saved_model", swapped)
    with pytest.raises(VerificationError, match="Received: named"):
        convert_xgboost(CLASSES, tmp_path / "model", named_inputs=True)
    with pytest.raises(VerificationError, match="Received: classify"):
        convert_xgboost(CLASSES, tmp_path / "model", classify=True)
    assert not (tmp_path / "model").exists()


# ---------------------------------------------------------------------------------------------------------- backends
def test_batch_size(tmp_path: Path, no_xgboost: None) -> None:
    result = convert_xgboost(CLASSES, tmp_path, batch_size=64)
    assert result.batch_size == 64
    if importlib.util.find_spec("tensorflow_decision_forests") is None:
        assert result.backend == "ops"
        assert result.choice == "only ops was there to choose: TensorFlow Decision Forests is not installed"
    else:
        assert result.seconds_per_request is not None
        assert set(result.seconds_per_request) == {"ops", "tfdf"}


def test_the_faster_backend_is_published(tmp_path: Path, no_xgboost: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are timed for real; the other backend is the same one behind something slow."""

    class Slow(tf.Module):  # type: ignore[misc]
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        @tf.function(autograph=False)
        def __call__(self, features: Any) -> Any:
            big = tf.random.uniform([400, 400])
            return self.inner(features) + 0 * tf.reduce_sum(big @ big @ big)

    def backends(forest: Forest, backend: str) -> Any:
        made = make_backend(forest, "ops")
        return Slow(made) if backend == "ops" else made

    monkeypatch.setattr(conversion, "make_backend", backends)
    result = convert_xgboost(CLASSES, tmp_path, batch_size=3)
    assert result.backend == "tfdf"
    assert result.seconds_per_request is not None
    ratio = result.seconds_per_request["ops"] / result.seconds_per_request["tfdf"]
    assert ratio > 1
    assert result.choice.startswith(f"tfdf: {ratio:.3g} times faster than ops at batch size 3 (")
    assert content(tmp_path) == ["1"]


# -------------------------------------------------------------------------------------------------------- forgetting
def test_only_the_filtered_version_is_published(tmp_path: Path, no_xgboost: None) -> None:
    base = tmp_path / "model"
    result = convert_xgboost(CLASSES, base, forget=1, method="renormalize", classify=True)
    assert content(base) == ["1"]
    x = telling_rows(read_xgboost(CLASSES), 200)
    raw, filtered = read_xgboost(CLASSES).probabilities(x), answers(base / "1", x)
    assert np.all(filtered[:, 1] == 0)
    np.testing.assert_allclose(filtered[:, [0, 2]], raw[:, [0, 2]] / raw[:, [0, 2]].sum(1, keepdims=True), atol=1e-5)
    forgotten = result.forgotten
    assert forgotten is not None
    assert (forgotten.version, forgotten.path, forgotten.source) == (1, base / "1", CLASSES)
    assert (forgotten.forgotten, forgotten.method) == ((1,), "renormalize")
    assert forgotten.load_check["status"] == "passed"
    manifest = read_manifest(base / "1")
    assert manifest is not None
    assert manifest.source["path"] == str(CLASSES)
    assert manifest.source["version"] is None
    assert mpru_tf.verify(base).passed
    # And from there on as with any version.
    again = mpru_tf.forget(base, [0])
    assert (again.version, again.forgotten) == (2, (0, 1))
    assert np.all(answers(again.path, x)[:, :2] == 0)
    history = mpru_tf.history(base)
    assert history.verified
    assert [(step.version, step.status, step.forgotten) for step in history.steps] == [
        (None, "missing", ()),
        (1, "verified", (1,)),
        (2, "verified", (0, 1)),
    ]


def test_labels(tmp_path: Path, no_xgboost: None) -> None:
    (tmp_path / "colours.json").write_text(json.dumps(LABELS))
    base = tmp_path / "model"
    result = convert_xgboost(CLASSES, base, labels=tmp_path / "colours.json", forget=["green"], load_check=False)
    assert result.forgotten is not None
    assert result.forgotten.labels == ("green",)
    assert mpru_tf.forget(base, ["blue"], load_check=False).forgotten == (1, 2)


def test_redacted_labels_are_nowhere(tmp_path: Path, no_xgboost: None) -> None:
    model = Path(shutil.copy(CLASSES, tmp_path / "Alice Example.json"))
    labels = ["Bob Example", "Alice Example", "Carol Example"]
    options = {"labels": labels, "classify": True, "redact_labels": True}
    result = convert_xgboost(model, tmp_path / "model", forget="Alice Example", **options)
    for file in result.path.rglob("*"):
        assert not file.is_file() or b"Alice" not in file.read_bytes(), file
    assert find_labels(result.path) == ["Bob Example", "forgotten_1", "Carol Example"]


def test_each_label_on_its_own(tmp_path: Path, no_xgboost: None) -> None:
    path = FOLDER / "xgboost_3.3_labels.ubj"
    result = convert_xgboost(path, tmp_path, forget=[2])
    assert result.forgotten is not None
    assert result.forgotten.method == "mask"
    x = np.load(path.with_suffix(".npz"))["x"]
    raw, filtered = read_xgboost(path).probabilities(x), answers(result.path, x)
    assert np.all(filtered[:, 2] == 0)
    np.testing.assert_allclose(filtered[:, :2], raw[:, :2], rtol=0, atol=1e-6)


def test_class_means(tmp_path: Path, no_xgboost: None) -> None:
    x = np.load(CLASSES.with_suffix(".npz"))["x"]
    np.savez(tmp_path / "data.npz", x=x, y=read_xgboost(CLASSES).probabilities(x).argmax(axis=1))
    options = {"forget": [0], "method": "mean", "calibration": tmp_path / "data.npz", "load_check": False}
    with pytest.raises(MPRUError, match=r"0\.8"):  # four rounds of boosting are sure of nothing
        convert_xgboost(CLASSES, tmp_path / "model", **options)
    assert not (tmp_path / "model").exists()
    result = convert_xgboost(CLASSES, tmp_path / "model", force=True, **options)
    assert result.forgotten is not None
    assert result.forgotten.method == "mean"


def test_nothing_comes_back(tmp_path: Path, no_xgboost: None) -> None:
    convert_xgboost(CLASSES, tmp_path, forget=[1], load_check=False)
    for forget in ((), [0]):
        with pytest.raises(ForgetListError, match="would answer classes again that version 1"):
            convert_xgboost(CLASSES, tmp_path, forget=forget, load_check=False)
    assert content(tmp_path) == ["1"]
    assert convert_xgboost(CLASSES, tmp_path, forget=[0, 1], load_check=False).version == 2


KILLED = """
import os, signal, sys
from mpru_tf import convert_xgboost
def progress(step):
    if step == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)
convert_xgboost(sys.argv[1], sys.argv[2], forget=[1], progress=progress)
"""


def test_killed_at_any_step(tmp_path: Path, no_xgboost: None) -> None:
    steps = ["loading TensorFlow", "forgetting"]
    commands = [[sys.executable, "-c", KILLED, CLASSES, tmp_path / step, step] for step in steps]
    processes = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for command in commands]
    assert [process.wait(timeout=120) for process in processes] == [-9, -9]
    for step in steps:
        assert [name.startswith(STAGING_PREFIX) for name in content(tmp_path / step)] == [True]
        convert_xgboost(CLASSES, tmp_path / step, self_check=False)
        assert content(tmp_path / step) == ["1"]


# ---------------------------------------------------------------------------------------------------------- refusals
def text_dump(path: Path) -> None:
    path.write_text("booster[0]:\n0:[f0<0.5] yes=1,no=2,missing=1\n")


def truncated(path: Path) -> None:
    path.write_bytes(CLASSES.read_bytes()[:-100])


def regression(path: Path) -> None:
    path.write_bytes(CLASSES.read_bytes().replace(b"multi:softprob", b"reg:squarederror"))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def folder(path: Path) -> None:
    path.mkdir()


def absent(path: Path) -> None:
    assert not path.exists()


class TestRefusals:
    """Each leaves one paragraph on stderr, nothing on stdout, and nothing in the base path."""

    @pytest.mark.parametrize("make", [text_dump, truncated, regression, empty, folder, absent])
    def test_models(self, make: Callable[[Path], None], tmp_path: Path) -> None:
        make(tmp_path / "model.json")
        result = run(tmp_path / "model.json", "--out", tmp_path / "base", "--json")
        assert result.exit_code == 1
        assert result.stdout == ""
        assert len(one_paragraph(result.stderr)) > 40
        assert not (tmp_path / "base").exists()

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--forget", "3"], "0 to 2"),
            (["--forget", "green"], "no labels"),
            (["--forget", "0,1,2"], "All 3 classes"),
            (["--forget", ""], "No class to forget is named"),
            (["--labels", "{two}"], "2 labels for 3 classes"),
            (["--labels", "{absent}"], "absent"),
            (["--method", "mean"], "no class to forget is named"),
            (["--redact-labels"], "no class to forget is named"),
            (
                ["--forget", "1", "--redact-labels", "--skip-load-check"],
                "of the forgotten classes are not known",
            ),
            (["--forget", "1", "--method", "mean", "--skip-load-check"], "class means"),
            (["--forget", "1", "--method", "mask", "--skip-load-check"], "method does not fit"),
            (["--forget", "1", "--class-means", "{absent}"], "absent"),
        ],
    )
    def test_options(self, options: list[str], words: str, tmp_path: Path, no_xgboost: None) -> None:
        (tmp_path / "two").write_text("a\nb\n")
        given = [
            option.replace("{two}", str(tmp_path / "two")).replace("{absent}", str(tmp_path / "absent"))
            for option in options
        ]
        result = run(CLASSES, "--out", tmp_path / "base", *given)
        assert result.exit_code == 1, result.stdout
        assert result.stdout == ""
        assert words in one_paragraph(result.stderr)
        assert not (tmp_path / "base").exists()

    def test_base_paths(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        (tmp_path / "version" / "1").mkdir(parents=True)
        (tmp_path / "version" / "1" / "saved_model.pb").write_bytes(b"")
        for out, words in (
            (tmp_path / "file", "is a file"),
            (tmp_path / "version" / "1", "itself a version directory"),
            ("gs://bucket/model", "Object stores"),
        ):
            result = run(CLASSES, "--out", out)
            assert result.exit_code == 1
            assert words in one_paragraph(result.stderr)
        assert content(tmp_path / "version" / "1") == ["saved_model.pb"]

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere")
        tmp_path.chmod(0o555)
        assert "written" in one_paragraph(run(CLASSES, "--out", tmp_path / "base").stderr)

    def test_a_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(forest: Forest, directory: Path, *arguments: Any, **options: Any) -> None:
            (directory / "saved_model.pb").write_bytes(b"half of it")
            raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

        monkeypatch.setattr(export, "write_saved_model", full)
        result = run(CLASSES, "--out", tmp_path / "base", "--skip-self-check")
        assert result.exit_code == 1
        assert "No space left on device" in one_paragraph(result.stderr)
        assert not (tmp_path / "base").exists()

    def test_a_backend_that_is_not_there(self, tmp_path: Path) -> None:
        if importlib.util.find_spec("tensorflow_decision_forests") is not None:
            pytest.skip("TensorFlow Decision Forests is installed")
        result = run(CLASSES, "--out", tmp_path / "base", "--backend", "tfdf")
        assert result.exit_code == 1
        assert "mpru_tf[trees]" in one_paragraph(result.stderr)
        assert not (tmp_path / "base").exists()

    def test_from_python(self, tmp_path: Path) -> None:
        for options, words in (
            ({"backend": "xla"}, "no such backend"),
            ({"backend": "ops", "batch_size": 1}, "one of the two"),
            ({"batch_size": 0}, "no such batch size"),
            ({"batch_size": 10**9}, "does not fit into memory"),
            ({"forget": [0], "class_means": "a", "calibration": "b"}, "from one place"),
        ):
            with pytest.raises(MPRUError, match=words):
                convert_xgboost(CLASSES, tmp_path / "base", **options)
        with pytest.raises(LabelsError, match="on one line"):
            convert_xgboost(CLASSES, tmp_path / "base", labels=["a", "b\nc", "d"], self_check=False)
        assert not (tmp_path / "base").exists()

    def test_more_features_than_a_request_holds(self, tmp_path: Path) -> None:
        found = json.loads(CLASSES.read_bytes())
        found["learner"]["learner_model_param"]["num_feature"] = str(2**30)
        found["learner"]["feature_names"] = found["learner"]["feature_types"] = []
        with pytest.raises(MPRUError, match="more features than a request can hold"):
            convert_xgboost(json.dumps(found).encode(), tmp_path / "base")


# ------------------------------------------------------------------------------------------------------ command line
class TestCommand:
    def test_help(self) -> None:
        assert "xgboost" in runner.invoke(cli.app, ["convert"]).stdout
        assert "convert" in runner.invoke(cli.app, ["--help"]).stdout
        result = run("--help")
        assert result.exit_code == 0
        assert "$ mpru-tf convert xgboost model.json --out" in result.stdout

    def test_the_backends_are_all_offered(self) -> None:
        assert [backend.value for backend in cli.Backend] == list(conversion.BACKENDS)

    @pytest.mark.parametrize(
        "arguments",
        [
            [],
            ["model.json"],
            ["model.json", "--out", "base", "--backend", "xla"],
            ["model.json", "--out", "base", "--batch-size", "0"],
            ["model.json", "--out", "base", "--backend", "ops", "--batch-size", "1"],
            ["model.json", "--out", "base", "--forget", "1", "--class-means", "a.json", "--calibration", "b.npz"],
        ],
    )
    def test_wrong_usage(self, arguments: list[str]) -> None:
        result = run(*arguments)
        assert result.exit_code == 2
        assert "Usage" in result.stderr

    def test_summary(self, tmp_path: Path, no_xgboost: None) -> None:
        (tmp_path / "labels.txt").write_text("\n".join(LABELS))
        options = ["--labels", tmp_path / "labels.txt", "--forget", "green,blue", "--classify"]
        result = run(FOLDER / "xgboost_3.0_early.ubj", "--out", tmp_path / "base", *options)
        assert result.exit_code == 0, result.stderr
        said = " ".join(result.stdout.split())
        for words in (
            "version 1 written",
            "XGBoost 3.0",
            "3: red, green, blue",
            "classify, serving_default",
            "ops, the default",
            "XGBoost is not installed: compared with the reference, largest difference",
            "first 3 of 5 rounds",
            "1 (green), 2 (blue)",
            "leak gate passed",
            "The weights in the file still hold the class",
        ):
            assert words in said

    def test_json_and_nothing_else(self, tmp_path: Path) -> None:
        """As a program, where TensorFlow and XGBoost write to the terminal as they like."""
        command = [sys.executable, "-m", "mpru_tf.cli", "convert", "xgboost", str(CLASSES), "--out", str(tmp_path)]
        environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
        done = subprocess.run([*command, "--json"], capture_output=True, text=True, env=environment, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        found = json.loads(done.stdout)
        assert (found["version"], found["classes"], found["forgotten"]) == (1, 3, None)
        assert found["self_check"]["largest_difference"] <= LARGEST_DIFFERENCE


def test_tfdf_is_not_timed_with_hundreds_of_outputs() -> None:
    written = conversion._written(None, 4, 257, Path)
    assert list(written.directories) == ["ops"]
    assert "more than 256 outputs" in str(written.left_out)
