"""The script export_tfdf.py, run as a person runs it."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpru_tf
from mpru_tf.errors import MissingExtraError
from mpru_tf.filters import make_filter
from mpru_tf.labels import find_labels
from mpru_tf.saved_model.session import LoadedModel
from mpru_tf.trees.tfdf_backend import import_tfdf

SCRIPT = Path(__file__).parents[1] / "export_scripts" / "export_tfdf.py"


def script(*arguments: str | Path, blocked: Path | None = None) -> subprocess.CompletedProcess[str]:
    paths = [str(path) for path in (blocked, SCRIPT.parents[1]) if path is not None]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def refused(done: subprocess.CompletedProcess[str], base: Path) -> str:
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("refused: ")
    assert len(done.stderr.splitlines()) == 1
    assert not base.exists()
    return done.stderr


@pytest.fixture
def _tfdf() -> None:
    try:
        import_tfdf()
    except MissingExtraError as error:
        pytest.skip(f"needs the extra 'trees': {error}")


def write(path: Path, features: int, classes: int, rows: int = 600) -> Path:
    """Rows of classes that lie some way apart."""
    random = np.random.default_rng(0)
    y = random.integers(classes, size=rows)
    x = random.normal(size=[rows, features]).astype("float32")
    x[:, 0] += y
    x[:, 1] -= 2 * y
    np.savez(path, X=x, y=y)
    return path


def answers(version: Path, x: Any) -> Any:
    with LoadedModel(version) as model:
        (key,) = model.signatures["serving_default"].inputs
        (scores,) = model.run("serving_default", {key: x}).values()
    return scores


@pytest.mark.usefixtures("_tfdf")
def test_trains_exports_and_forgets(tmp_path: Path) -> None:
    data, base = write(tmp_path / "data.npz", 54, 7), tmp_path / "models" / "forest"
    options = ["--model", "random_forest", "--trees", "3", "--rows", "400", "--forget", "Aspen,index:0"]
    done = script("--data", data, "--out", base, *options)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].startswith("trained random_forest on 300 rows")
    assert lines[1] == f"exported {base / '1'} (probabilities of 7 classes)"
    assert lines[2].endswith("on 100 rows")
    assert lines[3].startswith(f"exported {base / '2'} with ['Spruce/Fir', 'Aspen'] forgotten")
    assert "rows of retained classes" in lines[4]
    assert len(lines) == 5
    assert sorted(child.name for child in base.iterdir()) == ["1", "2"]
    assert mpru_tf.inspect(base).forgotten == (0, 4)
    labels = find_labels(base / "1")
    assert labels is not None
    assert labels[6] == "Krummholz"
    x = np.load(data)["X"]
    before, after = answers(base / "1", x), answers(base / "2", x)
    assert set(np.round(3 * before).ravel()) == {0, 1, 2, 3}  # three trees have voted
    assert np.mean(before.argmax(axis=1) == np.load(data)["y"]) > 0.5
    np.testing.assert_allclose(after, make_filter(7, [0, 4]).probabilities(before), rtol=0, atol=1e-6)
    assert np.all(after[:, [0, 4]] == 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "nothing.npz"], "nothing.npz"),
        (["--data", "{text}"], "cannot be read"),
        (["--data", "{floats}"], "one class each"),
        (["--data", "{data}", "--rows", "2"], "Take more with --rows"),
        (["--data", "{data}", "--forget", "Oak"], "Oak"),
        (["--data", "{data}", "--forget", "0,1,2"], "at least one must be retained"),
    ],
)
def test_refusals(tmp_path: Path, arguments: list[str], words: str) -> None:
    (tmp_path / "text").write_text("no archive")
    np.savez(tmp_path / "floats.npz", X=np.zeros([4, 2]), y=np.zeros(4))
    write(tmp_path / "data.npz", 3, 3)
    names = {"text": tmp_path / "text", "floats": tmp_path / "floats.npz", "data": tmp_path / "data.npz"}
    done = script("--out", tmp_path / "base", *[argument.format(**names) for argument in arguments])
    assert words in refused(done, tmp_path / "base")


@pytest.mark.usefixtures("_tfdf")
def test_every_learner_is_one_of_tfdf() -> None:
    scope = runpy.run_path(str(SCRIPT))
    assert scope["parse"](["--out", "base"]).model == "boosted_trees"
    assert all(hasattr(import_tfdf().keras, name) for name in scope["LEARNERS"].values())


def test_without_tfdf_the_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "tensorflow_decision_forests.py").write_text("raise ImportError('not installed')")
    data = write(tmp_path / "data.npz", 3, 3)
    done = script("--data", data, "--out", tmp_path / "base", blocked=tmp_path / "blocked")
    assert "pip install 'mpru_tf[trees]'" in refused(done, tmp_path / "base")


@pytest.mark.parametrize("arguments", [["--rows", "0"], ["--model", "oak"], ["--trees", "many"]])
def test_wrong_usage(tmp_path: Path, arguments: list[str]) -> None:
    done = script("--out", tmp_path / "base", *arguments)
    assert done.returncode == 2
    assert "usage:" in done.stderr
    assert "Traceback" not in done.stderr
